//! Products with weights, and look-ups in them.

use std::sync::Arc;

use half::{bf16, f16};
use moshi_ctl_core::Precision;

use super::driver::{Card, Grid, Kernel, Memory};
use super::launch;
use crate::EngineError;
use crate::checkpoint::{Format, RawTensor};
use crate::quantization::{self, BLOCK, Q8Block};
use crate::weights::Weights;

/// Up to so many rows weights are read once, as fast as the card can; beyond, in tiles.
const FEW_ROWS: usize = 8;

/// Numbers that all formats can be read by, so that rows begin where the card reads 16 bytes.
const ROW_STEP: usize = 32;

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Ending {
    Store = 0,
    Gelu = 1,
    /// It is added, times a scale where there is one.
    Add = 2,
}

/// Rows that overlap or lie apart: see `Windows` in `product.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Windows {
    pub(super) rows: i32,
    pub(super) group_rows: i32,
    pub(super) row_stride: i32,
    pub(super) tap: i32,
    pub(super) tap_stride: i32,
    pub(super) group_stride: u64,
}

impl Windows {
    pub(super) fn contiguous(rows: usize, width: usize) -> Self {
        let (rows, width) = (rows as i32, width as i32);
        Self {
            rows,
            group_rows: rows,
            row_stride: width,
            tap: width,
            tap_stride: width,
            group_stride: 0,
        }
    }
}

/// Numbers as a card has them: outputs × padded, in a precision.
pub(super) struct Matrix {
    numbers: Memory,
    format: Precision,
    outputs: usize,
    inputs: usize,
    /// Inputs with the zeros that round a row up.
    padded: usize,
}

impl Matrix {
    /// The matrix that a tensor of the file is, in `precision`; where its rows are no whole blocks,
    /// in f32.
    pub(super) fn load(
        card: &Arc<Card>,
        raw: &RawTensor<'_>,
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let format = held_as(inputs, precision);
        if format == Precision::F32 {
            return Self::of(card, outputs, inputs, |output, input| {
                raw.get(output * inputs + input)
            });
        }
        let bytes = match format {
            Precision::F16 => halves(raw, |x| f16::from_f32(x).to_bits()),
            Precision::Bf16 => halves(raw, |x| bf16::from_f32(x).to_bits()),
            _ => blocks(raw)?,
        };
        let numbers = Memory::of(card, &bytes)?;
        Ok(Self { numbers, format, outputs, inputs, padded: inputs })
    }

    /// An f32 matrix of what `number` says.
    pub(super) fn of(
        card: &Arc<Card>,
        outputs: usize,
        inputs: usize,
        number: impl Fn(usize, usize) -> f32,
    ) -> Result<Self, EngineError> {
        let padded = inputs.next_multiple_of(4);
        let mut numbers = vec![0f32; outputs * padded];
        for (output, row) in numbers.chunks_exact_mut(padded).enumerate() {
            for (input, to) in row[..inputs].iter_mut().enumerate() {
                *to = number(output, input);
            }
        }
        let numbers = Memory::of(card, &numbers)?;
        Ok(Self { numbers, format: Precision::F32, outputs, inputs, padded })
    }

