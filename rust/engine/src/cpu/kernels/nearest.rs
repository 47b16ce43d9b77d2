//! Search for the nearest entry of a codebook.
//!
//! Codebooks are large and every step reads all of them, so the search goes through a copy in
//! eight bits first. How far that can lead astray has a bound; the entries within it, a few as a
//! rule, are looked at in full precision, which decides.

use moshi_ctl_core::Precision;

use super::matrix::{PackedMatrix, Rows};
use super::q8::{Activations, Q8Matrix};
use super::rows::dot;
use super::simd::{Kernel, Vector, WIDTH, dispatch};
use crate::EngineError;
use crate::codebook::half_norms;
use crate::cpu::pool::Pool;

/// More than the share by which rounding to f32 changes a number.
const ROUNDING: f32 = f32::EPSILON;

/// A codebook of `entries × dim`.
pub(crate) struct Codebook {
    entries: Vec<f32>,
    /// ‖e‖²/2 of each entry.
    half_norms: Vec<f32>,
    dim: usize,
    rounded: Rounded,
    bound: Bound,
}

/// The entries as the first search has them.
enum Rounded {
    Q8(Q8Matrix),
    /// Where numbers are too large for eight bits.
    F32(PackedMatrix),
}

/// How far a distance by rounded entries can be from one by true entries.
#[derive(Default)]
struct Bound {
    /// Times the norm of the vector.
    by_norm: f32,
    /// Times the norm of what the vector loses when it is rounded.
    by_loss: f32,
    /// In any case.
    offset: f32,
}

/// The nearest entry to a vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Nearest {
    pub(crate) index: u32,
    /// How much farther the runner-up is, as a share of the sum of the squared norms of vector
    /// and entry: what rounding would have to change for another answer.
    pub(crate) margin: f32,
}

/// What searches use in turn.
#[derive(Default)]
pub(crate) struct SearchScratch {
    vectors: Activations,
    /// vectors × entries
    products: Vec<f32>,
}

impl Codebook {
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn new(entries: Vec<f32>, dim: usize) -> Result<Self, EngineError> {
        let half_norms = half_norms(&entries, dim);
        let count = half_norms.len();
        let value = |entry: usize, i: usize| entries[entry * dim + i];
        let (rounded, values) = match Q8Matrix::quantized(count, dim, value) {
            Ok((matrix, values)) => (Rounded::Q8(matrix), values),
            Err(error) if error.is_out_of_memory() => return Err(error),
            Err(_) => {
                let matrix = PackedMatrix::pack_with(count, dim, Precision::F32, value)?;
                (Rounded::F32(matrix), entries.clone())
            }
        };
        let norm = |squares: f32| (squares * (1.0 + dim as f32 * ROUNDING)).sqrt();
        let mut bound = Bound::default();
        for (entry, rounded) in entries.chunks_exact(dim).zip(values.chunks_exact(dim)) {
            let lost: f32 = entry.iter().zip(rounded).map(|(a, b)| (a - b).powi(2)).sum();
            let squares: f32 = entry.iter().map(|x| x * x).sum();
            let rounded_squares: f32 = rounded.iter().map(|x| x * x).sum();
            // |x·e − x̃·ẽ| ≤ ‖x‖ ‖e − ẽ‖ + ‖x − x̃‖ ‖ẽ‖, and a sum of `dim` products, in whatever
            // order, is off by at most dim · 2⁻²⁴ ‖x‖ ‖e‖; there are two such sums, and 2⁻²³
            // leaves room for the rest.
            let rounding = (2 * dim + 4) as f32 * ROUNDING * norm(squares.max(rounded_squares));
            bound.by_norm = bound.by_norm.max(norm(lost) + rounding);
            bound.by_loss = bound.by_loss.max(norm(rounded_squares));
        }
        // The difference ‖e‖²/2 − x·e is rounded as well.
        bound.offset = half_norms.iter().fold(0f32, |largest, n| largest.max(*n)) * 2.0 * ROUNDING;
        Ok(Self { entries, half_norms, dim, rounded, bound })
    }

    /// Bytes of a codebook of `entries × dim`.
    pub(crate) fn bytes_of(entries: usize, dim: usize) -> u64 {
        ((entries * dim + entries) * size_of::<f32>()) as u64 + Q8Matrix::bytes_of(entries, dim)
    }

