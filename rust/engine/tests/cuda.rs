//! The engine on an emulated card: the shipped kernels and the driver's rules, without a card.
//!
//! Whatever runs on the card is an ignored test of this file, which another one starts as a process
//! of its own.
#![cfg(cuda)]
#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Output;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device};
use moshi_ctl_core::{
    DeviceName, Gating, LaneFault, LaneFrame, LmShape, Norm, PositionalEmbedding, Precision,
    StreamingModel,
};
use moshi_ctl_emulator::{Emulated, Report};
use moshi_ctl_engine::{AsrModel, AsrSpec, DeviceKind, MemorySubject, StepTrace, load_what_fits};

#[allow(dead_code, reason = "shared with other tests")]
mod common;

const TURING: Emulated =
    Emulated { compute_capability: (7, 5), memory_mib: 8 << 10, driver: 12_000, backwards: false };
const AMPERE: Emulated = Emulated { compute_capability: (8, 6), ..TURING };

/// What the started test is to do.
const ORDER: &str = "MOSHI_CTL_TEST_ORDER";

/// Runs an ignored test of this file on `card`.
fn run(test: &str, order: &str, card: &Emulated) -> (Output, Report) {
    let report = tempfile::NamedTempFile::new().unwrap();
    let output = card
        .command(std::env::current_exe().unwrap(), report.path())
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env(ORDER, order)
        .output()
        .unwrap();
    (output, Report::read(report.path()).unwrap())
}

/// As [`run`], where the test must pass. Gives what it said after `said: `.
fn pass(test: &str, order: &str, card: &Emulated) -> (Vec<String>, Report) {
    let (output, report) = run(test, order, card);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{test} {order}: {all}");
    let said = text.lines().filter_map(|line| line.split_once("said: "));
    (said.map(|(_, said)| said.to_owned()).collect(), report)
}

fn order() -> Option<Vec<String>> {
    Some(std::env::var(ORDER).ok()?.split(' ').map(str::to_owned).collect())
}

fn precision(name: &str) -> Precision {
    Precision::ALL.into_iter().find(|precision| precision.name() == name).unwrap()
}

/// Kinds of models that run through different kernels.
fn shape(kind: &str) -> LmShape {
    let mut shape = common::shape();
    match kind {
        "published" | "whole" | "quantized" => {}
        "plain" => {
            shape.transformer.gating = None;
            shape.transformer.norm = Norm::LayerNorm;
            shape.transformer.layer_scale = Some(0.1);
            shape.transformer.bias_attn = true;
            shape.transformer.bias_ff = true;
            shape.transformer.positional_embedding = PositionalEmbedding::None;
        }
        "odd" => {
            // Rows that are no whole blocks, more residual blocks, dilated.
            shape.transformer.d_model = 36;
            shape.transformer.num_heads = 3;
            shape.transformer.dim_feedforward = 100;
            shape.transformer.gating = Some(Gating::Gelu);
            shape.codec.n_residual_layers = 2;
            shape.codec.quantizer_bins = 100;
        }
        other => panic!("{other}"),
    }
    shape
}

/// The precision of a file.
fn written_in(kind: &str) -> Precision {
    if kind == "whole" { Precision::F32 } else { Precision::Bf16 }
}

/// A file with all matrices in eight bits, embeddings too, as others' tools write it.
fn quantize_all(file: &Path) -> PathBuf {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let quantized: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let tensor = tensor.to_dtype(DType::F32).unwrap();
            let is_matrix = tensor.rank() == 2 && tensor.dims()[1] % 32 == 0;
            let format = if is_matrix { GgmlDType::Q8_0 } else { GgmlDType::F32 };
            (name.as_str(), QTensor::quantize(&tensor, format).unwrap())
        })
        .collect();
    let tensors: Vec<_> = quantized.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let path = file.with_extension("gguf");
    gguf_file::write(&mut File::create(&path).unwrap(), &[], &tensors).unwrap();
    path
}

