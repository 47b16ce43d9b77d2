//! Chains of multiply-adds in registers: the best instructions this machine has for them.

use std::hint::black_box;

/// A loop of multiply-adds.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// The instructions it is made of.
    pub instructions: &'static str,
    /// Multiply-adds in one round.
    pub multiply_adds_per_round: usize,
    /// How much less work one repeat may be, so that slow kernels end as soon as fast ones.
    pub speed_up: usize,
    /// Does so many rounds.
    pub run: fn(usize),
}

impl Kernel {
    /// 8-bit integers, summed in 32 bits.
    pub fn int8() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = x86::int8() {
            return kernel;
        }
        Self {
            instructions: "portable",
            multiply_adds_per_round: PORTABLE_LEN,
            speed_up: 32,
            run: portable_int8,
        }
    }

    /// Single precision.
    pub fn f32() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(kernel) = x86::f32() {
            return kernel;
        }
        Self {
            instructions: "portable",
            multiply_adds_per_round: PORTABLE_LEN,
            speed_up: 32,
            run: portable_f32,
        }
    }
}

const PORTABLE_LEN: usize = 64;

fn portable_int8(rounds: usize) {
    let a = black_box([3_i8; PORTABLE_LEN]);
    let mut sums = [0_i32; PORTABLE_LEN];
    for _ in 0..rounds {
        // Else the product would be taken once for all rounds.
        let b = black_box([5_i8; PORTABLE_LEN]);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = sum.wrapping_add(i32::from(a) * i32::from(b));
        }
    }
    black_box(sums);
}

fn portable_f32(rounds: usize) {
    let (a, b) = (black_box([0.5_f32; PORTABLE_LEN]), black_box([1.0_f32; PORTABLE_LEN]));
    let mut sums = [0_f32; PORTABLE_LEN];
    for _ in 0..rounds {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = *sum * a + b;
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Kernel;

    /// Chains that do not wait for each other: more than latency times units of any processor.
    const CHAINS: usize = 12;

    pub(super) fn int8() -> Option<Kernel> {
        let (instructions, width, speed_up, run): (_, _, _, fn(usize)) =
            if is_x86_feature_detected!("avx512vnni") {
                // SAFETY: the processor has the instructions.
                ("avx512-vnni", 64, 1, |rounds| unsafe { int8_avx512_vnni(rounds) })
            } else if is_x86_feature_detected!("avxvnni") {
                // SAFETY: the processor has the instructions.
                ("avx-vnni", 32, 2, |rounds| unsafe { int8_avx_vnni(rounds) })
            } else if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions.
                ("avx2", 32, 4, |rounds| unsafe { int8_avx2(rounds) })
            } else {
                return None;
            };
        Some(Kernel { instructions, multiply_adds_per_round: CHAINS * width, speed_up, run })
    }

    pub(super) fn f32() -> Option<Kernel> {
        let (instructions, width, speed_up, run): (_, _, _, fn(usize)) =
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has the instructions.
                ("avx512", 16, 4, |rounds| unsafe { f32_avx512(rounds) })
            } else if is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions.
                ("avx2-fma", 8, 8, |rounds| unsafe { f32_avx2(rounds) })
            } else {
                return None;
            };
        Some(Kernel { instructions, multiply_adds_per_round: CHAINS * width, speed_up, run })
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_avx512_vnni(rounds: usize) {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avxvnni")]
    fn int8_avx_vnni(rounds: usize) {
        let (a, b) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(5)));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2")]
    fn int8_avx2(rounds: usize) {
        let a = _mm256_set1_epi8(3);
        let ones = black_box(_mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..rounds {
            // Else the product would be taken once for all rounds and chains.
            let b = black_box(_mm256_set1_epi8(5));
            for sum in &mut sums {
                let pairs = _mm256_maddubs_epi16(_mm256_xor_si256(a, *sum), b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    fn f32_avx512(rounds: usize) {
        let (a, b) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(1.0)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    fn f32_avx2(rounds: usize) {
        let (a, b) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(1.0)));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
}
