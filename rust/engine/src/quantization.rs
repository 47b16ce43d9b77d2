//! Q8_0, ggml's eight-bit format: blocks of 32 numbers, each an integer times the block's scale.

use half::f16;

/// Numbers that share a scale.
pub(crate) const BLOCK: usize = 32;

/// Bytes of a block in a file: the scale, then the integers.
pub(crate) const BLOCK_BYTES: usize = 2 + BLOCK;

/// The largest integer in use; −128 is not, so that the range is symmetric.
const LARGEST: f32 = 127.0;

/// Added to a number below 2²², 1.5 · 2²³ leaves no room for a fraction: the sum is rounded half
/// to even, and its lowest bits are the integer. Every processor does this in vectors.
const ROUNDER: f32 = 12_582_912.0;

/// Numbers as integers of a scale: the i-th is `scale · values[i]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Q8Block {
    pub(crate) scale: f16,
    pub(crate) values: [i8; BLOCK],
}

/// The block nearest to `numbers`: no number moves by more than half a scale. `None` when one is
/// not finite, or too large for any scale.
pub(crate) fn quantize(numbers: &[f32; BLOCK]) -> Option<Q8Block> {
    // Without their sign, bits are ordered as magnitudes are, infinity and NaN above the rest.
    let bits = numbers.iter().fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(bits);
    if !largest.is_finite() {
        return None;
    }
    let scale = scale_for(largest)?;
    let step = scale.to_f32();
    let mut values = [0; BLOCK];
    if step > 0.0 {
        for (value, x) in values.iter_mut().zip(numbers) {
            *value = rounded(x / step).clamp(-(LARGEST as i32), LARGEST as i32) as i8;
        }
    }
    Some(Q8Block { scale, values })
}

/// The integer nearest to a number below 2²², of two the even one; of others, any.
#[inline(always)]
pub(crate) fn rounded(x: f32) -> i32 {
    (x + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed()
}

/// The scale at which `largest` is 127, or 127 and a half where rounding took the scale down.
fn scale_for(largest: f32) -> Option<f16> {
    let mut scale = f16::from_f32(largest / LARGEST);
    // A subnormal scale has few bits left, and rounding can take many steps off its reach.
    if (LARGEST + 0.5) * scale.to_f32() < largest {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    scale.is_finite().then_some(scale)
}

impl Q8Block {
    /// The block as GGUF files have it.
    pub(crate) fn to_bytes(self) -> [u8; BLOCK_BYTES] {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..2].copy_from_slice(&self.scale.to_le_bytes());
        for (byte, value) in bytes[2..].iter_mut().zip(self.values) {
            *byte = value as u8;
        }
        bytes
    }

    /// A block of a GGUF file.
    pub(crate) fn from_bytes(bytes: &[u8; BLOCK_BYTES]) -> Self {
        Self {
            scale: f16::from_le_bytes([bytes[0], bytes[1]]),
            values: std::array::from_fn(|i| bytes[2 + i] as i8),
        }
    }

    /// The numbers the block stands for.
    #[inline]
    pub(crate) fn numbers(&self) -> [f32; BLOCK] {
        let step = self.scale.to_f32();
        self.values.map(|value| step * f32::from(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 numbers of which the largest is `largest`, half of them on ties at its scale.
    fn numbers(largest: f32, seed: u32) -> [f32; BLOCK] {
        let mut numbers = std::array::from_fn(|i| {
            let x = (i as u32 ^ seed).wrapping_mul(2_654_435_761);
            let share = (x >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if i % 2 == 0 { largest * share } else { largest * (share * 127.0).floor() / 254.0 }
        });
        numbers[seed as usize % BLOCK] = if seed.is_multiple_of(2) { largest } else { -largest };
        numbers
    }

    #[test]
    fn no_number_moves_by_more_than_half_a_scale() {
        // From where scales are subnormal, or round to nothing, up to where they end.
        for power in -45..=21 {
            for seed in 0..200 {
                let largest = (1.0 + seed as f32 / 200.0) * 2f32.powi(power);
                let numbers = numbers(largest, seed);
                let block = quantize(&numbers).unwrap();
                let step = f64::from(block.scale.to_f32());
                for (x, y) in numbers.iter().zip(block.numbers()) {
                    let moved = (f64::from(*x) - f64::from(y)).abs();
                    assert!(
                        moved <= step * (0.5 + 1e-5),
                        "{x} became {y}, at a scale of {step} for {largest}"
                    );
                }
            }
        }
    }

    #[test]
    fn rounds_half_to_even() {
        let mut numbers = [0.0; BLOCK];
        numbers[0] = -127.0;
        numbers[1..7].copy_from_slice(&[0.5, 1.5, 2.5, -0.5, -1.5, 126.5]);
        let block = quantize(&numbers).unwrap();
        assert_eq!(block.scale, f16::ONE);
        assert_eq!(block.values[..8], [-127, 0, 2, 2, 0, -2, 126, 0]);
    }

    #[test]
    fn a_scale_that_rounding_took_too_far_down_goes_up_again() {
        // 2.4 steps of the smallest subnormal: rounded down to 2, the largest would be 152.
        let smallest = f16::from_bits(1).to_f32();
        let block = quantize(&[2.4 * smallest * LARGEST; BLOCK]).unwrap();
        assert_eq!(block.scale.to_bits(), 3);
        assert_eq!(block.values, [102; BLOCK]);
        // Rounded to nothing, it would erase the block.
        let block = quantize(&[0.4 * smallest * LARGEST; BLOCK]).unwrap();
        assert_eq!((block.scale.to_bits(), block.values[0]), (1, 51));
        let block = quantize(&[f32::from_bits(1); BLOCK]).unwrap();
        assert_eq!((block.scale.to_bits(), block.values[0]), (1, 0));
    }

    #[test]
    fn zeros_have_no_scale() {
        let block = quantize(&[-0.0; BLOCK]).unwrap();
        assert_eq!(block, Q8Block { scale: f16::ZERO, values: [0; BLOCK] });
        assert_eq!(block.numbers(), [0.0; BLOCK]);
    }

    #[test]
    fn what_has_no_scale_is_refused() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 8.4e6, f32::MIN] {
            for place in [0, 13, 31] {
                let mut numbers = [1.0; BLOCK];
                numbers[place] = bad;
                assert_eq!(quantize(&numbers), None, "{bad} at {place}");
            }
        }
        assert!(quantize(&[127.0 * 65_504.0; BLOCK]).is_some());
    }

    #[test]
    fn bytes_are_scale_then_integers() {
        let mut numbers = [0.0; BLOCK];
        numbers[0] = -127.0;
        numbers[31] = 1.0;
        let block = quantize(&numbers).unwrap();
        let bytes = block.to_bytes();
        assert_eq!((&bytes[..3], bytes[33]), ([0x00, 0x3c, 0x81].as_slice(), 1));
        assert_eq!(Q8Block::from_bytes(&bytes), block);
    }
}
