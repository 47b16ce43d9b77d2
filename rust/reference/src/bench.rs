//! The published crate as a subject of [`moshi_ctl_engine::measure`].

use std::time::Instant;

use moshi::StreamMask;
use moshi::asr::State;
use moshi::candle::{DType, Device, Tensor};
use moshi::lm::LmModel;
use moshi::mimi::Mimi;
use moshi::nn::MaybeQuantizedVarBuilder;
use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{DeviceName, LaneFrame, ModelError, Precision};
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
    device: Device,
}

impl Reference {
    /// Loads onto a device: the language model in f32 or bf16, the codec in f32.
    ///
    /// # Errors
    /// When the files cannot be loaded, or it was built without that device.
    pub fn load(
        files: &Checkpoints,
        lanes: usize,
        device: DeviceName,
        precision: Precision,
    ) -> Result<Self> {
        let device = match device {
            DeviceName::Cpu => Device::Cpu,
            DeviceName::Cuda(number) => Device::new_cuda(number)?,
            DeviceName::Metal => Device::new_metal(0)?,
        };
        let numbers = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            other => return Err(format!("the reference is not measured in {other}").into()),
        };
        let lm = LmModel::batched(
            lanes,
            &oracle::language_model_config(&files.shape)?,
            MaybeQuantizedVarBuilder::Real(oracle::weights_on(
                &[&files.lm_file],
                numbers,
                &device,
            )?),
        )?;
        let codec = oracle::codec_config(&files.shape)?;
        let codec_weights = oracle::weights_on(&[&files.codec_file], DType::F32, &device)?;
        let mimi = Mimi::batched(lanes, codec, codec_weights)?;
        let state = State::new(lanes, 0, 0.0, mimi.clone(), lm)?;
        Ok(Self { mimi, state, lanes, device })
    }

    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<StepTiming> {
        let started = Instant::now();
        let mut pcm = vec![0.0; self.lanes * FRAME_SAMPLES];
        let mut has_frame = vec![false; self.lanes];
        for frame in frames {
            pcm[frame.lane * FRAME_SAMPLES..][..FRAME_SAMPLES].copy_from_slice(frame.pcm);
            has_frame[frame.lane] = true;
        }
        let pcm = Tensor::from_vec(pcm, (self.lanes, 1, FRAME_SAMPLES), &self.device)?;
        let mask = StreamMask::new(has_frame, &self.device)?;
        let codes = self.mimi.encode_step(&pcm.into(), &mask)?;
        let codes = codes.as_option().ok_or("a whole frame made no audio tokens")?;
        // On a card the call returns before the work is done.
        self.device.synchronize()?;
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
