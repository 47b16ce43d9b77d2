//! Attention of a few queries over the keys and values one lane holds.

use moshi_ctl_core::TransformerShape;
use std::ops::Range;

use super::q8::Integers;
use super::ring::{Numbers, Ring};
use super::rows::softmax;
use super::simd::{Kernel, Vector, WIDTH, dispatch};
use crate::cpu::pool::{Disjoint, Pool, Work};
use crate::positions::Positions;

/// Sizes of one lane's attention.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct AttentionShape {
    pub(in crate::cpu) heads: usize,
    pub(in crate::cpu) head_dim: usize,
    /// Slots of a ring.
    pub(in crate::cpu) context: usize,
}

impl AttentionShape {
    pub(in crate::cpu) fn of(shape: &TransformerShape) -> Self {
        let (heads, head_dim) = (shape.num_heads, shape.head_dim());
        Self { heads, head_dim, context: shape.context }
    }

    /// Numbers of all heads together.
    pub(in crate::cpu) fn width(self) -> usize {
        self.heads * self.head_dim
    }
}

/// softmax(q kᵀ / √d) v for every lane, head and position of a step; a position sees what its
/// lane holds except the positions after it.
pub(in crate::cpu) struct Attention<'a> {
    pub(in crate::cpu) shape: AttentionShape,
    /// Of all lanes, with the step's keys and values in them.
    pub(in crate::cpu) rings: &'a [Ring],
    /// The lanes of the step.
    pub(in crate::cpu) lanes: &'a [usize],
    pub(in crate::cpu) positions: &'a Positions,
    /// lanes × count × 3 width; the first third of each row is the query.
    pub(in crate::cpu) projected: &'a [f32],
}

impl Attention<'_> {
    /// `mixed`: lanes × count × width. `scratch`: one per thread.
    pub(in crate::cpu) fn attend(
        &self,
        mixed: &mut [f32],
        scratch: &mut Vec<Scratch>,
        pool: &mut Pool,
    ) {
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let (width, count) = (self.shape.width(), self.positions.count());
        scratch.resize_with(pool.threads(), Scratch::default);
        scratch.iter_mut().for_each(|scratch| scratch.reserve(self.shape));
        let (mixed, scratch) = (Disjoint::new(mixed), Disjoint::new(scratch));
        pool.run(Work::Attention, self.lanes.len() * heads, &|piece, thread| {
            let (lane_index, head) = (piece / heads, piece % heads);
            // SAFETY: a thread does one piece at a time.
            let scratch = unsafe { scratch.item(thread) };
            for position in 0..count {
                let row = lane_index * count + position;
                let start = row * width + head * head_dim;
                // SAFETY: each lane and head is one piece.
                let mixed = unsafe { mixed.range(start..start + head_dim) };
                let query = &self.projected[row * 3 * width + head * head_dim..][..head_dim];
                self.attend_one(lane_index, head, position, query, mixed, scratch);
            }
        });
    }

    fn attend_one(
        &self,
        lane_index: usize,
        head: usize,
        position: usize,
        query: &[f32],
        mixed: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let held = self.positions.held(lane_index);
        let Scratch { scores, integers } = scratch;
        let scores = &mut scores[..held];
        let ring = &self.rings[self.lanes[lane_index]];
        let first = head * self.shape.context;
        let rows = |numbers| Rows { numbers, rows: first..first + held, dim: query.len() };
        match ring {
            Ring::Float { keys, .. } => dispatch(Score { query, keys: rows(keys), scores }),
            Ring::Q8(ring) => ring.score(head, query, scores, integers),
        }
        for later in position + 1..self.positions.count() {
            scores[self.positions.slot(lane_index, later)] = f32::NEG_INFINITY;
        }
        softmax(scores);
        match ring {
            Ring::Float { values, .. } => {
                dispatch(Mix { weights: scores, values: rows(values), out: mixed });
            }
            Ring::Q8(ring) => ring.mix(head, scores, mixed, integers),
        }
    }
}

/// What a thread works in.
#[derive(Default)]
pub(in crate::cpu) struct Scratch {
    /// One for each slot.
    scores: Vec<f32>,
    integers: Integers,
}

impl Scratch {
    fn reserve(&mut self, shape: AttentionShape) {
        self.scores.resize(shape.context, 0.0);
        self.integers.reserve(shape);
    }
}

