//! Self-attention over a ring of keys and values per lane.

use candle_core::{DType, Device, Tensor};
use moshi_ctl_core::{PositionalEmbedding, TransformerShape};

use crate::EngineError;
use crate::checkpoint::dtype;
use crate::kernels::{AttentionShape, LaneAttention, Ring, attend};
use crate::linear::{Linear, with_slice};
use crate::weights::{Kernels, Placement, Weights};

/// Where the lanes of a step are in their streams, computed once per step for all layers.
pub(crate) struct StepPositions {
    /// The lanes, one after another in every tensor of the step.
    pub(crate) lanes: Vec<usize>,
    /// Positions each lane advances by.
    pub(crate) count: usize,
    /// Position of each lane before the step.
    starts: Vec<usize>,
    context: usize,
    /// Cosines and sines, lanes × count × head_dim / 2, for rotary embeddings.
    rotation: Option<(Vec<f32>, Vec<f32>)>,
}

impl StepPositions {
    pub(crate) fn new(
        shape: &TransformerShape,
        lanes: &[usize],
        starts: Vec<usize>,
        count: usize,
    ) -> Self {
        let rotation = (shape.positional_embedding == PositionalEmbedding::Rope).then(|| {
            let (dim, period) = (shape.head_dim(), shape.max_period as f32);
            let inverse_wavelengths: Vec<f32> =
                (0..dim).step_by(2).map(|i| 1f32 / period.powf(i as f32 / dim as f32)).collect();
            starts
                .iter()
                .flat_map(|&start| start..start + count)
                .flat_map(|position| inverse_wavelengths.iter().map(move |f| position as f32 * f))
                .map(|angle| (angle.cos(), angle.sin()))
                .unzip()
        });
        Self { lanes: lanes.to_vec(), count, starts, context: shape.context, rotation }
    }

    fn slots(&self, lane_index: usize) -> Vec<usize> {
        let start = self.starts[lane_index];
        (start..start + self.count).map(|position| position % self.context).collect()
    }

    fn held(&self, lane_index: usize) -> usize {
        (self.starts[lane_index] + self.count).min(self.context)
    }

