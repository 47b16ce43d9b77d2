//! The published `moshi` crate on one fresh lane, in f32 on the CPU, with everything it computes
//! on the way in sight.

use std::path::Path;

use moshi::candle::{DType, Device, IndexOp, Tensor};
use moshi::candle_nn::VarBuilder;
use moshi::conditioner::Condition;
use moshi::lm::LmModel;
use moshi::mimi::Mimi;
use moshi::{StreamMask, conv, lm, mimi, seanet};
use moshi_ctl_core::units::{FRAME_RATE_HZ, FRAME_SAMPLES, SAMPLE_RATE_HZ};
use moshi_ctl_core::{CodecShape, LmShape};
use moshi_ctl_engine::Conditioning;

use crate::Result;

/// Everything the oracle knows about one frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// One per codebook.
    pub audio_tokens: Vec<u32>,
    /// One per text token.
    pub text_logits: Vec<f32>,
    /// The likeliest text token.
    pub text_token: u32,
    /// Probability of the first class of each VAD head.
    pub vad: Vec<f32>,
}

/// One lane that has heard nothing yet, or what its frames so far have made of it.
pub struct Oracle {
    mimi: Mimi,
    lm: LmModel,
    condition: Option<Condition>,
    /// What the language model reads next: the last text token, and the last frame's audio
    /// tokens, for audio is one step behind text.
    text: u32,
    audio: Vec<u32>,
}

impl Oracle {
    /// Loads the files, converting to f32; a language model in GGUF stays quantized.
    ///
    /// # Errors
    /// As the `moshi` crate reports them.
    pub fn load(
        shape: &LmShape,
        lm_file: &Path,
        codec_files: &[&Path],
        conditioning: Option<Conditioning>,
    ) -> Result<Self> {
        let mimi = Mimi::new(codec_config(shape)?, weights(codec_files)?)?;
        let config = language_model_config(shape)?;
        let lm = lm::load_lm_model(config, lm_file, DType::F32, &Device::Cpu)?;
        let condition = condition(&lm, conditioning)?;
        let text = lm.text_start_token();
        let audio = vec![lm.audio_pad_token(); lm.in_audio_codebooks()];
        Ok(Self { mimi, lm, condition, text, audio })
    }

    /// Hears one frame of [`FRAME_SAMPLES`] samples.
    ///
    /// # Errors
    /// As the `moshi` crate reports them.
    pub fn step(&mut self, pcm: &[f32]) -> Result<Frame> {
        let device = &Device::Cpu;
        let nobody = StreamMask::empty();
        let pcm = Tensor::from_slice(pcm, (1, 1, FRAME_SAMPLES), device)?;
        let codes = self.mimi.encode_step(&pcm.into(), &nobody)?;
        let codes = codes.as_option().ok_or("a whole frame made no audio tokens")?;
        let audio_tokens = codes.i((0, .., 0))?.to_vec1::<u32>()?;

        let text = Tensor::full(self.text, (1, 1), device)?;
        let mut audio = Vec::with_capacity(self.audio.len());
        for &token in &self.audio {
            audio.push(Some(Tensor::full(token, (1, 1), device)?));
        }
        let (logits, hidden) =
            self.lm.forward_cond(Some(text), audio, self.condition.as_ref(), &nobody)?;
        let text_logits = logits.i((0, 0))?;
        let text_token = text_logits.argmax(0)?.to_scalar::<u32>()?;
        let mut vad = vec![];
        for head in self.lm.extra_heads(&hidden)? {
            let classes = moshi::candle_nn::ops::softmax_last_dim(&head)?;
            vad.push(classes.i((0, 0, 0))?.to_scalar::<f32>()?);
        }
        self.text = text_token;
        self.audio.clone_from(&audio_tokens);
        Ok(Frame { audio_tokens, text_logits: text_logits.to_vec1()?, text_token, vad })
    }
}

/// The vector a language model adds to its inputs.
///
/// # Errors
/// When the model lacks the conditioner.
pub fn condition(lm: &LmModel, conditioning: Option<Conditioning>) -> Result<Option<Condition>> {
    let Some(provider) = lm.condition_provider() else { return Ok(None) };
    Ok(match conditioning {
        None => None,
        Some(Conditioning::DelaySeconds(delay_s)) => {
            // The published server negates the delay before it tells the model.
            Some(provider.condition_cont("delay", -delay_s)?)
        }
        Some(Conditioning::LearntPadding) => Some(provider.learnt_padding("delay")?),
    })
}

/// Weights of files as f32; a tensor that is in several is the last one's.
///
/// # Errors
/// When a file cannot be mapped.
pub fn weights(files: &[&Path]) -> Result<VarBuilder<'static>> {
    weights_on(files, DType::F32, &Device::Cpu)
}

/// The weights in some files, as such numbers on a device.
///
/// # Errors
/// As [`weights`].
pub fn weights_on(files: &[&Path], numbers: DType, device: &Device) -> Result<VarBuilder<'static>> {
    // SAFETY: nobody writes to a checkpoint while a test or benchmark reads it.
    Ok(unsafe { VarBuilder::from_mmaped_safetensors(files, numbers, device)? })
}

/// `shape` as the crate's own configuration; the two share their names.
///
/// # Errors
/// When they do not.
pub fn language_model_config(shape: &LmShape) -> Result<lm::Config> {
    Ok(serde_json::from_value(serde_json::to_value(shape)?)?)
}

/// The codec of `shape` as the crate's own configuration.
///
/// # Errors
/// When the transformer's names differ from the crate's.
pub fn codec_config(shape: &LmShape) -> Result<mimi::Config> {
    let codec: &CodecShape = &shape.codec;
    Ok(mimi::Config {
        channels: 1,
        sample_rate: f64::from(SAMPLE_RATE_HZ),
        frame_rate: FRAME_RATE_HZ,
        renormalize: true,
        resample_method: mimi::ResampleMethod::Conv,
        seanet: seanet::Config {
            dimension: codec.dimension,
            channels: 1,
            causal: true,
            n_filters: codec.n_filters,
            n_residual_layers: codec.n_residual_layers,
            ratios: codec.ratios.clone(),
            activation: moshi::candle_nn::Activation::Elu(1.0),
            norm: conv::Norm::WeightNorm,
            kernel_size: codec.kernel_size,
            residual_kernel_size: codec.residual_kernel_size,
            last_kernel_size: codec.last_kernel_size,
            dilation_base: codec.dilation_base,
            pad_mode: conv::PadMode::Constant,
            true_skip: true,
            compress: codec.compress,
            lstm: 0,
            disable_norm_outer_blocks: 0,
            final_activation: None,
        },
        transformer: serde_json::from_value(serde_json::to_value(codec.transformer())?)?,
        quantizer_n_q: shape.audio_codebooks,
        quantizer_bins: codec.quantizer_bins,
        quantizer_dim: codec.quantizer_dim,
    })
}
