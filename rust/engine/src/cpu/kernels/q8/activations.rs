//! Rows of activations as integers.

use std::ops::Range;

use super::super::simd::{Kernel, Vector, dispatch};
use super::{GROUP, OFFSET, QUAD};
use crate::cpu::pool::{Disjoint, Pool, Work};
use crate::quantization::{BLOCK, rounded};

/// The largest integer a number becomes.
const LARGEST: f32 = 127.0;

/// Blocks that are quantized at a time, and that are worth a hand-over to another thread.
const PIECE_BLOCKS: usize = 16;

/// Quantized rows: for each block of 32 numbers integers of at most 127 and their scale. What the
/// product needs of all rows at a time is side by side. Memory is used again from one product to
/// the next.
#[derive(Default)]
pub(crate) struct Activations {
    rows: usize,
    width: usize,
    /// quads × rows × 4, the width padded to whole groups of the weights.
    values: Vec<i8>,
    /// blocks × rows
    scales: Vec<f32>,
    /// blocks × rows: what a sum starts from to make up for the weights' offset.
    starts: Vec<i32>,
}

impl Activations {
    /// Quantizes the rows of `x`, `width` numbers each. A block with a number that is not finite
    /// gets a scale that is none either, and so does every sum it enters.
    pub(crate) fn quantize(&mut self, x: &[f32], width: usize, pool: &mut Pool) {
        self.rows = x.len() / width;
        self.width = width;
        let blocks = width.next_multiple_of(GROUP) / BLOCK;
        self.values.resize(self.rows * blocks * BLOCK, 0);
        self.scales.resize(self.rows * blocks, 0.0);
        self.starts.resize(self.rows * blocks, 0);
        let job = QuantizeBlocks {
            x,
            width,
            rows: self.rows,
            values: &Disjoint::new(&mut self.values),
            scales: &Disjoint::new(&mut self.scales),
            starts: &Disjoint::new(&mut self.starts),
            blocks: 0..blocks,
        };
        // One row is done before another thread has heard of it.
        let size = if self.rows == 1 { blocks } else { PIECE_BLOCKS };
        pool.run(Work::Rest, blocks.div_ceil(size), &|piece, _| {
            let blocks = piece * size..blocks.min((piece + 1) * size);
            dispatch(QuantizeBlocks { blocks, ..job.clone() });
        });
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// No less than the norm of what a row has lost: half a scale for each number, and a little for
    /// rounding.
    pub(crate) fn most_lost(&self, row: usize) -> f32 {
        const HALF: f32 = 0.5001;
        let scales = self.scales.iter().skip(row).step_by(self.rows);
        let squares: f32 = scales.map(|scale| BLOCK as f32 * (HALF * scale).powi(2)).sum();
        1.0001 * squares.sqrt()
    }

    /// Where the numbers of a block begin for `rows` rows from `first` on.
    ///
    /// # Panics
    /// When there are not so many rows or blocks.
    #[inline(always)]
    pub(super) fn block(&self, block: usize, first: usize, rows: usize) -> BlockOfRows {
        debug_assert!(first + rows <= self.rows && (block + 1) * self.rows <= self.scales.len());
        let at = block * self.rows + first;
        BlockOfRows {
            values: self.values.as_ptr().wrapping_add(block * BLOCK * self.rows + first * QUAD),
            scales: self.scales.as_ptr().wrapping_add(at),
            starts: self.starts.as_ptr().wrapping_add(at),
        }
    }
}

/// A block of some rows of [`Activations`]: of each, four integers every `rows · 4`, a scale and a
/// start.
#[derive(Clone, Copy)]
pub(super) struct BlockOfRows {
    pub(super) values: *const i8,
    pub(super) scales: *const f32,
    pub(super) starts: *const i32,
}

#[derive(Clone)]
struct QuantizeBlocks<'a> {
    x: &'a [f32],
    width: usize,
    rows: usize,
    values: &'a Disjoint<'a, i8>,
    scales: &'a Disjoint<'a, f32>,
    starts: &'a Disjoint<'a, i32>,
    blocks: Range<usize>,
}

impl Kernel for QuantizeBlocks<'_> {
    type Output = ();

    // Plain code: it is vectorised for each instruction set, with the same results.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { x, width, rows, .. } = self;
        for block in self.blocks {
            let of_block = block * rows..(block + 1) * rows;
            // SAFETY: each block belongs to one piece.
            let (values, scales, starts) = unsafe {
                (
                    self.values.range(of_block.start * BLOCK..of_block.end * BLOCK),
                    self.scales.range(of_block.clone()),
                    self.starts.range(of_block),
                )
            };
            let (from, to) = (width.min(block * BLOCK), width.min((block + 1) * BLOCK));
            for row in 0..rows {
                let numbers = &x[row * width + from..row * width + to];
                let mut padded = [0f32; BLOCK];
                let numbers = numbers.first_chunk::<BLOCK>().unwrap_or_else(|| {
                    padded[..numbers.len()].copy_from_slice(numbers);
                    &padded
                });
                let mut integers = [0; BLOCK];
                (scales[row], starts[row]) = quantize_block(numbers, &mut integers);
                for (quad, integers) in integers.as_chunks::<QUAD>().0.iter().enumerate() {
                    values[(quad * rows + row) * QUAD..][..QUAD].copy_from_slice(integers);
                }
            }
        }
    }
}

/// Scale and start of a block.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], values: &mut [i8; BLOCK]) -> (f32, i32) {
    let mut bits = [0u32; 16];
    for (i, x) in x.iter().enumerate() {
        // The bits of positive numbers are ordered as they are, with NaN at the top.
        bits[i % 16] = bits[i % 16].max(x.abs().to_bits());
    }
    let largest = f32::from_bits(bits.into_iter().fold(0, u32::max));
    let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
    let mut sum = 0i32;
    for (value, x) in values.iter_mut().zip(x) {
        *value = rounded(x * inverse) as i8;
        sum += i32::from(*value);
    }
    (largest / LARGEST, -i32::from(OFFSET) * sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized(x: &[f32]) -> Activations {
        let mut activations = Activations::default();
        activations.quantize(x, x.len(), &mut Pool::new(1).unwrap());
        activations
    }

    #[test]
    fn numbers_are_off_by_half_a_step_at_most() {
        let x: Vec<f32> = (0..77).map(|i| ((i * 37 % 91) as f32 - 45.0) * 0.013).collect();
        let activations = quantized(&x);
        assert_eq!(activations.values.len(), 2 * GROUP);
        for (i, x) in x.iter().enumerate() {
            let scale = activations.scales[i / BLOCK];
            let found = f32::from(activations.values[i]) * scale;
            assert!((found - x).abs() <= 0.5001 * scale, "{i}: {found} for {x}");
        }
        assert!(activations.values[77..].iter().all(|&v| v == 0));
    }

    #[test]
    fn what_is_not_finite_shows_in_the_scale() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [0.5; 2 * BLOCK];
            x[40] = bad;
            let activations = quantized(&x);
            assert!(activations.scales[0].is_finite());
            assert!(!activations.scales[1].is_finite());
        }
    }

    #[test]
    fn zeros_have_scale_zero() {
        let activations = quantized(&[0.0; BLOCK]);
        assert!(activations.scales.iter().all(|&scale| scale == 0.0));
        assert!(activations.starts.iter().all(|&start| start == 0));
    }
}
