//! Matrix product of a few rows of activations with a large weight matrix.
//!
//! Weights are packed once, while loading, into panels of thirty-two output columns, so that a step
//! reads them front to back exactly once for up to [`MAX_TILE_ROWS`] rows. Each output is one
//! chain of additions over the inputs in their order, whatever the tile it falls into.

use half::{bf16, f16};
use moshi_ctl_core::Precision;
use rayon::prelude::*;

use super::simd::{Kernel, Vector, WIDTH, dispatch};
use super::zeroed::{Plain, zeroed};
use crate::EngineError;
use crate::checkpoint::RawTensor;
use crate::cpu::pool::{Disjoint, Pool, Work};

/// Rows that share one reading of the weights.
const MAX_TILE_ROWS: usize = 8;
/// Vectors in a row of a panel: two give sixteen independent chains at eight rows.
const PANEL_VECTORS: usize = 2;
/// Outputs of a panel.
const PANEL_WIDTH: usize = PANEL_VECTORS * WIDTH;
/// How many inputs ahead of its use memory is asked for.
const PREFETCH_AHEAD: usize = 32;
const CACHE_LINE: usize = 64;
/// Below this many multiplications a product is not worth handing to other threads.
const PARALLEL_FROM: usize = 1 << 17;
/// Pieces of work per thread, so that a late thread does not hold up a product.
const PIECES_PER_THREAD: usize = 4;

/// An `outputs × inputs` weight matrix in panels: for each [`PANEL_WIDTH`] outputs, `inputs` rows
/// of as many numbers. The last panel is as wide as it needs to be in whole vectors; missing
/// outputs are zero.
pub(crate) struct PackedMatrix {
    outputs: usize,
    inputs: usize,
    panels: Panels,
    /// What each output starts from, padded to whole panels.
    bias: Vec<f32>,
}

enum Panels {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

/// Where the rows of the left operand begin: `group_rows` rows `row_stride` numbers apart, then
/// the next group `group_stride` numbers after the last one's beginning. Rows may overlap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    pub(crate) group_rows: usize,
    pub(crate) group_stride: usize,
    pub(crate) row_stride: usize,
}

impl Rows {
    /// `count` rows of `width` numbers, one after another.
    pub(crate) fn contiguous(count: usize, width: usize) -> Self {
        Self { count, group_rows: count.max(1), group_stride: 0, row_stride: width }
    }

    pub(crate) fn offset(&self, row: usize) -> usize {
        (row / self.group_rows) * self.group_stride + (row % self.group_rows) * self.row_stride
    }
}

impl PackedMatrix {
    /// Bytes of such a matrix.
    pub(crate) fn bytes_of(outputs: usize, inputs: usize, precision: Precision) -> u64 {
        let padded = outputs.next_multiple_of(WIDTH);
        (padded * inputs * precision.number_bytes() + padded * size_of::<f32>()) as u64
    }

    /// Packs a row-major `outputs × inputs` matrix; what q8 does not apply to is held in f32.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn pack(
        raw: &RawTensor<'_>,
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        Self::pack_with(outputs, inputs, precision, |output, input| {
            raw.get(output * inputs + input)
        })
    }

    /// Packs a matrix whose element at (output, input) is `value(output, input)`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn pack_with(
        outputs: usize,
        inputs: usize,
        precision: Precision,
        value: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Result<Self, EngineError> {
        let panels = match precision {
            Precision::F32 | Precision::Q8 => Panels::F32(pack_panels(outputs, inputs, value)?),
            Precision::F16 => Panels::F16(pack_panels(outputs, inputs, |output, input| {
                f16::from_f32(value(output, input)).to_bits()
            })?),
            Precision::Bf16 => Panels::Bf16(pack_panels(outputs, inputs, |output, input| {
                bf16::from_f32(value(output, input)).to_bits()
            })?),
        };
        let bias = vec![0.0; outputs.next_multiple_of(WIDTH)];
        Ok(Self { outputs, inputs, panels, bias })
    }

    /// Adds `bias`, one number per output, to every product.
    pub(crate) fn with_bias(mut self, bias: Option<Vec<f32>>) -> Self {
        for (to, from) in self.bias.iter_mut().zip(bias.into_iter().flatten()) {
            *to = from;
        }
        self
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Multiplies the rows of `x` with the transposed weights into `y`, `rows.count × outputs`.
    ///
    /// # Panics
    /// When `x` is too short for `rows` or `y` has the wrong length.
    pub(crate) fn multiply(&self, x: &[f32], rows: Rows, y: &mut [f32], pool: &mut Pool) {
        assert_eq!(y.len(), rows.count * self.outputs, "length of the product");
        if y.is_empty() {
            return;
        }
        assert!(x.len() >= rows.offset(rows.count - 1) + self.inputs, "length of the left operand");
        let panels = self.outputs.div_ceil(PANEL_WIDTH);
        let job = Job { matrix: self, x, rows, y: Disjoint::new(y) };
        if rows.count * self.outputs * self.inputs < PARALLEL_FROM {
            return job.compute(0..rows.count, 0..panels);
        }
        let pieces = pool.threads() * PIECES_PER_THREAD;
        if panels >= pieces {
            let size = panels.div_ceil(pieces);
            pool.run(Work::Product, panels.div_ceil(size), &|piece, _| {
                job.compute(0..rows.count, piece * size..panels.min((piece + 1) * size));
            });
        } else {
            let size = rows.count.div_ceil(pieces).next_multiple_of(MAX_TILE_ROWS);
            pool.run(Work::Product, rows.count.div_ceil(size), &|piece, _| {
                job.compute(piece * size..rows.count.min((piece + 1) * size), 0..panels);
            });
        }
    }
}

