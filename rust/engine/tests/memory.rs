//! What a model takes up: its weights, and the lanes that are used.

#![allow(clippy::unwrap_used, reason = "clippy only knows functions marked #[test] as tests")]

use std::process::Command;

use moshi_ctl_core::{LaneFrame, LmShape, Precision, StreamingModel};

mod common;

const MIB: f64 = 1024.0 * 1024.0;

/// What a child process is to load: lanes and a precision.
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

/// Of a process.
#[derive(Debug, Clone, Copy)]
struct Memory {
    /// Not counting files.
    anonymous: f64,
    /// All that is resident.
    resident: f64,
    /// The most that ever was resident.
    peak: f64,
}

impl Memory {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib: f64 = line.unwrap().trim().strip_suffix(" kB").unwrap().parse().unwrap();
            1024.0 * kib
        };
        Self { anonymous: bytes("RssAnon"), resident: bytes("VmRSS"), peak: bytes("VmHWM") }
    }
}

/// The memory of a process that has loaded a model and stepped its first lane.
fn measure(shape: &str, lanes: usize, precision: Precision, folder: &std::path::Path) -> Memory {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(ORDER, format!("{shape} {lanes} {precision}"))
        .env(FOLDER, folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("memory: ")).unwrap().1;
    let mut numbers = line.split(' ').map(|number| number.parse().unwrap());
    let mut next = || numbers.next().unwrap();
    Memory { anonymous: next(), resident: next(), peak: next() }
}

fn named(shape: &str) -> LmShape {
    if shape == "rings" { large_rings() } else { large_weights() }
}

#[test]
#[ignore = "what the other tests run as a process of its own"]
fn child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let folder = std::env::var(FOLDER).unwrap();
    let [shape, lanes, precision] = *order.split(' ').collect::<Vec<_>>() else {
        panic!("{order}")
    };
    let precision = Precision::ALL.into_iter().find(|p| p.name() == precision).unwrap();
    let shape = named(shape);
    let lanes = lanes.parse().unwrap();
    let mut model =
        common::load(std::path::Path::new(&folder), &shape, lanes, (precision, precision));
    let pcm = common::noise(0);
    for _ in 0..3 {
        model.step(&[LaneFrame { lane: 0, pcm: &pcm }]).unwrap();
    }
    let Memory { anonymous, resident, peak } = Memory::now();
    println!("memory: {anonymous} {resident} {peak}");
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
        let one = measure("rings", 1, precision, folder.path()).anonymous;
        let many = measure("rings", LANES, precision, folder.path()).anonymous;
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
        let Memory { resident, peak, .. } = measure("weights", 2, precision, folder.path());
        println!("{precision}: {} MiB stay, {} at most", resident / MIB, peak / MIB);
        assert!(
            peak <= 1.1 * resident,
            "{precision}: {:.1} MiB stay, but {:.1} were taken in between",
            resident / MIB,
            peak / MIB
        );
    }
}
