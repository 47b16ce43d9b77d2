//! `memory_needs`: what a module takes up, before anything is loaded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moshi_ctl_core::{DeviceName, Precision};
use moshi_ctl_engine::{DeviceKind, EngineError, MemorySubject, choose_precision};
use pyo3::prelude::*;
use serde_json::{Map, Value, json};

use crate::errors::{model_file_error, usage_error};
use crate::precision::wish;
use crate::{load_config, module_called, to_python};

/// What `module` takes up on `device`, by precision, and which precision is chosen for it there.
/// `files` maps the file strings of the configuration to those that are here; of models that are
/// not, the shape says it. `compute_capability` is that of a CUDA device.
#[pyfunction]
#[pyo3(signature = (
    config_path, module, *, files, device, compute_capability, precision, kv_precision
))]
// One parameter per command line option; Python's keywords keep them apart.
#[allow(clippy::too_many_arguments)]
pub(crate) fn memory_needs<'py>(
    py: Python<'py>,
    config_path: PathBuf,
    module: &str,
    files: BTreeMap<String, PathBuf>,
    device: &str,
    compute_capability: Option<(u32, u32)>,
    precision: Option<&str>,
    kv_precision: Option<&str>,
) -> PyResult<Bound<'py, PyAny>> {
    let config = load_config(py, &config_path)?;
    let asr = module_called(py, &config, module)?;
    let kind = device_kind(py, device, compute_capability)?;
    let precision = wish(py, precision, asr.precision)?;
    let kv_precision = wish(py, kv_precision, asr.kv_precision)?;
    let cannot = |error: EngineError| {
        usage_error(py, &format!("module {module}: {error}"), error.hint().unwrap_or_default())
    };
    let choice = choose_precision(kind, precision, kv_precision).map_err(cannot)?;

    let file_error = |error: EngineError| model_file_error(py, &error);
    let lm_file = files.get(&asr.lm_model_file).map(PathBuf::as_path);
    let subject = MemorySubject::new(&asr.model, lm_file).map_err(file_error)?;
    let mut by_precision = Map::new();
    for precision in Precision::ALL {
        // Keys and values as they are wished for, else as they go with that precision.
        let entry = match choose_precision(kind, Some(precision), kv_precision) {
            Ok(choice) => {
                let needs = subject.needs(kind, precision, choice.kv_precision);
                let needs = needs.map_err(file_error)?;
                let mut entry = json!(needs);
                entry["kv_precision"] = json!(choice.kv_precision);
                entry["lane_bytes"] = json!(needs.lane_bytes());
                entry
            }
            Err(_) => Value::Null,
        };
        by_precision.insert(precision.name().into(), entry);
    }
    to_python(
        py,
        &json!({
            "precision": choice.precision,
            "kv_precision": choice.kv_precision,
            "reason": choice.reason,
            "by_precision": by_precision,
            "parameters_in_file": subject.parameters_in_file(),
        }),
    )
}

fn device_kind(
    py: Python<'_>,
    device: &str,
    compute_capability: Option<(u32, u32)>,
) -> PyResult<DeviceKind> {
    match (device.parse::<DeviceName>(), compute_capability) {
        (Ok(DeviceName::Cpu), _) => Ok(DeviceKind::Cpu),
        (Ok(DeviceName::Metal), _) => Ok(DeviceKind::Metal),
        (Ok(DeviceName::Cuda(_)), Some(compute_capability)) => {
            Ok(DeviceKind::Cuda { compute_capability })
        }
        (Ok(DeviceName::Cuda(_)), None) => Err(usage_error(
            py,
            &format!("the compute capability of {device} is not known"),
            "pass compute_capability",
        )),
        (Err(error), _) => Err(usage_error(py, &error.to_string(), "name a device")),
    }
}
