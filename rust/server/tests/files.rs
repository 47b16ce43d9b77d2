//! Audio files by POST, and Ogg Opus by POST and in pieces.

mod support;

use moshi_ctl_core::units::{FRAME_SAMPLES, TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};
use serde_json::json;
use support::client::words;
use support::model::{frame, frames};
use support::{Client, DELAY, KEY, Msg, PATH, Setup, http, ogg, wav};

const END: u32 = TEXT_TOKEN_END_OF_PADDING;
const PAD: u32 = TEXT_TOKEN_PADDING;
/// Far apart, so that 16 bits and a resampler's ripple leave them what they are.
const TOKENS: [u32; 8] = [PAD, PAD, END, 10, 10, 10, PAD, END];

/// The tokens' audio at another rate and with this many channels.
fn at(rate_hz: u32, channels: usize, tokens: &[u32]) -> Vec<f32> {
    let samples = FRAME_SAMPLES * rate_hz as usize / 24_000;
    let pcm = tokens.iter().flat_map(|&token| {
        // Left and right differ, but their mean is the token.
        let value = token as f32 / 1000.0;
        let values = if channels == 2 { [value * 1.5, value * 0.5] } else { [value; 2] };
        values[..channels].repeat(samples)
    });
    pcm.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wav_file_becomes_a_list_of_words() {
    let server = Setup::new(1).start().await;
    let body = wav::mono(24_000, &frames(&TOKENS));
    let answer = http::post(server.local_addr(), PATH, KEY, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.headers.contains("application/json"));
    assert_eq!(
        answer.json(),
        json!([
            {"type": "Word", "text": "w10 w10 w10", "start_time": 0.0},
            {"type": "EndWord", "stop_time": 5.0 / 12.5},
        ])
    );
    support::wait_until_free(server.local_addr()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_and_channels_do_not_matter() {
    let server = Setup::new(1).start().await;
    // A resampler rings where frames meet: the first sample of a frame is no word of its own, so
    // only audio whose neighbours are alike is told apart.
    let tokens = [[50; 10], [50; 10], [50; 10]].concat();
    for rate_hz in [8_000, 16_000, 24_000, 44_100, 48_000] {
        for channels in [1, 2] {
            let pcm = at(rate_hz, channels, &tokens);
            let body = wav::interleaved(rate_hz, channels as u16, &pcm);
            let answer = http::post(server.local_addr(), PATH, KEY, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            // All 30 frames but the two before the delay; then silence, which ends the word.
            let words = answer.json();
            let text = words[0]["text"].as_str().unwrap();
            assert!(text.matches("w50").count() >= 27, "{rate_hz} Hz x {channels}: {words}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_audio_are_explained() {
    let server = Setup::new(1).start().await;
    let addr = server.local_addr();
    let no_samples = wav::mono(24_000, &[]);
    let cut_opus = &ogg::encode(&[0.1; 4800], 1, 960, 1)[..500];
    for (body, status, says) in [
        (&b""[..], 400, "empty"),
        (b"this is not audio at all", 415, "WAV, MP3, FLAC"),
        (&[0; 4096], 415, "WAV, MP3, FLAC"),
        (&no_samples, 400, "no samples"),
        (cut_opus, 400, "no samples"),
    ] {
        let answer = http::post(addr, PATH, KEY, body).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        let error = answer.json()["error"].as_str().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
    support::wait_until_free(addr).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_waits_its_turn_like_any_stream() {
    let server = Setup::new(2).start().await;
    let addr = server.local_addr();
    let file = tokio::spawn(async move {
        let tokens: Vec<u32> = TOKENS.iter().copied().cycle().take(7500).collect();
        http::post(addr, PATH, KEY, &wav::mono(24_000, &frames(&tokens))).await
    });
    let mut client = Client::ready(addr).await;
    client.audio(&frames(&TOKENS)).await;
    client.marker(1).await;
    client.audio(&frames(&[PAD; DELAY])).await;
    assert_eq!(words(&client.until_marker(1).await), ["w10 w10 w10"]);
    let answer = file.await.unwrap();
    let ends = answer.json().as_array().unwrap().iter().filter(|m| m["type"] == "EndWord").count();
    // One more than whole rounds: the silence after the file ends its last word.
    assert_eq!((answer.status, ends), (200, 7500 / TOKENS.len() + 1));
}

/// Loud enough everywhere that the codec's error does not change a token.
fn tone() -> Vec<f32> {
    (0..48_000 * 2).map(|i| (i as f32 * 0.05).sin() * 0.5).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn opus_says_the_same_in_any_pieces() {
    let server = Setup::new(1).model(|model| model.vad_heads = 1).start().await;
    let addr = server.local_addr();
    for packet_ms_x10 in [25, 50, 100, 200, 400, 600] {
        for (channels, per_page) in [(1, 1), (1, 7), (2, 50)] {
            let packet_samples = 48 * packet_ms_x10 / 10;
            let mono = tone();
            let pcm =
                if channels == 2 { mono.iter().flat_map(|&s| [s, s]).collect() } else { mono };
            let stream = ogg::encode(&pcm, channels, packet_samples, per_page);
            let mut expected = None;
            for piece in [1000, stream.len(), 77] {
                let mut client = Client::ready(addr).await;
                for bytes in stream.chunks(piece) {
                    client.opus(bytes).await;
                }
                client.marker(1).await;
                client.audio(&frames(&[PAD; DELAY + 1])).await;
                let heard = client.until_marker(1).await;
                let steps = heard.iter().filter(|m| matches!(m, Msg::Step { .. })).count();
                // Two seconds are 25 frames; the marker comes the delay after them.
                assert_eq!(steps, 25 + DELAY, "{packet_ms_x10}/10 ms, {channels}, {per_page}");
                let said = words(&heard).join(",");
                assert_eq!(expected.get_or_insert_with(|| said.clone()), &said, "by {piece}");
                drop(client);
                support::wait_until_free(addr).await;
            }
            let answer = http::post(addr, PATH, KEY, &stream).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_opus_page_is_explained() {
    let server = Setup::new(1).start().await;
    let mut stream = ogg::encode(&tone(), 1, 960, 5);
    let last = stream.len() - 10;
    stream[last] ^= 1;
    let mut client = Client::ready(server.local_addr()).await;
    client.opus(&stream).await;
    let (error, code) = client.error_and_close().await;
    assert!(error.contains("checksum"), "{error}");
    assert_eq!(code, 1007);
    // And the lane is as good as new.
    support::wait_until_free(server.local_addr()).await;
    let mut client = Client::ready(server.local_addr()).await;
    client.audio(&frame(PAD)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_samples_are_no_numbers_is_refused() {
    let server = Setup::new(1).start().await;
    let mut body = wav::mono(24_000, &[]);
    // The same header for 32-bit floats, and one of them NaN.
    let data = [[0.0f32; 1920], [f32::NAN; 1920]].concat();
    body[4..8].copy_from_slice(&(36 + data.len() as u32 * 4).to_le_bytes());
    body[20..22].copy_from_slice(&3u16.to_le_bytes());
    body[28..32].copy_from_slice(&96_000u32.to_le_bytes());
    body[32..36].copy_from_slice(&[4, 0, 32, 0]);
    body[40..44].copy_from_slice(&(data.len() as u32 * 4).to_le_bytes());
    body.extend(data.iter().flat_map(|sample| sample.to_le_bytes()));
    let answer = http::post(server.local_addr(), PATH, KEY, &body).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("not finite"), "{}", answer.text());
    support::wait_until_free(server.local_addr()).await;
}
