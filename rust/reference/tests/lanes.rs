//! A lane's results depend on its own audio since its last reset and on nothing else, bit for bit.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{LaneFault, LaneFrame, LmShape, Precision, StreamingModel};
use moshi_ctl_engine::{AsrModel, AsrSpec};
use moshi_ctl_reference::audio::{asset, read_frames};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::ours::{self, OurFrame};
use moshi_ctl_reference::shapes;
use tempfile::TempDir;

/// More than any of the engine's kernels treats as one block.
const LANES: usize = 37;

/// Frames a lane hears alone; longer than the short contexts, so that the rings wrap.
const FRAMES: usize = 70;

fn speech() -> Vec<Vec<f32>> {
    read_frames(&asset("speech-long.wav")).unwrap()
}

/// Precisions of the matrices and of the rings.
type Precisions = (Precision, Precision);

const F32: Precisions = (Precision::F32, Precision::F32);

/// A model of one lane.
fn loner(spec: &AsrSpec) -> AsrModel {
    AsrModel::load(&AsrSpec { lanes: 1, ..spec.clone() }).unwrap()
}

/// What a model of one lane hears after a reset, which makes it a fresh one; see the test below.
fn alone(model: &mut AsrModel, seed: u64, frames: &[Vec<f32>]) -> Vec<OurFrame> {
    model.reset(0, seed).unwrap();
    ours::hear(model, 0, frames).unwrap()
}

/// A stream in the crowd: which lane it has, which step it joins at, where in the recording it
/// starts, how long it stays and how often it pauses.
#[derive(Debug, Clone, Copy)]
struct Guest {
    lane: usize,
    joins: usize,
    starts: usize,
    frames: usize,
    pauses_every: usize,
}

impl Guest {
    /// Two guests per lane, one after the other, all different.
    fn all() -> Vec<Self> {
        let guest = |n: usize| {
            let (lane, turn) = (n % LANES, n / LANES);
            Self {
                lane,
                joins: (7 * lane) % 23 + turn * 60,
                starts: (5 * n) % 150,
                frames: 20 + (11 * n) % 30,
                pauses_every: 2 + n % 5,
            }
        };
        (0..2 * LANES).map(guest).collect()
    }

    fn seed(self) -> u64 {
        1_000 + self.starts as u64
    }

    fn audio(self, speech: &[Vec<f32>]) -> &[Vec<f32>] {
        &speech[self.starts..self.starts + self.frames]
    }
}

/// Every guest hears the same in a crowd that changes with every step as alone.
fn check_crowd(shape: LmShape, (matrices, rings): Precisions, temperature: f64) {
    let folder = TempDir::new().unwrap();
    let files = Checkpoints::write(folder.path(), shape, 5, Precision::Bf16).unwrap();
    let (precision, kv_precision) = (Some(matrices), Some(rings));
    let spec = AsrSpec { precision, kv_precision, temperature, ..files.spec(LANES) };
    let mut model = AsrModel::load(&spec).unwrap();
    let speech = speech();
    let guests = Guest::all();
    let mut heard: Vec<Vec<OurFrame>> = vec![vec![]; guests.len()];
    for step in 0..240 {
        let mut present: Vec<usize> = (0..guests.len())
            .filter(|&n| {
                let Guest { joins, frames, pauses_every, .. } = guests[n];
                let is_free = n < LANES || heard[n - LANES].len() == guests[n - LANES].frames;
                is_free && step >= joins && step % pauses_every != 0 && heard[n].len() < frames
            })
            .collect();
        // Never the same order.
        if !present.is_empty() {
            let by = (3 * step) % present.len();
            present.rotate_left(by);
        }
        let mut frames = vec![];
        for &n in &present {
            let Guest { lane, .. } = guests[n];
            if heard[n].is_empty() {
                model.reset(lane, guests[n].seed()).unwrap();
            }
            frames.push(LaneFrame { lane, pcm: &guests[n].audio(&speech)[heard[n].len()] });
        }
        for (n, result) in present.into_iter().zip(ours::step(&mut model, &frames).unwrap()) {
            heard[n].push(result);
        }
    }
    let mut loner = loner(&spec);
    for (guest, heard) in guests.iter().zip(&heard) {
        assert_eq!(heard.len(), guest.frames, "{guest:?} was cut short");
        let alone = alone(&mut loner, guest.seed(), guest.audio(&speech));
        let first = heard.iter().zip(&alone).position(|(crowd, alone)| crowd != alone);
        assert_eq!(first, None, "{guest:?}: this frame differs from the lane alone");
    }
}

