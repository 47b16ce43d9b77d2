//! Sixteen f32 at a time: AVX-512, AVX2 or portable code, chosen once per process.

use std::sync::LazyLock;

/// Numbers in one vector.
pub(super) const WIDTH: usize = 16;

/// The instruction sets the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// The best level this machine has.
pub(super) static LEVEL: LazyLock<Level> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2") {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Level::Avx2;
        }
    }
    Level::Portable
});

/// Sixteen f32 in registers.
///
/// # Safety
/// Implementations use instructions the processor must have: call them only from a function
/// that was reached through the matching [`Level`]. Pointers must be readable (writable) for
/// sixteen numbers; alignment does not matter.
pub(super) trait Vector: Copy {
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load_f32(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// self + a · b
    unsafe fn add_product(self, a: Self, b: Self) -> Self;

    /// The sum of all sixteen, by a fixed tree.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut parts = [0f32; WIDTH];
        // SAFETY: `parts` has room for sixteen numbers.
        unsafe { self.store(parts.as_mut_ptr()) };
        let mut half = WIDTH / 2;
        while half > 0 {
            for i in 0..half {
                parts[i] += parts[i + half];
            }
            half /= 2;
        }
        parts[0]
    }
}

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; WIDTH]);

impl Vector for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; WIDTH])
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; WIDTH])
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self {
        // SAFETY: the caller vouches for sixteen readable numbers.
        Self(std::array::from_fn(|i| unsafe { from.add(i).read_unaligned() }))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller vouches for sixteen readable numbers.
        Self(std::array::from_fn(|i| unsafe {
            half::f16::from_bits(from.add(i).read_unaligned()).to_f32()
        }))
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller vouches for sixteen readable numbers.
        Self(std::array::from_fn(|i| unsafe {
            f32::from_bits(u32::from(from.add(i).read_unaligned()) << 16)
        }))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, value) in self.0.into_iter().enumerate() {
            // SAFETY: the caller vouches for sixteen writable numbers.
            unsafe { to.add(i).write_unaligned(value) };
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    #[derive(Clone, Copy)]
    pub(in crate::kernels) struct Avx512(__m512);

    // SAFETY, for every block below: the trait's contract, that the processor has the
    // instructions and that pointers are good for sixteen numbers.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
    impl Vector for Avx512 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            Self(unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
    }

    #[derive(Clone, Copy)]
    pub(in crate::kernels) struct Avx2(__m256, __m256);

    // SAFETY, for every block below: as above.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
    impl Vector for Avx2 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }

        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }

        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            unsafe {
                let from: *const __m128i = from.cast();
                Self(
                    _mm256_cvtph_ps(_mm_loadu_si128(from)),
                    _mm256_cvtph_ps(_mm_loadu_si128(from.add(1))),
                )
            }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            unsafe {
                let from: *const __m128i = from.cast();
                let widen = |half: __m128i| {
                    let wide = _mm256_cvtepu16_epi32(half);
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                };
                Self(widen(_mm_loadu_si128(from)), widen(_mm_loadu_si128(from.add(1))))
            }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
        }
    }
}
