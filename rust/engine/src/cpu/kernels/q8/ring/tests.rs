use super::super::super::test_numbers::numbers;
use super::*;

/// A ring with every slot written, its keys and its values.
fn ring(shape: AttentionShape) -> (Q8Ring, Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut ring = Q8Ring::new(shape).unwrap();
    let width = shape.width() as u32;
    let rows = |seed| -> Vec<_> {
        let seeds = (0..shape.context as u32).map(|slot| seed + slot * width);
        seeds.map(|seed| numbers(shape.width(), seed)).collect()
    };
    let (keys, values) = (rows(1), rows(1 << 20));
    // Twice, as in a ring that is written over.
    for slot in (0..shape.context).chain(0..shape.context) {
        ring.write(slot, &keys[slot], &values[slot]);
    }
    (ring, keys, values)
}

fn shapes() -> impl Iterator<Item = AttentionShape> {
    [(1, 4, 1), (3, 16, 17), (2, 128, 50), (2, 210, 33), (1, 64, MOST_SLOTS + 9)]
        .into_iter()
        .map(|(heads, head_dim, context)| AttentionShape { heads, head_dim, context })
}

#[test]
fn scores_and_sums_are_near_the_definition() {
    for shape in shapes() {
        let AttentionShape { heads, head_dim, context } = shape;
        let (ring, keys, values) = ring(shape);
        let mut integers = Integers::default();
        integers.reserve(shape);
        for head in 0..heads {
            let columns = head * head_dim..(head + 1) * head_dim;
            for held in [1, context / 2 + 1, context] {
                let query = numbers(head_dim, 7);
                let mut scores = vec![f32::NAN; held];
                ring.score(head, &query, &mut scores, &mut integers);
                for (score, key) in scores.iter().zip(&keys) {
                    let key = &key[columns.clone()];
                    let product: f64 =
                        key.iter().zip(&query).map(|(&a, &b)| f64::from(a * b)).sum();
                    let off = f64::from(*score) - product / (head_dim as f64).sqrt();
                    assert!(off.abs() < 2e-3, "{shape:?}: off by {off}");
                }
                let mut weights: Vec<f32> =
                    numbers(held, 9).iter().map(|x| (x + 0.5) / held as f32).collect();
                let expected: Vec<f64> = columns
                    .clone()
                    .map(|i| weights.iter().zip(&values).map(|(&w, v)| f64::from(w * v[i])).sum())
                    .collect();
                let mut out = vec![f32::NAN; head_dim];
                ring.mix(head, &mut weights, &mut out, &mut integers);
                for (found, expected) in out.iter().zip(expected) {
                    let off = f64::from(*found) - expected;
                    assert!(off.abs() < 2e-3, "{shape:?}: off by {off}");
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for shape in shapes() {
        let (ring, ..) = ring(shape);
        let mut integers = Integers::default();
        integers.reserve(shape);
        let head = shape.heads - 1;
        let found = InstructionSet::available().into_iter().map(|set| {
            let mut scores = vec![f32::NAN; shape.context];
            let query = numbers(shape.head_dim, 3);
            ring.score_with(set, head, &query, &mut scores, &mut integers);
            let mut out = vec![f32::NAN; shape.head_dim];
            let mut weights = numbers(shape.context, 5);
            ring.mix_with(set, head, &mut weights, &mut out, &mut integers);
            (bits(&scores), bits(&out))
        });
        let found: Vec<_> = found.collect();
        assert!(found.windows(2).all(|two| two[0] == two[1]), "{shape:?}");
    }
}

#[test]
fn what_is_not_finite_shows_and_stays_in_its_slot() {
    let shape = AttentionShape { heads: 1, head_dim: 32, context: 20 };
    for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut ring, keys, values) = ring(shape);
        let mut key = keys[5].clone();
        key[3] = wrong;
        ring.write(5, &key, &values[5]);
        let mut integers = Integers::default();
        integers.reserve(shape);
        let mut scores = vec![0.0; 20];
        ring.score(0, &numbers(32, 3), &mut scores, &mut integers);
        let others = scores.iter().enumerate().filter(|(slot, _)| *slot != 5);
        assert!(others.clone().count() == 19 && others.into_iter().all(|(_, x)| x.is_finite()));
        assert!(!scores[5].is_finite());
        let mut value = values[5].clone();
        value[30] = wrong;
        ring.write(5, &keys[5], &value);
        let mut out = vec![0.0; 32];
        ring.mix(0, &mut [0.25; 20], &mut out, &mut integers);
        assert!(out.iter().all(|x| !x.is_finite()));
        // A slot that is not held does not count.
        ring.mix(0, &mut [0.25; 5], &mut out, &mut integers);
        assert!(out.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn splitting_loses_less_than_a_part_in_thirty_thousand() {
    for count in [1, 4, 30, 128] {
        let x = numbers(count, 2);
        let mut quads = vec![Split::default(); count.div_ceil(QUAD) + 1];
        let (scale, sums) = dispatch(SplitNumbers { numbers: &x, quads: &mut quads });
        let parts = |part: fn(&Split) -> [i8; QUAD]| {
            quads.iter().flat_map(part).map(i32::from).collect::<Vec<_>>()
        };
        let (high, low) = (parts(|quad| quad.high), parts(|quad| quad.low));
        assert_eq!(sums, [high.iter().sum::<i32>(), low.iter().sum()]);
        let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
        for (i, (high, low)) in high.into_iter().zip(low).enumerate() {
            let found = (high * HIGH + low) as f32 * scale;
            let expected = x.get(i).copied().unwrap_or(0.0);
            assert!((found - expected).abs() <= most / 30_000.0, "{found} for {expected}");
        }
    }
}