fn pack_panels<T: Plain + Send + Sync>(
    outputs: usize,
    inputs: usize,
    value: impl Fn(usize, usize) -> T + Sync,
) -> Result<Vec<T>, EngineError> {
    let mut panels = zeroed(outputs.next_multiple_of(WIDTH) * inputs)?;
    if panels.is_empty() {
        return Ok(panels);
    }
    panels.par_chunks_mut(inputs * PANEL_WIDTH).enumerate().for_each(|(panel, chunk)| {
        let width = chunk.len() / inputs;
        let first = panel * PANEL_WIDTH;
        for column in 0..width.min(outputs - first) {
            for input in 0..inputs {
                chunk[input * width + column] = value(first + column, input);
            }
        }
    });
    Ok(panels)
}

struct Job<'a> {
    matrix: &'a PackedMatrix,
    x: &'a [f32],
    rows: Rows,
    /// The product, of which the pieces of a job fill in disjoint parts.
    y: Disjoint<'a, f32>,
}

/// The part of a job that one thread does at a time.
struct Piece<'a> {
    job: &'a Job<'a>,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

impl Job<'_> {
    fn compute(&self, rows: std::ops::Range<usize>, panels: std::ops::Range<usize>) {
        dispatch(Piece { job: self, rows, panels });
    }
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { job, rows, panels } = self;
        // SAFETY: the caller vouches for V's instructions, each `load` for its own format.
        unsafe {
            match &job.matrix.panels {
                Panels::F32(w) => job.run_loading::<V, f32>(w, V::load_f32, rows, panels),
                Panels::F16(w) => job.run_loading::<V, u16>(w, V::load_f16, rows, panels),
                Panels::Bf16(w) => job.run_loading::<V, u16>(w, V::load_bf16, rows, panels),
            }
        }
    }
}

