//! Normalisation of the residual stream.

use moshi_ctl_core::Norm as NormKind;

use super::kernels::{layer_norm, rms_norm};
use super::pool::Pool;
use crate::EngineError;
use crate::weights::Weights;

/// Scales rows to unit root mean square or unit variance.
pub(super) enum Norm {
    Rms { scale: Vec<f32> },
    Layer { scale: Vec<f32>, bias: Vec<f32> },
}

impl Norm {
    pub(super) fn load(
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

    /// `x`: rows × width. `y` becomes the same.
    pub(super) fn forward(&self, x: &[f32], y: &mut Vec<f32>, pool: &mut Pool) {
        let (Self::Rms { scale } | Self::Layer { scale, .. }) = self;
        let width = scale.len();
        y.resize(x.len(), 0.0);
        pool.for_each_chunk(y, width, |row, y| {
            let x = &x[row * width..][..width];
            match self {
                Self::Rms { scale } => rms_norm(x, scale, y),
                Self::Layer { scale, bias } => layer_norm(x, scale, bias, y),
            }
        });
    }
}
