//! Functions of single numbers, many at a time.
//!
//! They are loops of plain additions, multiplications and choices, compiled once per instruction
//! set: nothing is fused and nothing depends on the width of a vector, so the results are the
//! same bits on every machine.

use moshi_ctl_core::Gating;

use super::simd::{Kernel, Vector, dispatch};

/// Where e^x ceases to be a normal number, and where it ceases to be finite.
const EXP_RANGE: std::ops::RangeInclusive<f32> = -87.336_54..=88.722_83;

/// e^x within 1.5 units in the last place; 0 where the result would not be a normal number.
///
/// e^x = 2^n · e^r with the integer n nearest to x / ln 2. e^r = 1 + r + r² · P(r) with P fitted
/// for |r| ≤ ln 2 / 2 to 3e-9 of e^r.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it leaves a number's nearest integer in the lowest bits of the sum.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
    /// ln 2 in two parts; the first has so few digits that its product with n is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let p = 0.001_381_458_4;
    let p = p * r + 0.008_368_724;
    let p = p * r + 0.041_668_39;
    let p = p * r + 0.166_665_21;
    let p = p * r + 0.499_999_94;
    let y = (p * r) * r + r + 1.0;
    // n added to the exponent.
    let y = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
    let (lowest, highest) = (*EXP_RANGE.start(), *EXP_RANGE.end());
    if x < lowest {
        0.0
    } else if x <= highest {
        y
    } else {
        // Infinity, or NaN for NaN.
        x + f32::INFINITY
    }
}

/// x/2 · (1 + erf(x/√2)), the error function within 1e-7. As with every evaluation of this
/// formula, −∞ gives NaN.
///
/// 1 − erf(z/√2) = e^(−z·G(z)) with G fitted so that erf is off by at most 3e-9 up to 5.6, where
/// it becomes 1 in f32.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs();
    let z = if z > 5.6 { 5.6 } else { z };
    let g = -3.554_9e-7;
    let g = g * z + 6.626_664e-6;
    let g = g * z - 5.196_798e-5;
    let g = g * z + 1.970_95e-4;
    let g = g * z - 1.039_116_5e-5;
    let g = g * z - 4.804_285_7e-3;
    let g = g * z + 0.036_345_01;
    let g = g * z + 0.318_308_06;
    let g = g * z + 0.797_884_7;
    let erf = (1.0 - exp(-(g * z))).copysign(x);
    (0.5 * x) * (1.0 + erf)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// y = x where positive, else e^x − 1.
pub(crate) fn elu_into(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of input and output");
    dispatch(Elu { x, y });
}

struct Elu<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Elu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            *y = if x > 0.0 { x } else { exp(x) - 1.0 };
        }
    }
}

/// The exact Gaussian error linear unit of every number, see [`gelu`].
pub(crate) fn gelu_erf(x: &mut [f32]) {
    dispatch(GeluErf { x });
}

struct GeluErf<'a> {
    x: &'a mut [f32],
}

impl Kernel for GeluErf<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        for x in self.x {
            *x = gelu(*x);
        }
    }
}

/// The activation of the first half of `gated`, times the second half.
pub(crate) fn gate(gating: Gating, gated: &[f32], out: &mut [f32]) {
    assert_eq!(gated.len(), 2 * out.len(), "lengths of a gated row and its result");
    let (gates, values) = gated.split_at(out.len());
    dispatch(Gate { gating, gates, values, out });
}

struct Gate<'a> {
    gating: Gating,
    gates: &'a [f32],
    values: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { gating, gates, values, out } = self;
        let inputs = gates.iter().zip(values);
        match gating {
            Gating::Silu => {
                for (out, (&x, value)) in out.iter_mut().zip(inputs) {
                    *out = x / (1.0 + exp(-x)) * value;
                }
            }
            Gating::Gelu => {
                for (out, (&x, value)) in out.iter_mut().zip(inputs) {
                    *out = gelu(x) * value;
                }
            }
            Gating::Relu => {
                for (out, (&x, value)) in out.iter_mut().zip(inputs) {
                    // Not `max`, which would turn NaN into 0.
                    *out = if x < 0.0 { 0.0 } else { x } * value;
                }
            }
            Gating::Sigmoid => {
                for (out, (&x, value)) in out.iter_mut().zip(inputs) {
                    *out = sigmoid(x) * value;
                }
            }
        }
    }
}

