//! `start_logging`, `log` and `stop_logging`: one log for both halves of the program.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use moshi_ctl_server::logging::{self, LevelFilter, LogFormat, LogGuard, LogOptions};
use pyo3::prelude::*;

use crate::errors::usage_error;

static GUARD: Mutex<Option<LogGuard>> = Mutex::new(None);

/// Starts logging: to the console unless `silent`, and to files `log.INSTANCE_NAME` in `log_dir`;
/// and traces, if there is a collector for them at `otlp_endpoint`.
/// Once per process; later calls change nothing.
#[pyfunction]
#[pyo3(signature = (
    *, log_dir, instance_name, level, log_format, silent, max_file_bytes, max_files,
    otlp_endpoint
))]
// One parameter per command line option; Python's keywords keep them apart.
#[allow(clippy::too_many_arguments)]
pub(crate) fn start_logging(
    py: Python<'_>,
    log_dir: PathBuf,
    instance_name: String,
    level: &str,
    log_format: &str,
    silent: bool,
    max_file_bytes: u64,
    max_files: usize,
    otlp_endpoint: Option<String>,
) -> PyResult<()> {
    let level: LevelFilter = level.parse().map_err(|_| {
        let message = format!("`{level}` is not a log level");
        usage_error(py, &message, "use off, error, warn, info, debug or trace")
    })?;
    let format = match log_format {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => {
            let message = format!("`{log_format}` is not a format of a log");
            return Err(usage_error(py, &message, "use text or json"));
        }
    };
    let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        let options = LogOptions {
            dir: log_dir,
            instance: instance_name,
            level,
            format,
            silent,
            max_file_bytes,
            max_files,
            otlp_endpoint,
        };
        let started = logging::start(options);
        *guard = Some(started.map_err(|error| usage_error(py, &error.message, &error.hint))?);
    }
    Ok(())
}

/// Logs a line of Python's, at once and without ever failing. `target` is the logger's name.
#[pyfunction]
#[pyo3(signature = (level, target, message, *, on_console = true))]
pub(crate) fn log(level: &str, target: &str, message: &str, on_console: bool) {
    logging::log(level, target, message, on_console);
}

/// Writes what is left; what is logged afterwards is lost.
#[pyfunction]
pub(crate) fn stop_logging(py: Python<'_>) {
    let guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner).take();
    py.detach(|| drop(guard));
}
