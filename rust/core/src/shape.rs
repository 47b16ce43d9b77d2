//! The shape of a language model as a configuration's `model` section describes it. Names and
//! defaults follow Kyutai's published configurations, so those load as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::FRAME_SAMPLES;

/// A combination of values that no model can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ShapeError {
    /// Path of the offending key below the model section, e.g. `transformer.num_heads`.
    pub key: &'static str,
    /// What is wrong with its value.
    pub message: String,
}

fn shape_error<T>(key: &'static str, message: impl Into<String>) -> Result<T, ShapeError> {
    Err(ShapeError { key, message: message.into() })
}

/// A temporal transformer over a text stream and `audio_codebooks` audio streams
/// (Moshi, arXiv:2410.00037; Delayed Streams Modeling, arXiv:2509.08753).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmShape {
    /// The transformer itself.
    pub transformer: TransformerShape,
    /// Rows of the text embedding; the last one is the token a stream starts with.
    pub text_in_vocab_size: usize,
    /// Text tokens that can be predicted.
    pub text_out_vocab_size: usize,
    /// Rows of each audio embedding; the last one stands for "no audio yet".
    pub audio_vocab_size: usize,
    /// Audio tokens per frame.
    pub audio_codebooks: usize,
    /// Conditioners by name; their sum is added to every input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditioners: Option<BTreeMap<String, Conditioner>>,
    /// Semantic VAD heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_heads: Option<ExtraHeads>,
    /// The codec that makes the audio tokens; Mimi's own shape when absent.
    #[serde(default)]
    pub codec: CodecShape,
}

/// A decoder-only transformer, pre-norm, with a ring of `context` keys and values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerShape {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Attention heads; `d_model` is a multiple of it.
    pub num_heads: usize,
    /// Layers.
    pub num_layers: usize,
    /// Width of the feed-forward block before gating; see [`TransformerShape::gated_width`].
    pub dim_feedforward: usize,
    /// Must be true: these are streaming models.
    pub causal: bool,
    /// Must be true: norms come before attention and feed-forward.
    pub norm_first: bool,
    /// Biases in the feed-forward block.
    pub bias_ff: bool,
    /// Biases in the attention projections.
    pub bias_attn: bool,
    /// Learnt per-channel scale of each residual branch; the value is its training
    /// initialisation and does not matter here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_scale: Option<f64>,
    /// Frames a position can attend to, itself included.
    pub context: usize,
    /// Longest wavelength of the rotary embedding.
    pub max_period: usize,
    /// Must be false.
    pub use_conv_block: bool,
    /// Has no effect without a convolution block.
    pub use_conv_bias: bool,
    /// Has no effect without a convolution block.
    pub conv_kernel_size: usize,
    /// Gated feed-forward, and its activation; absent: two plain layers with GELU between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gating: Option<Gating>,
    /// Normalisation.
    pub norm: Norm,
    /// Positions.
    pub positional_embedding: PositionalEmbedding,
    /// Whether the data comes channels-first; has no effect on the result.
    pub conv_layout: bool,
    /// Must be 1.
    pub kv_repeat: usize,
    /// Has no effect: positions are not limited.
    pub max_seq_len: usize,
    /// Has no effect without cross attention.
    #[serde(default)]
    pub shared_cross_attn: bool,
}

/// A streaming neural codec with Mimi's architecture (arXiv:2410.00037, section 3.3): a causal
/// convolutional encoder, a transformer over its latents, a strided convolution down to the frame
/// rate and a split residual vector quantizer. The defaults are Mimi's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CodecShape {
    /// Channels after the first convolution; doubled by every downsampling.
    pub n_filters: usize,
    /// Width of the latents.
    pub dimension: usize,
    /// Strides of the decoder from coarse to fine; the encoder applies them in reverse.
    pub ratios: Vec<usize>,
    /// Kernel of the first convolution.
    pub kernel_size: usize,
    /// Kernel of the residual blocks.
    pub residual_kernel_size: usize,
    /// Kernel of the last convolution.
    pub last_kernel_size: usize,
    /// Residual blocks before each downsampling.
    pub n_residual_layers: usize,
    /// Dilation of residual block `j` is this to the power of `j`.
    pub dilation_base: usize,
    /// A residual block's inner channels are its outer ones divided by this.
    pub compress: usize,
    /// Heads of the latent transformer.
    pub num_heads: usize,
    /// Layers of the latent transformer.
    pub num_layers: usize,
    /// Feed-forward width of the latent transformer.
    pub dim_feedforward: usize,
    /// Latents a position of the latent transformer can attend to.
    pub context: usize,
    /// Longest wavelength of the latent transformer's rotary embedding.
    pub max_period: usize,
    /// Entries of one codebook.
    pub quantizer_bins: usize,
    /// Width of a codebook entry.
    pub quantizer_dim: usize,
}

