//! Speech to text: codec, language model and sampling behind [`StreamingModel`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{
    LaneFault, LaneFrame, LaneStep, LmShape, ModelError, Precision, Prediction, StreamingModel,
};

use crate::EngineError;
use crate::checkpoint::Checkpoint;
use crate::codec::{Codec, Codes};
use crate::conditioner::Conditioning;
use crate::device::{choose_device, place};
use crate::lm::{LanguageModel, LmInput, LmOutput};
use crate::sampling::Sampler;
use crate::weights::{Kernels, Placement, Weights};

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
    /// Who computes on the CPU.
    pub kernels: Kernels,
}

/// How one step of one lane came about, for comparison with another implementation.
#[derive(Debug, Clone, Default)]
pub struct StepTrace {
    /// The codec's tokens of this frame, one per codebook. The language model hears them one
    /// step later.
    pub audio_tokens: Vec<u32>,
    /// The smallest margin by which a codebook entry was the nearest, as a share of the sum of
    /// the squared norms of latent and entry; infinite with candle's kernels.
    pub code_margin: f32,
    /// One per text token.
    pub text_logits: Vec<f32>,
}

/// How long the parts of a step took.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepTiming {
    /// The codec, from samples to audio tokens.
    pub codec: Duration,
    /// The language model, from audio tokens to text token.
    pub lm: Duration,
}

/// A loaded speech-to-text model.
pub struct AsrModel {
    codec: Codec,
    lm: LanguageModel,
    lanes: Vec<Lane>,
    shape: LmShape,
    temperature: f64,
    device: Device,
    precision: Precision,
    timing: StepTiming,
}

/// What a lane carries from one step to the next, besides the models' own state.
struct Lane {
    text: u32,
    audio: Vec<u32>,
    sampler: Sampler,
}

impl Lane {
    /// A stream begins with the start token and a frame of "no audio yet".
    fn new(shape: &LmShape, sampler: Sampler) -> Self {
        Self {
            text: shape.text_start_token(),
            audio: vec![shape.audio_pad_token(); shape.audio_codebooks],
            sampler,
        }
    }
}

impl AsrModel {
    /// Loads the files of `spec`.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing or has the wrong shape.
    pub fn load(spec: &AsrSpec) -> Result<Self, EngineError> {
        let shape = &spec.shape;
        shape.check().map_err(|e| EngineError::new(format!("model section: {e}")))?;
        let device = choose_device(spec.cpu)?;
        let placement = place(&device, spec.kernels, spec.precision)?;
        let precision = placement.precision;
        tracing::info!(device = ?device.location(), %precision, lanes = spec.lanes, "loading");
        let file = Checkpoint::open(&spec.lm_model_file)?;
        let lm = LanguageModel::load(
            shape,
            spec.conditioning,
            spec.lanes,
            &Weights::new(&file, &placement),
        )?;
        // Audio tokens decide everything after them, so the codec stays in full precision, as
        // published.
        let placement = Placement { precision: Precision::F32, ..placement };
        let file = Checkpoint::open(&spec.audio_tokenizer_file)?;
        let codec = Codec::load(
            &shape.codec,
            shape.audio_codebooks,
            spec.lanes,
            &Weights::new(&file, &placement),
        )?;
        let lane = || Lane::new(shape, Sampler::new(spec.temperature, 0));
        Ok(Self {
            codec,
            lm,
            lanes: (0..spec.lanes).map(|_| lane()).collect(),
            shape: shape.clone(),
            temperature: spec.temperature,
            device,
            precision,
            timing: StepTiming::default(),
        })
    }

    /// The precision of the language model.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How long the parts of the last step took.
    pub fn last_timing(&self) -> StepTiming {
        self.timing
    }

