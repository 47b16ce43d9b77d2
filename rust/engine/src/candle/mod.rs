//! The model in candle's operations: what accelerators run, and on the CPU the readable reference
//! that the fast path is held to.

mod attention;
mod codec;
mod layout;
mod linear;
mod lm;
mod norm;
mod transformer;

use std::time::Instant;

use candle_core::{DType, Tensor};
use moshi_ctl_core::Precision;
use moshi_ctl_core::units::FRAME_SAMPLES;

use self::codec::Codec;
pub(crate) use self::layout::CandleLayout;
use self::lm::LanguageModel;
use crate::EngineError;
use crate::backend::{Backend, Codes, LmInputs, LmOutputs, StepTiming};
use crate::weights::{Model, Weights};

/// A model whose lanes are rows of tensors.
pub(crate) struct CandleBackend {
    codec: Codec,
    lm: LanguageModel,
    device: candle_core::Device,
}

impl CandleBackend {
    pub(crate) fn load(
        model: &Model<'_>,
        codec: &Weights<'_>,
        lm: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let Model { shape, lanes, .. } = *model;
        Ok(Self {
            lm: LanguageModel::load(shape, model.conditioning, lanes, lm)?,
            codec: Codec::load(&shape.codec, shape.audio_codebooks, lanes, codec)?,
            device: lm.placement().device.clone(),
        })
    }
}

impl Backend for CandleBackend {
    fn reset(&mut self, lane: usize) {
        self.codec.reset(lane);
        self.lm.reset(lane);
    }

    fn keep_lanes(&mut self, count: usize) {
        self.codec.keep_lanes(count);
        self.lm.keep_lanes(count);
    }

    fn fill_context(&mut self, lane: usize) -> Result<(), EngineError> {
        self.codec.fill_context(lane);
        self.lm.fill_context(lane);
        Ok(())
    }

    fn step(
        &mut self,
        pcm: &[f32],
        lanes: &[usize],
        inputs: &LmInputs,
        codes: &mut Codes,
        outputs: &mut LmOutputs,
    ) -> Result<StepTiming, EngineError> {
        let started = Instant::now();
        let pcm = Tensor::from_slice(pcm, (lanes.len(), FRAME_SAMPLES), &self.device)?;
        codes.begin(lanes.len());
        self.codec.encode(pcm, lanes, codes)?;
        let encoded = Instant::now();
        self.lm.forward(inputs, lanes, outputs)?;
        Ok(StepTiming { codec: encoded - started, lm: encoded.elapsed(), threads: None })
    }
}

/// candle's name for a precision that tensors can have.
fn dtype(precision: Precision) -> Result<DType, EngineError> {
    match precision {
        Precision::F32 => Ok(DType::F32),
        Precision::F16 => Ok(DType::F16),
        Precision::Bf16 => Ok(DType::BF16),
        Precision::Q8 => Err(EngineError::new("internal error: no tensor holds q8 keys")),
    }
}
