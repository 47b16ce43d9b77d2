//! The product with the dot product instructions of 64-bit Arm (FEAT_DotProd).

use std::arch::aarch64::*;
use std::arch::asm;

use super::super::simd::WIDTH;
use super::tile::{Dot, Job};
use super::{OFFSET, QUAD};

#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_neon_dot(job: impl Job) {
    // SAFETY: the caller's.
    unsafe { job.run::<NeonDot>() }
}

struct NeonDot;

/// Four outputs each.
type Quarters<T> = [T; 4];

// SAFETY, for every block below: the trait's contract, that the processor has the instructions;
// references are to as many numbers as are read or written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Dot for NeonDot {
    const ROWS: usize = 3;
    type Weights = Quarters<int8x16_t>;
    type Sums = Quarters<int32x4_t>;
    type Numbers = Quarters<float32x4_t>;

    #[inline(always)]
    unsafe fn load_weights(from: &[[u8; QUAD]; WIDTH]) -> Self::Weights {
        unsafe {
            let offset = vdupq_n_u8(OFFSET);
            std::array::from_fn(|i| {
                let bytes = vld1q_u8(from[4 * i..].as_ptr().cast());
                vreinterpretq_s8_u8(veorq_u8(bytes, offset))
            })
        }
    }

    #[inline(always)]
    unsafe fn start(_start: i32) -> Self::Sums {
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    unsafe fn add_dot(sums: Self::Sums, weights: Self::Weights, x: *const i8) -> Self::Sums {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            std::array::from_fn(|i| dot(sums[i], weights[i], x))
        }
    }

    #[inline(always)]
    unsafe fn load_scales(from: &[u16; WIDTH]) -> Self::Numbers {
        // As the portable code reads them.
        const BIAS_DIFFERENCE: f32 = f32::from_bits((127 + 127 - 15) << 23);
        unsafe {
            std::array::from_fn(|i| {
                let bits = vshlq_n_u32::<13>(vmovl_u16(vld1_u16(from[4 * i..].as_ptr())));
                vmulq_n_f32(vreinterpretq_f32_u32(bits), BIAS_DIFFERENCE)
            })
        }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; WIDTH]) -> Self::Numbers {
        unsafe { std::array::from_fn(|i| vld1q_f32(from[4 * i..].as_ptr())) }
    }

    #[inline(always)]
    unsafe fn add_scaled(
        numbers: Self::Numbers,
        sums: Self::Sums,
        scales: Self::Numbers,
        x_scale: f32,
    ) -> Self::Numbers {
        unsafe {
            std::array::from_fn(|i| {
                let scales = vmulq_n_f32(scales[i], x_scale);
                vaddq_f32(numbers[i], vmulq_f32(vcvtq_f32_s32(sums[i]), scales))
            })
        }
    }

    #[inline(always)]
    unsafe fn store(numbers: Self::Numbers, to: &mut [f32; WIDTH]) {
        for (numbers, to) in numbers.into_iter().zip(to.as_chunks_mut::<4>().0) {
            unsafe { vst1q_f32(to.as_mut_ptr(), numbers) };
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
}

/// sums + the products of four neighbours each. The intrinsic for it is not stable yet.
#[inline(always)]
unsafe fn dot(mut sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller vouches for the instruction, which touches registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sums:v}.4s, {weights:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
