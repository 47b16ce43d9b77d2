//! A random model on disk.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::path::Path;

use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{
    CodecShape, DeviceName, ExtraHeads, Gating, LmShape, Norm, PositionalEmbedding, Precision,
    TransformerShape,
};
use moshi_ctl_engine::random_checkpoint::{
    RandomOptions, write_audio_tokenizer, write_language_model,
};
use moshi_ctl_engine::{AsrModel, AsrSpec, Kernels};

/// A small model with VAD heads and a small codec.
pub(crate) fn shape() -> LmShape {
    LmShape {
        transformer: TransformerShape {
            d_model: 192,
            num_heads: 6,
            num_layers: 2,
            dim_feedforward: 512,
            causal: true,
            norm_first: true,
            bias_ff: false,
            bias_attn: false,
            layer_scale: None,
            context: 40,
            max_period: 10_000,
            use_conv_block: false,
            use_conv_bias: true,
            conv_kernel_size: 3,
            gating: Some(Gating::Silu),
            norm: Norm::RmsNorm,
            positional_embedding: PositionalEmbedding::Rope,
            conv_layout: false,
            kv_repeat: 1,
            max_seq_len: 4096,
            shared_cross_attn: false,
        },
        text_in_vocab_size: 301,
        text_out_vocab_size: 300,
        audio_vocab_size: 257,
        audio_codebooks: 4,
        conditioners: None,
        extra_heads: Some(ExtraHeads { num_heads: 2, dim: 3 }),
        codec: CodecShape {
            n_filters: 16,
            dimension: 128,
            num_layers: 2,
            dim_feedforward: 256,
            quantizer_bins: 256,
            quantizer_dim: 64,
            ..CodecShape::default()
        },
    }
}

/// Writes a model of `shape` to `folder`, as published.
pub(crate) fn write(folder: &Path, shape: &LmShape) {
    write_in(folder, shape, Precision::Bf16);
}

/// Writes a model of `shape` to `folder`, the language model's matrices in `precision`.
pub(crate) fn write_in(folder: &Path, shape: &LmShape, precision: Precision) {
    let options = RandomOptions { seed: 1, precision };
    write_language_model(shape, &folder.join("lm.safetensors"), &options).unwrap();
    let options = RandomOptions { precision: Precision::F32, ..options };
    write_audio_tokenizer(shape, &folder.join("codec.safetensors"), &options).unwrap();
}

/// Loads what [`write`] wrote.
pub(crate) fn load(
    folder: &Path,
    shape: &LmShape,
    lanes: usize,
    precisions: (Precision, Precision),
) -> AsrModel {
    AsrModel::load(&spec(folder, shape, lanes, precisions)).unwrap()
}

/// What [`load`] loads.
pub(crate) fn spec(
    folder: &Path,
    shape: &LmShape,
    lanes: usize,
    (precision, kv_precision): (Precision, Precision),
) -> AsrSpec {
    AsrSpec {
        lm_model_file: folder.join("lm.safetensors"),
        audio_tokenizer_file: folder.join("codec.safetensors"),
        shape: shape.clone(),
        lanes,
        temperature: 0.0,
        conditioning: None,
        precision: Some(precision),
        kv_precision: Some(kv_precision),
        device: Some(DeviceName::Cpu),
        kernels: Kernels::Own,
        threads: Some(3),
    }
}

/// A frame of noise, another for each `seed`.
pub(crate) fn noise(seed: usize) -> Vec<f32> {
    let mut state = seed as u32 + 1;
    let sample = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0.1 * (state.cast_signed() as f32 / (1u32 << 31) as f32)
    };
    (0..FRAME_SAMPLES).map(sample).collect()
}