    pub(crate) fn entry(&self, index: u32) -> &[f32] {
        &self.entries[index as usize * self.dim..][..self.dim]
    }

    /// Puts the nearest entry to each of `vectors` into `nearest`, the first of equals. ‖x − e‖²
    /// orders entries as ‖e‖²/2 − x·e does.
    pub(crate) fn nearest(
        &self,
        vectors: &[f32],
        scratch: &mut SearchScratch,
        nearest: &mut Vec<Nearest>,
        pool: &mut Pool,
    ) {
        let SearchScratch { vectors: quantized, products } = scratch;
        let count = vectors.len() / self.dim;
        products.resize(count * self.half_norms.len(), 0.0);
        match &self.rounded {
            Rounded::Q8(matrix) => {
                quantized.quantize(vectors, self.dim, pool);
                matrix.multiply(quantized, products, pool);
            }
            Rounded::F32(matrix) => {
                matrix.multiply(vectors, Rows::contiguous(count, self.dim), products, pool);
            }
        }
        nearest.clear();
        let rows = vectors.chunks_exact(self.dim).zip(products.chunks_exact(self.half_norms.len()));
        nearest.extend(rows.enumerate().map(|(row, (vector, products))| {
            let lost = match self.rounded {
                Rounded::Q8(_) => quantized.most_lost(row),
                Rounded::F32(_) => 0.0,
            };
            dispatch(Search { codebook: self, vector, lost, products })
        }));
    }
}

/// The search for one vector.
struct Search<'a> {
    codebook: &'a Codebook,
    vector: &'a [f32],
    /// No less than the norm of what it lost when it was rounded.
    lost: f32,
    /// The rounded vector's products with the rounded entries.
    products: &'a [f32],
}

impl Kernel for Search<'_> {
    type Output = Nearest;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Nearest {
        let Self { codebook, vector, lost, products } = self;
        let half_norms = &codebook.half_norms[..];
        let squares = dot(vector, vector);
        let Bound { by_norm, by_loss, offset } = codebook.bound;
        let room = 1.0 + codebook.dim as f32 * ROUNDING;
        let bound = (by_norm * squares.sqrt() + by_loss * lost) * room + offset;
        // Whatever is nearest or second by true entries is at most two bounds behind the second
        // by rounded ones; a third covers the rounding of this sum.
        let limit = second_least(half_norms, products) + 3.0 * bound;
        let mut least = TwoLeast::default();
        let mut check = |index: usize| {
            if half_norms[index] - products[index] <= limit {
                let entry = codebook.entry(index as u32);
                least.add(half_norms[index] - dot(vector, entry), index);
            }
        };
        let chunks = half_norms.as_chunks::<WIDTH>().0.iter();
        for (i, (half_norms, products)) in chunks.zip(products.as_chunks::<WIDTH>().0).enumerate() {
            let within = |i: usize| half_norms[i] - products[i] <= limit;
            if (0..WIDTH).fold(false, |any, i| any | within(i)) {
                (i * WIDTH..(i + 1) * WIDTH).for_each(&mut check);
            }
        }
        let whole = half_norms.len() / WIDTH * WIDTH;
        (whole..half_norms.len()).for_each(check);
        let scale = squares / 2.0 + half_norms[least.index];
        let margin = (least.second - least.first) / scale.max(f32::MIN_POSITIVE);
        Nearest { index: least.index as u32, margin }
    }
}

/// The two least numbers so far, and where the first of the least ones was.
struct TwoLeast {
    first: f32,
    second: f32,
    index: usize,
}

impl Default for TwoLeast {
    fn default() -> Self {
        Self { first: f32::INFINITY, second: f32::INFINITY, index: 0 }
    }
}

impl TwoLeast {
    #[inline(always)]
    fn add(&mut self, number: f32, index: usize) {
        if number < self.first {
            (self.second, self.first, self.index) = (self.first, number, index);
        } else if number < self.second {
            self.second = number;
        }
    }
}

