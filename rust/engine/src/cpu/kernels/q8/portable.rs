//! The product in plain code.

use super::super::simd::WIDTH;
use super::tile::Dot;
use super::{OFFSET, QUAD};

pub(super) struct Portable;

impl Dot for Portable {
    const ROWS: usize = 4;
    type Weights = [[i16; QUAD]; WIDTH];
    type Sums = [i32; WIDTH];
    type Numbers = [f32; WIDTH];

    #[inline(always)]
    unsafe fn load_weights(from: &[[u8; QUAD]; WIDTH]) -> Self::Weights {
        from.map(|quad| quad.map(|weight| i16::from(weight) - i16::from(OFFSET)))
    }

    #[inline(always)]
    unsafe fn start(_start: i32) -> Self::Sums {
        [0; WIDTH]
    }

    #[inline(always)]
    unsafe fn add_dot(sums: Self::Sums, weights: Self::Weights, x: *const i8) -> Self::Sums {
        // SAFETY: the caller vouches for four readable numbers.
        let x: [i16; QUAD] = std::array::from_fn(|i| i16::from(unsafe { *x.add(i) }));
        std::array::from_fn(|i| {
            let products = weights[i].iter().zip(x).map(|(&w, x)| i32::from(w) * i32::from(x));
            sums[i] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    unsafe fn load_scales(from: &[u16; WIDTH]) -> Self::Numbers {
        from.map(scale)
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; WIDTH]) -> Self::Numbers {
        *from
    }

    #[inline(always)]
    unsafe fn add_scaled(
        numbers: Self::Numbers,
        sums: Self::Sums,
        scales: Self::Numbers,
        x_scale: f32,
    ) -> Self::Numbers {
        std::array::from_fn(|i| numbers[i] + sums[i] as f32 * (scales[i] * x_scale))
    }

    #[inline(always)]
    unsafe fn store(numbers: Self::Numbers, to: &mut [f32; WIDTH]) {
        *to = numbers;
    }

    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
}

/// The number an f16 is that is neither negative nor infinite: its bits, moved to where an f32 has
/// them, are off by the difference of the exponents' biases.
#[inline(always)]
fn scale(bits: u16) -> f32 {
    const BIAS_DIFFERENCE: f32 = f32::from_bits((127 + 127 - 15) << 23);
    f32::from_bits(u32::from(bits) << 13) * BIAS_DIFFERENCE
}

#[cfg(test)]
mod tests {
    use half::f16;

    #[test]
    fn every_scale_is_read_exactly() {
        for bits in 0..f16::INFINITY.to_bits() {
            assert_eq!(super::scale(bits), f16::from_bits(bits).to_f32(), "{bits:#06x}");
        }
    }
}
