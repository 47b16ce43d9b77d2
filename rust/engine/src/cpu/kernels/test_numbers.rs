//! What tests of kernels compute with.

/// Numbers between -0.5 and 0.5 that vary enough for a wrong index to show.
pub(super) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32)
        .map(|i| {
            let x = (i ^ seed).wrapping_mul(2_654_435_761);
            (x >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
        .collect()
}
