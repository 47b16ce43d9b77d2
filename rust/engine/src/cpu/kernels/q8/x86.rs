//! The product with AVX-512 VNNI, AVX-VNNI and AVX2.

use std::arch::x86_64::*;

use super::super::simd::WIDTH;
use super::tile::{Dot, Job};
use super::{OFFSET, QUAD};

#[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn run_avx512_vnni(job: impl Job) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx512Vnni>() }
}

#[target_feature(enable = "avx2,f16c,avxvnni")]
pub(super) unsafe fn run_avx_vnni(job: impl Job) {
    // SAFETY: the caller's.
    unsafe { job.run::<AvxVnni>() }
}

#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn run_avx2(job: impl Job) {
    // SAFETY: the caller's.
    unsafe { job.run::<Avx2>() }
}

/// Four numbers as the bits of one.
#[inline(always)]
unsafe fn quad(x: *const i8) -> i32 {
    // SAFETY: the caller vouches for four readable numbers.
    unsafe { x.cast::<i32>().read_unaligned() }
}

struct Avx512Vnni;

// SAFETY, for every block below: the trait's contract, that the processor has the instructions;
// references are to as many numbers as are read or written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Dot for Avx512Vnni {
    const ROWS: usize = 12;
    type Weights = __m512i;
    type Sums = __m512i;
    type Numbers = __m512;

    #[inline(always)]
    unsafe fn load_weights(from: &[[u8; QUAD]; WIDTH]) -> __m512i {
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn start(start: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(start) }
    }

    #[inline(always)]
    unsafe fn add_dot(sums: __m512i, weights: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(quad(x))) }
    }

    #[inline(always)]
    unsafe fn load_scales(from: &[u16; WIDTH]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; WIDTH]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn add_scaled(numbers: __m512, sums: __m512i, scales: __m512, x_scale: f32) -> __m512 {
        unsafe {
            let scales = _mm512_mul_ps(scales, _mm512_set1_ps(x_scale));
            _mm512_add_ps(numbers, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scales))
        }
    }

    #[inline(always)]
    unsafe fn store(numbers: __m512, to: &mut [f32; WIDTH]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), numbers) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

/// Numbers and sums in two halves, as AVX2 and AVX-VNNI have them.
#[derive(Clone, Copy)]
struct Halves<T>(T, T);

#[inline(always)]
unsafe fn load_halves(from: &[f32; WIDTH]) -> Halves<__m256> {
    // SAFETY: sixteen numbers; the caller vouches for AVX2.
    unsafe { Halves(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())) }
}

#[inline(always)]
unsafe fn load_scale_halves(from: &[u16; WIDTH]) -> Halves<__m256> {
    // SAFETY: sixteen numbers; the caller vouches for F16C.
    unsafe {
        Halves(
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from[8..].as_ptr().cast())),
        )
    }
}

#[inline(always)]
unsafe fn add_scaled_half(numbers: __m256, sums: __m256i, scales: __m256, x_scale: f32) -> __m256 {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let scales = _mm256_mul_ps(scales, _mm256_set1_ps(x_scale));
        _mm256_add_ps(numbers, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scales))
    }
}

#[inline(always)]
unsafe fn store_halves(numbers: Halves<__m256>, to: &mut [f32; WIDTH]) {
    // SAFETY: sixteen numbers; the caller vouches for AVX2.
    unsafe {
        _mm256_storeu_ps(to.as_mut_ptr(), numbers.0);
        _mm256_storeu_ps(to[8..].as_mut_ptr(), numbers.1);
    }
}

struct AvxVnni;

