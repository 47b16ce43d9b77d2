//! Self-attention over a ring of keys and values per lane.

use std::sync::Arc;

use moshi_ctl_core::{PositionalEmbedding, Precision, TransformerShape};

use super::driver::{Card, Grid, Kernel};
use super::launch;
use super::linear::{Ending, Linear, Output};
use super::memory::Memory;
use super::rows::{Rows, Which};
use super::transformer::Scratch;
use crate::EngineError;
use crate::weights::Weights;

/// Slots that a block attends to: see `transformer.cu`.
const SLOTS: usize = 128;

/// The widest head that a block has room for.
const MOST_DIM: usize = 256;

/// Sizes of attention: see `Attention` in `transformer.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Sizes {
    heads: i32,
    head_dim: i32,
    context: i32,
    count: i32,
    which: i32,
    lane_bytes: u64,
}

/// What all layers of a transformer share.
pub(super) struct AttentionKernels {
    sizes: Sizes,
    /// 1 / wavelength of each rotated pair; none without rotary embeddings.
    frequencies: Option<Memory>,
    remember: Kernel,
    attend: Kernel,
    gather: Kernel,
}

impl AttentionKernels {
    pub(super) fn new(
        card: &Arc<Card>,
        shape: &TransformerShape,
        count: usize,
        which: Which,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let dim = shape.head_dim();
        if !dim.is_multiple_of(4) || dim > MOST_DIM {
            return Err(EngineError::new(format!(
                "heads of {dim} numbers cannot be computed on a card: they have to be a multiple \
                 of 4 and {MOST_DIM} at most"
            ))
            .with_hint("Run this model on the CPU with --device cpu."));
        }
        let sizes = Sizes {
            heads: shape.num_heads as i32,
            head_dim: dim as i32,
            context: shape.context as i32,
            count: count as i32,
            which: which as i32,
            lane_bytes: ring_bytes(shape, precision) as u64,
        };
        let rotates = shape.positional_embedding == PositionalEmbedding::Rope;
        let frequency = |i: usize| 1f32 / (shape.max_period as f32).powf(i as f32 / dim as f32);
        let frequencies: Vec<f32> = (0..dim).step_by(2).map(frequency).collect();
        Ok(Self {
            sizes,
            frequencies: rotates.then(|| Memory::of(card, &frequencies)).transpose()?,
            remember: card.kernel(&format!("remember_{precision}"))?,
            attend: card.kernel(&format!("attend_{precision}"))?,
            gather: card.kernel("gather")?,
        })
    }

    fn width(&self) -> usize {
        (self.sizes.heads * self.sizes.head_dim) as usize
    }
}

/// Bytes of the keys and values of one lane in one layer.
pub(super) fn ring_bytes(shape: &TransformerShape, precision: Precision) -> usize {
    let slots = shape.context * shape.num_heads;
    2 * match precision {
        Precision::Q8 => slots * (shape.head_dim() + size_of::<f32>()),
        precision => slots * shape.head_dim() * precision.number_bytes(),
    }
}

/// Numbers of what `attend` leaves to `gather` for each position of a lane.
pub(super) fn parts_numbers(shape: &TransformerShape) -> usize {
    shape.context.div_ceil(SLOTS) * shape.num_heads * (shape.head_dim() + 2)
}

/// Multi-head self-attention with its projections and every lane's ring.
pub(super) struct SelfAttention {
    in_proj: Linear,
    out_proj: Linear,
    /// lanes × keys, then values: heads × context × head_dim each.
    rings: Memory,
}

impl SelfAttention {
    pub(super) fn load(
        card: &Arc<Card>,
        shape: &TransformerShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let d = shape.d_model;
        let in_bias = shape.bias_attn.then_some("in_proj_bias");
        let of_lane = ring_bytes(shape, weights.placement().kv_precision);
        Ok(Self {
            in_proj: Linear::load_named(card, "in_proj_weight", &[3 * d, d], in_bias, weights)?,
            out_proj: Linear::load(card, d, d, shape.bias_attn, &weights.at("out_proj"))?,
            rings: Memory::zeroed(card, lanes * of_lane)?,
        })
    }

    /// From `scratch.normed`, rows × count × d_model, to `x`, to which it is added.
    pub(super) fn forward(
        &self,
        kernels: &AttentionKernels,
        rows: Rows<'_>,
        x: &Memory,
        scale: Option<&Memory>,
        scratch: &Scratch,
    ) -> Result<(), EngineError> {
        let AttentionKernels { sizes, frequencies, remember, attend, gather } = kernels;
        let Scratch { normed, projected, parts, mixed, .. } = scratch;
        let halves = scratch.halves();
        let (card, places) = (x.card(), rows.count * sizes.count as usize);
        let heads = sizes.heads as usize;
        self.in_proj.forward(normed, places, Output::store(projected.address()), halves)?;
        let warps = places * heads;
        launch!(card, *remember, Grid { blocks: [warps.div_ceil(4), 1, 1], threads: 128 };
            projected.address(), self.rings.address(), rows.table.address(),
            super::linear::address(frequencies.as_ref()), *sizes, warps as i32)?;
        let blocks = (sizes.context as usize).div_ceil(SLOTS);
        launch!(card, *attend, Grid { blocks: [blocks, heads, places], threads: 128 };
            projected.address(), self.rings.address(), rows.table.address(), parts.address(), *sizes)?;
        launch!(card, *gather, Grid { blocks: [heads, places, 1], threads: 128 };
            parts.address(), mixed.address(), sizes.heads, sizes.head_dim, blocks as i32)?;
        debug_assert_eq!(self.out_proj.outputs(), kernels.width());
        let to = Output { y: x.address(), ending: Ending::Add, scale };
        self.out_proj.forward(mixed, places, to, halves)
    }
}
