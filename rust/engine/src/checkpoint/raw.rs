use candle_core::{Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use moshi_ctl_core::Precision;
use rayon::prelude::*;

use super::{Checkpoint, Format};
use crate::EngineError;
use crate::quantization::{BLOCK, BLOCK_BYTES, Q8Block};

/// Numbers converted at a time, on the stack.
const PIECE: usize = 256;

/// Numbers looked at together, in whole blocks.
const FINITE_PIECE: usize = 1 << 18;

/// A tensor in its file. Its pages are given back when it is dropped.
pub(crate) struct RawTensor<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
    pub(super) format: Format,
}

impl Drop for RawTensor<'_> {
    fn drop(&mut self) {
        self.checkpoint.release(self.bytes);
    }
}

impl<'a> RawTensor<'a> {
    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The shape in the file.
    #[cfg(test)]
    pub(crate) fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// The numbers as they are in the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether all numbers are finite. On every core, as a tensor can be a gigabyte.
    pub(super) fn is_finite(&self) -> bool {
        let piece = self.format.bytes(FINITE_PIECE);
        self.bytes.par_chunks(piece).all(|piece| self.format.all_finite(piece))
    }

    /// The number at `index`, counted in row-major order.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> f32 {
        match self.format {
            Format::F32 => f32::from_le_bytes(self.bytes_at(4 * index)),
            Format::F16 => f16::from_le_bytes(self.bytes_at(2 * index)).to_f32(),
            Format::Bf16 => bf16::from_le_bytes(self.bytes_at(2 * index)).to_f32(),
            Format::Q8_0 => {
                let block = index / BLOCK * BLOCK_BYTES;
                let scale = f16::from_le_bytes(self.bytes_at(block));
                scale.to_f32() * f32::from(self.bytes[block + 2 + index % BLOCK] as i8)
            }
        }
    }

    #[inline]
    fn bytes_at<const N: usize>(&self, start: usize) -> [u8; N] {
        std::array::from_fn(|i| self.bytes[start + i])
    }

    /// Fills `out` with the numbers from `start` on, counted in row-major order.
    ///
    /// # Panics
    /// When there are not so many.
    pub(crate) fn read(&self, start: usize, out: &mut [f32]) {
        match self.format {
            Format::F32 => {
                let (numbers, _) = self.bytes[4 * start..][..4 * out.len()].as_chunks();
                for (out, number) in out.iter_mut().zip(numbers) {
                    *out = f32::from_le_bytes(*number);
                }
            }
            Format::F16 => {
                let (numbers, _) = self.bytes[2 * start..][..2 * out.len()].as_chunks();
                // A slice at a time: one by one, each would ask what the processor can do.
                for (out, numbers) in out.chunks_mut(PIECE).zip(numbers.chunks(PIECE)) {
                    let mut piece = [f16::ZERO; PIECE];
                    for (half, number) in piece.iter_mut().zip(numbers) {
                        *half = f16::from_le_bytes(*number);
                    }
                    piece[..out.len()].convert_to_f32_slice(out);
                }
            }
            Format::Bf16 => {
                let (numbers, _) = self.bytes[2 * start..][..2 * out.len()].as_chunks();
                for (out, number) in out.iter_mut().zip(numbers) {
                    *out = f32::from_bits(u32::from(u16::from_le_bytes(*number)) << 16);
                }
            }
            Format::Q8_0 => read_blocks(self.q8_blocks().unwrap_or_default(), start, out),
        }
    }

    /// The blocks of a Q8_0 tensor in row-major order; a row is a whole number of them.
    pub(crate) fn q8_blocks(&self) -> Option<&[[u8; BLOCK_BYTES]]> {
        (self.format == Format::Q8_0).then_some(self.bytes.as_chunks().0)
    }

    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len()];
        self.read(0, &mut numbers);
        numbers
    }

    /// The tensor in `precision`, which is not q8, on `device`.
    pub(crate) fn to_tensor(
        &self,
        shape: &[usize],
        precision: Precision,
        device: &Device,
    ) -> Result<Tensor, EngineError> {
        Ok(match precision {
            Precision::F32 => Tensor::from_vec(self.to_f32(), shape, device)?,
            Precision::F16 => Tensor::from_vec(
                self.narrowed(f16::ZERO, |to, from| to.convert_from_f32_slice(from)),
                shape,
                device,
            )?,
            Precision::Bf16 => Tensor::from_vec(
                self.narrowed(bf16::ZERO, |to, from| to.convert_from_f32_slice(from)),
                shape,
                device,
            )?,
            Precision::Q8 => {
                return Err(EngineError::new("internal error: no tensor is made of q8 blocks"));
            }
        })
    }

    /// The numbers as `T`s, without all of them in f32 in between.
    fn narrowed<T: Copy>(&self, zero: T, convert: impl Fn(&mut [T], &[f32])) -> Vec<T> {
        let mut numbers = vec![zero; self.len()];
        let mut piece = [0.0; PIECE];
        for (index, out) in numbers.chunks_mut(PIECE).enumerate() {
            let piece = &mut piece[..out.len()];
            self.read(index * PIECE, piece);
            convert(out, piece);
        }
        numbers
    }
}

fn read_blocks(blocks: &[[u8; BLOCK_BYTES]], start: usize, out: &mut [f32]) {
    let numbers = |block: usize| Q8Block::from_bytes(&blocks[block]).numbers();
    let ragged = (start.next_multiple_of(BLOCK) - start).min(out.len());
    let (head, rest) = out.split_at_mut(ragged);
    if ragged > 0 {
        head.copy_from_slice(&numbers(start / BLOCK)[start % BLOCK..][..ragged]);
    }
    let first = start.div_ceil(BLOCK);
    let (whole, tail) = rest.as_chunks_mut::<BLOCK>();
    let last = first + whole.len();
    for (block, out) in (first..).zip(whole) {
        *out = numbers(block);
    }
    if !tail.is_empty() {
        tail.copy_from_slice(&numbers(last)[..tail.len()]);
    }
}
