//! What a model takes up: its weights, and the lanes that are used.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::process::Command;

use moshi_ctl_core::{CodecShape, LaneFrame, LmShape, Precision, StreamingModel};
use moshi_ctl_engine::{AsrModel, AsrSpec, DeviceKind, Kernels, MemorySubject};

mod common;

const MIB: f64 = 1024.0 * 1024.0;

/// What a child process is to load: a shape, lanes, those of them that are used, a precision, and
/// whose kernels compute.
const ORDER: &str = "MOSHI_CTL_TEST_MEMORY";
/// The folder with the files.
const FOLDER: &str = "MOSHI_CTL_TEST_FOLDER";

/// Lanes whose rings are large beside everything else: of each lane more than 20 MiB in eight bits.
fn large_rings() -> LmShape {
    let mut shape = common::shape();
    shape.transformer.d_model = 512;
    shape.transformer.num_heads = 8;
    shape.transformer.num_layers = 4;
    shape.transformer.context = 5_000;
    shape
}

/// Weights that are large beside everything else: 60 MiB in eight bits.
fn large_weights() -> LmShape {
    let mut shape = common::shape();
    shape.transformer.d_model = 1024;
    shape.transformer.num_heads = 8;
    shape.transformer.num_layers = 5;
    shape.transformer.dim_feedforward = 4096;
    shape
}

/// The proportions of STT 1B at a fifth of its width.
fn published() -> LmShape {
    let mut shape = common::shape();
    shape.transformer.d_model = 384;
    shape.transformer.num_layers = 16;
    shape.transformer.num_heads = 6;
    shape.transformer.dim_feedforward = 1536;
    shape.transformer.context = 750;
    shape.audio_codebooks = 16;
    shape.audio_vocab_size = 2049;
    shape.text_in_vocab_size = 8001;
    shape.text_out_vocab_size = 8000;
    shape.codec = CodecShape { n_filters: 32, dimension: 256, ..CodecShape::default() };
    shape
}

/// Of a process.
#[derive(Debug, Clone, Copy)]
struct Memory {
    /// Not counting files.
    anonymous: f64,
    /// All that is resident.
    resident: f64,
    /// The most that ever was resident.
    peak: f64,
    /// [`Memory::anonymous`] before anything was loaded.
    before: f64,
}

impl Memory {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib: f64 = line.unwrap().trim().strip_suffix(" kB").unwrap().parse().unwrap();
            1024.0 * kib
        };
        Self {
            anonymous: bytes("RssAnon"),
            resident: bytes("VmRSS"),
            peak: bytes("VmHWM"),
            before: 0.0,
        }
    }
}

/// The memory of a process that has loaded a model, filled the contexts of its first `used` lanes
/// and stepped them.
fn measure(
    shape: &str,
    (lanes, used): (usize, usize),
    precision: Precision,
    folder: &std::path::Path,
) -> Memory {
    measure_with(Kernels::Own, shape, (lanes, used), precision, folder)
}

/// [`measure`], whoever computes.
fn measure_with(
    kernels: Kernels,
    shape: &str,
    (lanes, used): (usize, usize),
    precision: Precision,
    folder: &std::path::Path,
) -> Memory {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(ORDER, format!("{shape} {lanes} {used} {precision} {kernels:?}"))
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("memory: ")).unwrap().1;
    let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
    let mut next = || numbers.next().unwrap();
    Memory { anonymous: next(), resident: next(), peak: next(), before: next() }
}

fn named(shape: &str) -> LmShape {
    match shape {
        "rings" => large_rings(),
        "weights" => large_weights(),
        "published" => published(),
        other => panic!("{other}"),
    }
}

