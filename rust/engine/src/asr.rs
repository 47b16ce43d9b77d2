//! Speech to text: codec, language model and sampling behind [`StreamingModel`].

use std::path::PathBuf;

use moshi_ctl_core::{LaneFrame, LaneStep, LmShape, ModelError, Precision, StreamingModel};

use crate::EngineError;

/// Everything that determines a speech-to-text model.
#[derive(Debug, Clone)]
pub struct AsrSpec {
    /// Language model, safetensors in Kyutai's names.
    pub lm_model_file: PathBuf,
    /// Codec, safetensors in Kyutai's names.
    pub audio_tokenizer_file: PathBuf,
    /// Shapes of both.
    pub shape: LmShape,
    /// How many streams can be served at once.
    pub lanes: usize,
    /// 0 takes the likeliest token; above, tokens are sampled.
    pub temperature: f64,
    /// What a model with a `delay` conditioner is told.
    pub conditioning: Option<Conditioning>,
    /// Precision of the language model; the device's default when absent.
    pub precision: Option<Precision>,
    /// Stay on the CPU even where an accelerator is present.
    pub cpu: bool,
}

/// The value of a model's `delay` conditioner.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Conditioning {
    /// Transcribe this far behind the audio.
    DelaySeconds(f32),
    /// Leave it to the model: its learnt padding vector.
    LearntPadding,
}

/// A loaded speech-to-text model.
#[derive(Debug)]
pub struct AsrModel {
    lanes: usize,
}

impl AsrModel {
    /// Loads the files of `spec`.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing or has the wrong shape.
    pub fn load(spec: &AsrSpec) -> Result<Self, EngineError> {
        Err(EngineError::new(format!("under construction, {} lanes", spec.lanes)))
    }
}

impl StreamingModel for AsrModel {
    fn lanes(&self) -> usize {
        self.lanes
    }

    fn reset(&mut self, _lane: usize, _seed: u64) -> Result<(), ModelError> {
        Ok(())
    }

    fn step(&mut self, _frames: &[LaneFrame<'_>]) -> Result<Vec<LaneStep>, ModelError> {
        Ok(vec![])
    }
}
