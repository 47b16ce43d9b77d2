//! Normalisation of the residual stream.

use candle_core::Tensor;
use moshi_ctl_core::Norm as NormKind;

use crate::EngineError;
use crate::epsilon::{LAYER_EPSILON, RMS_EPSILON};
use crate::weights::Weights;

/// Scales rows to unit root mean square or unit variance.
pub(super) enum Norm {
    Rms { scale: Tensor },
    Layer { scale: Tensor, bias: Tensor },
}

impl Norm {
    pub(super) fn load(
        kind: NormKind,
        width: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let vector = |name| {
            let numbers = weights.vector(name, width)?;
            Ok::<_, EngineError>(Tensor::from_vec(numbers, width, &weights.placement().device)?)
        };
        Ok(match kind {
            NormKind::RmsNorm => Self::Rms { scale: vector("alpha")? },
            NormKind::LayerNorm => {
                let name = if weights.contains("alpha") { "alpha" } else { "weight" };
                Self::Layer { scale: vector(name)?, bias: vector("bias")? }
            }
        })
    }

    /// `x`: … × width, f32.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let x = x.contiguous()?;
        Ok(match self {
            Self::Rms { scale } => candle_nn::ops::rms_norm(&x, scale, RMS_EPSILON)?,
            Self::Layer { scale, bias } => {
                candle_nn::ops::layer_norm(&x, scale, bias, LAYER_EPSILON)?
            }
        })
    }
}
