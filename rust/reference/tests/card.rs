//! The engine on NVIDIA's cards beside the published crate, in every precision.
//!
//! With `MOSHI_CTL_TEST_DEVICE=cuda:0`, as `make test-gpu` sets it, on a card of this machine and at
//! length. Without it each test starts itself again where the card is emulated, and hears as much as
//! that can compute in seconds.
#![cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use moshi_ctl_core::{DeviceName, LmShape, Precision};
use moshi_ctl_emulator::Emulated;
use moshi_ctl_engine::{AsrModel, AsrSpec};
use moshi_ctl_reference::audio::{asset, long_audio, read_frames};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::compare::Comparison;
use moshi_ctl_reference::forced::{self, Deviation};
use moshi_ctl_reference::oracle::Frame;
use moshi_ctl_reference::{ours, shapes};
use tempfile::TempDir;

/// The device; and how much is to be heard on one that is emulated.
const DEVICE: &str = "MOSHI_CTL_TEST_DEVICE";
const FRAMES: &str = "MOSHI_CTL_TEST_FRAMES";

/// Frames on a card: the rings of all shapes but those with a long context wrap.
const ON_A_CARD: usize = 500;

/// As on the CPU: see `exactness.rs`.
const VAD_TOLERANCE: f32 = 1e-4;
const LOGIT_TOLERANCE: f32 = 5e-4;

/// A card, and how many frames a test is to hear there.
struct Card {
    device: DeviceName,
    frames: usize,
}

/// Runs `body` on the card of this machine that is named; else the test `name` where a card with
/// this compute capability is emulated, with `frames`.
fn on_a_card(name: &str, compute_capability: (u32, u32), frames: usize, body: impl FnOnce(Card)) {
    if let Ok(device) = std::env::var(DEVICE) {
        let frames = std::env::var(FRAMES).map_or(ON_A_CARD, |frames| frames.parse().unwrap());
        return body(Card { device: device.parse().unwrap(), frames });
    }
    let report = tempfile::NamedTempFile::new().unwrap();
    let output = Emulated { compute_capability, ..Emulated::default() }
        .command(std::env::current_exe().unwrap(), report.path())
        .args([name, "--exact", "--nocapture"])
        .env(DEVICE, "cuda:0")
        .env(FRAMES, frames.to_string())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success() && said[0].contains("1 passed"), "{}", said.concat());
}

fn write(shape: LmShape, seed: u64, precision: Precision) -> (TempDir, Checkpoints) {
    let folder = TempDir::new().unwrap();
    let files = Checkpoints::write(folder.path(), shape, seed, precision).unwrap();
    (folder, files)
}

fn load(files: &Checkpoints, card: &Card, precision: Precision, rings: Precision) -> AsrModel {
    let (precision, kv_precision) = (Some(precision), Some(rings));
    let device = Some(card.device);
    AsrModel::load(&AsrSpec { device, precision, kv_precision, ..files.spec(1) }).unwrap()
}

/// Asserts that a card decides in f32 as the oracle does.
fn check_decisions(card: &Card, shape: LmShape, seed: u64, precision: Precision) {
    let (_folder, files) = write(shape, seed, precision);
    let speech = read_frames(&asset("speech-long.wav")).unwrap();
    let speech = &speech[..card.frames.min(speech.len())];
    let mut model = load(&files, card, Precision::F32, Precision::F32);
    let ours = ours::hear(&mut model, 0, speech).unwrap();
    let mut oracle = files.oracle().unwrap();
    let heard: Vec<Frame> = speech.iter().map(|pcm| oracle.step(pcm).unwrap()).collect();
    let comparison = Comparison::new(&heard, &ours);
    assert_eq!(comparison.frames, speech.len());
    assert_eq!(comparison.first_other_audio, None, "other audio tokens: {comparison:?}");
    assert_eq!(comparison.first_other_text, None, "other text tokens: {comparison:?}");
    assert!(comparison.vad_deviation <= VAD_TOLERANCE, "{comparison:?}");
    assert!(comparison.logit_deviation <= LOGIT_TOLERANCE, "{comparison:?}");
}

// Shapes, seeds and formats are those of `exactness.rs`, where decisions are shown to be clear.

#[test]
fn the_published_codec_with_32_codebooks_and_vad_heads() {
    on_a_card("the_published_codec_with_32_codebooks_and_vad_heads", (7, 5), 4, |card| {
        check_decisions(&card, shapes::many_codebooks(), 6, Precision::Bf16);
    });
}

#[test]
fn conditioned() {
    on_a_card("conditioned", (7, 5), 25, |card| {
        check_decisions(&card, shapes::conditioned(), 24, Precision::F32);
    });
}

#[test]
fn context_shorter_than_the_audio() {
    on_a_card("context_shorter_than_the_audio", (7, 5), 55, |card| {
        check_decisions(&card, shapes::short_context(), 16, Precision::F16);
    });
}

/// Asserts that on the oracle's text a card is as close to it as the precision lets it.
fn check_closeness(card: &Card, precision: Precision, rings: Precision, least_cosine: f64) {
    let (_folder, files) = write(shapes::short_context(), 2, Precision::F32);
    files.sharpen_text().unwrap();
    let audio = long_audio(card.frames).unwrap();
    let mut models = [load(&files, card, precision, rings)];
    let (_, deviations) = forced::compare(&files, &audio, &mut models).unwrap();
    let Deviation { frames, other_codes, ref cosines, .. } = deviations[0];
    assert_eq!((frames, other_codes, cosines.len()), (card.frames, 0, card.frames));
    let least = deviations[0].least_cosine();
    assert!(least >= least_cosine, "{precision} with rings in {rings}: cosine {least}");
}

#[test]
fn sixteen_bits() {
    on_a_card("sixteen_bits", (7, 5), 25, |card| {
        for rings in [Precision::F32, Precision::F16] {
            check_closeness(&card, Precision::F16, rings, 0.99999);
        }
    });
}

#[test]
fn eight_bits() {
    on_a_card("eight_bits", (7, 5), 25, |card| {
        for rings in [Precision::F16, Precision::Q8] {
            check_closeness(&card, Precision::Q8, rings, 0.999);
        }
    });
}

#[test]
fn bf16() {
    on_a_card("bf16", (8, 0), 25, |card| {
        let (_folder, files) = write(shapes::short_context(), 2, Precision::F32);
        let (precision, device) = (Some(Precision::Bf16), Some(card.device));
        match AsrModel::load(&AsrSpec { device, precision, ..files.spec(1) }) {
            Ok(_) => check_closeness(&card, Precision::Bf16, Precision::Bf16, 0.999),
            // Older cards have none, and say so.
            Err(error) => assert!(error.to_string().contains("bf16 needs 8.0"), "{error}"),
        }
    });
}
