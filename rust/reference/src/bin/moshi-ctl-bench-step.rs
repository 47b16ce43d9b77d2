//! Times the steps of one engine in a process of its own, and prints one line of JSON.
//! `benchmarks/engine_step.py` runs it for both engines and puts the results side by side.
//!
//!     moshi-ctl-bench-step write --shape SHAPE --folder FOLDER
//!     moshi-ctl-bench-step ours|reference --shape SHAPE --folder FOLDER --lanes N --active N
//!         --warmup N --steps N
//!
//! SHAPE: see [`shapes::named`].

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use moshi_ctl_core::Precision;
use moshi_ctl_reference::audio::{asset, read_frames};
use moshi_ctl_reference::bench::{Ours, Reference, Subject, time_steps};
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::{Result, shapes};
use serde_json::json;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let mut options = HashMap::new();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        options.insert(name, value);
    }
    let text = |name: &str| options.get(name).ok_or_else(|| format!("{name} is missing"));
    let number = |name: &str| {
        Ok::<usize, Box<dyn std::error::Error + Send + Sync>>(
            text(name)?.parse().map_err(|e| format!("{name}: {e}"))?,
        )
    };
    let shape = shapes::named(text("--shape")?)?;
    let folder = Path::new(text("--folder")?);
    if mode == "write" {
        std::fs::create_dir_all(folder)?;
        Checkpoints::write(folder, shape, 1, Precision::Bf16)?;
        return Ok(());
    }

    let files = Checkpoints::at(folder, shape);
    let (lanes, active) = (number("--lanes")?, number("--active")?);
    let started = Instant::now();
    let mut subject: Box<dyn Subject> = match mode.as_str() {
        "ours" => Box::new(Ours::load(&files, lanes)?),
        "reference" => Box::new(Reference::load(&files, lanes)?),
        _ => return Err("first comes `write`, `ours` or `reference`".into()),
    };
    let load_s = started.elapsed().as_secs_f64();
    let loaded = memory()?;
    let speech = read_frames(&asset("speech-long.wav"))?;
    let steps =
        time_steps(subject.as_mut(), &speech, active, number("--warmup")?, number("--steps")?)?;
    let ms = |duration: &dyn Fn(usize) -> Duration| -> Vec<f64> {
        (0..steps.len()).map(|n| duration(n).as_secs_f64() * 1e3).collect()
    };
    let line = json!({
        "engine": mode,
        "lanes": lanes,
        "active": active,
        "load_s": load_s,
        "step_ms": ms(&|n| steps[n].0),
        "codec_ms": ms(&|n| steps[n].1.codec),
        "lm_ms": ms(&|n| steps[n].1.lm),
        "loaded": loaded,
        "end": memory()?,
    });
    println!("{line}");
    Ok(())
}

/// What the kernel says about this process, in bytes: the highest resident size so far, the
/// present one, and how much of that is not a file's pages. Linux only; empty elsewhere.
fn memory() -> Result<HashMap<String, usize>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut memory = HashMap::new();
    for line in status.lines() {
        if let Some((name @ ("VmHWM" | "VmRSS" | "RssAnon"), value)) = line.split_once(':') {
            let kib: usize = value.trim().trim_end_matches(" kB").parse()?;
            memory.insert(name.to_owned(), 1024 * kib);
        }
    }
    Ok(memory)
}
