//! Product of a few rows of activations with a large matrix of eight-bit weights.
//!
//! A step reads every weight once, so one live stream is bound by memory and a dozen cost little
//! more. Weights and activations are integers with a scale for each 32 of them; within such a
//! block sums are exact, and blocks are added in their order. Every instruction set therefore
//! gives the same result bit for bit, for any number of rows.

mod activations;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod ring;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use rayon::prelude::*;

pub(crate) use self::activations::Activations;
pub(in crate::cpu) use self::ring::{Integers, Q8Ring};
use self::tile::{Piece, run};
use super::instructions::{InstructionSet, in_use};
use super::simd::WIDTH;
use super::zeroed::{Plain, zeroed};
use crate::EngineError;
use crate::checkpoint::RawTensor;
use crate::cpu::pool::{Disjoint, Pool, Work};
use crate::quantization::{BLOCK, Q8Block, quantize};

/// Inputs that one instruction multiplies and adds.
const QUAD: usize = 4;
/// Blocks whose scales share a cache line.
const GROUP_BLOCKS: usize = 2;
/// Inputs of a group.
const GROUP: usize = GROUP_BLOCKS * BLOCK;
/// Pieces of work per thread, so that a late thread does not hold up a product.
const PIECES_PER_THREAD: usize = 6;
/// What is added to a weight so that it is not negative, as x86's instruction wants one factor.
const OFFSET: u8 = 128;

/// Sixteen outputs by [`GROUP`] inputs, in whole cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Group {
    /// f16, for each block and output.
    scales: [[u16; WIDTH]; GROUP_BLOCKS],
    /// Weight + [`OFFSET`], for each four inputs and output.
    weights: [[[u8; QUAD]; WIDTH]; GROUP / QUAD],
}

/// An `outputs × inputs` matrix in panels of sixteen outputs; what is missing in the last panel
/// and the last group has scale zero.
pub(crate) struct Q8Matrix {
    outputs: usize,
    inputs: usize,
    /// panels × groups
    groups: Vec<Group>,
    /// What each output starts from, padded to whole panels.
    bias: Vec<f32>,
}

impl Q8Matrix {
    /// Bytes of such a matrix.
    pub(crate) fn bytes_of(outputs: usize, inputs: usize) -> u64 {
        let panels = outputs.div_ceil(WIDTH);
        let panel = inputs.div_ceil(GROUP) * size_of::<Group>() + WIDTH * size_of::<f32>();
        (panels * panel) as u64
    }

    /// Packs a row-major `outputs × inputs` matrix, quantizing it unless the file has done so.
    ///
    /// # Errors
    /// When a number is not finite, or there is no memory.
    pub(crate) fn pack(
        raw: &RawTensor<'_>,
        outputs: usize,
        inputs: usize,
        bias: Option<&[f32]>,
    ) -> Result<Self, EngineError> {
        match raw.q8_blocks() {
            Some(blocks) => Self::from_blocks(outputs, inputs, bias, |_, row, block| {
                Some(Q8Block::from_bytes(&blocks[row * (inputs / BLOCK) + block]))
            }),
            None => Self::from_blocks(outputs, inputs, bias, |numbers, row, block| {
                let start = block * BLOCK;
                let width = BLOCK.min(inputs - start);
                numbers[width..].fill(0.0);
                raw.read(row * inputs + start, &mut numbers[..width]);
                quantize(numbers)
            }),
        }
    }

    /// Quantizes the matrix whose element at (output, input) is `value(output, input)`. Returns also
    /// what its elements have become, outputs × inputs.
    ///
    /// # Errors
    /// When a number is not finite or too large, or there is no memory.
    pub(crate) fn quantized(
        outputs: usize,
        inputs: usize,
        value: impl Fn(usize, usize) -> f32,
    ) -> Result<(Self, Vec<f32>), EngineError> {
        let per_row = inputs.div_ceil(BLOCK);
        let mut blocks = Vec::with_capacity(outputs * per_row);
        let mut rounded = Vec::with_capacity(outputs * inputs);
        for (row, block) in (0..outputs).flat_map(|row| (0..per_row).map(move |b| (row, b))) {
            let start = block * BLOCK;
            let width = BLOCK.min(inputs - start);
            let mut numbers = [0f32; BLOCK];
            for (i, number) in numbers[..width].iter_mut().enumerate() {
                *number = value(row, start + i);
            }
            let quantized = quantize(&numbers).ok_or_else(|| not_finite(row, block))?;
            let scale = quantized.scale.to_f32();
            rounded.extend(quantized.values[..width].iter().map(|&v| f32::from(v) * scale));
            blocks.push(quantized);
        }
        let block_of = |_: &mut _, row, block| Some(blocks[row * per_row + block]);
        Ok((Self::from_blocks(outputs, inputs, None, block_of)?, rounded))
    }

