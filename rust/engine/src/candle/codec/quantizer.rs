//! Split residual vector quantization: one semantic codebook beside a residual stack of acoustic
//! ones, both over the same latents (arXiv:2410.00037, section 3.3.2).

use candle_core::{D, Tensor};
use moshi_ctl_core::CodecShape;

use crate::EngineError;
use crate::backend::Codes;
use crate::candle::linear::Linear;
use crate::codebook::{codebook_entries, half_norms};
use crate::weights::Weights;

pub(super) struct SplitQuantizer {
    semantic: ResidualQuantizer,
    acoustic: Option<ResidualQuantizer>,
}

struct ResidualQuantizer {
    input_proj: Linear,
    levels: Vec<Level>,
}

struct Level {
    /// bins × dim
    entries: Tensor,
    half_norms: Tensor,
}

impl SplitQuantizer {
    pub(super) fn load(
        shape: &CodecShape,
        codebooks: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let semantic = ResidualQuantizer::load(shape, 1, &weights.at("rvq_first"))?;
        let acoustic = (codebooks > 1)
            .then(|| ResidualQuantizer::load(shape, codebooks - 1, &weights.at("rvq_rest")))
            .transpose()?;
        Ok(Self { semantic, acoustic })
    }

    /// `latents`: lanes × dimension.
    pub(super) fn encode(&self, latents: &Tensor, codes: &mut Codes) -> Result<(), EngineError> {
        self.semantic.encode(latents, 0, codes)?;
        if let Some(acoustic) = &self.acoustic {
            acoustic.encode(latents, 1, codes)?;
        }
        for (margin, latent) in codes.margins.iter_mut().zip(latents.to_vec2::<f32>()?) {
            if !latent.iter().all(|x| x.is_finite()) {
                *margin = None;
            }
        }
        Ok(())
    }
}

impl ResidualQuantizer {
    fn load(shape: &CodecShape, levels: usize, weights: &Weights<'_>) -> Result<Self, EngineError> {
        let dims = [shape.quantizer_dim, shape.dimension, 1];
        let input_proj = Linear::load_named("weight", &dims, None, &weights.at("input_proj"))?;
        let levels = (0..levels)
            .map(|k| Level::load(shape, &weights.at("vq.layers").at(k).at("_codebook")))
            .collect::<Result<_, _>>()?;
        Ok(Self { input_proj, levels })
    }

    /// The choice of each level for each row of `latents`; the first level is `first` of a lane's
    /// codebooks. Margins are for the tests, which look at our own kernels.
    fn encode(&self, latents: &Tensor, first: usize, codes: &mut Codes) -> Result<(), EngineError> {
        let mut residual = self.input_proj.forward(latents)?;
        for (k, Level { entries, half_norms }) in self.levels.iter().enumerate() {
            // ‖x − e‖² orders entries as ‖e‖²/2 − x·e does.
            let distances = half_norms.broadcast_sub(&residual.matmul(&entries.t()?)?)?;
            let indices = distances.argmin(D::Minus1)?;
            residual = (residual - entries.index_select(&indices, 0)?)?;
            for (lane_index, token) in indices.to_vec1::<u32>()?.into_iter().enumerate() {
                codes.choose(lane_index, first + k, token, f32::INFINITY);
            }
        }
        Ok(())
    }
}

impl Level {
    fn load(shape: &CodecShape, weights: &Weights<'_>) -> Result<Self, EngineError> {
        let (bins, dim) = (shape.quantizer_bins, shape.quantizer_dim);
        let (entries, device) = (codebook_entries(shape, weights)?, &weights.placement().device);
        Ok(Self {
            half_norms: Tensor::from_vec(half_norms(&entries, dim), bins, device)?,
            entries: Tensor::from_vec(entries, (bins, dim), device)?,
        })
    }
}