/// Some rows of a head's keys or values.
struct Rows<'a> {
    numbers: &'a Numbers,
    rows: Range<usize>,
    dim: usize,
}

impl<'a> Rows<'a> {
    fn of<T>(&self, numbers: &'a [T]) -> &'a [T] {
        &numbers[self.rows.start * self.dim..self.rows.end * self.dim]
    }
}

/// q·k / √d for each row of keys.
struct Score<'a> {
    query: &'a [f32],
    keys: Rows<'a>,
    scores: &'a mut [f32],
}

impl Kernel for Score<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { query, keys, scores } = self;
        let scale = 1.0 / (query.len() as f32).sqrt();
        // SAFETY: the caller vouches for V, each `load` is for its own format.
        unsafe {
            match keys.numbers {
                Numbers::F32(k) => dots(query, keys.of(k), V::load_f32, scores),
                Numbers::F16(k) => dots(query, keys.of(k), V::load_f16, scores),
                Numbers::Bf16(k) => dots(query, keys.of(k), V::load_bf16, scores),
            }
        }
        scores.iter_mut().for_each(|score| *score *= scale);
    }
}

/// The sum of the rows of values, each times its weight.
struct Mix<'a> {
    weights: &'a [f32],
    values: Rows<'a>,
    out: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { weights, values, out } = self;
        // SAFETY: the caller vouches for V, each `load` is for its own format.
        unsafe {
            match values.numbers {
                Numbers::F32(v) => mix(weights, values.of(v), V::load_f32, out),
                Numbers::F16(v) => mix(weights, values.of(v), V::load_f16, out),
                Numbers::Bf16(v) => mix(weights, values.of(v), V::load_bf16, out),
            }
        }
    }
}

/// The dot product of `query` with each row.
#[inline(always)]
unsafe fn dots<V: Vector, T>(
    query: &[f32],
    rows: &[T],
    load: unsafe fn(*const T) -> V,
    out: &mut [f32],
) {
    let (whole, rest) = query.as_chunks::<WIDTH>();
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        // SAFETY: the caller vouches for V and `load`; a row is as long as the query.
        *out = unsafe {
            let mut sum = V::zero();
            for (i, chunk) in whole.iter().enumerate() {
                sum = sum.add_product(V::load_f32(chunk.as_ptr()), load(row[i * WIDTH..].as_ptr()));
            }
            if !rest.is_empty() {
                let row = &row[query.len() - rest.len()..];
                sum = sum.add_product(load_some(rest, V::load_f32), load_some(row, load));
            }
            sum.sum()
        };
    }
}

/// Fewer than sixteen numbers, and zeros.
#[inline(always)]
unsafe fn load_some<V: Vector, T>(from: &[T], load: unsafe fn(*const T) -> V) -> V {
    let mut padded = [const { std::mem::MaybeUninit::<T>::zeroed() }; WIDTH];
    // SAFETY: both are valid for `from.len()` numbers, which is below sixteen; zero bytes are a
    // zero in every format.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), padded.as_mut_ptr().cast(), from.len());
        load(padded.as_ptr().cast())
    }
}

