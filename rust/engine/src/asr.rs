//! Speech to text: codec, language model and sampling behind [`StreamingModel`].

use std::path::PathBuf;

use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{
    DeviceName, LaneFault, LaneFrame, LaneStep, LmShape, ModelError, Precision, Prediction,
    StreamingModel,
};

use crate::EngineError;
use crate::backend::{Backend, Codes, LmInputs, LmOutputs, Processor, StepTiming};
use crate::candle::CandleBackend;
use crate::checkpoint::Checkpoint;
use crate::conditioner::Conditioning;
use crate::cpu::CpuBackend;
#[cfg(cuda)]
use crate::cuda::CudaBackend;
use crate::device;
#[cfg(cuda)]
use crate::device::Opened;
use crate::precision::{self, DeviceKind, PrecisionChoice};
use crate::sampling::Sampler;
use crate::weights::{Kernels, Model, Placement, Weights};

/// Everything that determines a speech-to-text model.
#[derive(Debug, Clone)]
pub struct AsrSpec {
    /// Language model, safetensors or GGUF in Kyutai's names.
    pub lm_model_file: PathBuf,
    /// Codec, safetensors or GGUF in Kyutai's names.
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
    /// Precision of the language model's key/value rings; what goes with `precision` when absent.
    pub kv_precision: Option<Precision>,
    /// Where it runs; on an accelerator of this build when absent, else on the CPU.
    pub device: Option<DeviceName>,
    /// Who computes on the CPU.
    pub kernels: Kernels,
    /// Threads of a step on the CPU; one per physical core when absent.
    pub threads: Option<usize>,
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

/// A loaded speech-to-text model.
pub struct AsrModel {
    backend: Box<dyn Backend>,
    lanes: Vec<Lane>,
    shape: LmShape,
    temperature: f64,
    device: DeviceName,
    precision: Precision,
    kv_precision: Precision,
    step: Step,
    timing: StepTiming,
}

/// What a step works with, kept so that the next one need not ask for memory.
struct Step {
    /// Frames that can be encoded, by their index.
    heard: Vec<usize>,
    /// Their lanes.
    lanes: Vec<usize>,
    pcm: Vec<f32>,
    codes: Codes,
    inputs: LmInputs,
    outputs: LmOutputs,
    /// How many frames the step has.
    frames: usize,
    /// One per frame, and what is left of steps with more.
    results: Vec<LaneStep>,
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
        let (device_name, opened) = device::open(spec.device)?;
        let kind = opened.kind();
        let kernels = if kind == DeviceKind::Metal { Kernels::Candle } else { spec.kernels };
        let choice = precision::choose(kind, kernels, spec.precision, spec.kv_precision)?;
        let PrecisionChoice { precision, kv_precision, .. } = choice;
        let lm_placement = Placement { device: opened.of_tensors(), precision, kv_precision };
        // Audio tokens decide everything after them, so the codec stays in full precision, as
        // published.
        let codec_placement = Placement {
            precision: Precision::F32,
            kv_precision: Precision::F32,
            ..lm_placement.clone()
        };
        let model = Model { shape, lanes: spec.lanes, conditioning: spec.conditioning };
        let lm_file = Checkpoint::open(&spec.lm_model_file)?;
        let lm = Weights::new(&lm_file, &lm_placement);
        let codec_file = Checkpoint::open(&spec.audio_tokenizer_file)?;
        let codec = Weights::new(&codec_file, &codec_placement);
        let backend: Box<dyn Backend> = match kernels {
            #[cfg(cuda)]
            _ if let Opened::Cuda(card) = &opened => {
                Box::new(CudaBackend::load(card, &model, &codec, &lm)?)
            }
            Kernels::Own => Box::new(CpuBackend::load(&model, &codec, &lm, spec.threads)?),
            Kernels::Candle => Box::new(CandleBackend::load(&model, &codec, &lm)?),
        };
        let processor = backend.processor();
        tracing::info!(
            device = %device_name,
            %precision,
            %kv_precision,
            lanes = spec.lanes,
            threads = processor.map(|it| it.threads),
            instructions = processor.map(|it| tracing::field::display(it.instructions)),
            "the model is loaded"
        );
        let lane = || Lane::new(shape, Sampler::new(spec.temperature, 0));
        Ok(Self {
            backend,
            lanes: (0..spec.lanes).map(|_| lane()).collect(),
            shape: shape.clone(),
            temperature: spec.temperature,
            device: device_name,
            precision,
            kv_precision,
            step: Step::new(shape),
            timing: StepTiming::default(),
        })
    }

    /// Where it runs.
    pub fn device(&self) -> DeviceName {
        self.device
    }

    /// The precision of the language model.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The precision of the language model's key/value rings.
    pub fn kv_precision(&self) -> Precision {
        self.kv_precision
    }

    /// What computes, where that is the CPU with our own kernels.
    pub fn processor(&self) -> Option<Processor> {
        self.backend.processor()
    }

    /// Memory that it holds on a card, where it runs on one, apart from what the driver takes for
    /// the process.
    pub fn card_bytes(&self) -> Option<u64> {
        self.backend.card_bytes()
    }

    /// How long the parts of the last step took.
    pub fn last_timing(&self) -> StepTiming {
        self.timing
    }

