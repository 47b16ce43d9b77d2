//! A causal transformer.

use serde::{Deserialize, Serialize};

use super::{ShapeError, WIDEST, check_within, shape_error};

/// Frames of the longest ring: over a day of audio, and more than any machine has memory for.
const LONGEST_CONTEXT: usize = 1 << 20;

/// More than any model has.
const MOST_LAYERS: usize = 1 << 10;

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

    pub(super) fn check(&self) -> Result<(), ShapeError> {
        check_within(&[
            ("transformer.d_model", self.d_model, 1..=WIDEST),
            ("transformer.num_heads", self.num_heads, 1..=WIDEST),
            ("transformer.num_layers", self.num_layers, 1..=MOST_LAYERS),
            ("transformer.dim_feedforward", self.dim_feedforward, 1..=WIDEST),
            ("transformer.context", self.context, 1..=LONGEST_CONTEXT),
            ("transformer.max_period", self.max_period, 1..=usize::MAX),
        ])?;
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