impl Job<'_> {
    #[inline(always)]
    unsafe fn run_loading<V: Vector, W>(
        &self,
        weights: &[W],
        load: unsafe fn(*const W) -> V,
        rows: std::ops::Range<usize>,
        panels: std::ops::Range<usize>,
    ) {
        for panel in panels {
            let mut row = rows.start;
            while row < rows.end {
                let count = (rows.end - row).min(MAX_TILE_ROWS);
                // SAFETY: `panel` and the rows lie within the matrix and the product.
                unsafe {
                    match count {
                        8 => self.tile::<V, W, 8>(weights, load, panel, row),
                        7 => self.tile::<V, W, 7>(weights, load, panel, row),
                        6 => self.tile::<V, W, 6>(weights, load, panel, row),
                        5 => self.tile::<V, W, 5>(weights, load, panel, row),
                        4 => self.tile::<V, W, 4>(weights, load, panel, row),
                        3 => self.tile::<V, W, 3>(weights, load, panel, row),
                        2 => self.tile::<V, W, 2>(weights, load, panel, row),
                        _ => self.tile::<V, W, 1>(weights, load, panel, row),
                    }
                }
                row += count;
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<V: Vector, W, const ROWS: usize>(
        &self,
        weights: &[W],
        load: unsafe fn(*const W) -> V,
        panel: usize,
        first_row: usize,
    ) {
        let PackedMatrix { outputs, inputs, .. } = *self.matrix;
        let first = panel * PANEL_WIDTH;
        let vectors = PANEL_VECTORS.min((outputs - first).div_ceil(WIDTH));
        // Of a panel of one vector, that one is read twice and stored once.
        let (stride, second) = (vectors * WIDTH, (vectors - 1) * WIDTH);
        // SAFETY: `multiply` checked that every row of x has `inputs` numbers and that y has
        // `outputs` per row; the panel has `inputs` rows of `stride` numbers, and as many biases.
        unsafe {
            let panel = weights.as_ptr().add(first * inputs);
            let x: [*const f32; ROWS] =
                std::array::from_fn(|r| self.x.as_ptr().add(self.rows.offset(first_row + r)));
            let bias = self.matrix.bias.as_ptr().add(first);
            let start = [V::load_f32(bias), V::load_f32(bias.add(second))];
            let mut sums = [start; ROWS];
            for input in 0..inputs {
                let row = panel.add(input * stride);
                let weights = [load(row), load(row.add(second))];
                let ahead = row.wrapping_add(PREFETCH_AHEAD * stride).cast::<u8>();
                V::prefetch(ahead);
                V::prefetch(ahead.wrapping_add(CACHE_LINE));
                for r in 0..ROWS {
                    let value = V::splat(*x[r].add(input));
                    for v in 0..PANEL_VECTORS {
                        sums[r][v] = sums[r][v].add_product(value, weights[v]);
                    }
                }
            }
            for (r, row_sums) in sums.into_iter().enumerate() {
                for (v, sum) in row_sums.into_iter().enumerate().take(vectors) {
                    let column = first + v * WIDTH;
                    let start = (first_row + r) * outputs + column;
                    let width = WIDTH.min(outputs - column);
                    let to = self.y.range(start..start + width);
                    if width == WIDTH {
                        sum.store(to.as_mut_ptr());
                    } else {
                        let mut last = [0f32; WIDTH];
                        sum.store(last.as_mut_ptr());
                        to.copy_from_slice(&last[..width]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_numbers::numbers;
    use super::*;

    fn product(matrix: &PackedMatrix, x: &[f32], rows: Rows) -> Vec<f32> {
        let mut y = vec![f32::NAN; rows.count * matrix.outputs];
        matrix.multiply(x, rows, &mut y, &mut Pool::new(2).unwrap());
        y
    }

    #[test]
    fn multiplies_like_the_definition_for_ragged_sizes() {
        for (rows, outputs, inputs) in [(1, 1, 1), (3, 17, 5), (8, 48, 96), (21, 33, 130)] {
            let (x, w) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
            let matrix =
                PackedMatrix::pack_with(outputs, inputs, Precision::F32, |o, i| w[o * inputs + i])
                    .unwrap();
            let y = product(&matrix, &x, Rows::contiguous(rows, inputs));
            for r in 0..rows {
                for o in 0..outputs {
                    let expected: f64 = (0..inputs)
                        .map(|i| f64::from(x[r * inputs + i]) * f64::from(w[o * inputs + i]))
                        .sum();
                    let found = f64::from(y[r * outputs + o]);
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{rows}x{outputs}x{inputs} at ({r}, {o}): {found} for {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_whatever_rows_surround_it() {
        let (outputs, inputs) = (4096, 384);
        let w = numbers(outputs * inputs, 3);
        let matrix =
            PackedMatrix::pack_with(outputs, inputs, Precision::F32, |o, i| w[o * inputs + i])
                .unwrap();
        let x = numbers(19 * inputs, 4);
        let together = product(&matrix, &x, Rows::contiguous(19, inputs));
        for row in 0..19 {
            let alone = product(&matrix, &x[row * inputs..][..inputs], Rows::contiguous(1, inputs));
            let same = alone.iter().zip(&together[row * outputs..]).all(|(a, b)| a == b);
            assert!(same, "row {row} differs from itself alone");
        }
    }

    #[test]
    fn rows_may_overlap_in_groups() {
        // Two sequences of 6 numbers, windows of 4 every 2: a strided convolution.
        let x = numbers(12, 5);
        let matrix = PackedMatrix::pack_with(1, 4, Precision::F32, |_, i| (i + 1) as f32).unwrap();
        let rows = Rows { count: 4, group_rows: 2, group_stride: 6, row_stride: 2 };
        let y = product(&matrix, &x, rows);
        for (row, start) in [0, 2, 6, 8].into_iter().enumerate() {
            let expected: f32 = (0..4).map(|i| x[start + i] * (i + 1) as f32).sum();
            assert!((y[row] - expected).abs() < 1e-6);
        }
    }
}
