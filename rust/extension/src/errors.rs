//! The one place where Rust's errors become Python's. The classes live in `moshi_ctl.errors`, so
//! that Python has one hierarchy, whichever half an error comes from.

use moshi_ctl_engine::EngineError;
use moshi_ctl_server::config::ConfigError;
use moshi_ctl_server::worker::WorkerError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub(crate) fn config_error(py: Python<'_>, error: &ConfigError) -> PyErr {
    build(py, "ConfigError", &error.message, |details| {
        details.set_item("hint", error.hint.as_deref())?;
        details.set_item("file", error.file.display().to_string())?;
        details.set_item("line", error.line)?;
        details.set_item("key", error.key.as_deref())
    })
}

pub(crate) fn worker_error(py: Python<'_>, error: &WorkerError) -> PyErr {
    match error {
        WorkerError::Config(error) => config_error(py, error),
        _ => build(py, "WorkerError", &error.to_string(), |details| {
            details.set_item("hint", error.hint())
        }),
    }
}

pub(crate) fn model_file_error(py: Python<'_>, error: &EngineError) -> PyErr {
    build(py, "ModelFileError", &error.to_string(), |details| {
        details.set_item("hint", error.hint())
    })
}

/// An argument that the Python half should never have passed on.
pub(crate) fn usage_error(py: Python<'_>, message: &str, hint: &str) -> PyErr {
    build(py, "UsageError", message, |details| details.set_item("hint", hint))
}

fn build(
    py: Python<'_>,
    class: &str,
    message: &str,
    fill: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>,
) -> PyErr {
    let exception = || {
        let details = PyDict::new(py);
        fill(&details)?;
        py.import("moshi_ctl.errors")?.getattr(class)?.call((message,), Some(&details))
    };
    match exception() {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// What an error of ours says, and what to do about it; of others only their type, for they may
/// quote anything.
pub(crate) fn message_of(error: &PyErr) -> String {
    Python::attach(|py| {
        let value = error.value(py);
        let is_ours = py
            .import("moshi_ctl.errors")
            .and_then(|errors| value.is_instance(&errors.getattr("MoshiCtlError")?))
            .unwrap_or(false);
        if !is_ours {
            return format!("unexpected {}", error.get_type(py));
        }
        let hint = value.getattr("hint").and_then(|hint| hint.extract::<Option<String>>());
        match hint {
            Ok(Some(hint)) => format!("{value}; {hint}"),
            _ => value.to_string(),
        }
    })
}
