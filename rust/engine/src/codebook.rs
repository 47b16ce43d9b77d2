//! A codebook of a residual quantizer, as training leaves it in a checkpoint.

use moshi_ctl_core::CodecShape;

use crate::EngineError;
use crate::weights::Weights;

/// Least usage an entry's sum is divided by, as in training.
const LEAST_USAGE: f32 = 1e-5;

/// The entries, bins × dim: sums of the vectors each stood for, divided by how many there were.
pub(crate) fn codebook_entries(
    shape: &CodecShape,
    weights: &Weights<'_>,
) -> Result<Vec<f32>, EngineError> {
    let (bins, dim) = (shape.quantizer_bins, shape.quantizer_dim);
    let usage = weights.f32_vec("cluster_usage", &[bins])?;
    let mut entries = weights.f32_vec("embedding_sum", &[bins, dim])?;
    for (entry, usage) in entries.chunks_exact_mut(dim).zip(usage) {
        for number in entry {
            *number /= usage.max(LEAST_USAGE);
        }
    }
    Ok(entries)
}

/// ‖e‖²/2 of each entry.
pub(crate) fn half_norms(entries: &[f32], dim: usize) -> Vec<f32> {
    entries.chunks_exact(dim).map(|e| e.iter().map(|x| x * x).sum::<f32>() / 2.0).collect()
}
