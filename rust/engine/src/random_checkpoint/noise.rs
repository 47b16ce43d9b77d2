//! Random numbers that can be had at any place of any tensor, in any order.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Fill, Tensor, usage};

/// Elements that share one generator; also the unit of parallel work.
pub(super) const CHUNK_ELEMENTS: usize = 1 << 18;

/// The numbers of chunk `index` of `tensor`.
pub(super) fn chunk(tensor: &Tensor, index: usize, seed: u64) -> Vec<f32> {
    let start = index * CHUNK_ELEMENTS;
    let len = CHUNK_ELEMENTS.min(tensor.elements() - start);
    let row_len = tensor.row_len();
    let place = |offset: usize| (start + offset) / row_len;
    match tensor.fill {
        Fill::Constant(value) => vec![value; len],
        Fill::Usage => (0..len).map(|offset| usage(place(offset))).collect(),
        Fill::Noise { mean, deviation, rows } => {
            let mut bits = vec![0u8; 4 * len];
            generator(seed, &tensor.name, index).fill_bytes(&mut bits);
            // Uniform, not normal: the sums that matter are normal soon enough.
            let width = deviation * 3f32.sqrt() / (1u32 << 31) as f32;
            let mut values = Vec::with_capacity(len);
            let mut words = bits.chunks_exact(4);
            while values.len() < len {
                let row = place(values.len());
                let in_row = ((row + 1) * row_len - start).min(len) - values.len();
                let width = width * rows.of(row);
                values.extend(words.by_ref().take(in_row).map(|word| {
                    let integer = i32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    mean + width * integer as f32
                }));
            }
            values
        }
    }
}

/// A generator for one chunk: seed, tensor name and chunk index are its key.
fn generator(seed: u64, name: &str, index: usize) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash(name).to_le_bytes());
    key[16..24].copy_from_slice(&(index as u64).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// FNV-1a, 64 bit.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::super::RowGain;
    use super::*;

    fn moments(values: &[f32]) -> (f32, f32) {
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32;
        (mean, variance.sqrt())
    }

    #[test]
    fn noise_has_the_mean_and_deviation_asked_for() {
        let fill = Fill::Noise { mean: 1.0, deviation: 0.5, rows: RowGain::Even };
        let (mean, deviation) = moments(&chunk(&Tensor::new("x", &[400, 400], fill), 0, 7));
        assert!((mean - 1.0).abs() < 0.01 && (deviation - 0.5).abs() < 0.01);
    }

    #[test]
    fn a_row_gain_holds_across_chunk_borders() {
        let rows = RowGain::Below { rows: 3, gain: 4.0 };
        let fill = Fill::Noise { mean: 0.0, deviation: 1.0, rows };
        let tensor = Tensor::new("x", &[4, CHUNK_ELEMENTS / 2 + 1], fill);
        let all: Vec<f32> = (0..3).flat_map(|index| chunk(&tensor, index, 7)).collect();
        assert_eq!(all.len(), tensor.elements());
        for (row, values) in all.chunks(tensor.row_len()).enumerate() {
            let (_, deviation) = moments(values);
            let expected = if row < 3 { 4.0 } else { 1.0 };
            assert!((deviation / expected - 1.0).abs() < 0.02, "row {row}: {deviation}");
        }
    }

    #[test]
    fn seed_name_and_place_all_matter() {
        let of = |name: &str, index, seed| {
            chunk(&Tensor::noise(name, &[2 * CHUNK_ELEMENTS], 1.0), index, seed)[..8].to_vec()
        };
        let base = of("a", 0, 1);
        assert_eq!(base, of("a", 0, 1));
        for other in [of("b", 0, 1), of("a", 1, 1), of("a", 0, 2)] {
            assert_ne!(base, other);
        }
    }
}
