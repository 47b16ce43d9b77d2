//! Times the steps of one engine in a process of its own, and prints one line of JSON. The
//! scripts in `benchmarks` run it for both engines and put the results side by side.
//!
//!     moshi-ctl-bench-step write --shape SHAPE --folder FOLDER
//!     moshi-ctl-bench-step bandwidth --device cuda:N
//!     moshi-ctl-bench-step ours|reference --shape SHAPE --folder FOLDER --lanes N --active N
//!         --warmup N --steps N [--context empty|full]
//!         [--device cpu|cuda:N] [--precision f32|f16|bf16|q8] [--kv f32|f16|bf16|q8]
//!         [--threads N]
//!
//! SHAPE: see [`shapes::named`]. The CPU and f32 where nothing else is asked for; the reference also
//! has bf16. The last two are for ours: its choice where they are missing. On a card ours runs when
//! this is built with the feature `cuda`, the reference with `cuda-reference`.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use moshi_ctl_core::{DeviceName, ModelError, Precision};
use moshi_ctl_engine::measure::{Context, Memory, Plan, StepTime, Subject, measure};
use moshi_ctl_engine::{AsrModel, AsrSpec, ThreadTime};
use moshi_ctl_reference::audio::{asset, read_frames};
use moshi_ctl_reference::bench::Reference;
use moshi_ctl_reference::checkpoints::Checkpoints;
use moshi_ctl_reference::{Result, shapes};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let options = Options::read(arguments)?;
    if mode == "bandwidth" {
        let DeviceName::Cuda(number) = options.text("--device")?.parse()? else {
            return Err("--device: a card's bandwidth is asked for, such as cuda:0".into());
        };
        println!("{}", json!({"bytes_per_s": moshi_ctl_engine::card_bandwidth(number)?}));
        return Ok(());
    }
    let shape = shapes::named(options.text("--shape")?)?;
    let folder = Path::new(options.text("--folder")?);
    if mode == "write" {
        std::fs::create_dir_all(folder)?;
        Checkpoints::write(folder, shape, 1, Precision::Bf16)?;
        return Ok(());
    }

    let files = Checkpoints::at(folder, shape);
    let lanes = options.number("--lanes")?;
    let plan = Plan {
        active: options.number("--active")?,
        context: match options.optional("--context") {
            None | Some("empty") => Context::Empty,
            Some("full") => Context::Full,
            Some(other) => return Err(format!("--context: {other}: empty or full").into()),
        },
        warmup: options.number("--warmup")?,
        steps: options.number::<NonZeroUsize>("--steps")?,
    };
    let started = Instant::now();
    let (mut subject, about) = load(&mode, &files, lanes, &options)?;
    let load_s = started.elapsed().as_secs_f64();
    let loaded = Memory::now();
    let speech = read_frames(&asset("speech-long.wav"))?;
    let times = measure(subject.as_mut(), &speech, &plan, || Ok::<_, ModelError>(()))?;
    let ms = |part: fn(&StepTime) -> Duration| -> Vec<f64> {
        times.iter().map(|time| 1e3 * part(time).as_secs_f64()).collect()
    };
    // Milliseconds of all threads together; nothing for the reference.
    let threads = |work: fn(&ThreadTime) -> Duration| -> Vec<f64> {
        let of_step = times.iter().filter_map(|time| time.parts.threads.as_ref());
        of_step.map(|threads| 1e3 * work(threads).as_secs_f64()).collect()
    };
    let line = json!({
        "engine": mode,
        "about": about,
        "lanes": lanes,
        "active": plan.active,
        "load_s": load_s,
        "step_ms": ms(|time| time.whole),
        "codec_ms": ms(|time| time.parts.codec),
        "lm_ms": ms(|time| time.parts.lm),
        "codec_products_thread_ms": threads(|spent| spent.codec.products),
        "codec_attention_thread_ms": threads(|spent| spent.codec.attention),
        "codec_rest_thread_ms": threads(|spent| spent.codec.rest),
        "lm_products_thread_ms": threads(|spent| spent.lm.products),
        "lm_attention_thread_ms": threads(|spent| spent.lm.attention),
        "lm_rest_thread_ms": threads(|spent| spent.lm.rest),
        "loaded": loaded,
        "end": Memory::now(),
        "matrix_numbers": shapes::matrix_numbers(&files.shape),
        "ring_numbers_per_lane": shapes::ring_numbers(&files.shape),
    });
    println!("{line}");
    Ok(())
}

/// The engine that `mode` names, and how it computes.
fn load(
    mode: &str,
    files: &Checkpoints,
    lanes: usize,
    options: &Options,
) -> Result<(Box<dyn Subject>, Value)> {
    let device: DeviceName = options.optional("--device").unwrap_or("cpu").parse()?;
    match mode {
        "ours" => {
            let spec = files.spec(lanes);
            let spec = AsrSpec {
                precision: options.precision("--precision")?.or(spec.precision),
                kv_precision: options.precision("--kv")?.or(spec.kv_precision),
                device: Some(device),
                threads: options.optional("--threads").map(str::parse).transpose()?,
                ..spec
            };
            let model = AsrModel::load(&spec)?;
            let processor = model.processor();
            let about = json!({
                "precision": model.precision(),
                "kv_precision": model.kv_precision(),
                "threads": processor.map(|processor| processor.threads),
                "instructions": processor.map(|processor| processor.instructions),
            });
            Ok((Box::new(model), about))
        }
        "reference" => {
            for ours in ["--kv", "--threads"] {
                if options.optional(ours).is_some() {
                    return Err(format!("{ours}: the reference has no such option").into());
                }
            }
            let precision = options.precision("--precision")?.unwrap_or(Precision::F32);
            let about = json!({"precision": precision, "kv_precision": precision});
            Ok((Box::new(Reference::load(files, lanes, device, precision)?), about))
        }
        _ => Err("first comes `write`, `ours` or `reference`".into()),
    }
}

/// `--name value` pairs.
struct Options(HashMap<String, String>);

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = HashMap::new();
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            options.insert(name, value);
        }
        Ok(Self(options))
    }

    fn optional(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn text(&self, name: &str) -> Result<&str> {
        Ok(self.optional(name).ok_or_else(|| format!("{name} is missing"))?)
    }

    fn number<N: FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<N> {
        Ok(self.text(name)?.parse().map_err(|error| format!("{name}: {error}"))?)
    }

    fn precision(&self, name: &str) -> Result<Option<Precision>> {
        let Some(wanted) = self.optional(name) else { return Ok(None) };
        let precision = Precision::ALL.into_iter().find(|precision| precision.name() == wanted);
        Ok(Some(precision.ok_or_else(|| format!("{name}: {wanted} is no precision"))?))
    }
}
