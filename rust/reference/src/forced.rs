//! Another precision beside the oracle on one text: teacher forcing.
//!
//! A model's text feeds back into it, so one other choice would make two models hear different
//! streams, and what they compute after that could not be compared. Here every model takes the
//! oracle's text tokens for its own.

use moshi_ctl_core::LaneFrame;
use moshi_ctl_engine::AsrModel;

use crate::Result;
use crate::checkpoints::Checkpoints;
use crate::compare::cosine;
use crate::oracle::Frame;
use crate::ours;

/// How sure the oracle was of its text tokens, one item per frame.
#[derive(Debug, Clone, Default)]
pub struct Certainty {
    /// The probability of the likeliest token.
    pub top: Vec<f64>,
    /// Of the distribution over all tokens, in nats.
    pub entropy: Vec<f64>,
}

/// How far a model is from the oracle.
#[derive(Debug, Clone, Default)]
pub struct Deviation {
    /// Frames that were compared.
    pub frames: usize,
    /// Audio tokens that were compared.
    pub codes: usize,
    /// Audio tokens that are other ones.
    pub other_codes: usize,
    /// Of the text logits with the oracle's, one for each frame before which both have heard the
    /// same audio token: what comes out of others cannot be compared.
    pub cosines: Vec<f64>,
    /// By how much VAD probabilities are off, one for each such frame and head.
    pub vad: Vec<f64>,
    /// Such frames for which the likeliest text token is another one.
    pub other_choices: usize,
    /// The probability by which the oracle was surest where the choice was another one.
    pub surest_other_choice: f64,
}

impl Deviation {
    /// Adds a frame whose likeliest token has probability `top` by the oracle.
    fn note(&mut self, expected: &Frame, found: &Frame, top: f64) {
        self.cosines.push(cosine(&expected.text_logits, &found.text_logits));
        let vad = expected.vad.iter().zip(&found.vad);
        self.vad.extend(vad.map(|(a, b)| f64::from(a - b).abs()));
        if found.text_token != expected.text_token {
            self.other_choices += 1;
            self.surest_other_choice = self.surest_other_choice.max(top);
        }
    }

    /// The least cosine.
    pub fn least_cosine(&self) -> f64 {
        // `min` would let a NaN pass.
        self.cosines.iter().fold(f64::INFINITY, |least, &c| if c >= least { least } else { c })
    }

    /// By how much the VAD probability is off that is off the most.
    pub fn worst_vad(&self) -> f64 {
        self.vad.iter().fold(0.0, |most, &off| if off <= most { most } else { off })
    }

    /// By how much VAD probabilities are off, as their root mean square.
    pub fn vad_noise(&self) -> f64 {
        (self.vad.iter().map(|off| off * off).sum::<f64>() / self.vad.len() as f64).sqrt()
    }

    /// The median cosine.
    pub fn median_cosine(&self) -> f64 {
        median(&self.cosines)
    }
}

/// Lets lane 0 of every model and the oracle hear `frames`.
///
/// # Errors
/// When the oracle or a model fails.
pub fn compare(
    files: &Checkpoints,
    frames: &[Vec<f32>],
    models: &mut [AsrModel],
) -> Result<(Certainty, Vec<Deviation>)> {
    let mut oracle = files.oracle()?;
    let mut certainty = Certainty::default();
    let mut deviations = vec![Deviation::default(); models.len()];
    let mut heard_alike = vec![true; models.len()];
    for pcm in frames {
        let expected = oracle.step(pcm)?;
        let probabilities = probabilities(&expected.text_logits);
        let top = probabilities.iter().copied().fold(0.0, f64::max);
        let entropy = probabilities.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
        certainty.top.push(top);
        certainty.entropy.push(entropy);
        for ((model, deviation), alike) in
            models.iter_mut().zip(&mut deviations).zip(&mut heard_alike)
        {
            let found = &ours::step(model, &[LaneFrame { lane: 0, pcm }])?[0].frame;
            model.force_text(0, expected.text_token)?;
            deviation.frames += 1;
            if *alike {
                deviation.note(&expected, found, top);
            }
            let codes = expected.audio_tokens.iter().zip(&found.audio_tokens);
            let others = codes.filter(|(a, b)| a != b).count();
            deviation.codes += expected.audio_tokens.len();
            deviation.other_codes += others;
            // The language model hears a frame's audio tokens in the next step.
            *alike = others == 0;
        }
    }
    Ok((certainty, deviations))
}

/// The middle one of some numbers.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&x| f64::from(x - top).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
