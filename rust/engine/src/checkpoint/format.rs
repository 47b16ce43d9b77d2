use half::{bf16, f16};

use crate::quantization::{BLOCK, BLOCK_BYTES};

/// How numbers are laid out in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// [`crate::quantization`]'s blocks.
    Q8_0,
}

impl Format {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Numbers that cannot be told apart without each other.
    pub(crate) const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 => BLOCK,
        }
    }

    /// Bytes of `elements` numbers in whole blocks.
    pub(crate) const fn bytes(self, elements: usize) -> usize {
        let block_bytes = match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => BLOCK_BYTES,
        };
        elements / self.block() * block_bytes
    }

    /// Whether all numbers in these whole blocks are finite.
    pub(crate) fn all_finite(self, blocks: &[u8]) -> bool {
        match self {
            Self::F32 => {
                let (numbers, _) = blocks.as_chunks();
                // Magnitudes are ordered as their bits are, infinity and NaN above the rest. All are
                // looked at, which processors do in vectors.
                let largest = numbers.iter().fold(0, |largest: i32, number| {
                    largest.max((u32::from_le_bytes(*number) & 0x7fff_ffff).cast_signed())
                });
                largest < f32::INFINITY.to_bits().cast_signed()
            }
            Self::F16 => largest_magnitude(blocks) < f16::INFINITY.to_bits().cast_signed(),
            Self::Bf16 => largest_magnitude(blocks) < bf16::INFINITY.to_bits().cast_signed(),
            Self::Q8_0 => {
                let (blocks, _) = blocks.as_chunks::<BLOCK_BYTES>();
                blocks.iter().all(|block| f16::from_le_bytes([block[0], block[1]]).is_finite())
            }
        }
    }
}

/// The bits of the largest of these sixteen-bit numbers, without their signs.
fn largest_magnitude(numbers: &[u8]) -> i16 {
    let (numbers, _) = numbers.as_chunks();
    numbers.iter().fold(0, |largest: i16, number| {
        largest.max((u16::from_le_bytes(*number) & 0x7fff).cast_signed())
    })
}