// SAFETY, for every block below: as above.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Dot for AvxVnni {
    const ROWS: usize = 3;
    type Weights = Halves<__m256i>;
    type Sums = Halves<__m256i>;
    type Numbers = Halves<__m256>;

    #[inline(always)]
    unsafe fn load_weights(from: &[[u8; QUAD]; WIDTH]) -> Self::Weights {
        unsafe {
            let from: *const __m256i = from.as_ptr().cast();
            Halves(_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1)))
        }
    }

    #[inline(always)]
    unsafe fn start(start: i32) -> Self::Sums {
        unsafe { Halves(_mm256_set1_epi32(start), _mm256_set1_epi32(start)) }
    }

    #[inline(always)]
    unsafe fn add_dot(sums: Self::Sums, weights: Self::Weights, x: *const i8) -> Self::Sums {
        unsafe {
            let x = _mm256_set1_epi32(quad(x));
            Halves(
                _mm256_dpbusd_avx_epi32(sums.0, weights.0, x),
                _mm256_dpbusd_avx_epi32(sums.1, weights.1, x),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_scales(from: &[u16; WIDTH]) -> Self::Numbers {
        unsafe { load_scale_halves(from) }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; WIDTH]) -> Self::Numbers {
        unsafe { load_halves(from) }
    }

    #[inline(always)]
    unsafe fn add_scaled(
        numbers: Self::Numbers,
        sums: Self::Sums,
        scales: Self::Numbers,
        x_scale: f32,
    ) -> Self::Numbers {
        unsafe {
            Halves(
                add_scaled_half(numbers.0, sums.0, scales.0, x_scale),
                add_scaled_half(numbers.1, sums.1, scales.1, x_scale),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(numbers: Self::Numbers, to: &mut [f32; WIDTH]) {
        unsafe { store_halves(numbers, to) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}

/// AVX2's own byte product saturates, so factors are widened to sixteen bits. A sum then is in two
/// parts, for the first and the second two inputs, until its block ends.
struct Avx2;

// SAFETY, for every block below: as above.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all, above")]
impl Dot for Avx2 {
    const ROWS: usize = 2;
    /// Four outputs by four inputs each.
    type Weights = [__m256i; 4];
    type Sums = [__m256i; 4];
    type Numbers = Halves<__m256>;

    #[inline(always)]
    unsafe fn load_weights(from: &[[u8; QUAD]; WIDTH]) -> Self::Weights {
        unsafe {
            let offset = _mm_set1_epi8(OFFSET.cast_signed());
            std::array::from_fn(|i| {
                let bytes = _mm_loadu_si128(from[4 * i..].as_ptr().cast());
                _mm256_cvtepi8_epi16(_mm_xor_si128(bytes, offset))
            })
        }
    }

    #[inline(always)]
    unsafe fn start(_start: i32) -> Self::Sums {
        unsafe { [_mm256_setzero_si256(); 4] }
    }

    #[inline(always)]
    unsafe fn add_dot(sums: Self::Sums, weights: Self::Weights, x: *const i8) -> Self::Sums {
        unsafe {
            let x = _mm256_cvtepi8_epi16(_mm_set1_epi32(quad(x)));
            std::array::from_fn(|i| _mm256_add_epi32(sums[i], _mm256_madd_epi16(weights[i], x)))
        }
    }

    #[inline(always)]
    unsafe fn load_scales(from: &[u16; WIDTH]) -> Self::Numbers {
        unsafe { load_scale_halves(from) }
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; WIDTH]) -> Self::Numbers {
        unsafe { load_halves(from) }
    }

    #[inline(always)]
    unsafe fn add_scaled(
        numbers: Self::Numbers,
        sums: Self::Sums,
        scales: Self::Numbers,
        x_scale: f32,
    ) -> Self::Numbers {
        unsafe {
            // Adding neighbours leaves outputs 0 1 4 5 2 3 6 7.
            let whole = |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(a, b));
            Halves(
                add_scaled_half(numbers.0, whole(sums[0], sums[1]), scales.0, x_scale),
                add_scaled_half(numbers.1, whole(sums[2], sums[3]), scales.1, x_scale),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(numbers: Self::Numbers, to: &mut [f32; WIDTH]) {
        unsafe { store_halves(numbers, to) }
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
}