/// x += branch, times `scale` where there is one. `x` and `branch` may be several rows of the
/// width of `scale`.
pub(crate) fn add_scaled(x: &mut [f32], branch: &[f32], scale: Option<&[f32]>) {
    assert_eq!(x.len(), branch.len(), "lengths of a sum");
    let width = scale.map_or(x.len(), <[f32]>::len);
    assert!(width == 0 || x.len().is_multiple_of(width), "rows of the width of the scale");
    dispatch(AddScaled { x, branch, scale });
}

struct AddScaled<'a> {
    x: &'a mut [f32],
    branch: &'a [f32],
    scale: Option<&'a [f32]>,
}

impl Kernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { x, branch, scale } = self;
        let Some(scale) = scale else {
            for (x, branch) in x.iter_mut().zip(branch) {
                *x += branch;
            }
            return;
        };
        let width = scale.len().max(1);
        for (x, branch) in x.chunks_exact_mut(width).zip(branch.chunks_exact(width)) {
            for ((x, branch), scale) in x.iter_mut().zip(branch).zip(scale) {
                *x += branch * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Portable;
    use super::*;

    const SPECIAL: [f32; 12] = [
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        -1e-42,
        1e-8,
        -1e-8,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -87.336_55,
    ];

    /// Numbers from -bound to bound, and the special ones; not a whole number of vectors.
    fn inputs(bound: f32) -> Vec<f32> {
        let steps = 200_003;
        let even = |i| bound * (2.0 * i as f32 / (steps - 1) as f32 - 1.0);
        (0..steps).map(even).chain(SPECIAL).collect()
    }

    /// erf by its power series, and its asymptotic continued fraction beyond 3.
    fn erf(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..80 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return 2.0 / std::f64::consts::PI.sqrt() * sum;
        }
        let z = x.abs();
        let fraction = (1..60).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
        (1.0 - (-z * z).exp() / std::f64::consts::PI.sqrt() / fraction).copysign(x)
    }

    fn gelu_f64(x: f32) -> f64 {
        let x = f64::from(x);
        x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2))
    }

    /// Asserts that `found` has the bits of `expected`, any NaN being like another.
    fn assert_same(found: &[f32], expected: &[f32], what: &str) {
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!(
                a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
                "{what} at {i}: {a} {b}"
            );
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for x in inputs(88.7) {
            let (found, expected) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(found.is_nan());
            } else if expected < f64::from(f32::MIN_POSITIVE) {
                assert!(found <= f32::MIN_POSITIVE, "{found} for {expected}");
            } else if expected > f64::from(f32::MAX) {
                assert_eq!(found, f32::INFINITY);
            } else {
                let off = (f64::from(found) / expected - 1.0).abs();
                // A unit in the last place is between 2⁻²⁴ and 2⁻²³ of a number.
                assert!(off < 1.5 / f64::from(1 << 23), "e^{x} off by {off:e}");
            }
        }
        assert_eq!([exp(f32::NEG_INFINITY), exp(-88.0), exp(0.0)], [0.0, 0.0, 1.0]);
    }

    #[test]
    fn elu_is_its_definition() {
        let x = inputs(20.0);
        let mut y = vec![0.0; x.len()];
        elu_into(&x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            match x {
                x if x.is_nan() => assert!(y.is_nan()),
                x if x > 0.0 => assert_eq!(y, x),
                x => {
                    let off = (f64::from(y) - f64::from(x).exp_m1()).abs();
                    assert!(off < 1.5e-7, "elu({x}) off by {off:e}");
                }
            }
        }
    }

    #[test]
    fn gelu_is_its_definition() {
        let mut worst = 0f64;
        for x in inputs(9.0) {
            let found = gelu(x);
            if x.is_finite() && x.abs() < 10.0 {
                let off = (f64::from(found) - gelu_f64(x)).abs();
                worst = worst.max(off / f64::from(x.abs()).max(1.0));
            }
        }
        // x/2 times what the error function is off by, and rounding.
        assert!(worst < 1.2e-7, "{worst:e}");
        assert_eq!([gelu(f32::INFINITY), gelu(-7.0), gelu(7.0)], [f32::INFINITY, 0.0, 7.0]);
        assert!(gelu(f32::NAN).is_nan() && gelu(f32::NEG_INFINITY).is_nan());
    }

    #[test]
    fn gates_are_their_definitions() {
        let x = inputs(30.0);
        let gated: Vec<f32> = x.iter().copied().chain(vec![2.0; x.len()]).collect();
        let mut out = vec![0.0; x.len()];
        for gating in [Gating::Silu, Gating::Gelu, Gating::Relu, Gating::Sigmoid] {
            gate(gating, &gated, &mut out);
            for (&x, &out) in x.iter().zip(&out) {
                let sigmoid = 1.0 / (1.0 + (-f64::from(x)).exp());
                let expected = match gating {
                    Gating::Silu => f64::from(x) * sigmoid,
                    Gating::Gelu => gelu_f64(x),
                    Gating::Relu => f64::from(x).max(0.0),
                    Gating::Sigmoid => sigmoid,
                };
                let off = (f64::from(out) - 2.0 * expected).abs();
                match x {
                    x if x.is_nan() => assert!(out.is_nan(), "{gating:?}"),
                    f32::INFINITY if gating != Gating::Sigmoid => assert_eq!(out, x, "{gating:?}"),
                    x if x.abs() > 30.0 => {}
                    x => {
                        let bound = 3e-7 * f64::from(x.abs()).max(1.0);
                        assert!(off < bound, "{gating:?}({x}) off by {off:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn adds_a_branch_with_and_without_scale() {
        let mut x = vec![1.0, 2.0, 3.0, 4.0];
        add_scaled(&mut x, &[1.0, 1.0, 1.0, f32::NAN], None);
        assert_eq!(x[..3], [2.0, 3.0, 4.0]);
        assert!(x[3].is_nan());
        let mut x = vec![1.0, 2.0, 3.0, 4.0];
        add_scaled(&mut x, &[1.0, 2.0, 3.0, 4.0], Some(&[0.5, 0.25]));
        assert_eq!(x, [1.5, 2.5, 4.5, 5.0]);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x = inputs(95.0);
        let (mut best, mut portable) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        elu_into(&x, &mut best);
        // SAFETY: every processor has the portable instructions; so below.
        unsafe { Elu { x: &x, y: &mut portable }.run::<Portable>() };
        assert_same(&best, &portable, "elu");

        let (mut best, mut portable) = (x.clone(), x.clone());
        gelu_erf(&mut best);
        // SAFETY: as above.
        unsafe { GeluErf { x: &mut portable }.run::<Portable>() };
        assert_same(&best, &portable, "gelu");

        let values: Vec<f32> = x.iter().rev().copied().collect();
        let gated = [&x[..], &values].concat();
        for gating in [Gating::Silu, Gating::Gelu, Gating::Relu, Gating::Sigmoid] {
            gate(gating, &gated, &mut best);
            let (gates, values, out) = (&x[..], &values[..], &mut portable[..]);
            // SAFETY: as above.
            unsafe { Gate { gating, gates, values, out }.run::<Portable>() };
            assert_same(&best, &portable, "gate");
        }
        for scale in [None, Some(&values[..])] {
            add_scaled(&mut best, &x, scale);
            // SAFETY: as above.
            unsafe { AddScaled { x: &mut portable, branch: &x, scale }.run::<Portable>() };
            assert_same(&best, &portable, "sum");
        }
    }
}
