//! The constants of the domain, each defined once and derived from the others.

use std::time::Duration;

/// Samples per second of the audio a model hears.
pub const SAMPLE_RATE_HZ: u32 = 24_000;

/// Samples in one frame: 80 ms of audio, the unit in which models advance.
pub const FRAME_SAMPLES: usize = 1_920;

/// Frames per second of audio.
pub const FRAME_RATE_HZ: f64 = SAMPLE_RATE_HZ as f64 / FRAME_SAMPLES as f64;

/// What a frame lasts: the time there is for a step.
pub const FRAME_DURATION: Duration =
    Duration::from_micros(FRAME_SAMPLES as u64 * 1_000_000 / SAMPLE_RATE_HZ as u64);

/// Text token that ends the padding before a word: the next word starts here.
pub const TEXT_TOKEN_END_OF_PADDING: u32 = 0;

/// Text token that stands for "no text in this frame".
pub const TEXT_TOKEN_PADDING: u32 = 3;

/// How long so many frames last, in seconds.
pub fn seconds(frames: u64) -> f64 {
    frames as f64 / FRAME_RATE_HZ
}

/// Steps a delay of `delay_s` seconds takes when a model is conditioned on it: one more than
/// the frames it covers, because the frame that crosses the delay must be complete.
pub fn delay_in_tokens(delay_s: f32) -> usize {
    (f64::from(delay_s) * FRAME_RATE_HZ) as usize + 1
}