#[test]
fn a_lane_in_a_crowd_equals_the_lane_alone() {
    check_crowd(shapes::short_context(), F32, 0.0);
}

#[test]
fn a_lane_in_a_crowd_equals_the_lane_alone_in_half_precision() {
    for precision in [Precision::Bf16, Precision::F16] {
        check_crowd(shapes::short_context(), (precision, precision), 0.0);
    }
}

#[test]
fn a_lane_in_a_crowd_equals_the_lane_alone_in_eight_bits() {
    for rings in [Precision::Q8, Precision::F16] {
        check_crowd(shapes::short_context(), (Precision::Q8, rings), 0.0);
    }
}

#[test]
fn a_lane_in_a_crowd_samples_as_it_would_alone() {
    check_crowd(shapes::conditioned(), F32, 0.8);
}

/// Some of this shape's rows are no whole number of blocks.
#[test]
fn a_lane_in_a_crowd_samples_as_it_would_alone_in_eight_bits() {
    check_crowd(shapes::conditioned(), (Precision::Q8, Precision::Q8), 0.8);
}

/// Work is divided by the number of threads; results are not.
#[test]
fn threads_make_no_difference() {
    let speech = speech();
    for shape in [shapes::short_context(), shapes::conditioned()] {
        let folder = TempDir::new().unwrap();
        let files = Checkpoints::write(folder.path(), shape, 5, Precision::Bf16).unwrap();
        for (precision, rings) in [F32, (Precision::Q8, Precision::Q8)] {
            let hear = |threads| {
                let (precision, kv_precision) = (Some(precision), Some(rings));
                let threads = Some(threads);
                let spec = AsrSpec { precision, kv_precision, threads, ..files.spec(LANES) };
                let mut model = AsrModel::load(&spec).unwrap();
                let processor = model.processor().unwrap();
                assert_eq!(Some(processor.threads), threads);
                // From one lane to all: work is divided differently for each number of them.
                let mut heard = vec![];
                for (step, present) in [1, 2, 3, 5, 13, LANES, 8, 1].into_iter().enumerate() {
                    let frame = |lane| LaneFrame { lane, pcm: &speech[step + 3 * lane] };
                    let frames: Vec<_> = (0..present).map(frame).collect();
                    heard.extend(ours::step(&mut model, &frames).unwrap());
                }
                heard
            };
            let alone = hear(1);
            for threads in [2, 3, 5] {
                assert!(hear(threads) == alone, "{precision}: {threads} threads differ from one");
            }
        }
    }
}

#[test]
fn sampling_depends_on_the_seed_and_on_nothing_else() {
    let folder = TempDir::new().unwrap();
    let files =
        Checkpoints::write(folder.path(), shapes::conditioned(), 5, Precision::Bf16).unwrap();
    let spec = AsrSpec { temperature: 0.8, ..files.spec(1) };
    let frames = &speech()[..40];
    let mut model = loner(&spec);
    let first = alone(&mut model, 1, frames);
    assert_ne!(first, alone(&mut model, 2, frames));
    assert_eq!(first, alone(&mut model, 1, frames));
    assert_eq!(first, alone(&mut loner(&spec), 1, frames));
}

/// Whatever a lane went through, after a reset it is a fresh lane; its neighbour notices nothing.
#[test]
fn a_lane_after_a_reset_equals_a_fresh_lane() {
    check_reset(F32);
}

