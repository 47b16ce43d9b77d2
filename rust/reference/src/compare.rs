//! How two implementations differ, and how close the decisions were on which they agree.

use std::collections::BTreeSet;

use crate::oracle::Frame;
use crate::ours::OurFrame;

/// Differences between the oracle's frames and ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// How many frames were compared.
    pub frames: usize,
    /// The first frame with another audio token.
    pub first_other_audio: Option<usize>,
    /// The first frame with another text token.
    pub first_other_text: Option<usize>,
    /// The largest difference of a text logit.
    pub logit_deviation: f32,
    /// The largest difference of a VAD probability.
    pub vad_deviation: f32,
    /// The least by which a text token was ahead of the next.
    pub text_gap: f32,
    /// The least relative margin of an audio token; see
    /// [`StepTrace::code_margin`](moshi_ctl_engine::StepTrace).
    pub code_margin: f32,
}

impl Comparison {
    /// Compares frame by frame.
    pub fn new(oracle: &[Frame], ours: &[OurFrame]) -> Self {
        let pairs = || oracle.iter().zip(ours.iter().map(|ours| &ours.frame));
        let first = |differ: fn(&Frame, &Frame) -> bool| pairs().position(|(a, b)| differ(a, b));
        let largest = |of: fn(&Frame) -> &[f32]| {
            let deviations =
                pairs().flat_map(|(a, b)| of(a).iter().zip(of(b))).map(|(a, b)| (a - b).abs());
            // `max` would let a NaN pass.
            deviations.fold(0f32, |most, next| if next <= most { most } else { next })
        };
        Self {
            frames: oracle.len().min(ours.len()),
            first_other_audio: first(|a, b| a.audio_tokens != b.audio_tokens),
            first_other_text: first(|a, b| a.text_token != b.text_token),
            logit_deviation: largest(|frame| &frame.text_logits),
            vad_deviation: largest(|frame| &frame.vad),
            text_gap: oracle
                .iter()
                .map(|frame| gap(&frame.text_logits))
                .fold(f32::INFINITY, f32::min),
            code_margin: ours.iter().map(|ours| ours.code_margin).fold(f32::INFINITY, f32::min),
        }
    }
}

/// How far the likeliest token is ahead of the next.
pub fn gap(logits: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &logit in logits {
        if logit > first {
            (first, second) = (logit, first);
        } else if logit > second {
            second = logit;
        }
    }
    first - second
}

/// How many different audio tokens each codebook used.
pub fn distinct_codes(frames: &[Frame]) -> Vec<usize> {
    let codebooks = frames.first().map_or(0, |frame| frame.audio_tokens.len());
    (0..codebooks)
        .map(|k| frames.iter().map(|frame| frame.audio_tokens[k]).collect::<BTreeSet<_>>().len())
        .collect()
}

/// How many different text tokens were predicted.
pub fn distinct_text(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.text_token).collect::<BTreeSet<_>>().len()
}

/// The share of frames with text token `token`.
pub fn share(frames: &[Frame], token: u32) -> f32 {
    let hits = frames.iter().filter(|frame| frame.text_token == token).count();
    hits as f32 / frames.len() as f32
}

/// The cosine of the angle between two vectors; 1 when they differ in length only.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