/// Lanes that come and go: traces of all steps.
fn hear(model: &mut AsrModel, frames: usize) -> Vec<(Vec<StepTrace>, Vec<f32>)> {
    let lanes = model.lanes();
    let mut heard = vec![];
    for k in 0..frames {
        let used = (0..lanes).filter(|lane| *lane == 0 || (k + lane) % (lane + 2) != 1);
        let pcm: Vec<_> = used.map(|lane| (lane, common::noise(1000 * lane + k))).collect();
        let frames: Vec<_> = pcm.iter().map(|(lane, pcm)| LaneFrame { lane: *lane, pcm }).collect();
        let results = model.step(&frames).unwrap();
        let vad = results.iter().flat_map(|r| r.outcome.as_ref().unwrap().vad.to_vec()).collect();
        heard.push((model.last_traces(), vad));
        if k % 7 == 4 {
            model.reset(k % lanes, 0).unwrap();
        }
    }
    heard
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn likeliest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

/// Numbers whose every bit counts.
fn digest(numbers: impl Iterator<Item = f32>) -> u64 {
    numbers.fold(0xcbf2_9ce4_8422_2325, |hash, x| {
        (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3)
    })
}

#[test]
#[ignore = "what other tests run on an emulated card"]
fn like_the_cpu() {
    let Some(order) = order() else { return };
    let [kind, weights, rings, lanes, frames] = order.as_slice() else { panic!("{order:?}") };
    let (shape, folder) = (shape(kind), tempfile::tempdir().unwrap());
    let (lanes, frames) = (lanes.parse().unwrap(), frames.parse().unwrap());
    common::write_in(folder.path(), &shape, written_in(kind));
    let precisions = (precision(weights), precision(rings));
    let mut spec = common::spec(folder.path(), &shape, lanes, precisions);
    if kind == "quantized" {
        spec.lm_model_file = quantize_all(&spec.lm_model_file);
    }
    let on_card = AsrSpec { device: Some(DeviceName::Cuda(0)), ..spec.clone() };
    let card = hear(&mut AsrModel::load(&on_card).unwrap(), frames);
    let cpu = hear(&mut AsrModel::load(&spec).unwrap(), frames);
    let least = match precisions.0 {
        Precision::F32 if precisions.1 == Precision::F32 => 1.0 - 1e-9,
        Precision::Q8 => 0.999,
        _ => 1.0 - 1e-5,
    };
    let mut compared = 0;
    for ((card, card_vad), (cpu, cpu_vad)) in card.iter().zip(&cpu) {
        for (card, cpu) in card.iter().zip(cpu) {
            assert_eq!(card.audio_tokens, cpu.audio_tokens);
            let cosine = cosine(&card.text_logits, &cpu.text_logits);
            assert!(cosine >= least, "{cosine} after {compared} frames");
            compared += 1;
        }
        if precisions.0 == Precision::F32 {
            for (card, cpu) in card_vad.iter().zip(cpu_vad) {
                assert!((card - cpu).abs() < 1e-4, "{card} and {cpu}");
            }
        }
        let differ = |(a, b): (&StepTrace, &StepTrace)| {
            likeliest(&a.text_logits) != likeliest(&b.text_logits)
        };
        // Another text token makes another stream of it: only what comes before can be compared.
        if card.iter().zip(cpu).any(differ) {
            break;
        }
    }
    assert!(compared >= frames * lanes / 3, "only {compared} frames");
    let numbers = card.iter().flat_map(|(traces, vad)| {
        traces.iter().flat_map(|trace| &trace.text_logits).chain(vad).copied()
    });
    println!("said: {}", digest(numbers));
}

#[test]
fn a_card_hears_what_the_cpu_hears() {
    for order in [
        "published f32 f32 1 12",
        "published f32 f32 3 12",
        // More rows than one pass over the weights is for.
        "published f32 f32 11 4",
        "whole f32 f32 3 12",
        "whole f32 f32 11 4",
        "whole f16 f16 3 6",
        "published q8 q8 3 6",
        "whole f16 f16 20 3",
        "published q8 q8 70 2",
        "quantized q8 f16 11 3",
        "plain f32 f32 2 8",
        "plain f16 f16 9 3",
        "odd f32 f32 3 8",
        "odd q8 q8 2 4",
    ] {
        let (forwards, _) = pass("like_the_cpu", order, &TURING);
        let (backwards, _) = pass("like_the_cpu", order, &Emulated { backwards: true, ..TURING });
        assert_eq!(forwards, backwards, "{order}: the order of threads shows");
    }
    pass("like_the_cpu", "published bf16 bf16 3 6", &AMPERE);
    pass("like_the_cpu", "published bf16 bf16 40 2", &AMPERE);
}

#[test]
#[ignore = "what other tests run on an emulated card"]
fn lanes() {
    if order().is_none() {
        return;
    }
    let (shape, folder) = (shape("published"), tempfile::tempdir().unwrap());
    common::write(folder.path(), &shape);
    let spec = common::spec(folder.path(), &shape, 4, (Precision::F32, Precision::F32));
    let mut model = AsrModel::load(&AsrSpec { device: Some(DeviceName::Cuda(0)), ..spec }).unwrap();
    let logits = |model: &mut AsrModel, lanes: &[usize], k: usize, broken: Option<usize>| {
        let mut pcm: Vec<_> = lanes.iter().map(|lane| common::noise(1000 * lane + k)).collect();
        if let Some(i) = broken {
            pcm[i][7] = 3e38;
            pcm[i][8] = -3e38;
        }
        let frames: Vec<_> =
            lanes.iter().zip(&pcm).map(|(&lane, pcm)| LaneFrame { lane, pcm }).collect();
        let faults: Vec<bool> = (model.step(&frames).unwrap().iter())
            .map(|result| matches!(result.outcome, Err(LaneFault::NonFiniteAudio)))
            .collect();
        let traces = model.last_traces().into_iter().map(|trace| trace.text_logits);
        (traces.collect::<Vec<_>>(), faults)
    };
    let mut alone = vec![];
    for k in 0..4 {
        alone.push(logits(&mut model, &[2], k, None).0.remove(0));
    }
    // The same among others, one of which once has audio that is beyond all numbers. How many lanes
    // there are decides about the order of sums; what is in the others decides about nothing.
    let mut among = [vec![], vec![]];
    for (is_broken, among) in [false, true].into_iter().zip(&mut among) {
        for lane in [0, 2, 3] {
            model.reset(lane, 0).unwrap();
        }
        for (k, alone) in alone.iter().enumerate() {
            let broken = (is_broken && k == 1).then_some(0);
            let (mut found, faults) = logits(&mut model, &[0, 2, 3], k, broken);
            assert!(cosine(&found[1], alone) > 1.0 - 1e-9, "frame {k}");
            assert_eq!(faults, [is_broken && k >= 1, false, false], "frame {k}");
            among.push(found.split_off(1));
        }
    }
    assert_eq!(among[0], among[1]);
    // And the one that was broken is like new after a reset.
    let mut like_new = || {
        model.reset(0, 0).unwrap();
        logits(&mut model, &[0], 0, None).0
    };
    let again = like_new();
    assert!(again[0].iter().all(|x| x.is_finite()));
    assert_eq!(again, like_new());
}

#[test]
fn lanes_do_not_show_in_each_other() {
    pass("lanes", "go", &TURING);
}

#[test]
#[ignore = "what other tests run on an emulated card"]
fn steps() {
    let Some(order) = order() else { return };
    let [kind, weights, rings, lanes, used, frames] = order.as_slice() else { panic!("{order:?}") };
    let number = |text: &str| text.parse::<usize>().unwrap();
    let (shape, folder) = (shape(kind), tempfile::tempdir().unwrap());
    common::write_in(folder.path(), &shape, written_in(kind));
    let precisions = (precision(weights), precision(rings));
    let spec = common::spec(folder.path(), &shape, number(lanes), precisions);
    let mut spec = AsrSpec { device: Some(DeviceName::Cuda(0)), ..spec };
    if kind == "quantized" {
        spec.lm_model_file = quantize_all(&spec.lm_model_file);
    }
    let mut model = load_what_fits(spec).unwrap();
    println!("said: {}", model.lanes());
    for k in 0..number(frames) {
        let pcm = common::noise(k);
        let frames: Vec<_> = (0..number(used)).map(|lane| LaneFrame { lane, pcm: &pcm }).collect();
        model.step(&frames).unwrap();
    }
}

#[test]
fn a_step_is_two_launches_two_copies_and_one_wait() {
    let counts = |used: usize, frames: usize| {
        let (_, report) = pass("steps", &format!("published f32 f32 8 {used} {frames}"), &TURING);
        report.counts
    };
    let mut launches = vec![];
    for used in [1, 8] {
        let (few, many) = (counts(used, 1), counts(used, 3));
        let of_step = |what: &str| {
            let [few, many] = [&few, &many].map(|all| all.get(what).copied().unwrap_or(0));
            (many - few) / 2
        };
        assert_eq!(of_step("graph"), 2);
        assert_eq!(of_step("synchronize"), 1);
        assert_eq!(of_step("graph_copy_to_device"), 1);
        assert_eq!(of_step("graph_copy_to_host"), 1);
        for outside in ["launch", "copy_to_device", "copy_to_host", "alloc"] {
            assert_eq!(of_step(outside), 0, "{outside} outside of a graph");
        }
        launches.push(of_step("graph_launch"));
    }
    assert_eq!(launches[0], launches[1], "kernels of a step with one lane and with eight");
}

/// The names of a PTX text's kernels.
fn kernels_of(ptx: &str) -> BTreeSet<String> {
    let names = ptx.split(".entry ").skip(1).map(|text| text.split_once('(').unwrap().0);
    names.map(|name| name.trim().to_owned()).collect()
}

#[test]
fn no_kernel_is_asked_for_that_the_card_cannot_have() {
    let turing = kernels_of(include_str!(concat!(env!("OUT_DIR"), "/turing.ptx")));
    let ampere = kernels_of(include_str!(concat!(env!("OUT_DIR"), "/ampere.ptx")));
    let is_bf16 = |name: &&String| name.contains("bf16");
    assert_eq!(turing.iter().find(is_bf16), None);
    let added: BTreeSet<_> = ampere.difference(&turing).collect();
    assert_eq!(added, ampere.iter().filter(is_bf16).collect());
    let names = ["f32", "f16", "q8"];
    let mut asked = BTreeSet::new();
    for weights in names {
        for rings in names {
            for kind in ["published", "plain", "whole", "quantized"] {
                let order = format!("{kind} {weights} {rings} 2 2 1");
                let (_, report) = pass("steps", &order, &TURING);
                let missing: Vec<_> =
                    report.lookups.iter().filter(|name| !turing.contains(*name)).collect();
                assert!(missing.is_empty(), "{order}: {missing:?}");
                asked.extend(report.lookups);
            }
        }
    }
    assert_eq!(asked, turing, "all kernels are of use");
    let (output, report) = run("steps", "published bf16 bf16 2 2 1", &TURING);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("compute capability 7.5"), "{said}");
    assert_eq!(report.lookups.iter().find(is_bf16), None);
    let (_, report) = pass("steps", "published bf16 bf16 2 2 1", &AMPERE);
    asked.extend(report.lookups);
    assert_eq!(asked, ampere, "all kernels are of use");
}