    /// The matrices called `weight` at some places, of so many outputs each, one below the other. In
    /// q8 they are f16 unless the file has all of them in q8.
    pub(super) fn load_stacked(
        card: &Arc<Card>,
        parts: &[(Weights<'_>, usize)],
        inputs: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
        let mut all_q8 = true;
        for (weights, outputs) in parts {
            all_q8 &= weights.raw("weight", &[*outputs, inputs])?.format() == Format::Q8_0;
        }
        let format = stacked_format(inputs, all_q8, precision);
        let numbers = Memory::zeroed(card, bytes(outputs, inputs, format))?;
        let (mut first, scales) = (0, outputs * inputs);
        for (weights, outputs) in parts {
            let (raw, elements) = (weights.raw("weight", &[*outputs, inputs])?, outputs * inputs);
            match format {
                Precision::F32 => numbers.write(4 * first, &raw.to_f32())?,
                Precision::F16 => {
                    numbers.write(2 * first, &halves(&raw, |x| f16::from_f32(x).to_bits()))?
                }
                Precision::Bf16 => {
                    numbers.write(2 * first, &halves(&raw, |x| bf16::from_f32(x).to_bits()))?
                }
                Precision::Q8 => {
                    let blocks = blocks(&raw)?;
                    let (of_values, of_scales) = blocks.split_at(elements);
                    numbers.write(first, of_values)?;
                    numbers.write(scales + 2 * (first / BLOCK), of_scales)?;
                }
            }
            first += elements;
        }
        Ok(Self { numbers, format, outputs, inputs, padded: inputs })
    }

    pub(super) fn format(&self) -> Precision {
        self.format
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn padded(&self) -> usize {
        self.padded
    }

    pub(super) fn address(&self) -> u64 {
        self.numbers.address()
    }
}

/// How a matrix with such rows is held where `precision` is asked for.
pub(super) fn held_as(inputs: usize, precision: Precision) -> Precision {
    if inputs.is_multiple_of(ROW_STEP) { precision } else { Precision::F32 }
}

/// How tables are held, of which the file has all in q8 or not.
pub(super) fn stacked_format(inputs: usize, all_q8: bool, precision: Precision) -> Precision {
    match held_as(inputs, precision) {
        Precision::Q8 if !all_q8 => Precision::F16,
        format => format,
    }
}

/// Bytes of a matrix.
pub(super) fn bytes(outputs: usize, inputs: usize, format: Precision) -> usize {
    let elements = outputs * inputs;
    match format {
        Precision::F32 => 4 * outputs * inputs.next_multiple_of(4),
        Precision::F16 | Precision::Bf16 => 2 * elements,
        Precision::Q8 => elements + 2 * (elements / BLOCK),
    }
}

fn halves(raw: &RawTensor<'_>, convert: impl Fn(f32) -> u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * raw.len());
    let mut row = [0.0; 256];
    for start in (0..raw.len()).step_by(row.len()) {
        let row = &mut row[..(raw.len() - start).min(256)];
        raw.read(start, row);
        bytes.extend(row.iter().flat_map(|x| convert(*x).to_le_bytes()));
    }
    bytes
}

/// All integers, then all scales.
fn blocks(raw: &RawTensor<'_>) -> Result<Vec<u8>, EngineError> {
    let count = raw.len() / BLOCK;
    let (mut values, mut scales) = (Vec::with_capacity(raw.len()), Vec::with_capacity(2 * count));
    let mut numbers = [0.0; BLOCK];
    for block in 0..count {
        let Q8Block { scale, values: of_block } = match raw.q8_blocks() {
            Some(blocks) => Q8Block::from_bytes(&blocks[block]),
            None => {
                raw.read(block * BLOCK, &mut numbers);
                quantization::quantize(&numbers).ok_or_else(|| {
                    EngineError::new("it has numbers that are too large for q8")
                        .with_hint("Use another precision, such as f16.")
                })?
            }
        };
        values.extend(of_block.map(|value| value as u8));
        scales.extend(scale.to_le_bytes());
    }
    values.extend(scales);
    Ok(values)
}

/// y = x Wᵀ + b.
pub(super) struct Linear {
    matrix: Matrix,
    bias: Option<Memory>,
    /// For one, two, four and eight rows.
    few_rows: [Kernel; 4],
    tile: Kernel,
}

impl Linear {
    /// Loads the matrix called `weight`, and `bias` where there should be one.
    pub(super) fn load(
        card: &Arc<Card>,
        outputs: usize,
        inputs: usize,
        bias: bool,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        Self::load_named(card, "weight", &[outputs, inputs], bias.then_some("bias"), weights)
    }

    /// Loads the matrix called `name`, whose dimensions but the first are flattened, and the bias
    /// called `bias_name`, in the precision of the place.
    pub(super) fn load_named(
        card: &Arc<Card>,
        name: &str,
        shape: &[usize],
        bias_name: Option<&str>,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let raw = weights.raw(name, shape)?;
        let (outputs, inputs) = (shape[0], shape[1..].iter().product());
        let bias = bias_name.map(|name| weights.f32_vec(name, &[outputs])).transpose()?;
        let matrix = Matrix::load(card, &raw, outputs, inputs, weights.placement().precision)
            .map_err(|error| error.in_tensor(&weights.path(name)))?;
        Self::new(card, matrix, bias)
    }

    pub(super) fn new(
        card: &Arc<Card>,
        matrix: Matrix,
        bias: Option<Vec<f32>>,
    ) -> Result<Self, EngineError> {
        let format = matrix.format;
        let few = |rows: usize| card.kernel(&format!("product_rows_{format}_{rows}"));
        Ok(Self {
            bias: bias.map(|numbers| Memory::of(card, &numbers)).transpose()?,
            few_rows: [few(1)?, few(2)?, few(4)?, few(8)?],
            tile: card.kernel(&format!("product_tile_{format}"))?,
            matrix,
        })
    }

    pub(super) fn outputs(&self) -> usize {
        self.matrix.outputs
    }

    /// `x`: rows × inputs. `y`: rows × outputs.
    pub(super) fn forward(
        &self,
        x: &Memory,
        rows: usize,
        y: u64,
        ending: Ending,
        scale: Option<&Memory>,
    ) -> Result<(), EngineError> {
        let Self { matrix, bias, few_rows, tile } = self;
        let Matrix { numbers, outputs, inputs, padded, .. } = matrix;
        let (card, ending) = (x.card(), ending as i32);
        let (bias, scale) = (address(bias.as_ref()), address(scale));
        let sizes = [*outputs, *inputs, *padded].map(|size| size as i32);
        if rows <= FEW_ROWS && inputs == padded {
            let index = rows.next_power_of_two().trailing_zeros() as usize;
            let grid = Grid { blocks: [outputs.div_ceil(16), 1, 1], threads: 128 };
            launch!(card, few_rows[index], grid;
                x.address(), numbers.address(), bias, scale, y, rows as i32, sizes[0], sizes[1], ending)
        } else {
            let blocks = [outputs.div_ceil(32), rows.div_ceil(32), 1];
            let windows = Windows::contiguous(rows, *inputs);
            launch!(card, *tile, Grid { blocks, threads: 256 };
                x.address(), numbers.address(), bias, scale, y, windows, sizes[0], sizes[1], sizes[2], ending)
        }
    }
}

/// Where it begins; nothing where there is none.
pub(super) fn address(memory: Option<&Memory>) -> u64 {
    memory.map_or(0, Memory::address)
}
