//! Matrix products and look-ups with the weights of a checkpoint.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use moshi_ctl_core::Precision;

use super::kernels::{Activations, PackedMatrix, Q8Matrix, Rows, zeroed};
use super::pool::Pool;
use crate::EngineError;
use crate::checkpoint::{Format, RawTensor};
use crate::weights::Weights;

/// y = x Wᵀ + b, with W held as outputs × inputs.
pub(super) enum Linear {
    Float(PackedMatrix),
    Q8(Q8Matrix),
}

/// Rows that go into products, and what they become on the way, used again from step to step.
#[derive(Default)]
pub(super) struct Operand {
    quantized: Activations,
}

impl Linear {
    /// Loads the matrix called `weight`, and `bias` where there should be one.
    pub(super) fn load(
        outputs: usize,
        inputs: usize,
        bias: bool,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        Self::load_named("weight", &[outputs, inputs], bias.then_some("bias"), weights)
    }

    /// Loads the matrix called `name`, whose dimensions but the first are flattened, and the bias
    /// called `bias_name`, in the precision of the place.
    pub(super) fn load_named(
        name: &str,
        shape: &[usize],
        bias_name: Option<&str>,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let raw = weights.raw(name, shape)?;
        let (outputs, inputs) = (shape[0], shape[1..].iter().product());
        let bias = bias_name.map(|name| weights.f32_vec(name, &[outputs])).transpose()?;
        Ok(match weights.placement().precision {
            Precision::Q8 => {
                let packed = Q8Matrix::pack(&raw, outputs, inputs, bias.as_deref());
                Self::Q8(packed.map_err(|error| error.in_tensor(&weights.path(name)))?)
            }
            precision => {
                Self::Float(PackedMatrix::pack(&raw, outputs, inputs, precision)?.with_bias(bias))
            }
        })
    }

    pub(super) fn outputs(&self) -> usize {
        match self {
            Self::Float(matrix) => matrix.outputs(),
            Self::Q8(matrix) => matrix.outputs(),
        }
    }

    /// `x`: rows × inputs. `y` becomes rows × outputs.
    pub(super) fn forward(
        &self,
        x: &[f32],
        rows: usize,
        y: &mut Vec<f32>,
        operand: &mut Operand,
        pool: &mut Pool,
    ) {
        let inputs = x.len() / rows;
        y.resize(rows * self.outputs(), 0.0);
        match self {
            Self::Float(matrix) => matrix.multiply(x, Rows::contiguous(rows, inputs), y, pool),
            Self::Q8(matrix) => {
                operand.quantized.quantize(x, inputs, pool);
                matrix.multiply(&operand.quantized, y, pool);
            }
        }
    }
}

/// Rows of a table, looked up by token. Sixteen-bit tables stay that; in eight-bit files they
/// become it, because a look-up reads one row only and what it saves there is nothing.
pub(super) struct Embedding {
    dim: usize,
    rows: Table,
}

enum Table {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl Embedding {
    pub(super) fn load(
        rows: usize,
        dim: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let raw = weights.raw("weight", &[rows, dim])?;
        let rows = match Self::held_as(raw.format(), weights.placement().precision) {
            Format::Bf16 => Table::Bf16(narrow(&raw, dim, |bits, numbers| {
                bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(numbers);
            })?),
            Format::F16 => Table::F16(narrow(&raw, dim, |bits, numbers| {
                bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(numbers);
            })?),
            Format::F32 | Format::Q8_0 => Table::F32(raw.to_f32()),
        };
        Ok(Self { dim, rows })
    }

    /// How a table is held that a file has in `format`, beside matrices in `precision`.
    pub(super) fn held_as(format: Format, precision: Precision) -> Format {
        match (format, precision) {
            (Format::Bf16, _) | (Format::F32, Precision::Bf16) => Format::Bf16,
            (Format::F32, Precision::F32) => Format::F32,
            (Format::F16 | Format::Q8_0 | Format::F32, _) => Format::F16,
        }
    }

    /// Adds the row of `token` to `sum`. `scratch` is used for sixteen-bit tables.
    ///
    /// # Panics
    /// When there is no such token.
    pub(super) fn add_row(&self, token: u32, sum: &mut [f32], scratch: &mut Vec<f32>) {
        let range = token as usize * self.dim..(token as usize + 1) * self.dim;
        scratch.resize(self.dim, 0.0);
        let row = match &self.rows {
            Table::F32(numbers) => &numbers[range],
            Table::F16(bits) => {
                bits[range].reinterpret_cast::<f16>().convert_to_f32_slice(scratch);
                scratch
            }
            Table::Bf16(bits) => {
                bits[range].reinterpret_cast::<bf16>().convert_to_f32_slice(scratch);
                scratch
            }
        };
        for (sum, number) in sum.iter_mut().zip(row) {
            *sum += number;
        }
    }
}

/// A tensor as sixteen-bit numbers, row by row.
fn narrow(
    raw: &RawTensor<'_>,
    dim: usize,
    convert: impl Fn(&mut [u16], &[f32]),
) -> Result<Vec<u16>, EngineError> {
    let mut bits = zeroed(raw.len())?;
    let mut row = vec![0.0; dim];
    for (index, bits) in bits.chunks_exact_mut(dim).enumerate() {
        raw.read(index * dim, &mut row);
        convert(bits, &row);
    }
    Ok(bits)
}
