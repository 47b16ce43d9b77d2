//! Split residual vector quantization: one semantic codebook beside a residual stack of acoustic
//! ones, both over the same latents (arXiv:2410.00037, section 3.3.2).

use moshi_ctl_core::{CodecShape, Precision};

use crate::EngineError;
use crate::backend::Codes;
use crate::codebook::codebook_entries;
use crate::cpu::kernels::{Codebook, Nearest, PackedMatrix, Rows, SearchScratch};
use crate::cpu::pool::Pool;
use crate::weights::Weights;

pub(super) struct SplitQuantizer {
    semantic: ResidualQuantizer,
    acoustic: Option<ResidualQuantizer>,
    dimension: usize,
    scratch: Scratch,
}

struct ResidualQuantizer {
    input_proj: PackedMatrix,
    levels: Vec<Codebook>,
}

/// What the levels use in turn.
#[derive(Default)]
struct Scratch {
    /// What the levels so far leave of the latents, lanes × quantizer_dim.
    residual: Vec<f32>,
    search: SearchScratch,
    nearest: Vec<Nearest>,
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
        Ok(Self { semantic, acoustic, dimension: shape.dimension, scratch: Scratch::default() })
    }

    /// `latents`: lanes × dimension.
    pub(super) fn encode(&mut self, latents: &[f32], codes: &mut Codes, pool: &mut Pool) {
        let rows = Rows::contiguous(latents.len() / self.dimension, self.dimension);
        self.semantic.encode(latents, rows, 0, codes, &mut self.scratch, pool);
        if let Some(acoustic) = &self.acoustic {
            acoustic.encode(latents, rows, 1, codes, &mut self.scratch, pool);
        }
        for (margin, latent) in codes.margins.iter_mut().zip(latents.chunks_exact(self.dimension)) {
            if !latent.iter().all(|x| x.is_finite()) {
                *margin = None;
            }
        }
    }
}

impl ResidualQuantizer {
    fn load(shape: &CodecShape, levels: usize, weights: &Weights<'_>) -> Result<Self, EngineError> {
        let (dimension, dim) = (shape.dimension, shape.quantizer_dim);
        let raw = weights.at("input_proj").raw("weight", &[dim, dimension, 1])?;
        let levels = (0..levels)
            .map(|k| {
                let weights = weights.at("vq.layers").at(k).at("_codebook");
                Codebook::new(codebook_entries(shape, &weights)?, dim)
            })
            .collect::<Result<_, EngineError>>()?;
        let input_proj = PackedMatrix::pack(&raw, dim, dimension, Precision::F32)?;
        Ok(Self { input_proj, levels })
    }

    /// The choice of each level for each row of `latents`; the first level is `first` of a lane's
    /// codebooks.
    fn encode(
        &self,
        latents: &[f32],
        rows: Rows,
        first: usize,
        codes: &mut Codes,
        scratch: &mut Scratch,
        pool: &mut Pool,
    ) {
        let Scratch { residual, search, nearest } = scratch;
        let dim = self.input_proj.outputs();
        residual.resize(rows.count * dim, 0.0);
        self.input_proj.multiply(latents, rows, residual, pool);
        for (k, codebook) in self.levels.iter().enumerate() {
            codebook.nearest(residual, search, nearest, pool);
            for (lane_index, nearest) in nearest.iter().enumerate() {
                let residual = &mut residual[lane_index * dim..][..dim];
                for (residual, entry) in residual.iter_mut().zip(codebook.entry(nearest.index)) {
                    *residual -= entry;
                }
                codes.choose(lane_index, first + k, nearest.index, nearest.margin);
            }
        }
    }
}
