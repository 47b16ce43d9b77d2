//! Model shapes of the tests and benchmarks.

use std::collections::BTreeMap;

use moshi_ctl_core::{
    CodecShape, Conditioner, ContinuousAttribute, ExtraHeads, Gating, LmShape, Norm,
    PositionalEmbedding, TransformerShape,
};

use crate::Result;

/// A shape by its name in this module (with dashes), or from a JSON file with a configuration's
/// `model` section.
///
/// # Errors
/// When `name` is neither.
pub fn named(name: &str) -> Result<LmShape> {
    Ok(match name {
        "stt-1b" => stt_1b(),
        "many-codebooks" => many_codebooks(),
        "conditioned" => conditioned(),
        "short-context" => short_context(),
        file => {
            let section = std::fs::read(file).map_err(|error| format!("shape {file}: {error}"))?;
            serde_json::from_slice(&section)?
        }
    })
}

/// Kyutai's STT 1B, English and French.
pub fn stt_1b() -> LmShape {
    LmShape {
        transformer: TransformerShape {
            d_model: 2048,
            num_heads: 16,
            num_layers: 16,
            dim_feedforward: 8192,
            causal: true,
            norm_first: true,
            bias_ff: false,
            bias_attn: false,
            layer_scale: None,
            context: 750,
            max_period: 100_000,
            use_conv_block: false,
            use_conv_bias: true,
            conv_kernel_size: 3,
            gating: Some(Gating::Silu),
            norm: Norm::RmsNorm,
            positional_embedding: PositionalEmbedding::Rope,
            conv_layout: false,
            kv_repeat: 1,
            max_seq_len: 40_960,
            shared_cross_attn: false,
        },
        text_in_vocab_size: 8001,
        text_out_vocab_size: 8000,
        audio_vocab_size: 2049,
        audio_codebooks: 32,
        conditioners: None,
        extra_heads: Some(ExtraHeads { num_heads: 4, dim: 6 }),
        codec: CodecShape::default(),
    }
}

/// Everything of STT 1B but its size: Mimi as published, 32 codebooks, VAD heads.
pub fn many_codebooks() -> LmShape {
    let full = stt_1b();
    LmShape {
        transformer: TransformerShape {
            d_model: 256,
            num_heads: 4,
            num_layers: 3,
            dim_feedforward: 1024,
            ..full.transformer
        },
        text_in_vocab_size: 2001,
        text_out_vocab_size: 2000,
        ..full
    }
}

/// A conditioner, layer norms, no gating, biases, layer scales, few codebooks and a small codec
/// of other proportions (three ratios, two residual blocks, four latents a frame).
pub fn conditioned() -> LmShape {
    let full = stt_1b();
    let delay = ContinuousAttribute { dim: 32, scale_factor: 12.5, max_period: 1_000.0 };
    LmShape {
        transformer: TransformerShape {
            d_model: 192,
            num_heads: 6,
            num_layers: 4,
            dim_feedforward: 500,
            bias_ff: true,
            bias_attn: true,
            layer_scale: Some(0.1),
            gating: None,
            norm: Norm::LayerNorm,
            max_period: 10_000,
            ..full.transformer
        },
        text_in_vocab_size: 501,
        text_out_vocab_size: 500,
        audio_vocab_size: 301,
        audio_codebooks: 8,
        conditioners: Some(BTreeMap::from([(
            "delay".to_owned(),
            Conditioner::ContinuousAttribute(delay),
        )])),
        extra_heads: Some(ExtraHeads { num_heads: 2, dim: 3 }),
        codec: CodecShape {
            n_filters: 16,
            dimension: 96,
            ratios: vec![10, 8, 6],
            n_residual_layers: 2,
            num_heads: 4,
            num_layers: 2,
            dim_feedforward: 200,
            quantizer_bins: 300,
            quantizer_dim: 48,
            ..CodecShape::default()
        },
    }
}

/// Contexts shorter than the audio, so that both rings wrap several times; no VAD heads, and a
/// gated width that is not the published models' 11/4.
pub fn short_context() -> LmShape {
    let full = stt_1b();
    LmShape {
        transformer: TransformerShape {
            d_model: 128,
            num_heads: 2,
            num_layers: 5,
            dim_feedforward: 384,
            context: 50,
            gating: Some(Gating::Gelu),
            ..full.transformer
        },
        text_in_vocab_size: 1001,
        text_out_vocab_size: 1000,
        audio_vocab_size: 513,
        audio_codebooks: 12,
        extra_heads: None,
        codec: CodecShape {
            n_filters: 16,
            dimension: 128,
            num_layers: 3,
            dim_feedforward: 512,
            context: 31,
            quantizer_bins: 512,
            quantizer_dim: 64,
            ..CodecShape::default()
        },
        ..full
    }
}

/// Numbers of the matrices that a step of the language model reads, whatever the number of lanes;
/// of the embeddings it reads only rows.
pub fn matrix_numbers(shape: &LmShape) -> usize {
    let transformer = &shape.transformer;
    let width = transformer.d_model;
    let feed_forward = match transformer.gating {
        Some(_) => 3 * transformer.gated_width(),
        None => 2 * transformer.dim_feedforward,
    };
    let layer = width * (4 * width + feed_forward);
    let heads = shape.extra_heads.map_or(0, |heads| heads.num_heads * heads.dim);
    transformer.num_layers * layer + width * (shape.text_out_vocab_size + heads)
}

/// Keys and values that a step of the language model reads for a lane with a full context.
pub fn ring_numbers(shape: &LmShape) -> usize {
    let transformer = &shape.transformer;
    2 * transformer.num_layers * transformer.context * transformer.d_model
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_of_stt_1b_reads_838_million_weights_and_49_million_keys_and_values() {
        assert_eq!(matrix_numbers(&stt_1b()) / 1_000_000, 838);
        assert_eq!(ring_numbers(&stt_1b()) / 1_000_000, 49);
    }
}
