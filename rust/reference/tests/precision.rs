//! Sixteen-bit precisions are approximations of f32 on the same file, and no worse than their
//! formats make them.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use moshi_ctl_core::Precision;
use moshi_ctl_engine::{AsrModel, AsrSpec, Kernels};
use moshi_ctl_reference::audio::{asset, read_frames};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::compare::cosine;
use moshi_ctl_reference::oracle::Frame;
use moshi_ctl_reference::{ours, shapes};
use tempfile::TempDir;

const FRAMES: usize = 60;

/// A dot product of rounded factors is off by about 2⁻⁹ (bf16) or 2⁻¹² (f16) of its size; layers
/// add to that. The cosine of such a vector with the exact one stays above these.
const LEAST_COSINE: [(Precision, f64); 2] = [(Precision::Bf16, 0.999), (Precision::F16, 0.99999)];

fn hear(files: &Checkpoints, precision: Precision, kernels: Kernels) -> Vec<Frame> {
    let spec = AsrSpec { precision: Some(precision), kernels, ..files.spec(1) };
    let frames = read_frames(&asset("speech-long.wav")).unwrap();
    let heard = ours::hear(&mut AsrModel::load(&spec).unwrap(), 0, &frames[..FRAMES]).unwrap();
    heard.into_iter().map(|heard| heard.frame).collect()
}

#[test]
fn sixteen_bits_stay_close_to_thirty_two() {
    let folder = TempDir::new().unwrap();
    let shape = shapes::short_context();
    let files = Checkpoints::write(folder.path(), shape, 2, Precision::F32).unwrap();
    let exact = hear(&files, Precision::F32, Kernels::Own);
    for (precision, least) in LEAST_COSINE {
        for kernels in [Kernels::Own, Kernels::Candle] {
            let heard = hear(&files, precision, kernels);
            let agreeing = exact.iter().zip(&heard);
            // Another text token makes another stream of it: compare as far as they agree.
            let agreeing = agreeing.take_while(|(a, b)| a.text_token == b.text_token);
            let cosines: Vec<f64> =
                agreeing.map(|(a, b)| cosine(&a.text_logits, &b.text_logits)).collect();
            let worst = cosines.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(
                cosines.len() >= FRAMES / 4,
                "{precision}, {kernels:?}: another token already after {} frames",
                cosines.len()
            );
            assert!(worst >= least, "{precision}, {kernels:?}: cosine {worst}");
            assert!(
                exact.iter().zip(&heard).all(|(a, b)| a.audio_tokens == b.audio_tokens),
                "{precision}, {kernels:?}: the codec is not in f32"
            );
        }
    }
}
