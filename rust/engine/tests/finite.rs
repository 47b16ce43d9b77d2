//! Weights that are no numbers: refused when they are read, whatever they would have become.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::fs;
use std::path::Path;

use moshi_ctl_core::Precision;
use moshi_ctl_engine::{AsrModel, AsrSpec, Kernels};
use safetensors::SafeTensors;

#[allow(dead_code, reason = "shared with other tests")]
mod common;

const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Q8];

/// Puts the bits of a NaN where the last number of a tensor is.
fn spoil(file: &Path, tensor: &str) {
    let mut bytes = fs::read(file).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let info = metadata.info(tensor).unwrap();
    let end = 8 + header + info.data_offsets.1;
    // Of bf16 and of f32, both little-endian.
    bytes[end - 2..end].copy_from_slice(&[0xc0, 0x7f]);
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_weight_that_is_no_number_is_named_in_every_precision() {
    let folder = tempfile::tempdir().unwrap();
    let shape = common::shape();
    for (file, tensor) in [
        ("lm.safetensors", "text_emb.weight"),
        ("lm.safetensors", "emb.3.weight"),
        ("lm.safetensors", "transformer.layers.1.norm2.alpha"),
        ("lm.safetensors", "transformer.layers.0.self_attn.in_proj_weight"),
        ("lm.safetensors", "out_norm.alpha"),
        ("lm.safetensors", "extra_heads.1.weight"),
        ("codec.safetensors", "encoder.model.0.conv.conv.weight"),
        ("codec.safetensors", "encoder.model.0.conv.conv.bias"),
        ("codec.safetensors", "quantizer.rvq_rest.vq.layers.0._codebook.embedding_sum"),
        ("codec.safetensors", "quantizer.rvq_first.vq.layers.0._codebook.cluster_usage"),
    ] {
        common::write(folder.path(), &shape);
        let file = folder.path().join(file);
        spoil(&file, tensor);
        for (precision, kernels) in PRECISIONS
            .into_iter()
            .flat_map(|precision| [(precision, Kernels::Own), (precision, Kernels::Candle)])
        {
            let spec = common::spec(folder.path(), &shape, 1, (precision, Precision::F32));
            let error = AsrModel::load(&AsrSpec { kernels, ..spec }).err().unwrap();
            let expected =
                format!("{}: tensor `{tensor}` holds a value that is not finite", file.display());
            assert_eq!(error.to_string(), expected, "{precision}, {kernels:?}");
            assert!(error.hint().unwrap().contains("download it again"));
        }
    }
}
