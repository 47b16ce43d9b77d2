//! Split residual vector quantization: one semantic codebook beside a residual stack of acoustic
//! ones, both over the same latents (arXiv:2410.00037, section 3.3.2).

use candle_core::{D, Device, Tensor};
use moshi_ctl_core::CodecShape;

use super::Codes;
use crate::EngineError;
use crate::kernels::{Codebook, Nearest};
use crate::linear::Linear;
use crate::weights::{Kernels, Weights};

pub(crate) struct SplitQuantizer {
    semantic: ResidualQuantizer,
    acoustic: Option<ResidualQuantizer>,
}

struct ResidualQuantizer {
    input_proj: Linear,
    levels: Vec<Level>,
}

enum Level {
    Own(Codebook),
    /// Entries, bins × dim, and half their squared norms.
    Candle {
        entries: Tensor,
        half_norms: Tensor,
    },
}

impl SplitQuantizer {
    pub(crate) fn load(
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

    /// `latents`: lanes × dimension. One entry per lane; none where a latent is not finite.
    pub(crate) fn encode(&self, latents: &Tensor) -> Result<Vec<Option<Codes>>, EngineError> {
        let finite: Vec<bool> = latents
            .to_vec2::<f32>()?
            .iter()
            .map(|latent| latent.iter().all(|x| x.is_finite()))
            .collect();
        let mut chosen = self.semantic.encode(latents)?;
        if let Some(acoustic) = &self.acoustic {
            chosen.extend(acoustic.encode(latents)?);
        }
        let codes = |lane: usize| Codes {
            tokens: chosen.iter().map(|level| level[lane].index).collect(),
            margin: chosen.iter().map(|level| level[lane].margin).fold(f32::INFINITY, f32::min),
        };
        Ok(finite.into_iter().enumerate().map(|(lane, ok)| ok.then(|| codes(lane))).collect())
    }
}

impl ResidualQuantizer {
    fn load(shape: &CodecShape, levels: usize, weights: &Weights<'_>) -> Result<Self, EngineError> {
        let dim = shape.quantizer_dim;
        let input_proj = Linear::load_named(
            "weight",
            &[dim, shape.dimension, 1],
            None,
            &weights.at("input_proj"),
        )?;
        let levels = (0..levels)
            .map(|k| Level::load(shape, &weights.at("vq.layers").at(k).at("_codebook")))
            .collect::<Result<_, _>>()?;
        Ok(Self { input_proj, levels })
    }

    /// The choice of each level for each row of `latents`.
    fn encode(&self, latents: &Tensor) -> Result<Vec<Vec<Nearest>>, EngineError> {
        let mut residual = self.input_proj.forward(latents)?;
        let mut chosen = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            let (nearest, quantized) = level.encode(&residual)?;
            residual = (residual - quantized)?;
            chosen.push(nearest);
        }
        Ok(chosen)
    }
}

impl Level {
    /// Least usage a codebook entry's sum is divided by, as in training.
    const LEAST_USAGE: f32 = 1e-5;

    fn load(shape: &CodecShape, weights: &Weights<'_>) -> Result<Self, EngineError> {
        let (bins, dim) = (shape.quantizer_bins, shape.quantizer_dim);
        let usage = weights.f32_vec("cluster_usage", &[bins])?;
        let mut entries = weights.f32_vec("embedding_sum", &[bins, dim])?;
        for (entry, usage) in entries.chunks_exact_mut(dim).zip(usage) {
            for number in entry {
                *number /= usage.max(Self::LEAST_USAGE);
            }
        }
        let codebook = Codebook::new(entries, dim);
        let placement = weights.placement();
        Ok(match placement.kernels {
            Kernels::Own => Self::Own(codebook),
            Kernels::Candle => Self::Candle {
                half_norms: Tensor::new(codebook.half_norms(), &placement.device)?,
                entries: Tensor::from_vec(codebook.entries, (bins, dim), &placement.device)?,
            },
        })
    }

    /// Nearest entries to the rows of `residual`, and those entries.
    fn encode(&self, residual: &Tensor) -> Result<(Vec<Nearest>, Tensor), EngineError> {
        match self {
            Self::Own(codebook) => {
                let nearest = crate::linear::with_slice(residual, |r| codebook.nearest(r))?;
                let quantized: Vec<f32> =
                    nearest.iter().flat_map(|n| codebook.entry(n.index)).copied().collect();
                let quantized = Tensor::from_vec(quantized, residual.shape(), &Device::Cpu)?;
                Ok((nearest, quantized))
            }
            Self::Candle { entries, half_norms } => {
                let distances = half_norms.broadcast_sub(&residual.matmul(&entries.t()?)?)?;
                let indices = distances.argmin(D::Minus1)?;
                let quantized = entries.index_select(&indices, 0)?;
                // Margins are for the tests, which look at our own kernels.
                let nearest = indices
                    .to_vec1::<u32>()?
                    .into_iter()
                    .map(|index| Nearest { index, margin: f32::INFINITY })
                    .collect();
                Ok((nearest, quantized))
            }
        }
    }
}
