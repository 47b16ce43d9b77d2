//! `serve`: the server with the engine behind it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use moshi_ctl_core::{ModelError, StreamingModel};
use moshi_ctl_engine::{AsrModel, AsrSpec, Conditioning, Kernels};
use moshi_ctl_server::config::AsrModule;
use moshi_ctl_server::worker::{self, WorkerOptions};
use pyo3::prelude::*;

use crate::errors::{usage_error, worker_error};
use crate::load_config;
use crate::precision::wish;

/// Serves a configuration until SIGINT or SIGTERM. `files` maps the file strings of the
/// configuration to the local paths found for them. `precision`, `kv_precision` and `api_keys`
/// replace what the configuration says of them, `auto` being the engine's choice; tokens signed by
/// `jwt_secret` are keys beside those.
#[pyfunction]
#[pyo3(signature = (
    config_path, *, addr, port, log_level, silent, cpu, threads, precision, kv_precision, files,
    api_keys, jwt_secret
))]
// One parameter per command line option; Python's keywords keep them apart.
#[allow(clippy::too_many_arguments)]
pub(crate) fn serve(
    py: Python<'_>,
    config_path: PathBuf,
    addr: &str,
    port: u16,
    log_level: String,
    silent: bool,
    cpu: bool,
    threads: Option<usize>,
    precision: Option<&str>,
    kv_precision: Option<&str>,
    files: BTreeMap<String, PathBuf>,
    api_keys: Option<Vec<String>>,
    jwt_secret: Option<String>,
) -> PyResult<()> {
    let addr: IpAddr = addr.parse().map_err(|_| {
        let message = format!("`{addr}` is not an IP address");
        usage_error(py, &message, "use 127.0.0.1 for this machine only, 0.0.0.0 for everybody")
    })?;
    let mut config = load_config(py, &config_path)?;
    config.resolve(&files);
    for module in config.modules.values_mut() {
        let module = module.asr_mut();
        module.precision = wish(py, precision, module.precision)?;
        module.kv_precision = wish(py, kv_precision, module.kv_precision)?;
    }
    let options = WorkerOptions { addr, port, log_level, silent, api_keys, jwt_secret };
    let load = move |_: &str, module: &AsrModule| -> Result<Box<dyn StreamingModel>, ModelError> {
        Ok(Box::new(AsrModel::load(&spec(module, cpu, threads))?))
    };
    py.detach(|| worker::run(config, options, Box::new(load)))
        .map_err(|error| worker_error(py, &error))
}

/// What the engine is asked for by `module`.
pub(crate) fn spec(module: &AsrModule, cpu: bool, threads: Option<usize>) -> AsrSpec {
    // Published configurations set conditioning_learnt_padding without having conditioners.
    let conditioning =
        module.model.conditioners.as_ref().map(|_| match module.conditioning_delay {
            Some(delay_s) => Conditioning::DelaySeconds(delay_s),
            None => Conditioning::LearntPadding,
        });
    AsrSpec {
        lm_model_file: PathBuf::from(&module.lm_model_file),
        audio_tokenizer_file: PathBuf::from(&module.audio_tokenizer_file),
        shape: module.model.clone(),
        lanes: module.batch_size,
        temperature: module.temperature,
        conditioning,
        precision: module.precision,
        kv_precision: module.kv_precision,
        cpu,
        kernels: Kernels::default(),
        threads,
    }
}