#[test]
fn a_lane_after_a_reset_equals_a_fresh_lane_in_eight_bits() {
    for rings in [Precision::Q8, Precision::F16] {
        check_reset((Precision::Q8, rings));
    }
}

fn check_reset((matrices, rings): Precisions) {
    let folder = TempDir::new().unwrap();
    let files =
        Checkpoints::write(folder.path(), shapes::short_context(), 5, Precision::Bf16).unwrap();
    let (precision, kv_precision) = (Some(matrices), Some(rings));
    let spec = AsrSpec { precision, kv_precision, ..files.spec(2) };
    let frames = &speech()[..FRAMES];
    let fresh = ours::hear(&mut loner(&spec), 0, frames).unwrap();
    let mut model = AsrModel::load(&spec).unwrap();
    let mut neighbour = vec![];
    let mut spoilt_speech = frames[3].clone();
    spoilt_speech[1_000] = f32::NAN;
    let past: [(&str, Vec<f32>, Result<(), LaneFault>); 6] = [
        ("noise", noise(1.0), Ok(())),
        ("noise far beyond full scale", noise(1e4), Ok(())),
        ("NaN", vec![f32::NAN; FRAME_SAMPLES], Err(LaneFault::NonFiniteAudio)),
        ("one NaN", spoilt_speech, Err(LaneFault::NonFiniteAudio)),
        ("infinity", vec![f32::INFINITY; FRAME_SAMPLES], Err(LaneFault::NonFiniteAudio)),
        ("overflow", noise(f32::MAX), Err(LaneFault::NonFiniteAudio)),
    ];
    let mut neighbours_frames = frames.iter();
    for (name, pcm, expected) in past {
        // Speech first, so that there is something to forget.
        ours::hear(&mut model, 0, &frames[10..20]).unwrap();
        let next = neighbours_frames.next().unwrap();
        let both = [LaneFrame { lane: 0, pcm: &pcm }, LaneFrame { lane: 1, pcm: next }];
        let steps = model.step(&both).unwrap();
        let fault = steps[0].outcome.clone().map(|_| ());
        assert_eq!(fault, expected, "{name}");
        neighbour.push(steps[1].outcome.clone().unwrap());

        model.reset(0, 0).unwrap();
        let heard = ours::hear(&mut model, 0, frames).unwrap();
        let first = heard.iter().zip(&fresh).position(|(heard, fresh)| heard != fresh);
        assert_eq!(first, None, "after {name}, this frame differs from a fresh lane's");
        model.reset(0, 0).unwrap();
    }
    for (heard, fresh) in neighbour.iter().zip(&fresh) {
        assert_eq!((heard.text_token, &heard.vad), (fresh.frame.text_token, &fresh.frame.vad));
    }
}

/// Full-band noise of this amplitude.
fn noise(amplitude: f32) -> Vec<f32> {
    let sample = |n: usize| {
        let bits = (n as u32).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b);
        amplitude * (bits as i32 as f32 / i32::MAX as f32)
    };
    (0..FRAME_SAMPLES).map(sample).collect()
}

#[test]
fn impossible_frames_are_refused() {
    let folder = TempDir::new().unwrap();
    let files =
        Checkpoints::write(folder.path(), shapes::conditioned(), 5, Precision::Bf16).unwrap();
    let mut model = files.engine(2).unwrap();
    let pcm = vec![0.0; FRAME_SAMPLES];
    let frame = |lane| LaneFrame { lane, pcm: &pcm };
    for (frames, expected) in [
        (vec![frame(2)], "lane 2"),
        (vec![frame(1), frame(0), frame(1)], "two frames for lane 1"),
        (vec![LaneFrame { lane: 0, pcm: &pcm[1..] }], "1919 samples"),
    ] {
        let error = model.step(&frames).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(model.reset(2, 0).is_err());
    assert!(model.step(&[]).unwrap().is_empty());
}
