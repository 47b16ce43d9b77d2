use half::f16;

use super::super::test_numbers;
use super::*;

/// Numbers that vary enough for a wrong index to show, with blocks of different sizes.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let numbers = test_numbers::numbers(count, seed).into_iter().enumerate();
    numbers.map(|(i, x)| (1.0 + (i / BLOCK % 7) as f32) * x).collect()
}

fn blocks(numbers: &[f32], inputs: usize, row: usize, block: usize) -> Q8Block {
    let row = &numbers[row * inputs..][..inputs];
    let mut padded = [0f32; BLOCK];
    let part = &row[block * BLOCK..row.len().min((block + 1) * BLOCK)];
    padded[..part.len()].copy_from_slice(part);
    quantize(&padded).unwrap()
}

fn matrix(weights: &[f32], outputs: usize, inputs: usize, bias: Option<&[f32]>) -> Q8Matrix {
    Q8Matrix::from_blocks(outputs, inputs, bias, |_, row, block| {
        Some(blocks(weights, inputs, row, block))
    })
    .unwrap()
}

fn activations(x: &[f32], width: usize) -> Activations {
    let mut activations = Activations::default();
    activations.quantize(x, width, &mut Pool::new(1).unwrap());
    activations
}

fn product(matrix: &Q8Matrix, set: InstructionSet, x: &[f32], threads: usize) -> Vec<f32> {
    let x = activations(x, matrix.inputs);
    let mut y = vec![f32::NAN; x.rows() * matrix.outputs];
    matrix.multiply_with(set, &x, &mut y, &mut Pool::new(threads).unwrap());
    y
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn multiplies_like_the_definition_for_ragged_sizes() {
    for (rows, outputs, inputs) in [(1, 1, 1), (2, 17, 33), (5, 48, 96), (13, 33, 160), (3, 16, 64)]
    {
        let (x, w) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
        let bias = numbers(outputs, 3);
        let y = product(&matrix(&w, outputs, inputs, Some(&bias)), in_use(), &x, 2);
        for r in 0..rows {
            for o in 0..outputs {
                let (mut expected, mut size) = (f64::from(bias[o]), 0f64);
                for i in 0..inputs {
                    let product = f64::from(x[r * inputs + i]) * f64::from(w[o * inputs + i]);
                    expected += product;
                    size += product * product;
                }
                // Both factors are off by up to half of 1/127 of their block's largest.
                let tolerance = 0.02 * size.sqrt() + 0.02;
                let found = f64::from(y[r * outputs + o]);
                assert!(
                    (found - expected).abs() < tolerance,
                    "{rows}x{outputs}x{inputs} at ({r}, {o}): {found} for {expected}"
                );
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let (outputs, inputs) = (53, 224);
    let w = numbers(outputs * inputs, 4);
    let matrix = matrix(&w, outputs, inputs, None);
    for rows in (1..=26).chain([37, 64]) {
        let x = numbers(rows * inputs, 5);
        let portable = product(&matrix, InstructionSet::Portable, &x, 1);
        assert!(portable.iter().any(|&y| y != 0.0));
        for set in InstructionSet::available() {
            let found = product(&matrix, set, &x, 2);
            assert_eq!(bits(&found), bits(&portable), "{} at {rows} rows", set.name());
        }
    }
}

#[test]
fn extreme_integers_do_not_saturate() {
    // Every product is as large as can be, of one sign: pairs of them exceed sixteen bits.
    let inputs = 128;
    for (w, x) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
        let matrix = matrix(&vec![w; 16 * inputs], 16, inputs, None);
        for set in InstructionSet::available() {
            for y in product(&matrix, set, &vec![x; inputs], 1) {
                let expected = w * x * inputs as f32;
                let off = (y - expected).abs() / inputs as f32;
                assert!(off < 1e-3, "{}: {y} for {expected}", set.name());
            }
        }
    }
}

#[test]
fn a_row_is_the_same_whatever_rows_surround_it() {
    let (outputs, inputs) = (80, 192);
    let w = numbers(outputs * inputs, 6);
    let matrix = matrix(&w, outputs, inputs, None);
    let x = numbers(64 * inputs, 7);
    for rows in [2, 5, 12, 13, 31, 64] {
        let together = product(&matrix, in_use(), &x[..rows * inputs], 3);
        for row in 0..rows {
            let alone = product(&matrix, in_use(), &x[row * inputs..][..inputs], 1);
            assert_eq!(bits(&alone), bits(&together[row * outputs..][..outputs]), "row {row}");
        }
    }
}

#[test]
fn a_row_that_is_not_finite_stays_alone() {
    let inputs = 64;
    let matrix = matrix(&numbers(32 * inputs, 8), 32, inputs, None);
    let mut x = numbers(2 * inputs, 9);
    let clean = product(&matrix, in_use(), &x, 1);
    x[inputs + 3] = f32::NAN;
    let found = product(&matrix, in_use(), &x, 1);
    assert_eq!(bits(&found[..32]), bits(&clean[..32]));
    assert!(found[32..].iter().all(|y| !y.is_finite()), "{:?}", &found[32..]);
}

#[test]
fn scales_are_those_of_the_blocks() {
    let block = Q8Block { scale: f16::from_f32(0.5), values: std::array::from_fn(|i| i as i8) };
    let matrix = Q8Matrix::from_blocks(1, BLOCK, None, |_, _, _| Some(block)).unwrap();
    let mut x = [0f32; BLOCK];
    x[9] = 127.0;
    assert_eq!(product(&matrix, in_use(), &x, 1), [127.0 * 9.0 * 0.5]);
}
