//! One lane's keys and values in one layer.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use moshi_ctl_core::Precision;

use super::AttentionShape;
use super::simd::{Kernel, Vector, dispatch};

/// Keys and values, heads × context × head_dim each. Slots beyond what the lane holds are never
/// read, so a lane forgets a stream by forgetting its position.
pub(in crate::cpu) struct Ring {
    pub(super) keys: Numbers,
    pub(super) values: Numbers,
}

impl Ring {
    pub(in crate::cpu) fn new(shape: AttentionShape, precision: Precision) -> Self {
        Self { keys: Numbers::zeros(shape, precision), values: Numbers::zeros(shape, precision) }
    }

    /// Stores one position; `key` and `value` are heads × head_dim.
    pub(in crate::cpu) fn write(
        &mut self,
        shape: AttentionShape,
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        for (numbers, position) in [(&mut self.keys, key), (&mut self.values, value)] {
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
pub(super) enum Numbers {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    /// Integers of at most 127, and for each row what they are multiples of.
    Q8 {
        integers: Vec<i8>,
        scales: Vec<f32>,
    },
}

impl Numbers {
    fn zeros(shape: AttentionShape, precision: Precision) -> Self {
        let rows = shape.heads * shape.context;
        let len = rows * shape.head_dim;
        match precision {
            Precision::F32 => Self::F32(vec![0.0; len]),
            Precision::F16 => Self::F16(vec![0; len]),
            Precision::Bf16 => Self::Bf16(vec![0; len]),
            Precision::Q8 => Self::Q8 { integers: vec![0; len], scales: vec![0.0; rows] },
        }
    }

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
            Self::Q8 { integers, scales } => {
                scales[row] = dispatch(Quantize { from, to: &mut integers[range] });
            }
        }
    }
}

/// Turns a row into integers and returns their scale, which is not finite where a number is not.
struct Quantize<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
}

impl Kernel for Quantize<'_> {
    type Output = f32;

    // Plain code, which is vectorised for each instruction set.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        const LARGEST: f32 = 127.0;
        // 1.5 · 2²³: adding it rounds to an integer, half to even, which is then in the low bits.
        const ROUND: f32 = 12_582_912.0;
        // The bits of positive numbers are ordered as they are, with NaN at the top.
        let largest = self.from.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
        let largest = f32::from_bits(largest);
        let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
        for (to, x) in self.to.iter_mut().zip(self.from) {
            *to = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
        }
        largest / LARGEST
    }
}
