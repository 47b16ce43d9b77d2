//! Making a model fit the machine: fewer lanes where memory or time do not allow more.

use moshi_ctl_core::{LaneFrame, LaneStep, ModelError, StreamingModel};

use crate::measure::{RealTimeLanes, lanes_in_real_time};
use crate::{AsrModel, AsrSpec, EngineError};

/// Loads a model; where there is no memory for its lanes, with half of them, and so on.
///
/// # Errors
/// When there is no memory for a single lane, and as [`AsrModel::load`].
pub fn load_what_fits(mut spec: AsrSpec) -> Result<AsrModel, EngineError> {
    loop {
        match AsrModel::load(&spec) {
            Err(error) if error.is_out_of_memory() && spec.lanes > 1 => {
                let lanes = spec.lanes / 2;
                tracing::warn!("{error} with {} lanes: trying again with {lanes}", spec.lanes);
                spec.lanes = lanes;
            }
            Err(error) if error.is_out_of_memory() => {
                return Err(error.with_hint(
                    "Not even one lane fits. End other programs that hold memory, or choose a \
                     smaller precision (--precision q8); `moshi-ctl plan` shows what is needed.",
                ));
            }
            done => return done,
        }
    }
}

/// A model that, once it is warm, measures its steps over full contexts and gives up the
/// lanes that cannot be kept in real time. One lane always stays: it can transcribe files.
pub struct RealTimeModel {
    /// The model, with as many lanes as memory allows.
    pub model: AsrModel,
    /// How many such models share the device.
    pub models: usize,
    /// How many lanes somebody has wished for; fewer are a warning.
    pub wish: Option<usize>,
}

impl StreamingModel for RealTimeModel {
    fn lanes(&self) -> usize {
        self.model.lanes()
    }

    fn settle(&mut self) -> Result<(), ModelError> {
        let most = self.model.lanes();
        let measured = lanes_in_real_time(&mut self.model, most, self.models)?;
        self.model.keep_lanes(measured.lanes.max(1));
        for lane in 0..self.model.lanes() {
            self.model.reset(lane, 0)?;
        }
        report(&measured, self.wish);
        Ok(())
    }

    fn reset(&mut self, lane: usize, seed: u64) -> Result<(), ModelError> {
        self.model.reset(lane, seed)
    }

    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<&[LaneStep], ModelError> {
        self.model.step(frames)
    }
}

fn report(measured: &RealTimeLanes, wish: Option<usize>) {
    let step = |lanes| {
        let ms = measured.step(lanes).unwrap_or_default().as_secs_f64() * 1e3;
        format!("a step of {lanes} takes {ms:.1} ms")
    };
    let limit = format!("{:.0} ms are allowed", measured.limit.as_secs_f64() * 1e3);
    let lanes = measured.lanes;
    let tried = measured.tried.iter().map(|(tried, _)| *tried);
    match (lanes, tried.filter(|tried| *tried > lanes).min()) {
        (0, beyond) => tracing::error!(
            "no stream is kept in real time: {}, {limit}. One lane is offered, for files; live \
             streams fall behind",
            step(beyond.unwrap_or(1))
        ),
        (lanes, Some(beyond)) if wish.is_some_and(|wish| lanes < wish) => tracing::warn!(
            "{lanes} lanes are offered instead of {}: {}, {}, {limit}",
            wish.unwrap_or_default(),
            step(lanes),
            step(beyond)
        ),
        (lanes, Some(beyond)) => {
            tracing::info!("{lanes} lanes are offered: {}, {}, {limit}", step(lanes), step(beyond))
        }
        (lanes, None) => {
            tracing::info!("{lanes} lanes are kept in real time: {}, {limit}", step(lanes));
        }
    }
}
