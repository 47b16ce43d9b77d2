//! The published crate as a subject of [`moshi_ctl_engine::measure`].

use std::time::Instant;

use moshi::StreamMask;
use moshi::asr::State;
use moshi::candle::{Device, Tensor};
use moshi::lm::LmModel;
use moshi::mimi::Mimi;
use moshi::nn::MaybeQuantizedVarBuilder;
use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{LaneFrame, ModelError};
use moshi_ctl_engine::StepTiming;
use moshi_ctl_engine::measure::Subject;

use crate::Result;
use crate::checkpoints::Checkpoints;
use crate::oracle;

/// The published crate as its server drives it: batched, with a mask, at any number of lanes.
pub struct Reference {
    mimi: Mimi,
    /// Has the language model, and a codec it does not use, which shares its weights with ours.
    state: State,
    lanes: usize,
}

impl Reference {
    /// Loads in f32.
    ///
    /// # Errors
    /// When the files cannot be loaded.
    pub fn load(files: &Checkpoints, lanes: usize) -> Result<Self> {
        let lm = LmModel::batched(
            lanes,
            &oracle::language_model_config(&files.shape)?,
            MaybeQuantizedVarBuilder::Real(oracle::weights(&[&files.lm_file])?),
        )?;
        let codec = oracle::codec_config(&files.shape)?;
        let mimi = Mimi::batched(lanes, codec, oracle::weights(&[&files.codec_file])?)?;
        let state = State::new(lanes, 0, 0.0, mimi.clone(), lm)?;
        Ok(Self { mimi, state, lanes })
    }

    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<StepTiming> {
        let started = Instant::now();
        let mut pcm = vec![0.0; self.lanes * FRAME_SAMPLES];
        let mut has_frame = vec![false; self.lanes];
        for frame in frames {
            pcm[frame.lane * FRAME_SAMPLES..][..FRAME_SAMPLES].copy_from_slice(frame.pcm);
            has_frame[frame.lane] = true;
        }
        let pcm = Tensor::from_vec(pcm, (self.lanes, 1, FRAME_SAMPLES), &Device::Cpu)?;
        let mask = StreamMask::new(has_frame, &Device::Cpu)?;
        let codes = self.mimi.encode_step(&pcm.into(), &mask)?;
        let codes = codes.as_option().ok_or("a whole frame made no audio tokens")?;
        let encoded = Instant::now();
        self.state.step_tokens(codes, None, &mask, |_, _, _| ())?;
        Ok(StepTiming { codec: encoded - started, lm: encoded.elapsed(), threads: None })
    }
}

impl Subject for Reference {
    fn restart(&mut self, lane: usize) -> std::result::Result<(), ModelError> {
        let mut reset = || -> Result<()> {
            self.mimi.reset_batch_idx(lane, self.lanes)?;
            Ok(self.state.reset_batch_idx(lane)?)
        };
        reset().map_err(model_error)
    }

    /// Nothing to do: it attends to its whole ring, masked, from the first step on.
    fn fill(&mut self, _lane: usize) -> std::result::Result<(), ModelError> {
        Ok(())
    }

    fn advance(&mut self, frames: &[LaneFrame<'_>]) -> std::result::Result<StepTiming, ModelError> {
        self.step(frames).map_err(model_error)
    }
}

fn model_error(error: Box<dyn std::error::Error + Send + Sync>) -> ModelError {
    ModelError::new(error.to_string())
}
