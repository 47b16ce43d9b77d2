//! Functions of a row as a whole: softmax and norms.
//!
//! A row is summed as sixteen interleaved sums that are added by a fixed tree, so that the
//! results are the same bits on every instruction set.

use super::elementwise::exp;
use super::simd::{Kernel, Vector, WIDTH, dispatch};
use crate::epsilon::{LAYER_EPSILON, RMS_EPSILON};

/// Folds a row into sixteen numbers, those into one by a tree.
#[inline(always)]
fn fold(x: &[f32], start: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut parts = [start; WIDTH];
    let (chunks, rest) = x.as_chunks::<WIDTH>();
    for chunk in chunks {
        for (part, &x) in parts.iter_mut().zip(chunk) {
            *part = join(*part, x);
        }
    }
    for (part, &x) in parts.iter_mut().zip(rest) {
        *part = join(*part, x);
    }
    let mut half = WIDTH / 2;
    while half > 0 {
        for i in 0..half {
            parts[i] = join(parts[i], parts[i + half]);
        }
        half /= 2;
    }
    parts[0]
}

/// The sum of `term` of every number.
#[inline(always)]
fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    sum_of_products(x, x, |x, _| term(x))
}

/// The dot product of two rows, for those who are compiled for an instruction set already.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of_products(a, b, |a, b| a * b)
}

#[inline(always)]
fn sum_of_products(a: &[f32], b: &[f32], product: impl Fn(f32, f32) -> f32) -> f32 {
    let mut parts = [0f32; WIDTH];
    let (a, a_rest) = a.as_chunks::<WIDTH>();
    let (b, b_rest) = b.as_chunks::<WIDTH>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..WIDTH {
            parts[i] += product(a[i], b[i]);
        }
    }
    for (part, (&a, &b)) in parts.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *part += product(a, b);
    }
    fold(&parts, 0.0, |a, b| a + b)
}

/// e^x over its sum. NaN or +∞ among the scores makes every result NaN, and so do scores that
/// are all −∞; one −∞ among others becomes 0.
pub(crate) fn softmax(scores: &mut [f32]) {
    dispatch(Softmax { scores });
}

struct Softmax<'a> {
    scores: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let max = fold(self.scores, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        for score in self.scores.iter_mut() {
            *score = exp(*score - max);
        }
        let sum = sum(self.scores, |x| x);
        for score in self.scores {
            *score /= sum;
        }
    }
}

/// x / √(mean of x² + ε) · scale
pub(crate) fn rms_norm(x: &[f32], scale: &[f32], out: &mut [f32]) {
    assert_eq!([x.len(), scale.len()], [out.len(); 2], "lengths of a norm");
    dispatch(RmsNorm { x, scale, out });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { x, scale, out } = self;
        let size = (sum(x, |x| x * x) / x.len() as f32 + RMS_EPSILON).sqrt();
        for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
            *out = x / size * scale;
        }
    }
}

/// (x − mean) / √(variance + ε) · scale + bias
pub(crate) fn layer_norm(x: &[f32], scale: &[f32], bias: &[f32], out: &mut [f32]) {
    assert_eq!([x.len(), scale.len(), bias.len()], [out.len(); 3], "lengths of a norm");
    dispatch(LayerNorm { x, scale, bias, out });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { x, scale, bias, out } = self;
        let mean = sum(x, |x| x) / x.len() as f32;
        let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
        let factor = 1.0 / (variance + LAYER_EPSILON).sqrt();
        for (((out, x), scale), bias) in out.iter_mut().zip(x).zip(scale).zip(bias) {
            *out = (x - mean) * factor * scale + bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::*;

    /// A row with `spread` around `middle`; lengths are not whole vectors.
    fn row(len: usize, middle: f32, spread: f32) -> Vec<f32> {
        (0..len).map(|i| middle + spread * ((i * 7919 % 1009) as f32 / 504.5 - 1.0)).collect()
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().copied().map(f64::from).collect()
    }

    fn assert_close(found: &[f32], expected: impl IntoIterator<Item = f64>, bound: f64) {
        for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let off = (f64::from(found) - expected).abs();
            assert!(off < bound * expected.abs().max(1e-3), "{i}: {found} for {expected}");
        }
    }

    #[test]
    fn softmax_is_its_definition() {
        for len in [1, 15, 16, 250, 751] {
            let mut scores = row(len, 3.0, 12.0);
            scores[len / 2] = if len > 1 { f32::NEG_INFINITY } else { 0.0 };
            let weights: Vec<f64> = wide(&scores).into_iter().map(f64::exp).collect();
            let total: f64 = weights.iter().sum();
            softmax(&mut scores);
            // The difference from the maximum is rounded before it is an exponent.
            assert_close(&scores, weights.iter().map(|w| w / total), 3e-6);
        }
    }

    #[test]
    fn softmax_does_not_hide_a_fault() {
        for fault in [f32::NAN, f32::INFINITY] {
            for place in [0, 20, 36] {
                let mut scores = row(37, 0.0, 1.0);
                scores[place] = fault;
                softmax(&mut scores);
                assert!(scores.iter().all(|x| x.is_nan()), "{fault} at {place}: {scores:?}");
            }
        }
    }

    #[test]
    fn norms_are_their_definitions() {
        for len in [3, 64, 517, 2048] {
            let (x, scale, bias) = (row(len, 0.7, 3.0), row(len, 1.0, 0.5), row(len, 0.0, 0.1));
            let mut out = vec![0.0; len];
            let (x64, count) = (wide(&x), len as f64);
            let scales = wide(&scale);

            rms_norm(&x, &scale, &mut out);
            let square = x64.iter().map(|x| x * x).sum::<f64>() / count;
            let size = (square + f64::from(RMS_EPSILON)).sqrt();
            assert_close(&out, x64.iter().zip(&scales).map(|(x, s)| x / size * s), 1e-6);

            layer_norm(&x, &scale, &bias, &mut out);
            let mean = x64.iter().sum::<f64>() / count;
            let variance = x64.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            let size = (variance + f64::from(LAYER_EPSILON)).sqrt();
            let expected = x64.iter().zip(&scales).zip(wide(&bias));
            assert_close(&out, expected.map(|((x, s), b)| (x - mean) / size * s + b), 2e-4);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for len in [1, 17, 250, 2048, 2050] {
            let (x, scale, bias) = (row(len, 0.3, 9.0), row(len, 1.0, 0.5), row(len, 0.0, 0.1));
            let (mut best, mut portable) = (x.clone(), x.clone());
            softmax(&mut best);
            // SAFETY: every processor has the portable instructions; so below.
            unsafe { Softmax { scores: &mut portable }.run::<Portable>() };
            assert_eq!(best, portable, "softmax of {len}");
            rms_norm(&x, &scale, &mut best);
            // SAFETY: as above.
            unsafe { RmsNorm { x: &x, scale: &scale, out: &mut portable }.run::<Portable>() };
            assert_eq!(best, portable, "rms norm of {len}");
            layer_norm(&x, &scale, &bias, &mut best);
            let (scale, bias, out) = (&scale[..], &bias[..], &mut portable[..]);
            // SAFETY: as above.
            unsafe { LayerNorm { x: &x, scale, bias, out }.run::<Portable>() };
            assert_eq!(best, portable, "layer norm of {len}");
        }
    }
}
