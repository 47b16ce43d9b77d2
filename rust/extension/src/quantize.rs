//! `quantize`: the eight-bit file of a language model.

use std::path::PathBuf;

use pyo3::prelude::*;

use crate::errors::model_file_error;
use crate::to_python;

/// Writes the language model in `source` to `target` with its matrices in eight bits, replacing
/// what is there. Returns how many tensors were quantized and kept, and the bytes of both files.
#[pyfunction]
pub(crate) fn quantize(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
) -> PyResult<Bound<'_, PyAny>> {
    let done = py
        .detach(|| moshi_ctl_engine::quantize(&source, &target))
        .map_err(|error| model_file_error(py, &error))?;
    let summary = serde_json::json!({
        "quantized": done.quantized,
        "kept": done.kept,
        "bytes_in": done.bytes_in,
        "bytes_out": done.bytes_out,
    });
    to_python(py, &summary)
}