impl Default for CodecShape {
    fn default() -> Self {
        Self {
            n_filters: 64,
            dimension: 512,
            ratios: vec![8, 6, 5, 4],
            kernel_size: 7,
            residual_kernel_size: 3,
            last_kernel_size: 3,
            n_residual_layers: 1,
            dilation_base: 2,
            compress: 2,
            num_heads: 8,
            num_layers: 8,
            dim_feedforward: 2048,
            context: 250,
            max_period: 10_000,
            quantizer_bins: 2048,
            quantizer_dim: 256,
        }
    }
}

/// Activation of a gated feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gating {
    /// x · σ(x), also called swish.
    Silu,
    /// Gaussian error linear unit, exact.
    Gelu,
    /// max(x, 0).
    Relu,
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
}

/// Normalisation of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Norm {
    /// Root mean square, scale only, ε = 1e-8.
    RmsNorm,
    /// Mean and variance, scale and bias, ε = 1e-5.
    LayerNorm,
}

/// How a transformer knows positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PositionalEmbedding {
    /// Rotary embedding over interleaved pairs (RoFormer, arXiv:2104.09864).
    Rope,
    /// Not at all.
    None,
}

/// Semantic VAD heads: each is a small classifier whose first class is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraHeads {
    /// How many.
    pub num_heads: usize,
    /// Classes of each.
    pub dim: usize,
}

/// A source of a vector that is added to every input of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Conditioner {
    /// One of a list of values.
    Lut(LookUpTable),
    /// A number.
    ContinuousAttribute(ContinuousAttribute),
}

/// A conditioner with a learnt vector per value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookUpTable {
    /// Values the table has room for; it has one more row.
    pub n_bins: usize,
    /// Width of a row before its projection.
    pub dim: usize,
    /// Names of the values, in row order.
    pub possible_values: Vec<String>,
}

/// A conditioner that embeds a number by sines and cosines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinuousAttribute {
    /// Width of the embedding before its projection; even, at least 4.
    pub dim: usize,
    /// Factor applied to the number first.
    pub scale_factor: f32,
    /// Longest wavelength.
    pub max_period: f32,
}

impl LmShape {
    /// The text token a stream starts with.
    pub fn text_start_token(&self) -> u32 {
        self.text_in_vocab_size as u32 - 1
    }

    /// The audio token that stands for "no audio yet".
    pub fn audio_pad_token(&self) -> u32 {
        self.audio_vocab_size as u32 - 1
    }

    /// Checks what the types cannot: that the numbers describe a model that can exist and that
    /// the engine can run.
    ///
    /// # Errors
    /// Names the key and the value that is wrong.
    pub fn check(&self) -> Result<(), ShapeError> {
        for (key, value) in [
            ("text_in_vocab_size", self.text_in_vocab_size),
            ("text_out_vocab_size", self.text_out_vocab_size),
            ("audio_vocab_size", self.audio_vocab_size),
        ] {
            if value < 2 {
                return shape_error(key, format!("is {value}, but must be at least 2"));
            }
        }
        if self.audio_codebooks == 0 {
            return shape_error("audio_codebooks", "is 0, but a model needs at least one");
        }
        self.codec.check()?;
        if self.codec.quantizer_bins >= self.audio_vocab_size {
            return shape_error(
                "codec.quantizer_bins",
                format!(
                    "is {}, but audio_vocab_size = {} has to hold them and one more",
                    self.codec.quantizer_bins, self.audio_vocab_size
                ),
            );
        }
        for conditioner in self.conditioners.iter().flat_map(BTreeMap::values) {
            conditioner.check()?;
        }
        self.transformer.check()
    }
}

impl CodecShape {
    /// Samples per latent of the convolutional encoder.
    pub fn encoder_stride(&self) -> usize {
        self.ratios.iter().product()
    }

    /// Latents per frame, which is also the stride of the last convolution.
    pub fn latents_per_frame(&self) -> usize {
        FRAME_SAMPLES / self.encoder_stride()
    }

