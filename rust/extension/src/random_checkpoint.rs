//! `write_random_checkpoint`: files for a module that has none.

use std::path::PathBuf;

use moshi_ctl_core::Precision;
use moshi_ctl_engine::random_checkpoint::{
    RandomOptions, write_audio_tokenizer, write_language_model, write_text_tokenizer,
};
use pyo3::prelude::*;

use crate::errors::model_file_error;
use crate::precision::named;
use crate::{load_config, module_called};

/// Writes the three files of `module` with random weights. `precision` is the language model's;
/// the codec is always f32, as published.
#[pyfunction]
#[pyo3(signature = (
    config_path, module, *, lm_model_file, audio_tokenizer_file, text_tokenizer_file, seed, precision
))]
// One parameter per file; Python's keywords keep them apart.
#[allow(clippy::too_many_arguments)]
pub(crate) fn write_random_checkpoint(
    py: Python<'_>,
    config_path: PathBuf,
    module: &str,
    lm_model_file: PathBuf,
    audio_tokenizer_file: PathBuf,
    text_tokenizer_file: PathBuf,
    seed: u64,
    precision: &str,
) -> PyResult<()> {
    let config = load_config(py, &config_path)?;
    let precision = named(py, precision)?;
    let shape = &module_called(py, &config, module)?.model;
    py.detach(|| {
        let of = |precision| RandomOptions { seed, precision };
        write_language_model(shape, &lm_model_file, &of(precision))?;
        write_audio_tokenizer(shape, &audio_tokenizer_file, &of(Precision::F32))?;
        write_text_tokenizer(shape.text_out_vocab_size, &text_tokenizer_file, seed)
    })
    .map_err(|error| model_file_error(py, &error))
}
