//! The embedded model, which is trained: the published crate reads its files and hears the same.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::path::{Path, PathBuf};

use moshi_ctl_core::units::{FRAME_SAMPLES, TEXT_TOKEN_PADDING};
use moshi_ctl_core::{LaneFrame, LmShape, Precision};
use moshi_ctl_reference::audio::asset;
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::compare::{cosine, gap, share};
use moshi_ctl_reference::oracle::{Frame, Oracle};
use moshi_ctl_reference::ours;
use moshi_ctl_server::config::Config;
use moshi_ctl_server::measure::decode_file;
use tempfile::TempDir;

/// Frames after the recording, in which its last words are said.
const TAIL_FRAMES: usize = 25;

/// See `LEAST_COSINE` of the test of GGUF files; both round eight bits differently.
const LEAST_COSINE: f64 = 0.9995;

/// A lead of a text token, as a logit, that rounding may turn: a word may come in one of two frames.
const TORN: f32 = 0.2;

/// More than the words of the recording alone.
const LEAST_TEXT_SHARE: f32 = 0.15;

fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/moshi_ctl").join(path)
}

fn shape() -> LmShape {
    let embedded = package("embedded").to_str().unwrap().to_owned();
    let env = |name: &str| match name {
        "MOSHI_CTL_EMBEDDED" => Some(embedded.clone()),
        _ => Some(String::new()),
    };
    let config = Config::load(&package("configs/demo.toml"), env).unwrap();
    config.modules["asr"].asr().model.clone()
}

#[test]
fn the_published_crate_hears_the_same_words() {
    let folder = TempDir::new().unwrap();
    // The crate wants a codec's decoder too, which ours has no use for.
    let whole = Checkpoints::write(folder.path(), shape(), 1, Precision::F32).unwrap();
    let files = Checkpoints {
        lm_file: package("embedded/model.gguf"),
        codec_file: package("embedded/codec.safetensors"),
        ..whole.clone()
    };
    let codec_files = [whole.codec_file.as_path(), files.codec_file.as_path()];
    let mut oracle = Oracle::load(&files.shape, &files.lm_file, &codec_files, None).unwrap();

    let mut pcm = decode_file(std::fs::read(asset("digits.flac")).unwrap()).unwrap();
    pcm.resize(pcm.len() + TAIL_FRAMES * FRAME_SAMPLES, 0.0);
    let frames: Vec<_> = pcm.chunks_exact(FRAME_SAMPLES).map(<[f32]>::to_vec).collect();
    let theirs: Vec<Frame> = frames.iter().map(|pcm| oracle.step(pcm).unwrap()).collect();

    let mut model = files.engine(1).unwrap();
    for (frame, (pcm, theirs)) in frames.iter().zip(&theirs).enumerate() {
        let ours = &ours::step(&mut model, &[LaneFrame { lane: 0, pcm }]).unwrap()[0].frame;
        // Text feeds back; after another token logits would be of another stream.
        model.force_text(0, theirs.text_token).unwrap();
        assert_eq!(ours.audio_tokens, theirs.audio_tokens, "frame {frame}");
        let cosine = cosine(&theirs.text_logits, &ours.text_logits);
        assert!(cosine >= LEAST_COSINE, "frame {frame}: cosine {cosine}");
        let lead = gap(&theirs.text_logits);
        assert!(ours.text_token == theirs.text_token || lead < TORN, "frame {frame}: {lead}");
    }
    let text = 1.0 - share(&theirs, TEXT_TOKEN_PADDING);
    assert!(text >= LEAST_TEXT_SHARE, "only {text} of the frames say something");
}
