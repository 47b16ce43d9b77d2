//! `bench`: how many streams the model of a module keeps in real time on this machine.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use moshi_ctl_core::ModelError;
use moshi_ctl_engine::measure::{Context, Memory, Plan, Summary, measure, synthetic_speech};
use moshi_ctl_engine::{AsrModel, AsrSpec};
use moshi_ctl_server::config::MAX_LANES;
use moshi_ctl_server::worker::WorkerError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::errors::{usage_error, worker_error};
use crate::serve::{self, spec};
use crate::{load_config, module_called, precision, to_python};

/// Steps until caches and clock rates have settled.
const WARMUP_STEPS: usize = 5;

/// Long enough that neighbouring lanes hear different things.
const RECORDING_FRAMES: usize = 375;

const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// Loads the model of `module` with as many lanes as the largest of `lanes` and measures its steps
/// with each number of lanes, smallest first. `files` is that of `serve`; `progress` is called
/// with each number of lanes before it is measured. A signal's exception ends it between two
/// steps.
#[pyfunction]
#[pyo3(signature = (
    config_path, module, *, files, lanes, full_context, steps, threads, precision, device, progress
))]
// One parameter per command line option; Python's keywords keep them apart.
#[allow(clippy::too_many_arguments)]
pub(crate) fn bench<'py>(
    py: Python<'py>,
    config_path: PathBuf,
    module: &str,
    files: BTreeMap<String, PathBuf>,
    mut lanes: Vec<usize>,
    full_context: bool,
    steps: usize,
    threads: Option<usize>,
    precision: Option<&str>,
    device: Option<&str>,
    progress: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    lanes.sort_unstable();
    lanes.dedup();
    let most_lanes = match (lanes.first(), lanes.last()) {
        (Some(1..), Some(&most)) if most <= MAX_LANES => most,
        _ => {
            let message = format!("lanes: {lanes:?}, but each must be within 1 and {MAX_LANES}");
            return Err(usage_error(py, &message, "write numbers such as 1,2,4,8"));
        }
    };
    let steps = NonZeroUsize::new(steps)
        .ok_or_else(|| usage_error(py, "steps: is 0", "measure at least one step"))?;
    let mut config = load_config(py, &config_path)?;
    config.resolve(&files);
    let module_config = module_called(py, &config, module)?;
    let failed = |py, error: ModelError| {
        let ModelError { message, hint } = error;
        worker_error(py, &WorkerError::Model { module: module.to_owned(), message, hint })
    };

    let spec = spec(module_config, threads);
    let device = device.map(|name| serve::device(py, name)).transpose()?.or(spec.device);
    let precision = precision::wish(py, precision, spec.precision)?;
    let spec = AsrSpec { lanes: most_lanes, precision, device, ..spec };
    let (model, load_s) = in_background(py, move || {
        let started = Instant::now();
        (AsrModel::load(&spec), started.elapsed().as_secs_f64())
    })?;
    let mut model = model.map_err(|error| failed(py, error.into()))?;
    let after_load = Memory::now();

    let recording = synthetic_speech(RECORDING_FRAMES);
    let context = if full_context { Context::Full } else { Context::Empty };
    let mut measurements = vec![];
    for active in lanes {
        progress.call1((active,))?;
        let plan = Plan { active, context, warmup: WARMUP_STEPS, steps };
        let times = py.detach(|| {
            measure(&mut model, &recording, &plan, || {
                Python::attach(|py| py.check_signals()).map_err(Stop::Signal)
            })
        });
        let times = times.map_err(|stop| match stop {
            Stop::Signal(error) => error,
            Stop::Model(error) => failed(py, error),
        })?;
        measurements.push(report(active, &Summary::new(&times)));
    }
    let processor = model.processor();
    to_python(
        py,
        &json!({
            "precision": model.precision(),
            "kv_precision": model.kv_precision(),
            "device": model.device().to_string(),
            "card_bytes": model.card_bytes(),
            "threads": processor.map(|processor| processor.threads),
            "instructions": processor.map(|processor| processor.instructions),
            "loaded_lanes": most_lanes,
            "load_s": load_s,
            "resident_after_load_bytes": after_load.map(|memory| memory.resident_bytes),
            "peak_resident_bytes": Memory::now().and_then(|memory| memory.peak_resident_bytes),
            "warmup_steps": WARMUP_STEPS,
            "steps": steps,
            "measurements": measurements,
        }),
    )
}

fn report(lanes: usize, summary: &Summary) -> Value {
    let mut report = json!(summary);
    report["lanes"] = json!(lanes);
    report["resident_bytes"] = json!(Memory::now().map(|memory| memory.resident_bytes));
    report
}

/// Why a measurement ended early.
enum Stop {
    Model(ModelError),
    Signal(PyErr),
}

impl From<ModelError> for Stop {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}

/// Runs `work` on a thread of its own and answers to signals meanwhile. `work` cannot be broken
/// off: after a signal's exception its thread is left to itself, and ends with the process.
fn in_background<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    let thread = thread::Builder::new().spawn(work)?;
    while !thread.is_finished() {
        py.detach(|| thread::sleep(SIGNALS_EVERY));
        py.check_signals()?;
    }
    thread.join().map_err(|_| PyRuntimeError::new_err("loading the model panicked, see above"))
}
