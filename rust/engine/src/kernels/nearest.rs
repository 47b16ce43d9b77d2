//! Search for the nearest entry of a codebook.

use rayon::prelude::*;

use super::attention::dot;

/// A codebook of `entries × dim`, with half of each entry's squared norm.
pub(crate) struct Codebook {
    pub(crate) entries: Vec<f32>,
    half_norms: Vec<f32>,
    dim: usize,
}

/// The nearest entry to a vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Nearest {
    pub(crate) index: u32,
    /// How much farther the runner-up is, as a share of the sum of the squared norms of vector
    /// and entry: what rounding would have to change for another answer.
    pub(crate) margin: f32,
}

impl Codebook {
    pub(crate) fn new(entries: Vec<f32>, dim: usize) -> Self {
        let half_norms =
            entries.chunks_exact(dim).map(|e| e.iter().map(|x| x * x).sum::<f32>() / 2.0).collect();
        Self { entries, half_norms, dim }
    }

    pub(crate) fn half_norms(&self) -> &[f32] {
        &self.half_norms
    }

    pub(crate) fn entry(&self, index: u32) -> &[f32] {
        &self.entries[index as usize * self.dim..][..self.dim]
    }

    /// The nearest entry to each vector, the first of equals. ‖x − e‖² orders entries as
    /// ‖e‖²/2 − x·e does.
    pub(crate) fn nearest(&self, vectors: &[f32]) -> Vec<Nearest> {
        vectors.par_chunks_exact(self.dim).map(|vector| self.nearest_one(vector)).collect()
    }

    fn nearest_one(&self, vector: &[f32]) -> Nearest {
        let (mut best, mut runner_up, mut index) = (f32::INFINITY, f32::INFINITY, 0);
        for (i, (entry, half_norm)) in
            self.entries.chunks_exact(self.dim).zip(&self.half_norms).enumerate()
        {
            let distance = half_norm - dot(vector, entry);
            if distance < best {
                (runner_up, best, index) = (best, distance, i);
            } else if distance < runner_up {
                runner_up = distance;
            }
        }
        let scale = dot(vector, vector) / 2.0 + self.half_norms[index];
        let margin = (runner_up - best) / scale.max(f32::MIN_POSITIVE);
        Nearest { index: index as u32, margin }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_and_says_by_how_much() {
        let codebook = Codebook::new(vec![1.0, 0.0, 0.0, 1.0, -1.0, 0.0], 2);
        let found = codebook.nearest(&[0.1, 0.9, -2.0, 0.1]);
        assert_eq!(found.iter().map(|n| n.index).collect::<Vec<_>>(), [1, 2]);
        // ½(‖x−e₀‖² − ‖x−e₁‖²) = 0.8, over ½(0.82 + 1).
        assert!((found[0].margin - 0.8 / 0.91).abs() < 1e-6, "{}", found[0].margin);
    }

    #[test]
    fn the_first_of_equals_wins_with_no_margin() {
        let codebook = Codebook::new(vec![1.0, 1.0], 1);
        assert_eq!(codebook.nearest(&[1.0]), [Nearest { index: 0, margin: 0.0 }]);
    }
}