/// The second least of a − b; infinity where there is none.
#[inline(always)]
fn second_least(a: &[f32], b: &[f32]) -> f32 {
    let mut first = [f32::INFINITY; WIDTH];
    let mut second = first;
    let (a, a_rest) = a.as_chunks::<WIDTH>();
    let (b, b_rest) = b.as_chunks::<WIDTH>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..WIDTH {
            let number = a[i] - b[i];
            let larger = if number < first[i] { first[i] } else { number };
            second[i] = if larger < second[i] { larger } else { second[i] };
            first[i] = if number < first[i] { number } else { first[i] };
        }
    }
    let mut least = TwoLeast::default();
    first.into_iter().chain(second).for_each(|number| least.add(number, 0));
    a_rest.iter().zip(b_rest).for_each(|(a, b)| least.add(a - b, 0));
    least.second
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nearest(codebook: &Codebook, vectors: &[f32]) -> Vec<Nearest> {
        let (mut scratch, mut found) = (SearchScratch::default(), vec![]);
        codebook.nearest(vectors, &mut scratch, &mut found, &mut Pool::new(2).unwrap());
        found
    }

    /// The search by its definition.
    fn definition(codebook: &Codebook, vector: &[f32]) -> Nearest {
        let mut least = TwoLeast::default();
        for (index, half_norm) in codebook.half_norms.iter().enumerate() {
            least.add(half_norm - dot(vector, codebook.entry(index as u32)), index);
        }
        let scale = dot(vector, vector) / 2.0 + codebook.half_norms[least.index];
        let margin = (least.second - least.first) / scale.max(f32::MIN_POSITIVE);
        Nearest { index: least.index as u32, margin }
    }

    /// Numbers between -0.5 and 0.5.
    fn numbers(count: usize, seed: u32) -> impl Iterator<Item = f32> {
        (0..count as u32).map(move |i| {
            let x = (i.wrapping_mul(747_796_405) ^ seed).wrapping_mul(2_654_435_761);
            ((x ^ x >> 15).wrapping_mul(2_246_822_519) >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
    }

    #[test]
    fn finds_the_nearest_and_says_by_how_much() {
        let codebook = Codebook::new(vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0], 2).unwrap();
        let found = nearest(&codebook, &[0.1, 0.9, -2.0, 0.1]);
        assert_eq!(found.iter().map(|n| n.index).collect::<Vec<_>>(), [1, 2]);
        // ½(‖x−e₀‖² − ‖x−e₁‖²) = 0.8, over ½(0.82 + 1).
        assert!((found[0].margin - 0.8 / 0.91).abs() < 1e-6, "{}", found[0].margin);
    }

    #[test]
    fn the_first_of_equals_wins_with_no_margin() {
        let codebook = Codebook::new(vec![1.0; 40], 1).unwrap();
        assert_eq!(nearest(&codebook, &[1.0]), [Nearest { index: 0, margin: 0.0 }]);
    }

    #[test]
    fn rounded_entries_change_nothing() {
        let (dim, bins) = (64, 300);
        // Far apart, nearer than eight bits can tell apart, with scales that are subnormal in half
        // precision, and beyond it.
        for (scale, spread) in
            [(1.0, 1.0), (1.0, 0.02), (1.0, 1e-5), (1e-6, 1.0), (1e6, 1e-3), (1e8, 1.0)]
        {
            let center: Vec<f32> = numbers(dim, 1).collect();
            let entries = numbers(bins * dim, 2).enumerate();
            let entries = entries.map(|(i, x)| scale * (center[i % dim] + spread * x)).collect();
            let codebook = Codebook::new(entries, dim).unwrap();
            let vectors: Vec<f32> = numbers(50 * dim, 3)
                .enumerate()
                .map(|(i, x)| scale * (center[i % dim] + spread * x))
                .collect();
            let found = nearest(&codebook, &vectors);
            for (vector, found) in vectors.chunks_exact(dim).zip(found) {
                assert_eq!(found, definition(&codebook, vector), "{scale} {spread}");
            }
        }
    }

    #[test]
    fn a_vector_that_is_not_finite_still_gets_an_entry() {
        let codebook = Codebook::new(numbers(64 * 20, 4).collect(), 64).unwrap();
        for fault in [f32::NAN, f32::INFINITY, f32::MAX] {
            assert!(nearest(&codebook, &[fault; 64])[0].index < 20);
        }
    }
}
