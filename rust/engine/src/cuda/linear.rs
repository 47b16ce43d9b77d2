//! Products with weights, and look-ups in them.

use std::sync::Arc;

use half::{bf16, f16};
use moshi_ctl_core::Precision;

use super::driver::{Card, Grid, Kernel};
use super::launch;
use super::memory::Memory;
use crate::EngineError;
use crate::checkpoint::{Format, RawTensor};
use crate::quantization::{self, BLOCK, Q8Block};
use crate::weights::Weights;

/// Up to so many rows weights are read once, as fast as the card can; beyond, in tiles.
const FEW_ROWS: usize = 8;

/// Rows of the blocks of `product_mma`: see `product.cu`.
const TENSOR_ROWS: [usize; 3] = [16, 32, 64];

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

/// How a card has the numbers of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    F32,
    /// The upper halves of f32 numbers whose lower halves are zero, as those of a file in bf16 are:
    /// half the memory to read, and not a bit less exact.
    Upper,
    F16,
    Bf16,
    Q8,
}

impl Held {
    /// How a matrix with such rows, in a file in `format`, is held where `precision` is asked for.
    pub(super) fn of(inputs: usize, format: Format, precision: Precision) -> Self {
        match precision {
            _ if !inputs.is_multiple_of(ROW_STEP) => Self::F32,
            Precision::F32 if format == Format::Bf16 => Self::Upper,
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Bf16 => Self::Bf16,
            Precision::Q8 => Self::Q8,
        }
    }

    /// As [`Held::of`], of a table of embeddings, which nobody makes eight bits of.
    pub(super) fn of_table(inputs: usize, format: Format, precision: Precision) -> Self {
        match Self::of(inputs, format, precision) {
            Self::Q8 if format == Format::Bf16 => Self::Upper,
            Self::Q8 if format != Format::Q8_0 => Self::F16,
            held => held,
        }
    }

    /// In the names of kernels.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Upper => "upper",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }
}

/// Numbers as a card has them: outputs × padded.
pub(super) struct Matrix {
    numbers: Memory,
    held: Held,
    outputs: usize,
    inputs: usize,
    /// Inputs with the zeros that round a row up.
    padded: usize,
}

impl Matrix {
    /// The matrix that a tensor of the file is, for products in `precision`.
    pub(super) fn load(
        card: &Arc<Card>,
        raw: &RawTensor<'_>,
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let held = Held::of(inputs, raw.format(), precision);
        let bytes = match held {
            Held::F32 => {
                let number = |output, input| raw.get(output * inputs + input);
                return Self::of(card, outputs, inputs, number);
            }
            Held::Q8 => blocks(raw)?,
            held => halves(raw, held),
        };
        Ok(Self { numbers: Memory::of(card, &bytes)?, held, outputs, inputs, padded: inputs })
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
        Ok(Self { numbers, held: Held::F32, outputs, inputs, padded })
    }

