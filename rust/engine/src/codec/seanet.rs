//! The convolutional encoder (SEANet, arXiv:2009.02095).

use candle_core::Tensor;
use moshi_ctl_core::CodecShape;

use super::conv::{Activation, Conv, ConvShape, Padding};
use crate::EngineError;
use crate::weights::Weights;

/// Samples in, latents out, [`CodecShape::encoder_stride`] samples to one.
pub(crate) struct Encoder {
    first: Conv,
    stages: Vec<Stage>,
    last: Conv,
}

/// Residual blocks, then a strided convolution that doubles the channels.
struct Stage {
    residuals: Vec<Residual>,
    downsample: Conv,
}

/// x + conv₁(elu(conv_k(elu(x))))
struct Residual {
    wide: Conv,
    narrow: Conv,
}

/// A convolution with bias, stride 1 and no dilation.
fn plain(inputs: usize, outputs: usize, kernel: usize) -> ConvShape {
    let (stride, dilation, bias, padding) = (1, 1, true, Padding::Zero);
    ConvShape { inputs, outputs, kernel, stride, dilation, bias, padding }
}

impl Encoder {
    /// Modules are numbered through; activations count, and have no tensors.
    pub(crate) fn load(
        shape: &CodecShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let mut channels = shape.n_filters;
        let first = Conv::load(plain(1, channels, shape.kernel_size), lanes, &weights.at(0))?;
        let mut index = 1;
        let mut stages = Vec::with_capacity(shape.ratios.len());
        for &ratio in shape.ratios.iter().rev() {
            let mut residuals = Vec::with_capacity(shape.n_residual_layers);
            for j in 0..shape.n_residual_layers {
                let dilation = shape.dilation_base.pow(j as u32);
                residuals.push(Residual::load(
                    shape,
                    channels,
                    dilation,
                    lanes,
                    &weights.at(index),
                )?);
                index += 1;
            }
            let strided = ConvShape { stride: ratio, ..plain(channels, 2 * channels, 2 * ratio) };
            let downsample = Conv::load(strided, lanes, &weights.at(index + 1))?;
            index += 2;
            channels *= 2;
            stages.push(Stage { residuals, downsample });
        }
        let last = plain(channels, shape.dimension, shape.last_kernel_size);
        Ok(Self { first, stages, last: Conv::load(last, lanes, &weights.at(index + 1))? })
    }

    pub(crate) fn reset(&mut self, lane: usize) {
        self.first.reset(lane);
        for stage in &mut self.stages {
            for residual in &mut stage.residuals {
                residual.wide.reset(lane);
                residual.narrow.reset(lane);
            }
            stage.downsample.reset(lane);
        }
        self.last.reset(lane);
    }

    /// `x`: lanes × samples × 1. Returns lanes × latents × dimension.
    pub(crate) fn forward(&mut self, x: Tensor, lanes: &[usize]) -> Result<Tensor, EngineError> {
        let mut x = self.first.forward(&x, Activation::None, lanes)?;
        for stage in &mut self.stages {
            for residual in &mut stage.residuals {
                let y = residual.wide.forward(&x, Activation::Elu, lanes)?;
                x = (x + residual.narrow.forward(&y, Activation::Elu, lanes)?)?;
            }
            x = stage.downsample.forward(&x, Activation::Elu, lanes)?;
        }
        self.last.forward(&x, Activation::Elu, lanes)
    }
}

impl Residual {
    fn load(
        shape: &CodecShape,
        channels: usize,
        dilation: usize,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let (inner, weights) = (channels / shape.compress, weights.at("block"));
        let wide = ConvShape { dilation, ..plain(channels, inner, shape.residual_kernel_size) };
        Ok(Self {
            wide: Conv::load(wide, lanes, &weights.at(1))?,
            narrow: Conv::load(plain(inner, channels, 1), lanes, &weights.at(3))?,
        })
    }
}
