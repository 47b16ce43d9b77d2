//! One lane's keys and values in one layer.

use std::ops::Range;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use moshi_ctl_core::Precision;

use super::AttentionShape;

/// Keys and values, heads × context × head_dim each. Slots beyond what the lane holds are never
/// read, so a lane forgets a stream by forgetting its position.
pub(crate) struct Ring {
    keys: Numbers,
    values: Numbers,
}

impl Ring {
    pub(crate) fn new(shape: AttentionShape, precision: Precision) -> Self {
        let len = shape.heads * shape.context * shape.head_dim;
        Self { keys: Numbers::zeros(len, precision), values: Numbers::zeros(len, precision) }
    }

    /// Stores one position; `key` and `value` are heads × head_dim.
    pub(crate) fn write(&mut self, shape: AttentionShape, slot: usize, key: &[f32], value: &[f32]) {
        for (numbers, position) in [(&mut self.keys, key), (&mut self.values, value)] {
            for (head, position) in position.chunks_exact(shape.head_dim).enumerate() {
                let start = (head * shape.context + slot) * shape.head_dim;
                numbers.write(start, position);
            }
        }
    }

    /// A range of the keys; `scratch` is used where they are not f32.
    pub(super) fn keys<'a>(&'a self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.keys.read(range, scratch)
    }

    /// A range of the values, as [`Ring::keys`].
    pub(super) fn values<'a>(
        &'a self,
        range: Range<usize>,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.values.read(range, scratch)
    }
}

/// Sixteen-bit formats are held as bits, because zeroed memory of plain integers is not touched
/// before it is written: a lane that was never used takes none.
enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl Numbers {
    fn zeros(len: usize, precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32(vec![0.0; len]),
            Precision::F16 | Precision::Q8 => Self::F16(vec![0; len]),
            Precision::Bf16 => Self::Bf16(vec![0; len]),
        }
    }

    fn write(&mut self, start: usize, from: &[f32]) {
        let range = start..start + from.len();
        match self {
            Self::F32(numbers) => numbers[range].copy_from_slice(from),
            Self::F16(bits) => {
                bits[range].reinterpret_cast_mut::<f16>().convert_from_f32_slice(from);
            }
            Self::Bf16(bits) => {
                bits[range].reinterpret_cast_mut::<bf16>().convert_from_f32_slice(from);
            }
        }
    }

    fn read<'a>(&'a self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(range.len(), 0.0);
        match self {
            Self::F32(numbers) => return &numbers[range],
            Self::F16(bits) => bits[range].reinterpret_cast::<f16>().convert_to_f32_slice(scratch),
            Self::Bf16(bits) => {
                bits[range].reinterpret_cast::<bf16>().convert_to_f32_slice(scratch);
            }
        }
        scratch
    }
}