    /// As [`StreamingModel::step`], with how each result came about. A lane that could not be
    /// advanced has an incomplete trace.
    ///
    /// # Errors
    /// As [`StreamingModel::step`].
    pub fn step_traced(
        &mut self,
        frames: &[LaneFrame<'_>],
    ) -> Result<Vec<(LaneStep, StepTrace)>, EngineError> {
        let started = Instant::now();
        self.check(frames)?;
        let is_finite = |&index: &usize| frames[index].pcm.iter().all(|x| x.is_finite());
        let heard: Vec<usize> = (0..frames.len()).filter(is_finite).collect();
        let codes = self.encode(frames, &heard)?;
        let encoded = Instant::now();
        let mut traces = vec![StepTrace::default(); frames.len()];
        let mut outcomes = vec![Err(LaneFault::NonFiniteAudio); frames.len()];
        let (mut advancing, mut inputs) = (vec![], vec![]);
        for (index, codes) in heard.into_iter().zip(codes) {
            let Some(Codes { tokens, margin }) = codes else { continue };
            let lane = &mut self.lanes[frames[index].lane];
            let audio = std::mem::replace(&mut lane.audio, tokens.clone());
            inputs.push(LmInput { text: lane.text, audio });
            traces[index].audio_tokens = tokens;
            traces[index].code_margin = margin;
            advancing.push(index);
        }
        let lanes: Vec<usize> = advancing.iter().map(|&index| frames[index].lane).collect();
        let outputs = if lanes.is_empty() { vec![] } else { self.lm.forward(&inputs, &lanes)? };
        for (index, LmOutput { text_logits, vad }) in advancing.into_iter().zip(outputs) {
            let lane = &mut self.lanes[frames[index].lane];
            let chosen = lane.sampler.choose(&text_logits);
            outcomes[index] = match chosen {
                Some(text_token) if vad.iter().all(|p| p.is_finite()) => {
                    lane.text = text_token;
                    Ok(Prediction { text_token, vad })
                }
                _ => Err(LaneFault::NonFiniteLogits),
            };
            traces[index].text_logits = text_logits;
        }
        self.timing = StepTiming { codec: encoded - started, lm: encoded.elapsed() };
        let steps = frames.iter().zip(outcomes);
        let steps = steps.map(|(frame, outcome)| LaneStep { lane: frame.lane, outcome });
        Ok(steps.zip(traces).collect())
    }

    /// Encodes the frames at `indices`.
    fn encode(
        &mut self,
        frames: &[LaneFrame<'_>],
        indices: &[usize],
    ) -> Result<Vec<Option<Codes>>, EngineError> {
        if indices.is_empty() {
            return Ok(vec![]);
        }
        let lanes: Vec<usize> = indices.iter().map(|&index| frames[index].lane).collect();
        let pcm: Vec<f32> = indices.iter().flat_map(|&index| frames[index].pcm).copied().collect();
        let pcm = Tensor::from_vec(pcm, (lanes.len(), FRAME_SAMPLES), &self.device)?;
        self.codec.encode(pcm, &lanes)
    }

    fn check(&self, frames: &[LaneFrame<'_>]) -> Result<(), EngineError> {
        for (index, frame) in frames.iter().enumerate() {
            self.check_lane(frame.lane)?;
            if frame.pcm.len() != FRAME_SAMPLES {
                return Err(EngineError::new(format!(
                    "a frame for lane {} has {} samples instead of {FRAME_SAMPLES}",
                    frame.lane,
                    frame.pcm.len()
                )));
            }
            if frames[..index].iter().any(|earlier| earlier.lane == frame.lane) {
                return Err(EngineError::new(format!(
                    "a step has two frames for lane {}",
                    frame.lane
                )));
            }
        }
        Ok(())
    }

    fn check_lane(&self, lane: usize) -> Result<(), EngineError> {
        if lane >= self.lanes.len() {
            let lanes = self.lanes.len();
            return Err(EngineError::new(format!("there is no lane {lane} among {lanes}")));
        }
        Ok(())
    }
}

impl StreamingModel for AsrModel {
    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn reset(&mut self, lane: usize, seed: u64) -> Result<(), ModelError> {
        self.check_lane(lane)?;
        self.codec.reset(lane);
        self.lm.reset(lane);
        self.lanes[lane] = Lane::new(&self.shape, Sampler::new(self.temperature, seed));
        Ok(())
    }

    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<Vec<LaneStep>, ModelError> {
        let steps = self.step_traced(frames)?;
        Ok(steps.into_iter().map(|(step, _)| step).collect())
    }
}