    /// The latent transformer in the terms of a configuration.
    pub fn transformer(&self) -> TransformerShape {
        TransformerShape {
            d_model: self.dimension,
            num_heads: self.num_heads,
            num_layers: self.num_layers,
            dim_feedforward: self.dim_feedforward,
            causal: true,
            norm_first: true,
            bias_ff: false,
            bias_attn: false,
            layer_scale: Some(0.01),
            context: self.context,
            max_period: self.max_period,
            use_conv_block: false,
            use_conv_bias: true,
            conv_kernel_size: 5,
            gating: None,
            norm: Norm::LayerNorm,
            positional_embedding: PositionalEmbedding::Rope,
            conv_layout: true,
            kv_repeat: 1,
            max_seq_len: 8192,
            shared_cross_attn: false,
        }
    }

    fn check(&self) -> Result<(), ShapeError> {
        if self.ratios.is_empty() || !FRAME_SAMPLES.is_multiple_of(self.encoder_stride().max(1)) {
            return shape_error(
                "codec.ratios",
                format!("{:?}: their product must divide a frame of {FRAME_SAMPLES}", self.ratios),
            );
        }
        for (key, value) in [
            ("codec.n_filters", self.n_filters),
            ("codec.ratios", self.encoder_stride()),
            ("codec.kernel_size", self.kernel_size),
            ("codec.residual_kernel_size", self.residual_kernel_size),
            ("codec.last_kernel_size", self.last_kernel_size),
            ("codec.dilation_base", self.dilation_base),
            ("codec.compress", self.compress),
            ("codec.quantizer_bins", self.quantizer_bins),
            ("codec.quantizer_dim", self.quantizer_dim),
        ] {
            if value == 0 {
                return shape_error(key, "is 0, but must be positive");
            }
        }
        if !self.n_filters.is_multiple_of(self.compress) {
            return shape_error(
                "codec.compress",
                format!("is {}, but must divide n_filters = {}", self.compress, self.n_filters),
            );
        }
        self.transformer().check()
    }
}

impl Conditioner {
    fn check(&self) -> Result<(), ShapeError> {
        match self {
            Self::Lut(lut) if lut.possible_values.len() > lut.n_bins => shape_error(
                "conditioners.possible_values",
                format!("has {} entries for {} bins", lut.possible_values.len(), lut.n_bins),
            ),
            Self::ContinuousAttribute(c) if c.dim < 4 || c.dim % 2 != 0 => shape_error(
                "conditioners.dim",
                format!("is {}, but must be even and at least 4", c.dim),
            ),
            _ => Ok(()),
        }
    }
}

impl TransformerShape {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.d_model / self.num_heads
    }

    /// Width of the gated product: two thirds of `dim_feedforward`, rounded the way the
    /// published models were built when that is four times `d_model`.
    pub fn gated_width(&self) -> usize {
        if self.dim_feedforward == 4 * self.d_model {
            11 * self.d_model / 4
        } else {
            2 * self.dim_feedforward / 3
        }
    }

    fn check(&self) -> Result<(), ShapeError> {
        for (key, value) in [
            ("transformer.d_model", self.d_model),
            ("transformer.num_heads", self.num_heads),
            ("transformer.num_layers", self.num_layers),
            ("transformer.dim_feedforward", self.dim_feedforward),
            ("transformer.context", self.context),
            ("transformer.max_period", self.max_period),
        ] {
            if value == 0 {
                return shape_error(key, "is 0, but must be positive");
            }
        }
        if !self.d_model.is_multiple_of(self.num_heads) || !self.head_dim().is_multiple_of(2) {
            return shape_error(
                "transformer.num_heads",
                format!(
                    "is {}, but must split d_model = {} into heads of an even width",
                    self.num_heads, self.d_model
                ),
            );
        }
        for (key, value, supported) in [
            ("transformer.causal", self.causal, true),
            ("transformer.norm_first", self.norm_first, true),
            ("transformer.use_conv_block", self.use_conv_block, false),
        ] {
            if value != supported {
                return shape_error(key, format!("is {value}, but only {supported} is supported"));
            }
        }
        if self.kv_repeat != 1 {
            return shape_error(
                "transformer.kv_repeat",
                format!("is {}, but only 1 is supported", self.kv_repeat),
            );
        }
        Ok(())
    }
}
