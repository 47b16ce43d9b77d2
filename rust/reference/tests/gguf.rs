//! Eight bits: files and what is made of others while loading are the same, the published crate
//! reads what we write, and our kernels agree with candle's.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use moshi_ctl_core::{LaneFrame, Precision};
use moshi_ctl_engine::{AsrModel, AsrSpec, Kernels, quantize};
use moshi_ctl_reference::audio::{asset, read_frames};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::compare::cosine;
use moshi_ctl_reference::oracle::Frame;
use moshi_ctl_reference::{ours, shapes};
use tempfile::TempDir;

const FRAMES: usize = 24;

/// Text feeds back: after another token logits are of another stream. Random models choose closely.
const LEAST_FRAMES: usize = 6;

/// An eight-bit weight is off by up to 1/254 of its block's largest, and the published crate rounds
/// what it multiplies with in the same way. Errors of a product partly cancel, layers add to them:
/// cosines of 0.99989 and more were seen, and a wrong block or row would leave nothing of them.
const LEAST_COSINE: f64 = 0.9995;

fn hear(files: &Checkpoints, kernels: Kernels, frames: &[Vec<f32>]) -> Vec<Frame> {
    let spec = AsrSpec { kernels, ..files.spec(1) };
    let heard = ours::hear(&mut AsrModel::load(&spec).unwrap(), 0, frames).unwrap();
    heard.into_iter().map(|heard| heard.frame).collect()
}

/// Asserts that logits are close for as long as both heard the same text, which feeds back.
fn assert_close(what: &str, a: &[Frame], b: &[Frame]) {
    let agreeing = a.iter().zip(b).take_while(|(a, b)| a.text_token == b.text_token);
    let cosines: Vec<f64> = agreeing.map(|(a, b)| cosine(&a.text_logits, &b.text_logits)).collect();
    let worst = cosines.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(cosines.len() >= LEAST_FRAMES, "{what}: other tokens after {} frames", cosines.len());
    assert!(worst >= LEAST_COSINE, "{what}: cosine {worst}");
}

#[test]
fn the_reference_hears_the_same_from_a_quantized_file() {
    for shape in [shapes::many_codebooks(), shapes::conditioned()] {
        let folder = TempDir::new().unwrap();
        let files = Checkpoints::write(folder.path(), shape, 2, Precision::Bf16).unwrap();
        let quantized = Checkpoints { lm_file: folder.path().join("lm.gguf"), ..files.clone() };
        assert!(quantize(&files.lm_file, &quantized.lm_file).unwrap().quantized > 0);

        let frames = read_frames(&asset("speech-long.wav")).unwrap();
        let frames = &frames[..FRAMES];
        let exact = hear(&files, Kernels::Own, frames);
        let ours = hear(&quantized, Kernels::Own, frames);
        let candle = hear(&quantized, Kernels::Candle, frames);
        let mut oracle = quantized.oracle().unwrap();
        let theirs: Vec<_> = frames.iter().map(|pcm| oracle.step(pcm).unwrap()).collect();
        assert_close("ours, f32 file", &exact, &ours);
        assert_close("ours, reference", &ours, &theirs);
        assert_close("our two kernels", &ours, &candle);
        assert!(ours.iter().zip(&exact).any(|(a, b)| a.text_logits != b.text_logits));
    }
}

/// Quantizing a file first and quantizing it while loading is one thing.
#[test]
fn a_quantized_file_gives_the_same_bits_as_quantizing_while_loading() {
    for shape in [shapes::short_context(), shapes::conditioned()] {
        let folder = TempDir::new().unwrap();
        let files = Checkpoints::write(folder.path(), shape, 3, Precision::Bf16).unwrap();
        let lm_file = folder.path().join("lm.gguf");
        quantize(&files.lm_file, &lm_file).unwrap();
        let frames = &read_frames(&asset("speech-long.wav")).unwrap()[..FRAMES];
        let hear = |files: &Checkpoints| {
            let spec = AsrSpec { precision: Some(Precision::Q8), ..files.spec(1) };
            ours::hear(&mut AsrModel::load(&spec).unwrap(), 0, frames).unwrap()
        };
        let (while_loading, from_file) =
            (hear(&files), hear(&Checkpoints { lm_file, ..files.clone() }));
        let first = while_loading.iter().zip(&from_file).position(|(a, b)| a != b);
        assert_eq!(first, None, "this frame differs");
    }
}

/// In eight bits, beside candle's own, on one text.
#[test]
fn eight_bits_agree_with_candles() {
    // Both quantize alike; candle's scales of activations are rounded to sixteen bits.
    const LEAST: f64 = 0.999;
    for shape in [shapes::short_context(), shapes::conditioned()] {
        let folder = TempDir::new().unwrap();
        let files = Checkpoints::write(folder.path(), shape, 3, Precision::Bf16).unwrap();
        let load = |kernels| {
            let (precision, kv_precision) = (Some(Precision::Q8), Some(Precision::F16));
            AsrModel::load(&AsrSpec { precision, kv_precision, kernels, ..files.spec(1) }).unwrap()
        };
        let (mut ours, mut candles) = (load(Kernels::Own), load(Kernels::Candle));
        for pcm in &read_frames(&asset("speech-long.wav")).unwrap()[..2 * FRAMES] {
            let frame = [LaneFrame { lane: 0, pcm }];
            let a = &ours::step(&mut ours, &frame).unwrap()[0].frame;
            let b = &ours::step(&mut candles, &frame).unwrap()[0].frame;
            candles.force_text(0, a.text_token).unwrap();
            assert_eq!(a.audio_tokens, b.audio_tokens);
            let cosine = cosine(&a.text_logits, &b.text_logits);
            assert!(cosine >= LEAST, "cosine {cosine}");
        }
    }
}
