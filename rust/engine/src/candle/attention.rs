//! Self-attention over a ring of keys and values per lane.

use candle_core::{DType, Device, Tensor};
use moshi_ctl_core::TransformerShape;

use super::dtype;
use super::linear::Linear;
use crate::EngineError;
use crate::positions::Positions;
use crate::weights::Weights;

/// Multi-head self-attention with its projections and every lane's ring.
pub(super) struct SelfAttention {
    in_proj: Linear,
    out_proj: Linear,
    heads: usize,
    head_dim: usize,
    /// Keys and values of each lane, heads × context × head_dim each.
    rings: Vec<(Tensor, Tensor)>,
}

impl SelfAttention {
    pub(super) fn load(
        shape: &TransformerShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let (d, placement) = (shape.d_model, weights.placement());
        let in_bias = shape.bias_attn.then_some("in_proj_bias");
        let in_proj = Linear::load_named("in_proj_weight", &[3 * d, d], in_bias, weights)?;
        let out_proj = Linear::load(d, d, shape.bias_attn, &weights.at("out_proj"))?;
        let (heads, head_dim) = (shape.num_heads, shape.head_dim());
        let (dims, dtype) = ((heads, shape.context, head_dim), dtype(placement.kv_precision)?);
        let zeros = || Tensor::zeros(dims, dtype, &placement.device);
        let rings = (0..lanes).map(|_| Ok::<_, EngineError>((zeros()?, zeros()?)));
        Ok(Self { in_proj, out_proj, heads, head_dim, rings: rings.collect::<Result<_, _>>()? })
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.rings.truncate(count);
    }

    /// `x`: lanes × count × d_model, f32. Returns the same shape.
    pub(super) fn forward(
        &mut self,
        x: &Tensor,
        lanes: &[usize],
        positions: &Positions,
    ) -> Result<Tensor, EngineError> {
        let projected = self.in_proj.forward(x)?;
        let mixed = (lanes.iter().enumerate())
            .map(|(i, &lane)| self.attend(&self.rings[lane], i, &projected, positions))
            .collect::<Result<Vec<_>, _>>()?;
        self.out_proj.forward(&Tensor::cat(&mixed, 0)?)
    }

    /// Attention of one lane. `projected`: lanes × count × 3 d_model. Returns 1 × count × d_model.
    fn attend(
        &self,
        (keys, values): &(Tensor, Tensor),
        lane_index: usize,
        projected: &Tensor,
        positions: &Positions,
    ) -> Result<Tensor, EngineError> {
        let Self { heads, head_dim, .. } = *self;
        let (device, count) = (projected.device(), positions.count());
        // 3 × heads × count × head_dim
        let qkv = projected
            .narrow(0, lane_index, 1)?
            .reshape((count, 3, heads, head_dim))?
            .permute((1, 2, 0, 3))?;
        let part = |which: usize| qkv.narrow(0, which, 1)?.contiguous();
        let (mut q, mut k, v) = (part(0)?, part(1)?, part(2)?);
        if let Some((cos, sin)) = positions.rotation(lane_index) {
            let table = |numbers| Tensor::from_slice(numbers, (count, head_dim / 2), device);
            let (cos, sin) = (table(cos)?, table(sin)?);
            q = candle_nn::rotary_emb::rope_i(&q, &cos, &sin)?;
            k = candle_nn::rotary_emb::rope_i(&k, &cos, &sin)?;
        }
        for position in 0..count {
            let slot = positions.slot(lane_index, position);
            let at = |x: &Tensor| {
                x.squeeze(0)?.narrow(1, position, 1)?.to_dtype(keys.dtype())?.contiguous()
            };
            keys.slice_set(&at(&k)?, 1, slot)?;
            values.slice_set(&at(&v)?, 1, slot)?;
        }
        let held = positions.held(lane_index);
        let (keys, values) = (keys.narrow(1, 0, held)?, values.narrow(1, 0, held)?);
        // heads × count × held
        let scores = q.squeeze(0)?.to_dtype(keys.dtype())?.matmul(&keys.t()?)?;
        let scores = (scores.to_dtype(DType::F32)? / (head_dim as f64).sqrt())?;
        let scores = match hidden_mask(positions, lane_index, device)? {
            Some(mask) => scores.broadcast_add(&mask)?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let out = weights.to_dtype(values.dtype())?.matmul(&values.contiguous()?)?;
        let out = out.to_dtype(DType::F32)?.transpose(0, 1)?;
        Ok(out.reshape((1, count, heads * head_dim))?)
    }
}

/// count × held: −∞ where a position would see one after it, else 0; none where one position is
/// alone.
fn hidden_mask(
    positions: &Positions,
    lane_index: usize,
    device: &Device,
) -> Result<Option<Tensor>, EngineError> {
    let (count, held) = (positions.count(), positions.held(lane_index));
    if count == 1 {
        return Ok(None);
    }
    let mut mask = vec![0f32; count * held];
    for position in 0..count {
        for later in position + 1..count {
            mask[position * held + positions.slot(lane_index, later)] = f32::NEG_INFINITY;
        }
    }
    Ok(Some(Tensor::from_vec(mask, (count, held), device)?))
}
