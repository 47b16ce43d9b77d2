//! Precisions by their names.

use moshi_ctl_core::Precision;
use pyo3::prelude::*;

use crate::errors::usage_error;

/// What leaves a precision to the engine.
const AUTO: &str = "auto";

/// The precision called `name`.
pub(crate) fn named(py: Python<'_>, name: &str) -> PyResult<Precision> {
    Precision::ALL.into_iter().find(|precision| precision.name() == name).ok_or_else(|| {
        let names = Precision::ALL.map(Precision::name).join(", ");
        usage_error(py, &format!("`{name}` is no precision"), &format!("use one of {names}"))
    })
}

/// The precision a command asks for: `auto` leaves it to the engine, no name to the configuration.
pub(crate) fn wish(
    py: Python<'_>,
    name: Option<&str>,
    configured: Option<Precision>,
) -> PyResult<Option<Precision>> {
    match name {
        None => Ok(configured),
        Some(AUTO) => Ok(None),
        Some(name) => named(py, name).map(Some),
    }
}
