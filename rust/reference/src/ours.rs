//! Our own engine, with the same things in sight as the oracle.

use moshi_ctl_core::{LaneFault, LaneFrame, Prediction, StreamingModel};
use moshi_ctl_engine::{AsrModel, StepTrace};

use crate::Result;
use crate::oracle::Frame;

/// One frame of one lane of our engine.
#[derive(Debug, Clone, PartialEq)]
pub struct OurFrame {
    /// What the oracle knows as well.
    pub frame: Frame,
    /// See [`StepTrace::code_margin`](moshi_ctl_engine::StepTrace).
    pub code_margin: f32,
}

/// Steps the lanes that `frames` names; one result per frame.
///
/// # Errors
/// When the engine fails or a lane reports a fault.
pub fn step(model: &mut AsrModel, frames: &[LaneFrame<'_>]) -> Result<Vec<OurFrame>> {
    let outcomes: Vec<_> = model.step(frames)?.iter().map(|step| step.outcome.clone()).collect();
    let traces = model.last_traces();
    type Outcome = std::result::Result<Prediction, LaneFault>;
    let frame = |(outcome, trace): (Outcome, StepTrace)| {
        let prediction = outcome?;
        Ok(OurFrame {
            frame: Frame {
                audio_tokens: trace.audio_tokens,
                text_logits: trace.text_logits,
                text_token: prediction.text_token,
                vad: prediction.vad,
            },
            code_margin: trace.code_margin,
        })
    };
    outcomes.into_iter().zip(traces).map(frame).collect()
}

/// Lets one lane hear `frames`, the others idle.
///
/// # Errors
/// As [`step`].
pub fn hear(model: &mut AsrModel, lane: usize, frames: &[Vec<f32>]) -> Result<Vec<OurFrame>> {
    let mut heard = Vec::with_capacity(frames.len());
    for pcm in frames {
        heard.extend(step(model, &[LaneFrame { lane, pcm }])?);
    }
    Ok(heard)
}
