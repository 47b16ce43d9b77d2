//! What a client hears for what it sends, over real sockets.

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use moshi_ctl_core::units::{
    FRAME_SAMPLES, SAMPLE_RATE_HZ, TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING,
};
use support::client::words;
use support::model::{frame, frames};
use support::{Client, DELAY, Msg, Setup};

const END: u32 = TEXT_TOKEN_END_OF_PADDING;
const PAD: u32 = TEXT_TOKEN_PADDING;

/// Every third frame ends a word; the first is over before the delay is.
const WORDS_IN_TEN_MINUTES: usize = 2499;

/// A minute of changing words.
fn minute() -> Vec<f32> {
    let tokens: Vec<u32> = (0..750).map(|i| [END, 10 + i % 80, PAD][i as usize % 3]).collect();
    frames(&tokens)
}

fn step(step_idx: u64, seen: f32) -> Msg {
    Msg::Step { step_idx, prs: vec![seen; 2], buffered_pcm: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn words_have_their_text_and_times_in_order() {
    let server = Setup::new(2).model(|model| model.vad_heads = 2).start().await;
    let mut client = Client::ready(server.local_addr()).await;
    let mut heard = Vec::new();
    // Frame by frame, so that nothing is ever buffered.
    for (i, token) in [PAD, PAD, END, 10, 11, PAD, END, PAD].into_iter().enumerate() {
        client.audio(&frame(token)).await;
        loop {
            heard.push(client.next().await.unwrap());
            // What follows a step comes at once; wait for it where there is something.
            let follow = [0, 0, 0, 0, 0, 1, 1, 0][i];
            if matches!(heard.last(), Some(Msg::Step { .. })) {
                for _ in 0..follow {
                    heard.push(client.next().await.unwrap());
                }
                break;
            }
        }
    }
    assert_eq!(
        heard,
        [
            step(1, 1.0),
            step(2, 2.0),
            step(3, 3.0),
            step(4, 4.0),
            step(5, 5.0),
            step(6, 6.0),
            Msg::Word { text: "w10 w11".into(), start_time: 0.0 },
            step(7, 7.0),
            Msg::EndWord { stop_time: 4.0 / 12.5 },
            step(8, 8.0),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn chunk_sizes_do_not_matter() {
    let setup = Setup::new(1);
    let server = setup.start().await;
    let pcm = frames(&[PAD, PAD, END, 10, 11, PAD, END, 12, PAD, PAD]);
    let mut expected = None;
    for chunk in [160, 480, 1919, 1920, 1921, 24_000, 7] {
        let mut client = Client::ready(server.local_addr()).await;
        for piece in pcm.chunks(chunk) {
            client.audio(piece).await;
        }
        client.marker(1).await;
        client.audio(&frames(&[PAD; DELAY])).await;
        let heard = client.until_marker(1).await;
        assert_eq!(words(&heard), ["w10 w11", "w12"]);
        assert_eq!(expected.get_or_insert_with(|| heard.clone()), &heard, "by {chunk}");
        // The lane has to be free for the next client.
        drop(client);
        support::wait_until_free(server.local_addr()).await;
    }
    let mut client = Client::ready(server.local_addr()).await;
    for sample in &frame(PAD) {
        client.audio(std::slice::from_ref(sample)).await;
    }
    client.marker(2).await;
    client.audio(&frames(&[PAD; DELAY])).await;
    assert_eq!(client.until_marker(2).await, [Msg::Marker { id: 2 }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_waits_for_its_own_lanes_steps_only() {
    let setup = Setup::new(2).model(|model| model.vad_heads = 1);
    let server = setup.start().await;
    let mut busy = Client::ready(server.local_addr()).await;
    let mut client = Client::ready(server.local_addr()).await;
    // 1.5 frames, so that the frame the marker is in has to be completed first.
    client.marker(-1).await;
    client.audio(&vec![0.003; FRAME_SAMPLES * 3 / 2]).await;
    client.marker(7).await;
    client.marker(8).await;
    for _ in 0..50 {
        busy.audio(&frame(PAD)).await;
        busy.next().await;
    }
    client.audio(&vec![0.003; FRAME_SAMPLES / 2 + DELAY * FRAME_SAMPLES]).await;
    let heard = client.until_marker(8).await;
    let place = |id| heard.iter().position(|m| *m == Msg::Marker { id }).unwrap();
    let steps_before = |at: usize| {
        heard[..at].iter().filter(|message| matches!(message, Msg::Step { .. })).count()
    };
    assert_eq!(steps_before(place(-1)), DELAY);
    assert_eq!(steps_before(place(7)), 2 + DELAY);
    assert_eq!(place(8), place(7) + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_markers_come_back_once_and_in_order() {
    let server = Setup::new(1).start().await;
    let mut client = Client::ready(server.local_addr()).await;
    let mut sent = 0;
    for i in 0..200 {
        client.audio(&vec![0.003; (i * 37) % 400]).await;
        for _ in 0..i % 5 {
            client.marker(sent).await;
            sent += 1;
        }
    }
    client.audio(&frames(&[PAD; DELAY + 1])).await;
    for id in 0..sent {
        assert_eq!(client.next().await, Some(Msg::Marker { id }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn init_starts_over_after_the_audio_before_it() {
    let server = Setup::new(1).model(|model| model.vad_heads = 2).start().await;
    let mut client = Client::ready(server.local_addr()).await;
    client.init().await;
    assert_eq!(client.next().await, Some(Msg::Ready));
    client.audio(&frames(&[PAD])).await;
    assert_eq!(client.next().await, Some(step(1, 1.0)));
    // Half a frame and a marker whose delay has not passed, given up by the second Init.
    client.audio(&frame(PAD)[..FRAME_SAMPLES / 2]).await;
    client.marker(5).await;
    client.init().await;
    assert_eq!(client.next().await, Some(Msg::Marker { id: 5 }));
    assert_eq!(client.next().await, Some(Msg::Ready));
    client.audio(&frame(PAD)).await;
    assert_eq!(client.next().await, Some(step(1, 1.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn asr_modules_speak_the_same() {
    let mut setup = Setup::new(1);
    setup.module_type = "Asr";
    let server = setup.start().await;
    let mut client = Client::ready(server.local_addr()).await;
    client.audio(&frames(&[PAD, PAD, END, 10, PAD])).await;
    client.marker(1).await;
    client.audio(&frames(&[PAD; DELAY])).await;
    assert_eq!(words(&client.until_marker(1).await), ["w10"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blasting_client_is_slowed_down_and_its_neighbour_is_not() {
    let setup = Setup::new(2).model(|model| {
        model.vad_heads = 1;
        model.step_takes = Duration::from_micros(200);
    });
    let server = setup.start().await;
    let addr = server.local_addr();
    let audio = minute();
    let (mut speaker, mut listener) = Client::ready(addr).await.split();
    let mut neighbour = Client::ready(addr).await;
    let blast = tokio::spawn(async move {
        let speak = async {
            for _ in 0..10 {
                for pcm in audio.chunks(24_000) {
                    speaker.audio(pcm).await;
                }
            }
        };
        let listen = async {
            let (mut words, mut most_buffered) = (0, 0);
            while words < WORDS_IN_TEN_MINUTES {
                match listener.next().await.unwrap() {
                    Msg::Word { .. } => words += 1,
                    Msg::Step { buffered_pcm, .. } => {
                        most_buffered = most_buffered.max(buffered_pcm);
                    }
                    Msg::EndWord { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            most_buffered
        };
        tokio::join!(speak, listen).1
    });
    let mut heard = 0;
    while !blast.is_finished() {
        let sent = Instant::now();
        neighbour.audio(&frame(PAD)).await;
        assert!(matches!(neighbour.next().await, Some(Msg::Step { .. })));
        assert!(sent.elapsed() < Duration::from_secs(2), "{:?}", sent.elapsed());
        heard += 1;
    }
    assert!(heard > 10, "the neighbour got {heard} steps");
    let most_buffered = blast.await.unwrap();
    // A lane holds a minute.
    assert!(most_buffered <= 60 * SAMPLE_RATE_HZ as usize, "{most_buffered} samples buffered");
    let steps = setup.model.steps.load(Ordering::SeqCst);
    assert!(steps >= 7500, "{steps}");
}