    /// Rotates interleaved pairs of each head in place; `x` is lanes × count × heads × head_dim.
    fn rotate(&self, x: &mut [f32], AttentionShape { heads, head_dim, .. }: AttentionShape) {
        let Some((cos, sin)) = &self.rotation else { return };
        for (row, x) in x.chunks_exact_mut(heads * head_dim).enumerate() {
            let angles = row * head_dim / 2..(row + 1) * head_dim / 2;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            for head in x.chunks_exact_mut(head_dim) {
                for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
        }
    }

    /// count × held: −∞ where a position would see one after it, else 0; none where one
    /// position is alone.
    fn hidden_mask(
        &self,
        lane_index: usize,
        device: &Device,
    ) -> Result<Option<Tensor>, EngineError> {
        if self.count == 1 {
            return Ok(None);
        }
        let (slots, held) = (self.slots(lane_index), self.held(lane_index));
        let mut mask = vec![0f32; self.count * held];
        for position in 0..self.count {
            for slot in &slots[position + 1..] {
                mask[position * held + slot] = f32::NEG_INFINITY;
            }
        }
        Ok(Some(Tensor::from_vec(mask, (self.count, held), device)?))
    }
}

/// Multi-head self-attention with its projections and every lane's ring.
pub(crate) struct SelfAttention {
    in_proj: Linear,
    out_proj: Linear,
    shape: AttentionShape,
    rings: Rings,
}

/// A ring per lane, for the kernels that attend over them.
enum Rings {
    Own(Vec<Ring>),
    /// Keys and values, heads × context × head_dim each.
    Candle(Vec<(Tensor, Tensor)>),
}

impl SelfAttention {
    pub(crate) fn load(
        shape: &TransformerShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let d = shape.d_model;
        let in_bias = shape.bias_attn.then_some("in_proj_bias");
        let in_proj = Linear::load_named("in_proj_weight", &[3 * d, d], in_bias, weights)?;
        let out_proj = Linear::load(d, d, shape.bias_attn, &weights.at("out_proj"))?;
        let shape = AttentionShape {
            heads: shape.num_heads,
            head_dim: shape.head_dim(),
            context: shape.context,
        };
        let Placement { kernels, precision, device } = weights.placement();
        let rings = match kernels {
            Kernels::Own => Rings::Own((0..lanes).map(|_| Ring::new(shape, *precision)).collect()),
            Kernels::Candle => {
                let dims = (shape.heads, shape.context, shape.head_dim);
                let zeros = || Tensor::zeros(dims, dtype(*precision), device);
                let rings = (0..lanes).map(|_| Ok::<_, EngineError>((zeros()?, zeros()?)));
                Rings::Candle(rings.collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { in_proj, out_proj, shape, rings })
    }

    /// `x`: lanes × count × d_model, f32. Returns the same shape.
    pub(crate) fn forward(
        &mut self,
        x: &Tensor,
        step: &StepPositions,
    ) -> Result<Tensor, EngineError> {
        let projected = self.in_proj.forward(x)?;
        let mixed = match &mut self.rings {
            Rings::Own(rings) => attend_own(self.shape, rings, &projected, step)?,
            Rings::Candle(rings) => attend_candle(self.shape, rings, &projected, step)?,
        };
        self.out_proj.forward(&mixed)
    }
}

/// `projected`: lanes × count × 3 d_model. Returns lanes × count × d_model.
fn attend_own(
    shape: AttentionShape,
    rings: &mut [Ring],
    projected: &Tensor,
    step: &StepPositions,
) -> Result<Tensor, EngineError> {
    let width = shape.heads * shape.head_dim;
    let part = |numbers: &[f32], which: usize| -> Vec<f32> {
        let rows = numbers.chunks_exact(3 * width);
        rows.flat_map(|row| &row[which * width..][..width]).copied().collect()
    };
    let [mut queries, mut keys, values] =
        with_slice(projected, |numbers| [0, 1, 2].map(|which| part(numbers, which)))?;
    step.rotate(&mut queries, shape);
    step.rotate(&mut keys, shape);
    let slots: Vec<_> = (0..step.lanes.len()).map(|i| step.slots(i)).collect();
    for (i, &lane) in step.lanes.iter().enumerate() {
        for (position, &slot) in slots[i].iter().enumerate() {
            let row = (i * step.count + position) * width;
            rings[lane].write(shape, slot, &keys[row..][..width], &values[row..][..width]);
        }
    }
    let lanes: Vec<_> = step
        .lanes
        .iter()
        .zip(&slots)
        .enumerate()
        .map(|(i, (&lane, slots))| LaneAttention {
            ring: &rings[lane],
            held: step.held(i),
            new_slots: slots,
        })
        .collect();
    let mixed = attend(shape, &lanes, &queries);
    Ok(Tensor::from_vec(mixed, (step.lanes.len(), step.count, width), &Device::Cpu)?)
}

/// As [`attend_own`], with candle's operations, one lane after another.
fn attend_candle(
    shape: AttentionShape,
    rings: &[(Tensor, Tensor)],
    projected: &Tensor,
    step: &StepPositions,
) -> Result<Tensor, EngineError> {
    let AttentionShape { heads, head_dim, .. } = shape;
    let device = projected.device();
    let mut mixed = Vec::with_capacity(step.lanes.len());
    for (i, &lane) in step.lanes.iter().enumerate() {
        let (keys, values) = &rings[lane];
        // 3 × heads × count × head_dim
        let qkv = projected
            .narrow(0, i, 1)?
            .reshape((step.count, 3, heads, head_dim))?
            .permute((1, 2, 0, 3))?;
        let part = |which: usize| qkv.narrow(0, which, 1)?.contiguous();
        let (mut q, mut k, v) = (part(0)?, part(1)?, part(2)?);
        if let Some((cos, sin)) = &step.rotation {
            let angles = step.count * head_dim / 2;
            let table = |numbers: &[f32]| {
                let numbers = &numbers[i * angles..][..angles];
                Tensor::from_slice(numbers, (step.count, head_dim / 2), device)
            };
            let (cos, sin) = (table(cos)?, table(sin)?);
            q = candle_nn::rotary_emb::rope_i(&q, &cos, &sin)?;
            k = candle_nn::rotary_emb::rope_i(&k, &cos, &sin)?;
        }
        for (position, slot) in step.slots(i).into_iter().enumerate() {
            let at = |x: &Tensor| {
                x.squeeze(0)?.narrow(1, position, 1)?.to_dtype(keys.dtype())?.contiguous()
            };
            keys.slice_set(&at(&k)?, 1, slot)?;
            values.slice_set(&at(&v)?, 1, slot)?;
        }
        let held = step.held(i);
        let (keys, values) = (keys.narrow(1, 0, held)?, values.narrow(1, 0, held)?);
        // heads × count × held
        let scores = q.squeeze(0)?.to_dtype(keys.dtype())?.matmul(&keys.t()?)?;
        let scores = (scores.to_dtype(DType::F32)? / (head_dim as f64).sqrt())?;
        let scores = match step.hidden_mask(i, device)? {
            Some(mask) => scores.broadcast_add(&mask)?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let out = weights.to_dtype(values.dtype())?.matmul(&values.contiguous()?)?;
        let out = out.to_dtype(DType::F32)?.transpose(0, 1)?;
        mixed.push(out.reshape((1, step.count, heads * head_dim))?);
    }
    Ok(Tensor::cat(&mixed, 0)?)
}
