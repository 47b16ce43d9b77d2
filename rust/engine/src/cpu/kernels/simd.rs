//! Sixteen f32 at a time, with AVX-512, AVX2 or portable code.

use super::instructions::{InstructionSet, in_use};

/// Numbers in one vector.
pub(super) const WIDTH: usize = 16;

/// A hot loop, compiled for every instruction set.
pub(super) trait Kernel {
    type Output;

    /// # Safety
    /// The processor must have the instructions of `V`.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

/// Runs `kernel` with the instructions of this process.
#[inline]
pub(super) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    dispatch_to(in_use(), kernel)
}

/// Runs `kernel` with the instructions of `set`, which this machine must have.
#[inline]
fn dispatch_to<K: Kernel>(set: InstructionSet, kernel: K) -> K::Output {
    // SAFETY: a set is taken from those this machine has.
    unsafe {
        match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni | InstructionSet::Avx512 => x86::run_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::AvxVnni | InstructionSet::Avx2 => x86::run_avx2(kernel),
            _ => kernel.run::<Portable>(),
        }
    }
}

/// Sixteen f32 in registers.
///
/// # Safety
/// Implementations use instructions the processor must have: call them only from a function
/// that was reached through the matching [`InstructionSet`]. Pointers must be readable (writable) for
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
    /// Asks for memory that is needed soon; it need not exist.
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}

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
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, Vector};

    #[target_feature(enable = "avx512f,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's.
        unsafe { kernel.run::<Avx512>() }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the caller's.
        unsafe { kernel.run::<Avx2>() }
    }

    /// By the tree of [`Vector::sum`].
    #[inline(always)]
    unsafe fn sum_of_eight(numbers: __m256) -> f32 {
        // SAFETY: the caller vouches for AVX.
        unsafe {
            let four =
                _mm_add_ps(_mm256_castps256_ps128(numbers), _mm256_extractf128_ps::<1>(numbers));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[derive(Clone, Copy)]
    pub(in crate::cpu::kernels) struct Avx512(__m512);

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
        unsafe fn prefetch(from: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: Self, b: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let bits = _mm512_castps_pd(self.0);
                let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(bits));
                sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(self.0), upper))
            }
        }
    }

    #[derive(Clone, Copy)]
    pub(in crate::cpu::kernels) struct Avx2(__m256, __m256);

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
        unsafe fn prefetch(from: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
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

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { sum_of_eight(_mm256_add_ps(self.0, self.1)) }
        }
    }
}
