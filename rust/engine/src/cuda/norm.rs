//! Normalisation of the residual stream.

use std::sync::Arc;

use moshi_ctl_core::Norm as NormKind;

use super::driver::{Card, Grid, Kernel};
use super::launch;
use super::memory::Memory;
use crate::EngineError;
use crate::epsilon::{LAYER_EPSILON, RMS_EPSILON};
use crate::weights::Weights;

/// Scales rows to unit root mean square or unit variance.
pub(super) struct Norm {
    width: usize,
    scale: Memory,
    /// Of layer norms.
    bias: Option<Memory>,
    kernel: Kernel,
}

impl Norm {
    pub(super) fn load(
        card: &Arc<Card>,
        kind: NormKind,
        width: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let vector = |name| Memory::of(card, &weights.vector(name, width)?);
        Ok(match kind {
            NormKind::RmsNorm => Self {
                width,
                scale: vector("alpha")?,
                bias: None,
                kernel: card.kernel("rms_norm")?,
            },
            NormKind::LayerNorm => {
                let name = if weights.contains("alpha") { "alpha" } else { "weight" };
                Self {
                    width,
                    scale: vector(name)?,
                    bias: Some(vector("bias")?),
                    kernel: card.kernel("layer_norm")?,
                }
            }
        })
    }

    /// `x` and `y`: rows × width.
    pub(super) fn forward(&self, x: &Memory, rows: usize, y: &Memory) -> Result<(), EngineError> {
        let grid = Grid { blocks: [rows, 1, 1], threads: 256 };
        let (scale, width) = (self.scale.address(), self.width as i32);
        match &self.bias {
            None => launch!(x.card(), self.kernel, grid;
                x.address(), scale, y.address(), width, RMS_EPSILON),
            Some(bias) => launch!(x.card(), self.kernel, grid;
                x.address(), scale, bias.address(), y.address(), width, LAYER_EPSILON),
        }
    }
}