/// The sum of the rows, each times its weight.
#[inline(always)]
unsafe fn mix<V: Vector, T>(
    weights: &[f32],
    rows: &[T],
    load: unsafe fn(*const T) -> V,
    out: &mut [f32],
) {
    let dim = out.len();
    let (whole, rest) = out.as_chunks_mut::<WIDTH>();
    // SAFETY: the caller vouches for V and `load`; the columns lie within a row.
    unsafe {
        // Sums of eight vectors stay in registers while the rows go by.
        let (eights, singles) = whole.as_chunks_mut::<8>();
        for (i, out) in eights.iter_mut().enumerate() {
            mix_columns(weights, rows, dim, i * 8 * WIDTH, load, out);
        }
        let done = eights.len() * 8;
        let (fours, singles) = singles.as_chunks_mut::<4>();
        for (i, out) in fours.iter_mut().enumerate() {
            mix_columns(weights, rows, dim, (done + i * 4) * WIDTH, load, out);
        }
        let done = done + fours.len() * 4;
        let (ones, _) = singles.as_chunks_mut::<1>();
        for (i, out) in ones.iter_mut().enumerate() {
            mix_columns(weights, rows, dim, (done + i) * WIDTH, load, out);
        }
        if !rest.is_empty() {
            let mut sum = V::zero();
            for (weight, row) in weights.iter().zip(rows.chunks_exact(dim)) {
                let row = load_some(&row[dim - rest.len()..], load);
                sum = sum.add_product(V::splat(*weight), row);
            }
            let mut padded = [0f32; WIDTH];
            sum.store(padded.as_mut_ptr());
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}

/// As [`mix`], for `N` vectors of columns from `first` on.
#[inline(always)]
unsafe fn mix_columns<V: Vector, T, const N: usize>(
    weights: &[f32],
    rows: &[T],
    dim: usize,
    first: usize,
    load: unsafe fn(*const T) -> V,
    out: &mut [[f32; WIDTH]; N],
) {
    // SAFETY: the caller vouches for V and `load`; the columns lie within a row.
    unsafe {
        let mut sums = [V::zero(); N];
        for (weight, row) in weights.iter().zip(rows.chunks_exact(dim)) {
            let weight = V::splat(*weight);
            let row = &row[first..first + N * WIDTH];
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = sum.add_product(weight, load(row[n * WIDTH..].as_ptr()));
            }
        }
        for (sum, out) in sums.into_iter().zip(out) {
            sum.store(out.as_mut_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use moshi_ctl_core::{CodecShape, Precision, TransformerShape};

    use super::*;

    fn softmax_mix(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
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

    fn row(seed: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| (((i + seed) * 37 % 101) as f32 / 50.0) - 1.0).collect()
    }

    /// One head of one lane in a ring of four slots, which has three positions when two more
    /// come: they sit in slots 3 and 0, as after a ring has wrapped.
    fn mixed(head_dim: usize, precision: Precision) -> (Vec<f32>, Vec<f32>) {
        let shape = AttentionShape { heads: 1, head_dim, context: 4 };
        let transformer = TransformerShape {
            context: 4,
            d_model: head_dim,
            num_heads: 1,
            ..CodecShape::default().transformer()
        };
        let (keys, values): (Vec<_>, Vec<_>) =
            (0..4).map(|i| (row(18 * i, head_dim), row(7 + 18 * i, head_dim))).unzip();
        let mut ring = Ring::new(shape, precision).unwrap();
        for slot in 0..4 {
            ring.write(shape, slot, &keys[slot], &values[slot]);
        }
        let mut positions = Positions::new(&transformer, 1);
        positions.begin(&[0], 3);
        positions.begin(&[0], 2);
        let queries = [row(3, head_dim), row(21, head_dim)];
        let projected = queries.iter().flat_map(|q| [q.clone(), vec![0.0; 2 * head_dim]].concat());
        let projected: Vec<f32> = projected.collect();
        let attention = Attention {
            shape,
            rings: &[ring],
            lanes: &[0],
            positions: &positions,
            projected: &projected,
        };
        let mut pool = Pool::new(2).unwrap();
        let mut found = vec![f32::NAN; 2 * head_dim];
        attention.attend(&mut found, &mut vec![], &mut pool);
        let pick = |rows: &[Vec<f32>], slots: &[usize]| -> Vec<Vec<f32>> {
            slots.iter().map(|&slot| rows[slot].clone()).collect()
        };
        let expected =
            [(0, vec![1, 2, 3]), (1, vec![0, 1, 2, 3])].into_iter().flat_map(|(q, slots)| {
                softmax_mix(&queries[q], &pick(&keys, &slots), &pick(&values, &slots))
            });
        let expected = expected.collect();
        (found, expected)
    }

    #[test]
    fn a_position_sees_what_is_held_up_to_itself() {
        // Whole vectors in eights, fours and ones, and a rest.
        for head_dim in [8, 18, 64, 128, 210] {
            for (precision, tolerance) in [
                (Precision::F32, 1e-5),
                (Precision::F16, 1e-3),
                (Precision::Bf16, 1e-2),
                (Precision::Q8, 1e-2),
            ] {
                let (found, expected) = mixed(head_dim, precision);
                for (found, expected) in found.iter().zip(expected) {
                    let off = (found - expected).abs();
                    assert!(off < tolerance, "{precision} {head_dim}: {found} for {expected}");
                }
            }
        }
    }
}
