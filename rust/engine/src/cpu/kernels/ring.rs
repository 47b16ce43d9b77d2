//! One lane's keys and values in one layer.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use moshi_ctl_core::Precision;

use super::AttentionShape;
use super::q8::Q8Ring;
use super::zeroed::zeroed;
use crate::EngineError;

/// Keys and values of the positions a lane has not forgotten.
pub(in crate::cpu) enum Ring {
    /// heads × context × head_dim each. Slots beyond what the lane holds are never read, so a lane
    /// forgets a stream by forgetting its position.
    Float {
        keys: Numbers,
        values: Numbers,
    },
    Q8(Q8Ring),
}

impl Ring {
    /// # Errors
    /// When there is no memory for it.
    pub(in crate::cpu) fn new(
        shape: AttentionShape,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let len = shape.context * shape.width();
        let numbers = || {
            Ok::<_, EngineError>(match precision {
                Precision::F32 | Precision::Q8 => Numbers::F32(zeroed(len)?),
                Precision::F16 => Numbers::F16(zeroed(len)?),
                Precision::Bf16 => Numbers::Bf16(zeroed(len)?),
            })
        };
        match precision {
            Precision::Q8 => Q8Ring::new(shape).map(Self::Q8),
            _ => Ok(Self::Float { keys: numbers()?, values: numbers()? }),
        }
    }

    /// Bytes of a ring of this shape.
    pub(in crate::cpu) fn bytes_of(shape: AttentionShape, precision: Precision) -> u64 {
        match precision {
            Precision::Q8 => Q8Ring::bytes_of(shape),
            _ => (2 * shape.context * shape.width() * precision.number_bytes()) as u64,
        }
    }

    /// Stores one position; `key` and `value` are heads × head_dim.
    pub(in crate::cpu) fn write(
        &mut self,
        shape: AttentionShape,
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (keys, values) = match self {
            Self::Float { keys, values } => (keys, values),
            Self::Q8(ring) => return ring.write(slot, key, value),
        };
        for (numbers, position) in [(keys, key), (values, value)] {
            for (head, position) in position.chunks_exact(shape.head_dim).enumerate() {
                numbers.write(head * shape.context + slot, position);
            }
        }
    }

    /// Puts something into every slot, for measurements.
    pub(in crate::cpu) fn fill(&mut self, shape: AttentionShape) {
        let mut position = vec![0f32; shape.width()];
        for slot in 0..shape.context {
            for (i, number) in position.iter_mut().enumerate() {
                *number = ((slot * 31 + i * 17) % 97) as f32 / 97.0 - 0.5;
            }
            self.write(shape, slot, &position, &position);
        }
    }
}

/// One row of head_dim numbers for each head and slot. Formats other than f32 are held as plain
/// integers, because zeroed memory of those is not touched before it is written: a lane that was
/// never used takes none.
pub(in crate::cpu) enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
}

impl Numbers {
    fn write(&mut self, row: usize, from: &[f32]) {
        let range = row * from.len()..(row + 1) * from.len();
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
}
