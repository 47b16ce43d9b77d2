//! From logits to a token.

use rand::{Rng, SeedableRng, distributions::Open01};
use rand_chacha::ChaCha8Rng;

/// Chooses the text tokens of one lane.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    temperature: f64,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// At temperature 0 the seed does not matter.
    pub(crate) fn new(temperature: f64, seed: u64) -> Self {
        Self { temperature, rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The index of the chosen logit, or none where a logit is not finite: the largest, the
    /// first of equals, after Gumbel noise where the temperature is above zero (which samples
    /// from the softmax at that temperature; Gumbel, 1954).
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        if self.temperature <= 0.0 {
            return largest(logits.iter().copied());
        }
        let (scale, rng) = (self.temperature as f32, &mut self.rng);
        largest(logits.iter().map(|logit| {
            let uniform: f32 = rng.sample(Open01);
            logit / scale - (-uniform.ln()).ln()
        }))
    }
}

fn largest(numbers: impl Iterator<Item = f32>) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (i, number) in (0u32..).zip(numbers) {
        if best.is_none_or(|(_, most)| number > most) {
            best = Some((i, number));
        }
    }
    best.map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_temperature_the_first_of_the_largest_wins() {
        assert_eq!(Sampler::new(0.0, 1).choose(&[0.5, 2.0, 2.0, -1.0]), Some(1));
    }

    #[test]
    fn with_temperature_tokens_come_as_often_as_softmax_says() {
        let (logits, temperature) = ([0.0f32, 1.0, -1.0], 0.5);
        let mut sampler = Sampler::new(temperature, 7);
        let mut counts = [0f64; 3];
        let draws = 20_000;
        for _ in 0..draws {
            counts[sampler.choose(&logits).unwrap() as usize] += 1.0;
        }
        let weights = logits.map(|l| (f64::from(l) / temperature).exp());
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            // Four standard deviations of a share of 20,000 draws are at most 0.0142.
            assert!((count / f64::from(draws) - weight / total).abs() < 0.0142);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 / 10.0).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(1.0, seed);
            (0..20).map(|_| sampler.choose(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn numbers_that_are_not_finite_give_no_token() {
        assert_eq!(Sampler::new(0.0, 0).choose(&[1.0, f32::NAN]), None);
        assert_eq!(Sampler::new(0.3, 0).choose(&[f32::INFINITY, 1.0]), None);
    }
}
