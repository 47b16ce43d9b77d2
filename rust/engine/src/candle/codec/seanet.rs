//! The convolutional encoder.

use candle_core::Tensor;
use moshi_ctl_core::CodecShape;

use super::conv::Conv;
use crate::EngineError;
use crate::conv_shape::{Activation, EncoderShape, NamedConv};
use crate::weights::Weights;

/// Samples in, latents out, [`CodecShape::encoder_stride`] samples to one.
pub(super) struct Encoder {
    first: Conv,
    stages: Vec<Stage>,
    last: Conv,
}

struct Stage {
    /// x + narrow(elu(wide(elu(x))))
    residuals: Vec<[Conv; 2]>,
    downsample: Conv,
}

impl Encoder {
    pub(super) fn load(
        shape: &CodecShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let conv = |conv: &NamedConv| Conv::load(conv.shape, lanes, &weights.at(&conv.name));
        let EncoderShape { first, stages, last } = EncoderShape::new(shape);
        let stages = stages.iter().map(|stage| {
            let residuals = stage
                .residuals
                .iter()
                .map(|[wide, narrow]| Ok::<_, EngineError>([conv(wide)?, conv(narrow)?]));
            let residuals = residuals.collect::<Result<_, _>>()?;
            Ok(Stage { residuals, downsample: conv(&stage.downsample)? })
        });
        let stages = stages.collect::<Result<_, EngineError>>()?;
        Ok(Self { first: conv(&first)?, stages, last: conv(&last)? })
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.convolutions().for_each(|conv| conv.reset(lane));
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.convolutions().for_each(|conv| conv.keep_lanes(count));
    }

    fn convolutions(&mut self) -> impl Iterator<Item = &mut Conv> {
        let Self { first, stages, last } = self;
        let inner = stages.iter_mut().flat_map(|Stage { residuals, downsample }| {
            residuals.iter_mut().flatten().chain([downsample])
        });
        inner.chain([first, last])
    }

    /// `x`: lanes × samples × 1. Returns lanes × latents × dimension.
    pub(super) fn forward(&mut self, x: Tensor, lanes: &[usize]) -> Result<Tensor, EngineError> {
        let mut x = self.first.forward(&x, Activation::None, lanes)?;
        for stage in &mut self.stages {
            for [wide, narrow] in &mut stage.residuals {
                let y = wide.forward(&x, Activation::Elu, lanes)?;
                x = (x + narrow.forward(&y, Activation::Elu, lanes)?)?;
            }
            x = stage.downsample.forward(&x, Activation::Elu, lanes)?;
        }
        self.last.forward(&x, Activation::Elu, lanes)
    }
}