#[test]
fn the_estimate_is_within_five_percent_of_what_is_taken() {
    for kind in ["published", "whole", "quantized"] {
        let (shape, folder) = (shape(kind), tempfile::tempdir().unwrap());
        common::write_in(folder.path(), &shape, written_in(kind));
        let mut file = folder.path().join("lm.safetensors");
        if kind == "quantized" {
            file = quantize_all(&file);
        }
        let subject = MemorySubject::new(&shape, Some(&file)).unwrap();
        for (weights, rings) in [("f32", "f32"), ("f16", "f16"), ("q8", "q8"), ("q8", "f16")] {
            for lanes in [1, 64] {
                let order = format!("{kind} {weights} {rings} {lanes} 1 1");
                let (_, report) = pass("steps", &order, &TURING);
                let taken = report.counts["memory_most"] as f64;
                let turing = DeviceKind::Cuda { compute_capability: (7, 5) };
                let needs = subject.needs(turing, precision(weights), precision(rings)).unwrap();
                let estimate = (needs.total_bytes(lanes) - needs.device_bytes) as f64;
                assert!(
                    (estimate / taken - 1.0).abs() <= 0.05,
                    "{order}: {estimate} estimated, {taken} taken"
                );
            }
        }
    }
}

#[test]
fn a_card_that_is_too_small_gets_fewer_lanes() {
    let (said, _) =
        pass("steps", "published f32 f32 64 1 1", &Emulated { memory_mib: 30, ..TURING });
    let lanes: usize = said[0].parse().unwrap();
    assert!((1..64).contains(&lanes), "{lanes}");
}

#[test]
fn what_a_driver_does_not_take_is_explained() {
    for (card, says) in [
        (Emulated { compute_capability: (7, 0), ..TURING }, "compute capability 7.0"),
        (Emulated { driver: 11_080, ..TURING }, "CUDA 11.8"),
    ] {
        let (output, _) = run("steps", "published f32 f32 1 1 1", &card);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
    }
}