    /// The tables called `weight` at some places, of so many rows each, one below the other.
    pub(super) fn load_tables(
        card: &Arc<Card>,
        parts: &[(Weights<'_>, usize)],
        inputs: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let tables = parts
            .iter()
            .map(|(weights, rows)| weights.raw("weight", &[*rows, inputs]))
            .collect::<Result<Vec<_>, _>>()?;
        let formats = tables.iter().map(RawTensor::format);
        let format = formats.reduce(same_or_f32).unwrap_or(Format::F32);
        let held = Held::of_table(inputs, format, precision);
        let outputs = parts.iter().map(|(_, rows)| rows).sum();
        let numbers = Memory::zeroed(card, bytes(outputs, inputs, held))?;
        let (mut first, scales) = (0, outputs * inputs);
        for table in &tables {
            match held {
                Held::F32 => numbers.write(4 * first, &table.to_f32())?,
                Held::Q8 => {
                    let blocks = blocks(table)?;
                    let (of_values, of_scales) = blocks.split_at(table.len());
                    numbers.write(first, of_values)?;
                    numbers.write(scales + 2 * (first / BLOCK), of_scales)?;
                }
                held => numbers.write(2 * first, &halves(table, held))?,
            }
            first += table.len();
        }
        Ok(Self { numbers, held, outputs, inputs, padded: inputs })
    }

    pub(super) fn held(&self) -> Held {
        self.held
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

/// What is the format of all tables, or one that has the numbers of any.
fn same_or_f32(a: Format, b: Format) -> Format {
    if a == b { a } else { Format::F32 }
}

/// Bytes of a matrix.
pub(super) fn bytes(outputs: usize, inputs: usize, held: Held) -> usize {
    let elements = outputs * inputs;
    match held {
        Held::F32 => 4 * outputs * inputs.next_multiple_of(4),
        Held::Upper | Held::F16 | Held::Bf16 => 2 * elements,
        Held::Q8 => elements + 2 * (elements / BLOCK),
    }
}

/// Numbers of sixteen bits.
fn halves(raw: &RawTensor<'_>, held: Held) -> Vec<u8> {
    let half = |x: f32| match held {
        Held::F16 => f16::from_f32(x).to_bits(),
        _ => bf16::from_f32(x).to_bits(),
    };
    let mut bytes = Vec::with_capacity(2 * raw.len());
    let mut row = [0.0; 256];
    for start in (0..raw.len()).step_by(row.len()) {
        let row = &mut row[..(raw.len() - start).min(256)];
        raw.read(start, row);
        bytes.extend(row.iter().flat_map(|x| half(*x).to_le_bytes()));
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
    many_rows: ManyRows,
}

/// What multiplies many rows.
enum ManyRows {
    /// In f32 to the last bit.
    Tile(Kernel),
    /// Sixteen bits with sums in f32: x is split in two first.
    TensorCores {
        split: Kernel,
        /// For each of [`TENSOR_ROWS`].
        products: [Kernel; TENSOR_ROWS.len()],
    },
}

impl ManyRows {
    fn of(card: &Arc<Card>, held: Held) -> Result<Self, EngineError> {
        let name = held.name();
        let halves = match held {
            Held::F32 | Held::Upper => {
                return Ok(Self::Tile(card.kernel(&format!("product_tile_{name}"))?));
            }
            Held::F16 | Held::Q8 => "f16",
            Held::Bf16 => "bf16",
        };
        let product = |rows: usize| card.kernel(&format!("product_mma_{name}_{rows}"));
        let [few, more, most] = TENSOR_ROWS;
        Ok(Self::TensorCores {
            split: card.kernel(&format!("split_{halves}"))?,
            products: [product(few)?, product(more)?, product(most)?],
        })
    }
}

/// What becomes of a product.
pub(super) struct Output<'a> {
    /// rows × outputs
    pub(super) y: u64,
    pub(super) ending: Ending,
    /// What each output is multiplied with before it is added.
    pub(super) scale: Option<&'a Memory>,
}

impl Output<'_> {
    /// It is `y`.
    pub(super) fn store(y: u64) -> Self {
        Self { y, ending: Ending::Store, scale: None }
    }
}

/// Bytes of room that a product with x of so many numbers needs for its halves.
pub(super) fn halves_bytes(numbers: usize, precision: Precision) -> usize {
    match precision {
        Precision::F32 => 0,
        _ => 2 * size_of::<u16>() * numbers,
    }
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
        let format = matrix.held.name();
        let few = |rows: usize| card.kernel(&format!("product_rows_{format}_{rows}"));
        Ok(Self {
            bias: bias.map(|numbers| Memory::of(card, &numbers)).transpose()?,
            few_rows: [few(1)?, few(2)?, few(4)?, few(8)?],
            many_rows: ManyRows::of(card, matrix.held)?,
            matrix,
        })
    }

    pub(super) fn outputs(&self) -> usize {
        self.matrix.outputs
    }

    /// `x`: rows × inputs. `halves`: room for [`halves_bytes`] of it.
    ///
    /// # Panics
    /// When there are many rows, the precision is not f32, and there is no such room.
    pub(super) fn forward(
        &self,
        x: &Memory,
        rows: usize,
        to: Output<'_>,
        halves: Option<&Memory>,
    ) -> Result<(), EngineError> {
        let Self { matrix, bias, few_rows, many_rows } = self;
        let Matrix { numbers, outputs, inputs, padded, .. } = matrix;
        let Output { y, ending, scale } = to;
        let (card, ending) = (x.card(), ending as i32);
        let (bias, scale) = (address(bias.as_ref()), address(scale));
        let [out, width, padded_width] = [*outputs, *inputs, *padded].map(|size| size as i32);
        if rows <= FEW_ROWS && inputs == padded {
            let index = rows.next_power_of_two().trailing_zeros() as usize;
            let grid = Grid { blocks: [outputs.div_ceil(16), 1, 1], threads: 128 };
            return launch!(card, few_rows[index], grid;
                x.address(), numbers.address(), bias, scale, y, rows as i32, out, width, ending);
        }
        match many_rows {
            ManyRows::Tile(kernel) => {
                let blocks = [outputs.div_ceil(32), rows.div_ceil(32), 1];
                let windows = Windows::contiguous(rows, *inputs);
                launch!(card, *kernel, Grid { blocks, threads: 256 };
                    x.address(), numbers.address(), bias, scale, y, windows, out, width,
                    padded_width, ending)
            }
            ManyRows::TensorCores { split, products } => {
                let halves = halves.expect("whoever loads such weights has room for halves");
                let count = rows * inputs;
                launch!(card, *split, Grid { blocks: [count.div_ceil(256), 1, 1], threads: 256 };
                    x.address(), halves.address(), count as i32)?;
                let index = TENSOR_ROWS.iter().position(|most| rows <= *most);
                let index = index.unwrap_or(TENSOR_ROWS.len() - 1);
                let blocks = [outputs.div_ceil(32), rows.div_ceil(TENSOR_ROWS[index]), 1];
                launch!(card, products[index], Grid { blocks, threads: 256 };
                    halves.address(), numbers.address(), bias, scale, y, rows as i32, out, width,
                    ending)
            }
        }
    }
}

/// Where it begins; nothing where there is none.
pub(super) fn address(memory: Option<&Memory>) -> u64 {
    memory.map_or(0, Memory::address)
}
