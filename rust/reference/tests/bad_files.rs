//! What is wrong with a file is said with its name, the tensor, what was expected and what found.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::fs::{self, OpenOptions};
use std::path::Path;

use moshi_ctl_core::{ExtraHeads, LmShape, Precision};
use moshi_ctl_engine::{AsrModel, AsrSpec, quantize};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::shapes;
use tempfile::TempDir;

fn written() -> (TempDir, Checkpoints) {
    let folder = TempDir::new().unwrap();
    let files =
        Checkpoints::write(folder.path(), shapes::conditioned(), 1, Precision::Bf16).unwrap();
    (folder, files)
}

/// Asserts that loading fails with a message that contains all of `expected`.
fn assert_refused(spec: &AsrSpec, expected: &[&str]) {
    let Err(error) = AsrModel::load(spec) else { panic!("loaded; expected {expected:?}") };
    let message = error.to_string();
    for part in expected {
        assert!(message.contains(part), "{message:?} does not mention {part:?}");
    }
}

fn truncate(file: &Path, len: u64) {
    OpenOptions::new().write(true).open(file).unwrap().set_len(len).unwrap();
}

#[test]
fn another_shape_than_the_files() {
    let (_folder, files) = written();
    let refused = |change: fn(&mut LmShape), expected: &[&str]| {
        let mut spec = files.spec(1);
        change(&mut spec.shape);
        assert_refused(&spec, expected);
    };
    refused(
        |shape| shape.text_out_vocab_size = 400,
        &["lm.safetensors", "`text_linear.weight`", "[400, 192]", "[500, 192]"],
    );
    refused(
        |shape| shape.extra_heads = Some(ExtraHeads { num_heads: 3, dim: 3 }),
        &["lm.safetensors", "`extra_heads.2.weight`", "missing", "[3, 192]"],
    );
    refused(
        |shape| shape.transformer.dim_feedforward = 600,
        &["lm.safetensors", "`transformer.layers.0.linear1.", "[600", "[500"],
    );
    refused(
        |shape| shape.codec.last_kernel_size = 5,
        &["codec.safetensors", "`encoder.model.14.conv.conv.weight`", "5]", "3]"],
    );
    refused(
        |shape| shape.codec.quantizer_bins = 200,
        &["codec.safetensors", "quantizer.rvq_first.vq.layers.0._codebook", "[200", "[300"],
    );
}

#[test]
fn truncated_files() {
    let (_folder, files) = written();
    for (file, name) in
        [(&files.codec_file, "codec.safetensors"), (&files.lm_file, "lm.safetensors")]
    {
        let whole = fs::read(file).unwrap();
        for len in [0, 4, 1_000, whole.len() / 2, whole.len() - 1] {
            truncate(file, len as u64);
            assert_refused(&files.spec(1), &[name]);
        }
        fs::write(file, whole).unwrap();
    }
    assert!(AsrModel::load(&files.spec(1)).is_ok());
}

#[test]
fn truncated_gguf() {
    let (folder, mut files) = written();
    let lm_file = folder.path().join("lm.gguf");
    quantize(&files.lm_file, &lm_file).unwrap();
    files.lm_file = lm_file;
    assert!(AsrModel::load(&files.spec(1)).is_ok());
    let whole = fs::read(&files.lm_file).unwrap();
    for len in [4, 20, 1_000, whole.len() / 2, whole.len() - 100] {
        truncate(&files.lm_file, len as u64);
        assert_refused(&files.spec(1), &["lm.gguf", "cut off"]);
        fs::write(&files.lm_file, &whole).unwrap();
    }
}

#[test]
fn files_of_another_kind() {
    let (_folder, files) = written();
    fs::write(&files.lm_file, b"<!DOCTYPE html><html>404: not found</html>").unwrap();
    assert_refused(&files.spec(1), &["lm.safetensors"]);
    fs::remove_file(&files.lm_file).unwrap();
    assert_refused(&files.spec(1), &["lm.safetensors"]);

    let (_folder, mut files) = written();
    std::mem::swap(&mut files.lm_file, &mut files.codec_file);
    assert_refused(&files.spec(1), &["codec.safetensors", "missing"]);
}
