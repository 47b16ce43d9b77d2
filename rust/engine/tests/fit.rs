//! Fewer lanes where the machine does not allow more.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use moshi_ctl_core::{LaneFrame, Precision, StreamingModel};
use moshi_ctl_engine::RealTimeModel;

mod common;

/// Steps of `model`'s first lane over noise.
fn tokens(model: &mut dyn StreamingModel) -> Vec<u32> {
    let frames = (0..12).map(common::noise);
    frames
        .map(|pcm| {
            let steps = model.step(&[LaneFrame { lane: 0, pcm: &pcm }]).unwrap();
            steps[0].outcome.as_ref().unwrap().text_token
        })
        .collect()
}

#[test]
fn lanes_that_stay_are_fresh_and_the_others_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let shape = common::shape();
    common::write(folder.path(), &shape);
    let load = |lanes| common::load(folder.path(), &shape, lanes, (Precision::Q8, Precision::Q8));
    let expected = tokens(&mut load(1));

    let mut given_up = load(4);
    tokens(&mut given_up);
    given_up.keep_lanes(2);
    assert_eq!(given_up.lanes(), 2);
    given_up.reset(0, 0).unwrap();
    assert_eq!(tokens(&mut given_up), expected);
    let pcm = common::noise(0);
    let error = given_up.step(&[LaneFrame { lane: 2, pcm: &pcm }]).unwrap_err();
    assert!(error.to_string().contains("no lane 2 among 2"), "{error}");

    // Measuring leaves nothing behind in the lanes it leaves.
    let mut measured = RealTimeModel { model: load(4), models: 1, wish: Some(4) };
    measured.settle().unwrap();
    assert!((1..=4).contains(&measured.lanes()));
    assert_eq!(tokens(&mut measured), expected);
}

#[test]
fn one_lane_stays_however_slow_the_machine_is() {
    let folder = tempfile::tempdir().unwrap();
    let shape = common::shape();
    common::write(folder.path(), &shape);
    let model = common::load(folder.path(), &shape, 3, (Precision::F32, Precision::F32));
    // A hundred thousand models on one machine leave less than a microsecond to each.
    let mut model = RealTimeModel { model, models: 100_000, wish: None };
    model.settle().unwrap();
    assert_eq!(model.lanes(), 1);
}
