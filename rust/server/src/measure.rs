//! For tests and benchmarks of other crates: what a file's session hears, and what observation
//! costs (`benchmarks/observability.py`), by the very calls that a step makes.

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use std::sync::Arc;

use crate::audio_file::decode;
use crate::lanes::{Arrivals, Lanes, Visitor};
use crate::limits::Limits;
use crate::metrics::{Metrics, SessionKind};
use crate::tokenizer::TextDecoder;

/// Bytes of a message with a frame of audio, and of the answer to it: what is counted does not
/// depend on them.
const AUDIO_BYTES: usize = 9_640;
const STEP_BYTES: usize = 64;

/// Steps between two words of a lane: two and a half words a second, which is fast speech.
const STEPS_PER_WORD: usize = 5;

/// Frames from the beginning of a word until it is said.
const WORD_FRAMES: u64 = 12;

/// The samples of an audio file: 24 kHz, mono.
///
/// # Errors
/// When it is not one, or cannot be decoded.
pub fn decode_file(file: Vec<u8>) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
    let mut samples = vec![];
    decode(file.into(), |part| {
        samples.extend(part);
        true
    })?;
    Ok(samples)
}

/// The time that counting and measuring takes in each of `steps` steps of `lanes` lanes: messages
/// in and out, frames and their arrivals, words and their latency, the step itself.
///
/// # Panics
/// When metrics cannot be made, which is a bug.
#[expect(clippy::expect_used, reason = "a measurement that cannot be made has no result")]
pub fn metrics_of_steps(lanes: usize, steps: usize) -> Vec<Duration> {
    let metrics = Metrics::new().expect("metrics");
    let module = metrics.module("asr");
    let mut arrivals: Vec<Arrivals> =
        (0..lanes).map(|_| Arrivals::new(Limits::default().arrivals())).collect();
    for _ in 0..lanes {
        module.session_began(SessionKind::Stream);
    }
    let observe = |step: usize| {
        let frames = step as u64 + 1;
        let began = Instant::now();
        let running = black_box(&module).step();
        for (lane, arrivals) in arrivals.iter_mut().enumerate() {
            module.received(AUDIO_BYTES);
            arrivals.note(frames, Instant::now());
            if (step + lane).is_multiple_of(STEPS_PER_WORD) {
                let start = frames.saturating_sub(WORD_FRAMES);
                black_box(arrivals.of_live(start, frames - 1));
                let start = arrivals.of(start);
                module.word(start.map(|start| start.elapsed()));
            }
            module.sent(STEP_BYTES);
        }
        running.done(lanes);
        began.elapsed()
    };
    (0..steps).map(observe).collect()
}

/// The time that each of `scrapes` takes, on a thread of its own, with `lanes` lanes in use.
///
/// # Panics
/// When metrics cannot be made or a lane is not to be had, which are bugs.
#[expect(clippy::expect_used, reason = "a measurement that cannot be made has no result")]
pub fn scrapes(lanes: usize, scrapes: usize) -> Vec<Duration> {
    let metrics = Metrics::new().expect("metrics");
    let module = Arc::new(Lanes::new(
        lanes,
        0,
        &Limits::default(),
        TextDecoder::default(),
        metrics.module("asr"),
    ));
    let visitor = |session| Visitor { session, kind: SessionKind::Stream };
    let _seats: Vec<_> =
        (0..lanes as u64).map(|session| module.join(visitor(session)).expect("a lane")).collect();
    let scrape = |_| {
        let began = Instant::now();
        black_box(module.standing());
        black_box(metrics.render(|_| {}).expect("text"));
        began.elapsed()
    };
    (0..scrapes).map(scrape).collect()
}

/// The time that the thread of a session takes for each of `lines` lines at info, in a session's
/// span. Logging must have been started; lines are given time to be written.
pub fn log_lines(lines: usize) -> Vec<Duration> {
    let span = tracing::info_span!("session", id = 1, module = "asr", kind = "stream", lane = 0);
    let _entered = span.entered();
    let log = |line: usize| {
        if line.is_multiple_of(1000) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let began = Instant::now();
        tracing::info!(steps = line, end = "completed", "session over: the peer left");
        began.elapsed()
    };
    (0..lines).map(log).collect()
}
