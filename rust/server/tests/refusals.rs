//! Who is not served, or not any further, and what they are told; and that nobody else notices.

mod support;

use futures_util::SinkExt;
use moshi_ctl_core::units::{TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};
use moshi_ctl_server::worker::Worker;
use support::client::words;
use support::model::{frame, frames};
use support::token::{HS256, expiring_in, message, signed};
use support::{Client, DELAY, KEY, Msg, PATH, Setup, credentials, http, used_slots, wav};
use tokio_tungstenite::tungstenite::{Error, Message};

const END: u32 = TEXT_TOKEN_END_OF_PADDING;
const PAD: u32 = TEXT_TOKEN_PADDING;
const HEADER: &str = "kyutai-api-key";

#[tokio::test(flavor = "multi_thread")]
async fn only_a_key_opens_a_module() {
    let server = Setup::new(1).start().await;
    let addr = server.local_addr();
    let long = vec![b'x'; 8000];
    let with_auth = |key: &str| format!("{PATH}?auth_id={key}");
    let no_headers: &[(&str, &[u8])] = &[];
    for (path, headers) in [
        (PATH.to_string(), no_headers),
        (PATH.to_string(), &[(HEADER, b"wrong" as &[u8])]),
        (PATH.to_string(), &[(HEADER, b"")]),
        (PATH.to_string(), &[(HEADER, b"\xff\xfe")]),
        (PATH.to_string(), &[(HEADER, &long)]),
        (PATH.to_string(), &[(HEADER, b"wrong"), (HEADER, KEY.as_bytes())]),
        (with_auth("wrong"), no_headers),
        (with_auth("test%20key&auth_id=test%20key"), no_headers),
        // The header counts where there is one.
        (with_auth("test%20key"), &[(HEADER, b"wrong")]),
    ] {
        let refused = Client::request(addr, &path, headers).await.err();
        let Some(Error::Http(response)) = refused else { panic!("{path} {headers:?}: let in") };
        assert_eq!(response.status(), 401, "{path} {headers:?}");
        for method in ["GET", "POST"] {
            let answer = http::request(addr, method, &path, headers, b"").await;
            assert_eq!(answer.status, 401, "{method} {path} {headers:?}");
        }
    }
    assert_eq!(used_slots(addr).await, "0");
    for (path, headers) in [
        (with_auth("test%20key"), no_headers),
        (PATH.to_string(), &[(HEADER, KEY.as_bytes())]),
        (with_auth("wrong"), &[(HEADER, b"other")]),
    ] {
        let mut client = Client::request(addr, &path, headers).await.unwrap();
        assert_eq!(client.next().await, Some(Msg::Ready));
        drop(client);
        support::wait_until_free(addr).await;
    }
    let no_upgrade = http::request(addr, "GET", PATH, &[(HEADER, KEY.as_bytes())], b"").await;
    assert!((400..500).contains(&no_upgrade.status) && no_upgrade.status != 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_a_module_as_a_key_does() {
    let secret = "a secret of thirty-two bytes or more";
    let setup = Setup::new(1);
    let mut options = Setup::options();
    options.credentials = credentials(&["other", KEY], Some(secret));
    let server = Worker::start(setup.config(), options, setup.load()).await.unwrap();
    let addr = server.local_addr();
    let audio = wav::mono(24_000, &frame(PAD));
    let in_header = |token: &str| (PATH.to_string(), vec![(HEADER, token.as_bytes().to_vec())]);
    let in_query = |token: &str| (format!("{PATH}?auth_id={token}"), vec![]);

    let good = signed(secret, HS256, &expiring_in(600));
    let unsigned = format!("{}.", message(r#"{"alg":"none"}"#, &expiring_in(600)));
    for token in [
        signed(secret, HS256, &expiring_in(-1)),
        signed(secret, HS256, "{}"),
        signed("another secret", HS256, &expiring_in(600)),
        signed(secret, r#"{"alg":"HS512"}"#, &expiring_in(600)),
        unsigned,
        good[..good.len() - 1].to_string(),
        format!("{good}x"),
        secret.replace(' ', "%20"),
        "x".repeat(8000),
    ] {
        for (path, headers) in [in_header(&token), in_query(&token)] {
            let headers: Vec<_> = headers.iter().map(|(name, key)| (*name, &key[..])).collect();
            let refused = Client::request(addr, &path, &headers).await.err();
            let Some(Error::Http(response)) = refused else { panic!("{token}: let in") };
            assert_eq!(response.status(), 401, "{token}");
            let answer = http::request(addr, "POST", &path, &headers, &audio).await;
            assert_eq!(answer.status, 401, "{token}");
            assert!(!answer.text().contains(&token), "{token}");
        }
    }
    assert_eq!(used_slots(addr).await, "0");

    for (path, headers) in [in_header(&good), in_query(&good), in_header(KEY)] {
        let headers: Vec<_> = headers.iter().map(|(name, key)| (*name, &key[..])).collect();
        let mut client = Client::request(addr, &path, &headers).await.unwrap();
        assert_eq!(client.next().await, Some(Msg::Ready));
        drop(client);
        support::wait_until_free(addr).await;
        assert_eq!(http::request(addr, "POST", &path, &headers, &audio).await.status, 200);
        support::wait_until_free(addr).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_too_many_is_told_so() {
    let server = Setup::new(2).start().await;
    let addr = server.local_addr();
    let first = Client::ready(addr).await;
    let mut second = Client::ready(addr).await;
    let mut third = Client::connect(addr).await;
    assert_eq!(third.error_and_close().await, ("no free channels".to_string(), 1013));
    second.audio(&frame(PAD)).await;
    let answer = http::post(addr, PATH, KEY, &support::wav::mono(24_000, &frame(PAD))).await;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.to_lowercase().contains("retry-after: "), "{}", answer.headers);
    // Both seats still work, and a free one is given away again.
    drop(first);
    while Client::connect(addr).await.next().await != Some(Msg::Ready) {}
    second.marker(1).await;
    second.audio(&frames(&[PAD; DELAY])).await;
    assert_eq!(second.until_marker(1).await, [Msg::Marker { id: 1 }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_end_their_own_session_with_an_explanation() {
    let server = Setup::new(2).start().await;
    let addr = server.local_addr();
    let mut neighbour = Client::ready(addr).await;
    neighbour.audio(&frames(&[PAD, PAD, END, 10])).await;
    let audio_without_pcm = b"\x81\xa4type\xa5Audio";
    let huge_array = b"\x82\xa4type\xa5Audio\xa3pcm\xdd\xff\xff\xff\xff";
    let not_ogg = b"\x82\xa4type\xa7OggOpus\xa4data\xc4\x05hello";
    for (bytes, says, code) in [
        (&b""[..], "malformed", 1007),
        (b"\xc1\xc1\xc1", "malformed", 1007),
        (audio_without_pcm, "`pcm`", 1007),
        (huge_array, "malformed", 1007),
        (b"\x81\xa4type\xa5Dance", "`Dance`", 1003),
        (not_ogg, "Ogg", 1007),
    ] {
        let mut client = Client::ready(addr).await;
        client.send(bytes.to_vec()).await;
        // Whatever follows must not keep the explanation from arriving.
        client.audio(&frame(PAD)).await;
        let (error, closed_with) = client.error_and_close().await;
        assert!(error.contains(says), "{error}");
        assert_eq!(closed_with, code, "{error}");
    }
    neighbour.0.send(Message::text("text is ignored")).await.unwrap();
    neighbour.audio(&frame(PAD)).await;
    neighbour.marker(1).await;
    neighbour.audio(&frames(&[PAD; DELAY])).await;
    assert_eq!(words(&neighbour.until_marker(1).await), ["w10"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_have_a_size_limit_and_the_client_is_told() {
    let server = Setup::new(1).start().await;
    let mut client = Client::ready(server.local_addr()).await;
    // Just below 16 MiB: two minutes and more of audio in one message.
    let samples = vec![0.003; (16 << 20) / 5 - 10];
    client.audio(&samples).await;
    client.marker(1).await;
    client.audio(&frames(&[PAD; DELAY + 1])).await;
    assert_eq!(client.until_marker(1).await.len(), 1);
    let mut too_big = b"\x82\xa4type\xa5Audio\xa3pcm".to_vec();
    too_big.resize((16 << 20) + 1, 0);
    client.send(too_big).await;
    let (error, code) = client.error_and_close().await;
    assert_eq!(code, 1009, "{error}");
    assert!(error.contains("too long") || error.contains("too big"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn audio_that_is_no_number_ends_its_own_session() {
    let server = Setup::new(2).start().await;
    let addr = server.local_addr();
    let mut neighbour = Client::ready(addr).await;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut client = Client::ready(addr).await;
        let mut pcm = frames(&[PAD; 3]);
        pcm[4000] = bad;
        neighbour.audio(&frames(&[PAD, PAD, END, 10])).await;
        client.audio(&pcm).await;
        let (error, code) = client.error_and_close().await;
        assert!(error.contains("not finite"), "{error}");
        assert_eq!(code, 1007);
        neighbour.audio(&frame(PAD)).await;
        neighbour.marker(1).await;
        neighbour.audio(&frames(&[PAD; DELAY])).await;
        assert_eq!(words(&neighbour.until_marker(1).await), ["w10"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vanished_clients_leave_their_lane_clean() {
    let server = Setup::new(2).model(|model| model.vad_heads = 1).start().await;
    let addr = server.local_addr();
    for i in 0..300 {
        let mut client = loop {
            let mut client = Client::connect(addr).await;
            if client.next().await == Some(Msg::Ready) {
                break client;
            }
        };
        client.audio(&frames(&[PAD; 5])[..i * 31 % 9600]).await;
        match i % 3 {
            0 => drop(client),
            1 => client.0.close(None).await.unwrap(),
            _ => {
                client.audio(&frame(PAD)).await;
                // Its first step counts from one, whoever had the lane before.
                assert!(matches!(
                    client.next().await,
                    Some(Msg::Step { step_idx: 1, ref prs, .. }) if prs == &[1.0]
                ));
            }
        }
    }
    support::wait_until_free(addr).await;
    let metrics = http::get(addr, "/metrics").await.text();
    assert!(metrics.contains("asr_open_channels{handler=\"all\"} 0"), "{metrics}");
    assert!(metrics.contains("asr_connection_num_steps_count 3"), "{metrics}");
}