    /// `block_of` makes the block of a row; it may use the numbers it is given.
    fn from_blocks(
        outputs: usize,
        inputs: usize,
        bias: Option<&[f32]>,
        block_of: impl Fn(&mut [f32; BLOCK], usize, usize) -> Option<Q8Block> + Sync,
    ) -> Result<Self, EngineError> {
        let groups_per_panel = inputs.div_ceil(GROUP);
        let mut groups = zeroed::<Group>(outputs.div_ceil(WIDTH) * groups_per_panel)?;
        groups.par_chunks_mut(groups_per_panel.max(1)).enumerate().try_for_each(
            |(panel, groups)| {
                let mut numbers = [0f32; BLOCK];
                for column in 0..WIDTH.min(outputs - panel * WIDTH) {
                    let row = panel * WIDTH + column;
                    for block in 0..inputs.div_ceil(BLOCK) {
                        let quantized = block_of(&mut numbers, row, block)
                            .ok_or_else(|| not_finite(row, block))?;
                        groups[block / GROUP_BLOCKS].put(block % GROUP_BLOCKS, column, &quantized);
                    }
                }
                Ok::<_, EngineError>(())
            },
        )?;
        let mut padded = vec![0.0; outputs.next_multiple_of(WIDTH)];
        padded[..bias.map_or(0, <[f32]>::len)].copy_from_slice(bias.unwrap_or_default());
        Ok(Self { outputs, inputs, groups, bias: padded })
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Multiplies the rows of `x` with the transposed weights into `y`, rows × outputs.
    ///
    /// # Panics
    /// When `x` has rows of another length or `y` the wrong length.
    pub(crate) fn multiply(&self, x: &Activations, y: &mut [f32], pool: &mut Pool) {
        self.multiply_with(in_use(), x, y, pool);
    }

    fn multiply_with(&self, set: InstructionSet, x: &Activations, y: &mut [f32], pool: &mut Pool) {
        assert_eq!(x.width(), self.inputs, "length of a row");
        assert_eq!(y.len(), x.rows() * self.outputs, "length of the product");
        if y.is_empty() {
            return;
        }
        let panels = self.outputs.div_ceil(WIDTH);
        let size = panels.div_ceil(pool.threads() * PIECES_PER_THREAD);
        let y = Disjoint::new(y);
        pool.run(Work::Product, panels.div_ceil(size), &|piece, _| {
            let panels = piece * size..panels.min((piece + 1) * size);
            run(set, Piece { matrix: self, x, y: &y, panels });
        });
    }

    /// Groups of a panel.
    fn groups_per_panel(&self) -> usize {
        self.inputs.div_ceil(GROUP)
    }
}

impl Group {
    fn put(&mut self, block: usize, column: usize, quantized: &Q8Block) {
        self.scales[block][column] = quantized.scale.to_bits();
        let quads = &mut self.weights[block * (BLOCK / QUAD)..][..BLOCK / QUAD];
        for (quad, values) in quads.iter_mut().zip(quantized.values.as_chunks::<QUAD>().0) {
            quad[column] = values.map(|value| value.cast_unsigned() ^ OFFSET);
        }
    }
}

// SAFETY: any bytes are a group.
unsafe impl Plain for Group {}

fn not_finite(row: usize, block: usize) -> EngineError {
    EngineError::new(format!(
        "output {row}, inputs {} to {}: a number is not finite or too large for q8",
        block * BLOCK,
        (block + 1) * BLOCK - 1
    ))
    .with_hint("The file is damaged, or needs precision f32.")
}

#[cfg(test)]
mod tests;
