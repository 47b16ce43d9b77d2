//! The seam between server and engine.

/// One frame of audio for one lane.
#[derive(Debug, Clone, Copy)]
pub struct LaneFrame<'a> {
    /// The lane, below [`StreamingModel::lanes`].
    pub lane: usize,
    /// [`FRAME_SAMPLES`](crate::units::FRAME_SAMPLES) samples at 24 kHz, mono, nominally within ±1.
    pub pcm: &'a [f32],
}

/// What a model says about one frame of one lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The text token of this step; see [`crate::units`] for the two that are not text.
    pub text_token: u32,
    /// One probability per semantic VAD head; empty for a model without heads.
    pub vad: Vec<f32>,
}

/// Why one lane could not be advanced while the others were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneFault {
    /// The audio itself, or what the codec made of it, is not a finite number.
    #[error("the audio of this frame is not finite (NaN, infinite or far too loud)")]
    NonFiniteAudio,
    /// The language model's output is not a finite number.
    #[error("the model's output for this frame is not finite")]
    NonFiniteLogits,
}

/// What one step did for one lane. A lane with a fault must be reset before its next frame.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneStep {
    /// The lane the frame was for.
    pub lane: usize,
    /// The prediction, or why there is none.
    pub outcome: Result<Prediction, LaneFault>,
}

/// A failure that concerns the whole model, not one lane: it cannot be used any further.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// What happened, with the offending value.
    pub message: String,
    /// What to do next, where that is known.
    pub hint: Option<String>,
}

impl ModelError {
    /// An error without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// Adds what to do next.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A model that turns frames of audio into text tokens, for many independent lanes.
///
/// A lane's predictions depend on its own frames since its last reset and on nothing else: not
/// on the other lanes, not on which lane it is, not on who had it before.
pub trait StreamingModel: Send {
    /// How many lanes there are.
    fn lanes(&self) -> usize;

    /// Called once, when the model has been warmed up and before its first session: the last time
    /// when the number of lanes may change. Without a warm-up it is not called.
    ///
    /// # Errors
    /// When the device fails.
    fn settle(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Makes `lane` indistinguishable from one that was never used. `seed` determines what it
    /// samples where the temperature is above zero.
    ///
    /// # Errors
    /// When `lane` does not exist or the device fails.
    fn reset(&mut self, lane: usize, seed: u64) -> Result<(), ModelError>;

    /// Advances the lanes named in `frames` (each at most once, in any order) by one frame and
    /// returns one result per frame, in the order of `frames`, in memory that the next step uses
    /// again. Other lanes cost nothing.
    ///
    /// # Errors
    /// When the model as a whole failed; it must not be stepped again.
    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<&[LaneStep], ModelError>;
}
