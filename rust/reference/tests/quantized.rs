//! Eight bits are good enough: beside the published crate in f32 on the same file and the same
//! text, over 500 frames, with rings in any precision.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use moshi_ctl_core::{LmShape, Precision, TransformerShape};
use moshi_ctl_engine::{AsrModel, AsrSpec, Kernels};
use moshi_ctl_reference::audio::long_audio;
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::forced::{self, Deviation};
use moshi_ctl_reference::shapes;
use tempfile::TempDir;

const FRAMES: usize = 500;

/// Slots of a ring: fewer than frames, so that rings are written over.
const CONTEXT: usize = 375;

/// Precisions of rings beside eight-bit matrices, the default first.
const RINGS: [Precision; 3] = [Precision::Q8, Precision::F16, Precision::F32];

/// An angle of 2.5 degrees: logits off by a twentieth of their spread. 0.9998 and more were seen.
const LEAST_COSINE: f64 = 0.999;

/// The codec is in f32, so only ties may break another way.
const MOST_OTHER_CODES: f64 = 0.005;

/// What VAD probabilities should be within. Where one of a random model is near a half, it turns
/// with a hundredth of its logit's spread, and a few are off by more: 15 in 2,000 were, by up to
/// 0.016.
const VAD_TOLERANCE: f64 = 0.01;
const LEAST_WITHIN: f64 = 0.98;
const MOST_VAD: f64 = 0.03;

/// Another choice is no error where the oracle was torn itself.
const SURE: f64 = 0.8;

/// How much farther off than the published crate still counts as no farther: rounding differs
/// between processors, and both lose about the same.
const AS_FAR: f64 = 1.2;

/// STT 1B with a small codec, so that nearly all of the time goes into what is to be measured.
fn shape(change: fn(TransformerShape) -> TransformerShape) -> LmShape {
    let (full, small) = (shapes::stt_1b(), shapes::short_context());
    let transformer = TransformerShape { context: CONTEXT, ..full.transformer };
    LmShape {
        transformer: change(transformer),
        audio_vocab_size: small.audio_vocab_size,
        codec: small.codec,
        ..full
    }
}

fn small() -> LmShape {
    shape(|full| TransformerShape {
        d_model: 256,
        num_heads: 4,
        num_layers: 3,
        dim_feedforward: 1024,
        ..full
    })
}

fn write(shape: LmShape) -> (TempDir, Checkpoints) {
    let folder = TempDir::new().unwrap();
    let files = Checkpoints::write(folder.path(), shape, 1, Precision::Bf16).unwrap();
    files.sharpen_text().unwrap();
    (folder, files)
}

fn load(files: &Checkpoints, rings: Precision, kernels: Kernels) -> AsrModel {
    let (precision, kv_precision) = (Some(Precision::Q8), Some(rings));
    AsrModel::load(&AsrSpec { precision, kv_precision, kernels, ..files.spec(1) }).unwrap()
}

/// Lets all models and the oracle hear 500 frames. Asserts that the oracle is as sure of its text
/// as a trained transcriber: of most tokens very much, in places torn between a few. Logits drawn
/// without care would have the entropy of a thousand tokens.
fn measure(files: &Checkpoints, models: &mut [AsrModel]) -> Vec<Deviation> {
    let audio = long_audio(FRAMES).unwrap();
    let (certainty, deviations) = forced::compare(files, &audio, models).unwrap();
    let sure = forced::median(&certainty.top);
    assert!((0.7..0.999).contains(&sure), "the median text token has probability {sure}");
    let torn = certainty.top.iter().filter(|&&p| p < 0.5).count();
    assert!(torn >= FRAMES / 10, "only {torn} text tokens were uncertain");
    let entropy = forced::median(&certainty.entropy);
    assert!((0.05..1.5).contains(&entropy), "median entropy of {entropy} nats");
    deviations
}

fn check(files: &Checkpoints) {
    let mut models = RINGS.map(|rings| load(files, rings, Kernels::Own));
    for (rings, deviation) in RINGS.into_iter().zip(measure(files, &mut models)) {
        let Deviation { frames, codes, other_codes, ref vad, .. } = deviation;
        assert_eq!(frames, FRAMES);
        let others = other_codes as f64 / codes as f64;
        assert!(
            others < MOST_OTHER_CODES,
            "rings {rings}: {others} of audio tokens are other ones"
        );
        let least = deviation.least_cosine();
        assert!(least >= LEAST_COSINE, "rings {rings}: cosine {least}");
        let within = vad.iter().filter(|&&off| off <= VAD_TOLERANCE).count();
        let within = within as f64 / vad.len() as f64;
        assert!(within >= LEAST_WITHIN, "rings {rings}: {within} of VAD values are close");
        let worst = deviation.worst_vad();
        assert!(worst <= MOST_VAD, "rings {rings}: a VAD value is off by {worst}");
        let surest = deviation.surest_other_choice;
        assert!(surest < SURE, "rings {rings}: not a token that had probability {surest}");
    }
}

#[test]
fn a_small_model() {
    let (_folder, files) = write(small());
    check(&files);
}

#[test]
fn a_model_as_wide_as_stt_1b() {
    let (_folder, files) = write(shape(|full| TransformerShape { num_layers: 2, ..full }));
    check(&files);
}

/// Beside what the published crate itself would compute with eight-bit matrices.
#[test]
fn no_farther_off_than_candles_eight_bits() {
    let (_folder, files) = write(small());
    let kernels = [Kernels::Own, Kernels::Candle];
    let mut models = kernels.map(|kernels| load(&files, Precision::F16, kernels));
    let deviations = measure(&files, &mut models);
    let [ours, candles] = deviations.as_slice() else { panic!("two models") };
    let lost = [ours, candles].map(|deviation| 1.0 - deviation.median_cosine());
    assert!(lost[0] <= AS_FAR * lost[1], "1 - cosine: {lost:?}");
    let noise = [ours, candles].map(Deviation::vad_noise);
    assert!(noise[0] <= AS_FAR * noise[1], "noise of VAD: {noise:?}");
}