    /// Gives up the lanes from `count` on and, except on a card, their memory.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn keep_lanes(&mut self, count: usize) {
        assert!(count <= self.lanes.len(), "{count} lanes of {}", self.lanes.len());
        self.lanes.truncate(count);
        self.backend.keep_lanes(count);
    }

    /// Puts `lane` as if it had listened for a whole context, for measurements: what it then
    /// predicts means nothing.
    ///
    /// # Errors
    /// When `lane` does not exist or the device fails.
    pub fn fill_context(&mut self, lane: usize) -> Result<(), EngineError> {
        self.check_lane(lane)?;
        self.backend.fill_context(lane)
    }

    /// Makes `lane` take `token` for the one it said last, to compare two models on one text.
    ///
    /// # Errors
    /// When `lane` or the token does not exist.
    pub fn force_text(&mut self, lane: usize, token: u32) -> Result<(), EngineError> {
        self.check_lane(lane)?;
        if token as usize >= self.shape.text_in_vocab_size {
            let size = self.shape.text_in_vocab_size;
            return Err(EngineError::new(format!("there is no text token {token} among {size}")));
        }
        self.lanes[lane].text = token;
        Ok(())
    }

    /// How each result of the last step came about. A lane that could not be advanced has an
    /// incomplete trace.
    pub fn last_traces(&self) -> Vec<StepTrace> {
        let Step { heard, codes, outputs, frames, .. } = &self.step;
        let mut traces = vec![StepTrace::default(); *frames];
        let logits = outputs.text_logits.chunks_exact(self.shape.text_out_vocab_size);
        for (i, (&index, logits)) in heard.iter().zip(logits).enumerate() {
            if let Some(code_margin) = codes.margins[i] {
                let (audio_tokens, text_logits) = (codes.of(i).to_vec(), logits.to_vec());
                traces[index] = StepTrace { audio_tokens, code_margin, text_logits };
            }
        }
        traces
    }

    fn advance(&mut self, frames: &[LaneFrame<'_>]) -> Result<(), EngineError> {
        self.check(frames)?;
        self.step.begin(frames);
        let Step { heard, lanes, pcm, inputs, codes, outputs, .. } = &mut self.step;
        for &index in &*heard {
            let LaneFrame { lane, pcm: of_lane } = frames[index];
            lanes.push(lane);
            pcm.extend_from_slice(of_lane);
            inputs.push(self.lanes[lane].text, &self.lanes[lane].audio);
        }
        self.timing = if lanes.is_empty() {
            StepTiming::default()
        } else {
            self.backend.step(pcm, lanes, inputs, codes, outputs)?
        };
        self.record();
        Ok(())
    }

    /// Notes what was heard and said in the lanes and in the results.
    fn record(&mut self) {
        let Step { heard, lanes, codes, outputs, frames, results, .. } = &mut self.step;
        for (index, result) in results[..*frames].iter_mut().enumerate() {
            if heard.binary_search(&index).is_err() {
                result.outcome = Err(LaneFault::NonFiniteAudio);
            }
        }
        let heads = outputs.vad.len() / lanes.len().max(1);
        let logits = outputs.text_logits.chunks_exact(self.shape.text_out_vocab_size);
        for (i, (&index, logits)) in heard.iter().zip(logits).enumerate() {
            let (lane, outcome) = (&mut self.lanes[lanes[i]], &mut results[index].outcome);
            if codes.margins[i].is_none() {
                *outcome = Err(LaneFault::NonFiniteAudio);
                continue;
            }
            lane.audio.copy_from_slice(codes.of(i));
            let vad = &outputs.vad[i * heads..(i + 1) * heads];
            match lane.sampler.choose(logits) {
                Some(text_token) if vad.iter().all(|p| p.is_finite()) => {
                    lane.text = text_token;
                    predicted(outcome, text_token, vad);
                }
                _ => *outcome = Err(LaneFault::NonFiniteLogits),
            }
        }
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

/// Notes a prediction, in the memory of the last one where there is one.
fn predicted(outcome: &mut Result<Prediction, LaneFault>, text_token: u32, vad: &[f32]) {
    match outcome {
        Ok(prediction) => {
            prediction.text_token = text_token;
            prediction.vad.clear();
            prediction.vad.extend_from_slice(vad);
        }
        Err(_) => *outcome = Ok(Prediction { text_token, vad: vad.to_vec() }),
    }
}

impl StreamingModel for AsrModel {
    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn reset(&mut self, lane: usize, seed: u64) -> Result<(), ModelError> {
        self.check_lane(lane)?;
        self.backend.reset(lane);
        self.lanes[lane] = Lane::new(&self.shape, Sampler::new(self.temperature, seed));
        Ok(())
    }

    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<&[LaneStep], ModelError> {
        self.advance(frames)?;
        Ok(&self.step.results[..frames.len()])
    }
}

impl Step {
    fn new(shape: &LmShape) -> Self {
        Self {
            heard: vec![],
            lanes: vec![],
            pcm: vec![],
            codes: Codes::new(shape),
            inputs: LmInputs::new(shape),
            outputs: LmOutputs::default(),
            frames: 0,
            results: vec![],
        }
    }

    /// Forgets the last step, but keeps its memory, results included.
    fn begin(&mut self, frames: &[LaneFrame<'_>]) {
        let Self { heard, lanes, pcm, codes, inputs, outputs, results, .. } = self;
        heard.clear();
        lanes.clear();
        pcm.clear();
        codes.begin(0);
        inputs.clear();
        outputs.clear();
        let is_finite = |&index: &usize| frames[index].pcm.iter().all(|x| x.is_finite());
        heard.extend((0..frames.len()).filter(is_finite));
        self.frames = frames.len();
        for (index, frame) in frames.iter().enumerate() {
            match results.get_mut(index) {
                Some(result) => result.lane = frame.lane,
                None => results
                    .push(LaneStep { lane: frame.lane, outcome: Err(LaneFault::NonFiniteAudio) }),
            }
        }
    }
}
