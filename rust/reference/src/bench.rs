//! Times steps of either engine.

use std::time::{Duration, Instant};

use moshi::StreamMask;
use moshi::asr::State;
use moshi::candle::{Device, Tensor};
use moshi::lm::LmModel;
use moshi::mimi::Mimi;
use moshi::nn::MaybeQuantizedVarBuilder;
use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{LaneFrame, StreamingModel};
use moshi_ctl_engine::{AsrModel, StepTiming};

use crate::Result;
use crate::checkpoints::Checkpoints;
use crate::oracle;

/// An engine with many lanes of which the first few have a frame in every step.
pub trait Subject {
    /// Advances lane `n` by `frames[n]`; lanes beyond have no frame.
    ///
    /// # Errors
    /// When the engine fails.
    fn step(&mut self, frames: &[&[f32]]) -> Result<StepTiming>;
}

/// Our engine.
pub struct Ours(AsrModel);

impl Ours {
    /// Loads in f32.
    ///
    /// # Errors
    /// When the files cannot be loaded.
    pub fn load(files: &Checkpoints, lanes: usize) -> Result<Self> {
        Ok(Self(files.engine(lanes)?))
    }
}

impl Subject for Ours {
    fn step(&mut self, frames: &[&[f32]]) -> Result<StepTiming> {
        let frames: Vec<LaneFrame<'_>> =
            frames.iter().enumerate().map(|(lane, pcm)| LaneFrame { lane, pcm }).collect();
        for step in self.0.step(&frames)? {
            step.outcome.clone()?;
        }
        Ok(self.0.last_timing())
    }
}

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
            MaybeQuantizedVarBuilder::Real(oracle::weights(&files.lm_file)?),
        )?;
        let codec = oracle::codec_config(&files.shape)?;
        let mimi = Mimi::batched(lanes, codec, oracle::weights(&files.codec_file)?)?;
        let state = State::new(lanes, 0, 0.0, mimi.clone(), lm)?;
        Ok(Self { mimi, state, lanes })
    }
}

impl Subject for Reference {
    fn step(&mut self, frames: &[&[f32]]) -> Result<StepTiming> {
        let started = Instant::now();
        let mut pcm = frames.concat();
        pcm.resize(self.lanes * FRAME_SAMPLES, 0.0);
        let pcm = Tensor::from_vec(pcm, (self.lanes, 1, FRAME_SAMPLES), &Device::Cpu)?;
        let mask = (0..self.lanes).map(|lane| lane < frames.len()).collect();
        let mask = StreamMask::new(mask, &Device::Cpu)?;
        let codes = self.mimi.encode_step(&pcm.into(), &mask)?;
        let codes = codes.as_option().ok_or("a whole frame made no audio tokens")?;
        let encoded = Instant::now();
        self.state.step_tokens(codes, None, &mask, |_, _, _| ())?;
        Ok(StepTiming { codec: encoded - started, lm: encoded.elapsed() })
    }
}

/// Steps `active` lanes, each at its own place of the recording, and returns how long the steps
/// after the first `warmup` took.
///
/// # Errors
/// When the engine fails.
pub fn time_steps(
    subject: &mut dyn Subject,
    speech: &[Vec<f32>],
    active: usize,
    warmup: usize,
    steps: usize,
) -> Result<Vec<(Duration, StepTiming)>> {
    let mut times = Vec::with_capacity(steps);
    for step in 0..warmup + steps {
        let frames: Vec<&[f32]> =
            (0..active).map(|lane| speech[(step + 29 * lane) % speech.len()].as_slice()).collect();
        let started = Instant::now();
        let timing = subject.step(&frames)?;
        if step >= warmup {
            times.push((started.elapsed(), timing));
        }
    }
    Ok(times)
}
