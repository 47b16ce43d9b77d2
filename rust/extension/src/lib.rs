//! The private Python module `moshi_ctl._native`. Thin: it turns arguments into the server's and
//! the engine's types, and their errors into Python's (in [`errors`]). Its interface is written
//! down in `python/moshi_ctl/_native.pyi`.

mod bench;
mod errors;
#[cfg(feature = "faults")]
mod faults;
mod logs;
mod memory_needs;
mod precision;
mod quantize;
mod random_checkpoint;
mod serve;

use std::path::PathBuf;

use moshi_ctl_core::units;
use moshi_ctl_server::config::{AsrModule, Config, ModuleConfig};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use serde_json::Value;

use errors::{config_error, usage_error};

/// What was built, when and from which commit.
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    to_python(py, &moshi_ctl_server::worker::build_info())
}

/// Every metric of a server: name, kind, labels and meaning.
#[pyfunction]
fn metrics_table(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    to_python(py, &moshi_ctl_server::metrics_table())
}

/// Every limit of a server: name, unit, default and meaning.
#[pyfunction]
fn limits_table(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    to_python(py, &moshi_ctl_server::config::limits_table())
}

/// The device called `name`, by the name that configurations and decisions have for it.
#[pyfunction]
fn device_name(py: Python<'_>, name: &str) -> PyResult<String> {
    Ok(serve::device(py, name)?.to_string())
}

/// Why this build can use no NVIDIA card here, whatever the cards are; None where it can, and of
/// builds without CUDA.
#[pyfunction]
fn cuda_obstacle(py: Python<'_>) -> Option<String> {
    py.detach(|| moshi_ctl_engine::cuda_obstacle().map(|error| error.to_string()))
}

/// What computes on this CPU, with as many threads as are wished for, and what else could.
#[pyfunction]
fn processor(py: Python<'_>, threads: Option<usize>) -> PyResult<Bound<'_, PyAny>> {
    let processor = moshi_ctl_engine::processor(threads)
        .map_err(|error| usage_error(py, &error.to_string(), error.hint().unwrap_or_default()))?;
    let facts = serde_json::json!({
        "threads": processor.threads,
        "instructions": processor.instructions,
        "available_instructions": moshi_ctl_engine::available_instructions(),
    });
    to_python(py, &facts)
}

/// Reads and checks a configuration; with `require_files`, its local files must exist. The result
/// never holds a key, only how many there are.
#[pyfunction]
#[pyo3(signature = (path, *, require_files))]
fn read_config(py: Python<'_>, path: PathBuf, require_files: bool) -> PyResult<Bound<'_, PyAny>> {
    let config = load_config(py, &path)?;
    if require_files {
        config.check_files().map_err(|error| config_error(py, &error))?;
    }
    let mut summary = config.summary_json();
    summary["files"] = config
        .files()
        .into_iter()
        .map(
            |file| serde_json::json!({"module": file.module, "key": file.key, "value": file.value}),
        )
        .collect();
    to_python(py, &summary)
}

/// Where `$NAME` in a configuration comes from: the process's environment, which Python's
/// `os.environ` writes through to.
fn load_config(py: Python<'_>, path: &std::path::Path) -> PyResult<Config> {
    Config::load(path, |name| std::env::var(name).ok()).map_err(|error| config_error(py, &error))
}

/// The module of `config` called `name`.
fn module_called<'c>(py: Python<'_>, config: &'c Config, name: &str) -> PyResult<&'c AsrModule> {
    config.modules.get(name).map(ModuleConfig::asr).ok_or_else(|| {
        let message = format!("the configuration has no module `{name}`");
        usage_error(py, &message, "name one of its modules")
    })
}

fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (value.to_string(),))
}

/// The native half of `moshi_ctl`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SAMPLE_RATE_HZ", units::SAMPLE_RATE_HZ)?;
    module.add("FRAME_SAMPLES", units::FRAME_SAMPLES)?;
    module.add("MAX_LANES", moshi_ctl_server::config::MAX_LANES)?;
    module.add("MAX_THREADS", moshi_ctl_engine::MAX_THREADS)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)?;
    module.add_function(wrap_pyfunction!(read_config, module)?)?;
    module.add("ACCELERATORS", PyTuple::new(module.py(), moshi_ctl_engine::accelerators())?)?;
    module.add_function(wrap_pyfunction!(device_name, module)?)?;
    module.add_function(wrap_pyfunction!(cuda_obstacle, module)?)?;
    module.add_function(wrap_pyfunction!(processor, module)?)?;
    module.add_function(wrap_pyfunction!(bench::bench, module)?)?;
    module.add_function(wrap_pyfunction!(memory_needs::memory_needs, module)?)?;
    module.add_function(wrap_pyfunction!(metrics_table, module)?)?;
    module.add_function(wrap_pyfunction!(limits_table, module)?)?;
    module.add_function(wrap_pyfunction!(logs::start_logging, module)?)?;
    module.add_function(wrap_pyfunction!(logs::log, module)?)?;
    module.add_function(wrap_pyfunction!(logs::stop_logging, module)?)?;
    module.add_function(wrap_pyfunction!(serve::serve, module)?)?;
    module.add_function(wrap_pyfunction!(quantize::quantize, module)?)?;
    module.add_function(wrap_pyfunction!(random_checkpoint::write_random_checkpoint, module)?)?;
    Ok(())
}
