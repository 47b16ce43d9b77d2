//! What a step tells the card of its lanes.

use super::memory::Memory;

/// Whose position counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Which {
    LanguageModel = 0,
    Codec = 1,
}

/// A lane of a step: see `Row` in `device.cuh`.
pub(super) const ROW_WORDS: usize = 4;

/// The lanes that a recorded step advances.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Where the card finds a [`Row`](Lanes::begin) for each, before anything else.
    pub(super) table: &'a Memory,
    pub(super) count: usize,
}

/// Where every lane is.
pub(super) struct Lanes {
    /// Frames each lane has had since its reset, for the language model and for the codec: they differ
    /// only where a measurement says so.
    frames: Vec<u32>,
    contexts: [u32; 2],
    positions_per_frame: [u32; 2],
    filled: Vec<bool>,
}

impl Lanes {
    pub(super) fn new(count: usize, contexts: [usize; 2], codec_positions: usize) -> Self {
        Self {
            frames: vec![0; count],
            contexts: contexts.map(|context| context as u32),
            positions_per_frame: [1, codec_positions as u32],
            filled: vec![false; count],
        }
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.frames[lane] = 0;
        self.filled[lane] = false;
    }

    pub(super) fn keep(&mut self, count: usize) {
        self.frames.truncate(count);
        self.filled.truncate(count);
    }

    /// Puts `lane` where it has seen a whole context, for measurements.
    pub(super) fn fill(&mut self, lane: usize) {
        self.filled[lane] = true;
    }

    /// Begins a step: writes each lane's row, and counts it as a frame further.
    pub(super) fn begin(&mut self, lanes: &[usize], rows: &mut [u32]) {
        for (&lane, row) in lanes.iter().zip(rows.chunks_exact_mut(ROW_WORDS)) {
            let frames = self.frames[lane];
            let position = |which: usize| {
                let position = frames * self.positions_per_frame[which];
                if self.filled[lane] { position + self.contexts[which] } else { position }
            };
            row.copy_from_slice(&[
                lane as u32,
                u32::from(frames == 0),
                position(Which::LanguageModel as usize),
                position(Which::Codec as usize),
            ]);
            self.frames[lane] += 1;
        }
    }
}
