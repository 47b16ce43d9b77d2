//! The same audio gives the same tokens as the published crate, in f32, over at least 200 frames
//! of speech. Weights are chosen (`moshi-ctl-seeds`) such that every decision is clear, and that
//! is asserted too: a pass then means that the two compute the same thing, not that they got lucky.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::cell::RefCell;

use moshi::StreamMask;
use moshi::asr::{AsrMsg, State};
use moshi::candle::{Device, IndexOp, Tensor};
use moshi::lm::LmModel;
use moshi::mimi::Mimi;
use moshi::nn::MaybeQuantizedVarBuilder;
use moshi_ctl_core::units::{FRAME_SAMPLES, TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};
use moshi_ctl_core::{LmShape, Precision};
use moshi_ctl_engine::{AsrModel, AsrSpec, Conditioning, Kernels};
use moshi_ctl_reference::audio::{asset, read_frames};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::compare::{Comparison, distinct_codes, distinct_text, share};
use moshi_ctl_reference::oracle::{self, Frame};
use moshi_ctl_reference::{ours, shapes};
use tempfile::TempDir;

/// Frames that have to be compared.
const LEAST_FRAMES: usize = 200;

/// What the VAD values may differ by.
const VAD_TOLERANCE: f32 = 1e-4;

/// Two f32 implementations of these models differ by about 1e-4 in a text logit of size 10.
const LOGIT_TOLERANCE: f32 = 5e-4;

/// The least lead of a text token: more than twice what two logits may be wrong by.
const LEAST_TEXT_GAP: f32 = 2e-3;

/// The least relative lead of an audio token. Of 83 random codecs two chose another token
/// than the oracle somewhere, where the lead was 2e-7 and 1e-8: ties, for f32. This is far above.
const LEAST_CODE_MARGIN: f32 = 1.5e-6;

/// Relative size of a disturbance of the audio that no audio token may depend on: about twenty
/// times f32's rounding.
const DISTURBANCE: f32 = 1e-6;

#[test]
fn published_codec_with_32_codebooks_and_vad_heads() {
    let folder = TempDir::new().unwrap();
    let files = write(&folder, shapes::many_codebooks(), 6, Precision::Bf16);
    check(&files);
}

#[test]
fn conditioned_on_a_delay_or_on_none() {
    let folder = TempDir::new().unwrap();
    let mut files = write(&folder, shapes::conditioned(), 24, Precision::F32);
    files.conditioning = Some(Conditioning::DelaySeconds(0.5));
    let delayed = check(&files);
    files.conditioning = Some(Conditioning::LearntPadding);
    let padded = check(&files);
    assert_ne!(delayed, padded, "the conditioner makes no difference");
}

#[test]
fn context_shorter_than_the_audio() {
    let folder = TempDir::new().unwrap();
    let files = write(&folder, shapes::short_context(), 16, Precision::F16);
    let wrapped = check(&files);

    // The rings matter only if forgetting does.
    let mut remembering = files.clone();
    remembering.shape.transformer.context = 2 * LEAST_FRAMES;
    let heard = hear_all(&mut remembering.engine(1).unwrap(), &speech());
    assert_ne!(wrapped, heard, "a longer context makes no difference");
}

#[test]
fn candles_own_kernels_give_the_same_tokens() {
    let folder = TempDir::new().unwrap();
    for (shape, seed) in [(shapes::conditioned(), 24), (shapes::short_context(), 16)] {
        let files = write(&folder, shape, seed, Precision::F32);
        let spec = AsrSpec { kernels: Kernels::Candle, ..files.spec(1) };
        compare(&files, AsrModel::load(&spec).unwrap());
    }
}

#[test]
fn frame_by_frame_equals_the_whole_recording_at_once() {
    // Fewer latents than the codec's context: at once, the crate lets a latent see one further
    // back than frame by frame.
    const FRAMES: usize = 100;
    let folder = TempDir::new().unwrap();
    let files = write(&folder, shapes::many_codebooks(), 6, Precision::F32);
    let frames = &speech()[..FRAMES];
    let codec = oracle::codec_config(&files.shape).unwrap();
    let mut codec = Mimi::new(codec, oracle::weights(&[&files.codec_file]).unwrap()).unwrap();
    let pcm = Tensor::from_vec(frames.concat(), (1, 1, FRAMES * FRAME_SAMPLES), &Device::Cpu);
    let codes = codec.encode(&pcm.unwrap()).unwrap().i(0).unwrap().t().unwrap();
    let at_once = codes.to_vec2::<u32>().unwrap();
    let heard = hear_all(&mut files.engine(1).unwrap(), frames);
    for (frame, (ours, at_once)) in heard.iter().zip(at_once).enumerate() {
        assert_eq!(ours.audio_tokens, at_once, "frame {frame}");
    }
}

