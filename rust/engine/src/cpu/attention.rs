//! Self-attention over a ring of keys and values per lane.

use moshi_ctl_core::TransformerShape;

use super::kernels::{Attention, AttentionScratch, AttentionShape, Ring};
use super::linear::{Linear, Operand};
use super::pool::{Disjoint, Pool};
use crate::EngineError;
use crate::positions::Positions;
use crate::weights::Weights;

/// Multi-head self-attention with its projections and every lane's ring.
pub(super) struct SelfAttention {
    in_proj: Linear,
    out_proj: Linear,
    shape: AttentionShape,
    rings: Vec<Ring>,
    /// lanes × count × 3 d_model
    projected: Vec<f32>,
    /// lanes × count × d_model
    mixed: Vec<f32>,
    /// One per thread.
    scratch: Vec<AttentionScratch>,
}

impl SelfAttention {
    pub(super) fn load(
        shape: &TransformerShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let d = shape.d_model;
        let in_bias = shape.bias_attn.then_some("in_proj_bias");
        let in_proj = Linear::load_named("in_proj_weight", &[3 * d, d], in_bias, weights)?;
        let out_proj = Linear::load(d, d, shape.bias_attn, &weights.at("out_proj"))?;
        let shape = AttentionShape::of(shape);
        let kv_precision = weights.placement().kv_precision;
        let rings = (0..lanes).map(|_| Ring::new(shape, kv_precision)).collect::<Result<_, _>>()?;
        let (projected, mixed, scratch) = (vec![], vec![], vec![]);
        Ok(Self { in_proj, out_proj, shape, rings, projected, mixed, scratch })
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.rings.truncate(count);
    }

    /// Puts something into every slot of a lane's ring, for measurements.
    pub(super) fn fill(&mut self, lane: usize) {
        self.rings[lane].fill(self.shape);
    }

    /// `x`: lanes × count × d_model. `y` becomes the same.
    pub(super) fn forward(
        &mut self,
        x: &[f32],
        lanes: &[usize],
        positions: &Positions,
        y: &mut Vec<f32>,
        operand: &mut Operand,
        pool: &mut Pool,
    ) {
        let Self { in_proj, out_proj, shape, rings, projected, mixed, scratch } = self;
        let (shape, rows) = (*shape, lanes.len() * positions.count());
        in_proj.forward(x, rows, projected, operand, pool);
        remember(shape, rings, projected, lanes, positions, pool);
        mixed.resize(rows * shape.width(), 0.0);
        let attention = Attention { shape, rings, lanes, positions, projected };
        attention.attend(mixed, scratch, pool);
        out_proj.forward(mixed, rows, y, operand, pool);
    }
}

/// Rotates queries and keys to their positions and puts keys and values into the lanes' rings.
fn remember(
    shape: AttentionShape,
    rings: &mut [Ring],
    projected: &mut [f32],
    lanes: &[usize],
    positions: &Positions,
    pool: &mut Pool,
) {
    let (width, count) = (shape.width(), positions.count());
    let rings = Disjoint::new(rings);
    pool.for_each_chunk(projected, count * 3 * width, |lane_index, projected| {
        // SAFETY: a step has every lane at most once, and each is one piece.
        let ring = unsafe { rings.item(lanes[lane_index]) };
        for (position, qkv) in projected.chunks_exact_mut(3 * width).enumerate() {
            let (qk, value) = qkv.split_at_mut(2 * width);
            if let Some((cosines, sines)) = positions.rotation(lane_index) {
                let angles = position * shape.head_dim / 2..(position + 1) * shape.head_dim / 2;
                rotate(qk, shape.head_dim, &cosines[angles.clone()], &sines[angles]);
            }
            let slot = positions.slot(lane_index, position);
            ring.write(shape, slot, &qk[width..], value);
        }
    });
}

/// Rotates interleaved pairs of each head (RoFormer, arXiv:2104.09864).
fn rotate(x: &mut [f32], head_dim: usize, cosines: &[f32], sines: &[f32]) {
    for head in x.chunks_exact_mut(head_dim) {
        for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}