#[test]
#[ignore = "what the other tests run as a process of its own"]
fn child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let folder = std::env::var(FOLDER).unwrap();
    let [shape, lanes, used, precision, kernels] = *order.split(' ').collect::<Vec<_>>() else {
        panic!("{order}")
    };
    let precision = Precision::ALL.into_iter().find(|p| p.name() == precision).unwrap();
    let shape = named(shape);
    let (lanes, used) = (lanes.parse().unwrap(), used.parse().unwrap());
    let before = Memory::now().anonymous;
    let (folder, precisions) = (std::path::Path::new(&folder), (precision, precision));
    let mut model = if kernels == "Candle" {
        let (kernels, kv_precision) = (Kernels::Candle, None);
        let spec = common::spec(folder, &shape, lanes, precisions);
        AsrModel::load(&AsrSpec { kernels, kv_precision, ..spec }).unwrap()
    } else {
        common::load(folder, &shape, lanes, precisions)
    };
    let pcm = common::noise(0);
    for lane in 0..used {
        model.fill_context(lane).unwrap();
    }
    let frames: Vec<_> = (0..used).map(|lane| LaneFrame { lane, pcm: &pcm }).collect();
    for _ in 0..3 {
        model.step(&frames).unwrap();
    }
    let Memory { anonymous, resident, peak, .. } = Memory::now();
    println!("memory: {anonymous} {resident} {peak} {before}");
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc/self/status, which Linux alone has")]
fn idle_lanes_take_no_memory() {
    /// Bookkeeping of a lane, and pages that idle lanes share with others.
    const MOST_PER_IDLE_LANE: f64 = 0.1 * MIB;
    const LANES: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    common::write(folder.path(), &large_rings());
    for precision in Precision::ALL {
        let one = measure("rings", (1, 1), precision, folder.path()).anonymous;
        let many = measure("rings", (LANES, 1), precision, folder.path()).anonymous;
        let of_each = (many - one) / (LANES - 1) as f64;
        println!("{precision}: {} MiB with one lane, {} with {LANES}", one / MIB, many / MIB);
        assert!(
            of_each <= MOST_PER_IDLE_LANE,
            "{precision}: {:.1} MiB with one lane, {:.1} with {LANES}",
            one / MIB,
            many / MIB
        );
    }
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc/self/status, which Linux alone has")]
fn loading_takes_little_more_than_what_stays() {
    let folder = tempfile::tempdir().unwrap();
    common::write(folder.path(), &large_weights());
    for precision in [Precision::Q8, Precision::Bf16, Precision::F32] {
        let Memory { resident, peak, .. } = measure("weights", (2, 1), precision, folder.path());
        println!("{precision}: {} MiB stay, {} at most", resident / MIB, peak / MIB);
        assert!(
            peak <= 1.1 * resident,
            "{precision}: {:.1} MiB stay, but {:.1} were taken in between",
            resident / MIB,
            peak / MIB
        );
    }
}

/// Says how far an estimate is from what a process has taken, and fails when that is far.
fn compare(what: &str, estimate: u64, taken: Memory) {
    const MOST_OFF: f64 = 0.05;
    let (taken, estimate) = (taken.anonymous - taken.before, estimate as f64);
    let said = format!("{what}: {:.1} MiB taken, {:.1} estimated", taken / MIB, estimate / MIB);
    println!("{said}");
    assert!((estimate / taken - 1.0).abs() <= MOST_OFF, "{said}");
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc/self/status, which Linux alone has")]
fn the_estimate_is_within_five_percent_of_what_a_process_takes() {
    for (name, lanes) in [("rings", 3), ("weights", 2), ("published", 6)] {
        let folder = tempfile::tempdir().unwrap();
        let shape = named(name);
        common::write(folder.path(), &shape);
        let lm = folder.path().join("lm.safetensors");
        let with_file = MemorySubject::new(&shape, Some(&lm)).unwrap();
        let without = MemorySubject::new(&shape, None).unwrap();
        for precision in Precision::ALL {
            let needs = with_file.needs(DeviceKind::Cpu, precision, precision).unwrap();
            // The file is as published ones are, so nothing is known less without it.
            assert_eq!(without.needs(DeviceKind::Cpu, precision, precision).unwrap(), needs);
            let taken = measure(name, (lanes, lanes), precision, folder.path());
            compare(&format!("{name} {precision}"), needs.total_bytes(lanes), taken);
        }
    }
}

/// candle holds the same tensors on every device, and this machine may have no other. Steps are left
/// out: on a CPU candle makes f32 of bf16 on the way.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc/self/status, which Linux alone has")]
fn the_estimate_for_a_card_is_that_of_the_same_weights_here() {
    let folder = tempfile::tempdir().unwrap();
    let shape = large_weights();
    common::write(folder.path(), &shape);
    let subject = MemorySubject::new(&shape, None).unwrap();
    for (precision, kv_precision) in [
        (Precision::F32, Precision::F32),
        (Precision::F16, Precision::F16),
        (Precision::Bf16, Precision::Bf16),
        (Precision::Q8, Precision::F16),
    ] {
        // A card also has the driver's own memory, which is known for none here.
        let needs = subject.needs(DeviceKind::Metal, precision, kv_precision).unwrap();
        let held = needs.fixed_bytes() + needs.lane_state_bytes;
        let taken = measure_with(Kernels::Candle, "weights", (1, 0), precision, folder.path());
        compare(&precision.to_string(), held, taken);
    }
}