/// Our oracle drives the crate's parts itself, to see more; the crate's own loop has to agree.
#[test]
fn the_oracle_is_the_crates_own_loop() {
    let folder = TempDir::new().unwrap();
    let files = write(&folder, shapes::conditioned(), 24, Precision::F32);
    let mut oracle = files.oracle().unwrap();
    let codec = oracle::codec_config(&files.shape).unwrap();
    let codec = Mimi::new(codec, oracle::weights(&[&files.codec_file]).unwrap()).unwrap();
    let weights = MaybeQuantizedVarBuilder::Real(oracle::weights(&[&files.lm_file]).unwrap());
    let config = oracle::language_model_config(&files.shape).unwrap();
    let lm = LmModel::new(&config, weights).unwrap();
    let condition = oracle::condition(&lm, files.conditioning).unwrap();
    let mut state = State::new(1, 6, 0.0, codec, lm).unwrap();

    let mut last: Option<Frame> = None;
    for pcm in &speech()[..50] {
        let ours = oracle.step(pcm).unwrap();
        let pcm = Tensor::from_slice(pcm, (1, 1, FRAME_SAMPLES), &Device::Cpu).unwrap();
        let read = RefCell::new((0, vec![]));
        let messages = state
            .step_pcm(pcm, condition.as_ref(), &StreamMask::empty(), |_, text, audio| {
                let one = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<u32>().unwrap();
                *read.borrow_mut() = (one(text)[0], audio.iter().flat_map(one).collect());
            })
            .unwrap();
        let expected = match last {
            None => {
                let silence = vec![files.shape.audio_pad_token(); files.shape.audio_codebooks];
                (files.shape.text_start_token(), silence)
            }
            Some(frame) => (frame.text_token, frame.audio_tokens),
        };
        assert_eq!(read.into_inner(), expected);
        let vad = messages.iter().find_map(|message| match message {
            AsrMsg::Step { prs, .. } => Some(prs.concat()),
            _ => None,
        });
        assert_eq!(vad.as_ref(), Some(&ours.vad));
        last = Some(ours);
    }
}

fn speech() -> Vec<Vec<f32>> {
    let frames = read_frames(&asset("speech-long.wav")).unwrap();
    assert!(frames.len() >= LEAST_FRAMES, "only {} frames", frames.len());
    frames
}

fn write(folder: &TempDir, shape: LmShape, seed: u64, precision: Precision) -> Checkpoints {
    Checkpoints::write(folder.path(), shape, seed, precision).unwrap()
}

fn hear_all(model: &mut AsrModel, frames: &[Vec<f32>]) -> Vec<Frame> {
    let heard = ours::hear(model, 0, frames).unwrap();
    heard.into_iter().map(|ours| ours.frame).collect()
}

/// Compares our engine with the oracle, and asserts that the comparison was worth something.
/// Returns what our engine heard.
fn check(files: &Checkpoints) -> Vec<Frame> {
    let (heard, comparison) = compare(files, files.engine(1).unwrap());
    let Comparison { text_gap, code_margin, .. } = comparison;
    assert!(text_gap > LEAST_TEXT_GAP, "a text token won by {text_gap} only");
    assert!(code_margin > LEAST_CODE_MARGIN, "an audio token won by {code_margin} only");

    assert!(distinct_codes(&heard).iter().all(|&n| n >= 30), "{:?}", distinct_codes(&heard));
    assert!(distinct_text(&heard) >= 30, "{} text tokens", distinct_text(&heard));
    for token in [TEXT_TOKEN_PADDING, TEXT_TOKEN_END_OF_PADDING] {
        let share = share(&heard, token);
        assert!((0.03..0.7).contains(&share), "token {token} takes {share} of the frames");
    }
    for head in 0..files.shape.extra_heads.map_or(0, |heads| heads.num_heads) {
        let values = || heard.iter().map(|frame| frame.vad[head]);
        let (low, high) = (values().fold(1.0, f32::min), values().fold(0.0, f32::max));
        assert!(high - low > 0.3, "VAD head {head} stays within {low} and {high}");
    }

    let disturbed: Vec<Vec<f32>> = speech().iter().map(|pcm| disturb(pcm)).collect();
    let disturbed = hear_all(&mut files.engine(1).unwrap(), &disturbed);
    for (frame, (clear, disturbed)) in heard.iter().zip(&disturbed).enumerate() {
        assert_eq!(clear.audio_tokens, disturbed.audio_tokens, "frame {frame} hangs by a thread");
    }
    heard
}

/// Asserts that `model` decides as the oracle does.
fn compare(files: &Checkpoints, mut model: AsrModel) -> (Vec<Frame>, Comparison) {
    let frames = speech();
    let ours = ours::hear(&mut model, 0, &frames).unwrap();
    let mut oracle = files.oracle().unwrap();
    let heard: Vec<Frame> = frames.iter().map(|pcm| oracle.step(pcm).unwrap()).collect();
    let comparison = Comparison::new(&heard, &ours);
    assert_eq!(comparison.frames, frames.len());
    assert_eq!(comparison.first_other_audio, None, "other audio tokens: {comparison:?}");
    assert_eq!(comparison.first_other_text, None, "other text tokens: {comparison:?}");
    assert!(comparison.vad_deviation <= VAD_TOLERANCE, "{comparison:?}");
    assert!(comparison.logit_deviation <= LOGIT_TOLERANCE, "{comparison:?}");
    (ours.into_iter().map(|ours| ours.frame).collect(), comparison)
}

/// Moves every sample by [`DISTURBANCE`] of itself, up or down without a pattern.
fn disturb(pcm: &[f32]) -> Vec<f32> {
    let sign = |n: usize| if n.wrapping_mul(0x9e37_79b9) & 0x8000 == 0 { 1.0 } else { -1.0 };
    pcm.iter().enumerate().map(|(n, x)| x * (1.0 + DISTURBANCE * sign(n))).collect()
}
