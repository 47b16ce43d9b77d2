//! Normalisation of the residual stream.

use candle_core::Tensor;
use moshi_ctl_core::Norm as NormKind;

use crate::EngineError;
use crate::weights::Weights;

/// Scales rows to unit root mean square or unit variance.
pub(crate) enum Norm {
    Rms { scale: Tensor },
    Layer { scale: Tensor, bias: Tensor },
}

impl Norm {
    const RMS_EPSILON: f32 = 1e-8;
    const LAYER_EPSILON: f32 = 1e-5;

    pub(crate) fn load(
        kind: NormKind,
        width: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        Ok(match kind {
            NormKind::RmsNorm => Self::Rms { scale: weights.vector("alpha", width)? },
            NormKind::LayerNorm => {
                let name = if weights.contains("alpha") { "alpha" } else { "weight" };
                Self::Layer {
                    scale: weights.vector(name, width)?,
                    bias: weights.vector("bias", width)?,
                }
            }
        })
    }

    /// `x`: … × width, f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let x = x.contiguous()?;
        Ok(match self {
            Self::Rms { scale } => candle_nn::ops::rms_norm(&x, scale, Self::RMS_EPSILON)?,
            Self::Layer { scale, bias } => {
                candle_nn::ops::layer_norm(&x, scale, bias, Self::LAYER_EPSILON)?
            }
        })
    }
}
