//! The codec that makes a model's audio tokens.

use serde::{Deserialize, Serialize};

use super::{
    Norm, PositionalEmbedding, ShapeError, TransformerShape, WIDEST, check_within, shape_error,
};
use crate::units::FRAME_SAMPLES;

/// More than any codec has; a model of these sizes can still be counted in bytes.
const MOST_FILTERS: usize = 1 << 10;
const LONGEST_KERNEL: usize = 1 << 8;
const LARGEST_DILATION: usize = 1 << 3;
const MOST_RESIDUAL_LAYERS: usize = 4;

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

    pub(super) fn check(&self) -> Result<(), ShapeError> {
        if self.ratios.is_empty() || !FRAME_SAMPLES.is_multiple_of(self.encoder_stride().max(1)) {
            return shape_error(
                "codec.ratios",
                format!("{:?}: their product must divide a frame of {FRAME_SAMPLES}", self.ratios),
            );
        }
        check_within(&[
            ("codec.n_filters", self.n_filters, 1..=MOST_FILTERS),
            ("codec.ratios", self.encoder_stride(), 1..=FRAME_SAMPLES),
            ("codec.kernel_size", self.kernel_size, 1..=LONGEST_KERNEL),
            ("codec.residual_kernel_size", self.residual_kernel_size, 1..=LONGEST_KERNEL),
            ("codec.last_kernel_size", self.last_kernel_size, 1..=LONGEST_KERNEL),
            ("codec.n_residual_layers", self.n_residual_layers, 0..=MOST_RESIDUAL_LAYERS),
            ("codec.dilation_base", self.dilation_base, 1..=LARGEST_DILATION),
            ("codec.compress", self.compress, 1..=MOST_FILTERS),
            ("codec.quantizer_bins", self.quantizer_bins, 1..=WIDEST),
            ("codec.quantizer_dim", self.quantizer_dim, 1..=WIDEST),
        ])?;
        if self.context < self.latents_per_frame() {
            return shape_error(
                "codec.context",
                format!(
                    "is {}, but must hold the {} latents of one frame",
                    self.context,
                    self.latents_per_frame()
                ),
            );
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
