//! Attention of a few queries over the keys and values one lane holds.

use rayon::prelude::*;

use super::Ring;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{LEVEL, Level, Portable, Vector, WIDTH};

/// Sizes of one lane's attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// Slots of a ring; a head's keys begin every `context · head_dim` numbers.
    pub(crate) context: usize,
}

/// One lane's part of a step.
pub(crate) struct LaneAttention<'a> {
    pub(crate) ring: &'a Ring,
    /// Slots that hold something, counted from the first.
    pub(crate) held: usize,
    /// Slots of this step's positions, oldest first.
    pub(crate) new_slots: &'a [usize],
}

/// softmax(q kᵀ / √d) v for every lane, head and new position; a position sees what its lane
/// holds except the positions after it.
///
/// `queries` and the result are lanes × positions × heads × head_dim.
pub(crate) fn attend(
    shape: AttentionShape,
    lanes: &[LaneAttention<'_>],
    queries: &[f32],
) -> Vec<f32> {
    let AttentionShape { heads, head_dim, context } = shape;
    let positions = lanes.first().map_or(0, |lane| lane.new_slots.len());
    let width = heads * head_dim;
    // One task per lane and head. A head's outputs for several positions are not adjacent, so
    // tasks return them and they are laid out afterwards.
    let tasks: Vec<Vec<f32>> = (0..lanes.len() * heads)
        .into_par_iter()
        .map_init(Scratch::default, |scratch, task| {
            let (lane_index, head) = (task / heads, task % heads);
            let lane = &lanes[lane_index];
            let range = head * context * head_dim..(head * context + lane.held) * head_dim;
            let keys = lane.ring.keys(range.clone(), &mut scratch.keys);
            let values = lane.ring.values(range, &mut scratch.values);
            let mut outputs = vec![0f32; positions * head_dim];
            for (position, output) in outputs.chunks_exact_mut(head_dim).enumerate() {
                let row = lane_index * positions + position;
                let query = &queries[row * width + head * head_dim..][..head_dim];
                let hidden = &lane.new_slots[position + 1..];
                attend_one(query, keys, values, hidden, &mut scratch.scores, output);
            }
            outputs
        })
        .collect();
    let mut mixed = vec![0f32; queries.len()];
    for (task, outputs) in tasks.iter().enumerate() {
        let (lane_index, head) = (task / heads, task % heads);
        for (position, output) in outputs.chunks_exact(head_dim).enumerate() {
            let row = lane_index * positions + position;
            mixed[row * width + head * head_dim..][..head_dim].copy_from_slice(output);
        }
    }
    mixed
}

/// Memory a thread uses again for every head.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

/// One query over the keys and values of one head; slots in `hidden` do not count.
fn attend_one(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    hidden: &[usize],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let head_dim = query.len();
    let scale = 1.0 / (head_dim as f32).sqrt();
    scores.clear();
    scores.extend(keys.chunks_exact(head_dim).map(|key| dot(query, key) * scale));
    for &slot in hidden {
        scores[slot] = f32::NEG_INFINITY;
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0f32;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    for (weight, value) in scores.iter().zip(values.chunks_exact(head_dim)) {
        add_scaled(out, *weight / sum, value);
    }
}

/// The dot product of two slices of the same length.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    // SAFETY: LEVEL names instructions this processor has.
    unsafe {
        match *LEVEL {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => dot_avx512(a, b),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => dot_avx2(a, b),
            Level::Portable => dot_with::<Portable>(a, b),
        }
    }
}

/// out += weight · value
fn add_scaled(out: &mut [f32], weight: f32, value: &[f32]) {
    assert_eq!(out.len(), value.len(), "lengths of a scaled sum");
    // SAFETY: LEVEL names instructions this processor has.
    unsafe {
        match *LEVEL {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => add_scaled_avx512(out, weight, value),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => add_scaled_avx2(out, weight, value),
            Level::Portable => add_scaled_with::<Portable>(out, weight, value),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn dot_avx512(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: the caller's.
    unsafe { dot_with::<Avx512>(a, b) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: the caller's.
    unsafe { dot_with::<Avx2>(a, b) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn add_scaled_avx512(out: &mut [f32], weight: f32, value: &[f32]) {
    // SAFETY: the caller's.
    unsafe { add_scaled_with::<Avx512>(out, weight, value) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_scaled_avx2(out: &mut [f32], weight: f32, value: &[f32]) {
    // SAFETY: the caller's.
    unsafe { add_scaled_with::<Avx2>(out, weight, value) }
}

#[inline(always)]
unsafe fn dot_with<V: Vector>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<WIDTH>();
    let (b, b_rest) = b.as_chunks::<WIDTH>();
    // SAFETY: the caller vouches for V; chunks are sixteen numbers.
    let whole = unsafe {
        let mut sum = V::zero();
        for (a, b) in a.iter().zip(b) {
            sum = sum.add_product(V::load_f32(a.as_ptr()), V::load_f32(b.as_ptr()));
        }
        sum.sum()
    };
    a_rest.iter().zip(b_rest).fold(whole, |sum, (a, b)| sum + a * b)
}

#[inline(always)]
unsafe fn add_scaled_with<V: Vector>(out: &mut [f32], weight: f32, value: &[f32]) {
    let (out, out_rest) = out.as_chunks_mut::<WIDTH>();
    let (value, value_rest) = value.as_chunks::<WIDTH>();
    // SAFETY: the caller vouches for V; chunks are sixteen numbers.
    unsafe {
        let weight = V::splat(weight);
        for (out, value) in out.iter_mut().zip(value) {
            V::load_f32(out.as_ptr())
                .add_product(weight, V::load_f32(value.as_ptr()))
                .store(out.as_mut_ptr());
        }
    }
    for (out, value) in out_rest.iter_mut().zip(value_rest) {
        *out += weight * value;
    }
}

#[cfg(test)]
mod tests {
    use moshi_ctl_core::Precision;

    use super::*;

    fn softmax_mix(query: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f32> {
        let scale = 1.0 / (query.len() as f64).sqrt();
        let scores: Vec<f64> = keys
            .iter()
            .map(|k| k.iter().zip(query).map(|(a, b)| f64::from(a * b)).sum::<f64>() * scale)
            .collect();
        let total: f64 = scores.iter().map(|s| s.exp()).sum();
        (0..query.len())
            .map(|d| {
                scores.iter().zip(values).map(|(s, v)| s.exp() * f64::from(v[d])).sum::<f64>()
                    as f32
                    / total as f32
            })
            .collect()
    }

    #[test]
    fn a_position_sees_what_is_held_up_to_itself() {
        // One head of 18 numbers: a vector and a rest. Three slots held of four; the two new
        // positions sit in slots 2 and 0, as after a ring has wrapped.
        let shape = AttentionShape { heads: 1, head_dim: 18, context: 4 };
        let number = |i: usize| ((i * 37 % 101) as f32 / 50.0) - 1.0;
        let row = |seed: usize| -> Vec<f32> { (0..18).map(|i| number(i + seed)).collect() };
        let (keys, values) = ([row(0), row(18), row(36)], [row(7), row(25), row(43)]);
        let mut ring = Ring::new(shape, Precision::F32);
        for slot in 0..3 {
            ring.write(shape, slot, &keys[slot], &values[slot]);
        }
        let queries = [row(3), row(21)];
        let lane = LaneAttention { ring: &ring, held: 3, new_slots: &[2, 0] };
        let mixed = attend(shape, &[lane], &queries.concat());

        let first = softmax_mix(&queries[0], &[&keys[1], &keys[2]], &[&values[1], &values[2]]);
        let second = softmax_mix(
            &queries[1],
            &[&keys[0], &keys[1], &keys[2]],
            &[&values[0], &values[1], &values[2]],
        );
        for (found, expected) in mixed.iter().zip(first.iter().chain(&second)) {
            assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
        }
    }
}
