//! The seam between a stream's bookkeeping and the arithmetic of a model.

use std::time::Duration;

use moshi_ctl_core::LmShape;

use crate::EngineError;

/// Codec and language model of one checkpoint on one device, for many lanes.
pub(crate) trait Backend: Send {
    /// Forgets what `lane` has heard.
    fn reset(&mut self, lane: usize);

    /// Gives up the lanes from `count` on, and their memory where it is not taken for all at once.
    fn keep_lanes(&mut self, count: usize);

    /// Puts `lane` as if it had heard a whole context, for measurements.
    ///
    /// # Errors
    /// When the device fails.
    fn fill_context(&mut self, lane: usize) -> Result<(), EngineError>;

    /// Advances `lanes` by one frame: the codec turns their audio into `codes`, the language model
    /// their `inputs` into `outputs`. A step's inputs hold the audio tokens of the frame before,
    /// so neither waits for the other. `pcm`: lanes × `FRAME_SAMPLES`.
    ///
    /// # Errors
    /// When the device fails.
    fn step(
        &mut self,
        pcm: &[f32],
        lanes: &[usize],
        inputs: &LmInputs,
        codes: &mut Codes,
        outputs: &mut LmOutputs,
    ) -> Result<StepTiming, EngineError>;

    /// Worker threads, and the instructions they use; none on an accelerator.
    fn processor(&self) -> Option<Processor> {
        None
    }

    /// Memory that it holds on a card, apart from what the card's driver takes for the process.
    fn card_bytes(&self) -> Option<u64> {
        None
    }
}

/// How long the parts of a step took. Where they share threads, the time of the step is divided as
/// the threads' time was.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTiming {
    /// The codec, from samples to audio tokens.
    pub codec: Duration,
    /// The language model, from audio tokens to logits.
    pub lm: Duration,
    /// What the threads did; none on an accelerator and in candle.
    pub threads: Option<ThreadTime>,
}

/// What all threads together spent on a step. What is missing to their number times the step's
/// duration, they waited.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadTime {
    /// On the codec.
    pub codec: WorkTime,
    /// On the language model.
    pub lm: WorkTime,
}

/// Time by what it was spent on.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkTime {
    /// Multiplying with weights: matrices, convolutions, codebook searches.
    pub products: Duration,
    /// Attending to keys and values.
    pub attention: Duration,
    /// Norms, activation functions, quantizing, copies.
    pub rest: Duration,
}

impl WorkTime {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.products + self.attention + self.rest
    }
}

/// What computes on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Processor {
    /// Threads a step is divided among.
    pub threads: usize,
    /// The instruction set of the hot loops.
    pub instructions: &'static str,
}

/// The audio tokens of one frame of each lane of a step.
#[derive(Debug)]
pub(crate) struct Codes {
    codebooks: usize,
    /// lanes × codebooks
    pub(crate) tokens: Vec<u32>,
    /// One per lane: the smallest margin of any codebook's choice, see `Nearest::margin`; none
    /// where the audio led to numbers that are not finite.
    pub(crate) margins: Vec<Option<f32>>,
}

impl Codes {
    pub(crate) fn new(shape: &LmShape) -> Self {
        Self { codebooks: shape.audio_codebooks, tokens: vec![], margins: vec![] }
    }

    /// Makes room for `lanes`, each without numbers yet.
    pub(crate) fn begin(&mut self, lanes: usize) {
        self.tokens.clear();
        self.tokens.resize(lanes * self.codebooks, 0);
        self.margins.clear();
        self.margins.resize(lanes, Some(f32::INFINITY));
    }

    pub(crate) fn of(&self, lane_index: usize) -> &[u32] {
        &self.tokens[lane_index * self.codebooks..][..self.codebooks]
    }

    /// Notes what a lane's codebook chose, and by which margin.
    pub(crate) fn choose(&mut self, lane_index: usize, codebook: usize, token: u32, margin: f32) {
        self.tokens[lane_index * self.codebooks + codebook] = token;
        if let Some(least) = &mut self.margins[lane_index] {
            *least = least.min(margin);
        }
    }
}

/// The tokens every lane of a step puts into the language model.
#[derive(Debug)]
pub(crate) struct LmInputs {
    codebooks: usize,
    /// One per lane.
    pub(crate) text: Vec<u32>,
    /// lanes × codebooks
    pub(crate) audio: Vec<u32>,
}

impl LmInputs {
    pub(crate) fn new(shape: &LmShape) -> Self {
        Self { codebooks: shape.audio_codebooks, text: vec![], audio: vec![] }
    }

    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.audio.clear();
    }

    pub(crate) fn push(&mut self, text: u32, audio: &[u32]) {
        self.text.push(text);
        self.audio.extend_from_slice(audio);
    }

    pub(crate) fn audio_of(&self, lane_index: usize) -> &[u32] {
        &self.audio[lane_index * self.codebooks..][..self.codebooks]
    }
}

/// What comes out of the language model.
#[derive(Debug, Default)]
pub(crate) struct LmOutputs {
    /// lanes × text vocabulary
    pub(crate) text_logits: Vec<f32>,
    /// lanes × VAD heads: the probability of each head's first class
    pub(crate) vad: Vec<f32>,
}

impl LmOutputs {
    pub(crate) fn clear(&mut self) {
        self.text_logits.clear();
        self.vad.clear();
    }
}
