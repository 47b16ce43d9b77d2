//! Where every lane of a transformer is in its stream.

use moshi_ctl_core::{PositionalEmbedding, TransformerShape};

/// Positions of all lanes, and of those in the present step what its layers need: made once per
/// step, in memory that is used again.
pub(crate) struct Positions {
    context: usize,
    /// 1 / wavelength of each rotated pair; empty without rotary embeddings.
    frequencies: Vec<f32>,
    /// Positions each lane has seen since its reset.
    seen: Vec<usize>,
    /// Positions each lane of the step advances by.
    count: usize,
    /// Where each lane of the step was before it.
    starts: Vec<usize>,
    /// Lanes of the step × count × head_dim / 2.
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Positions {
    pub(crate) fn new(shape: &TransformerShape, lanes: usize) -> Self {
        let (dim, period) = (shape.head_dim(), shape.max_period as f32);
        let frequency = |i: usize| 1f32 / period.powf(i as f32 / dim as f32);
        let rotated = if shape.positional_embedding == PositionalEmbedding::Rope { dim } else { 0 };
        Self {
            context: shape.context,
            frequencies: (0..rotated).step_by(2).map(frequency).collect(),
            seen: vec![0; lanes],
            count: 0,
            starts: vec![],
            cosines: vec![],
            sines: vec![],
        }
    }

    pub(crate) fn reset(&mut self, lane: usize) {
        self.seen[lane] = 0;
    }

    pub(crate) fn keep_lanes(&mut self, count: usize) {
        self.seen.truncate(count);
    }

    /// Puts `lane` where it has seen a whole context.
    pub(crate) fn fill(&mut self, lane: usize) {
        self.seen[lane] = self.context;
    }

    /// Begins a step in which each of `lanes` advances by `count` positions.
    pub(crate) fn begin(&mut self, lanes: &[usize], count: usize) {
        self.count = count;
        self.starts.clear();
        self.cosines.clear();
        self.sines.clear();
        for &lane in lanes {
            let start = self.seen[lane];
            self.seen[lane] += count;
            self.starts.push(start);
            for position in start..start + count {
                for frequency in &self.frequencies {
                    let (sine, cosine) = (position as f32 * frequency).sin_cos();
                    self.cosines.push(cosine);
                    self.sines.push(sine);
                }
            }
        }
    }

    /// Positions each lane of the step advances by.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The slot of the ring in which a position of the step belongs.
    pub(crate) fn slot(&self, lane_index: usize, position: usize) -> usize {
        (self.starts[lane_index] + position) % self.context
    }

    /// How many slots a lane of the step holds, counted from the first.
    pub(crate) fn held(&self, lane_index: usize) -> usize {
        (self.starts[lane_index] + self.count).min(self.context)
    }

    /// Cosines and sines of one lane of the step, count × head_dim / 2; none without rotary
    /// embeddings.
    pub(crate) fn rotation(&self, lane_index: usize) -> Option<(&[f32], &[f32])> {
        let angles = self.count * self.frequencies.len();
        let range = lane_index * angles..(lane_index + 1) * angles;
        (angles > 0).then(|| (&self.cosines[range.clone()], &self.sines[range]))
    }
}
