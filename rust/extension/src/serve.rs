//! `serve`: the server with the engine behind it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use moshi_ctl_core::{DeviceName, ModelError, StreamingModel, UnknownDevice};
use moshi_ctl_engine::{AsrSpec, Conditioning, Kernels, RealTimeModel, load_what_fits};
use moshi_ctl_server::config::{AsrModule, BatchSize};
use moshi_ctl_server::worker::{self, WorkerOptions};
use moshi_ctl_server::{ApiKey, Credentials, GpuReading, ReadCredentials, ReadGpus, TlsFiles};
use pyo3::prelude::*;

use crate::errors::{message_of, usage_error, worker_error};
use crate::load_config;
use crate::precision::named;

/// What the controller decided for a module.
#[derive(Debug, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Decision {
    device: String,
    lanes: usize,
    precision: String,
    kv_precision: String,
}

/// Serves a configuration until SIGINT or SIGTERM. `files` maps the file strings of the
/// configuration to the local paths found for them. `decisions` say for each module where it runs,
/// how, and with how many lanes at most. `read_keys` says which keys hold beside or instead of the
/// configuration's, now and at every SIGHUP. `tls_cert` and `tls_key` are given together or not at
/// all. `warmup` replaces what the configuration says of it; `gpu_readings` tells how the cards are,
/// and is called every few seconds.
#[pyfunction]
#[pyo3(signature = (
    config_path, *, addr, port, threads, decisions, files, read_keys,
    tls_cert, tls_key, warmup, gpu_readings
))]
// One parameter per command line option; Python's keywords keep them apart.
#[allow(clippy::too_many_arguments)]
pub(crate) fn serve(
    py: Python<'_>,
    config_path: PathBuf,
    addr: &str,
    port: u16,
    threads: Option<usize>,
    decisions: BTreeMap<String, Decision>,
    files: BTreeMap<String, PathBuf>,
    read_keys: Py<PyAny>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    warmup: Option<bool>,
    gpu_readings: Option<Py<PyAny>>,
) -> PyResult<()> {
    let addr: IpAddr = addr.parse().map_err(|_| {
        let message = format!("`{addr}` is not an IP address");
        usage_error(py, &message, "use 127.0.0.1 for this machine only, 0.0.0.0 for everybody")
    })?;
    let mut config = load_config(py, &config_path)?;
    config.resolve(&files);
    if let Some(enabled) = warmup {
        config.warmup.enabled = enabled;
    }
    let mut wishes = BTreeMap::new();
    for (name, module) in &mut config.modules {
        let Some(decision) = decisions.get(name) else {
            let message = format!("nothing was decided for module `{name}`");
            return Err(usage_error(py, &message, "decide for every module"));
        };
        let module = module.asr_mut();
        if let BatchSize::Lanes(lanes) = module.batch_size {
            wishes.insert(name.clone(), lanes);
        }
        module.batch_size = BatchSize::Lanes(decision.lanes);
        module.precision = Some(named(py, &decision.precision)?);
        module.kv_precision = Some(named(py, &decision.kv_precision)?);
        module.device = Some(device(py, &decision.device)?);
    }
    let read_gpus = gpu_readings.map(read_gpus);
    let tls = match (tls_cert, tls_key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
        (None, None) => None,
        _ => {
            let message = "a certificate and its key go together, and one of them is missing";
            return Err(usage_error(py, message, "give both --tls-cert and --tls-key, or none"));
        }
    };
    let credentials = credentials(config_path, read_keys);
    let options = WorkerOptions { addr, port, credentials, tls, read_gpus };
    let devices: Vec<_> = config.modules.values().map(|module| module.asr().device).collect();
    let real_time = config.sizing.real_time;
    let load =
        move |name: &str, module: &AsrModule| -> Result<Box<dyn StreamingModel>, ModelError> {
            let model = load_what_fits(spec(module, threads))?;
            let model: Box<dyn StreamingModel> = if real_time {
                let models = devices.iter().filter(|device| **device == module.device).count();
                let wish = wishes.get(name).copied();
                Box::new(RealTimeModel { model, models, wish })
            } else {
                Box::new(model)
            };
            #[cfg(feature = "faults")]
            let model = crate::faults::injected(model)?;
            Ok(model)
        };
    py.detach(|| worker::run(config, options, Box::new(load)))
        .map_err(|error| worker_error(py, &error))
}

/// What Python says of the keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct PythonKeys {
    /// Names and keys; none: those of the configuration hold.
    api_keys: Option<Vec<(String, String)>>,
    jwt_secret: Option<String>,
}

/// Asks Python for the keys and, where it has none, the configuration's file.
fn credentials(config_path: PathBuf, read_keys: Py<PyAny>) -> ReadCredentials {
    Box::new(move || {
        let read = Python::attach(|py| {
            let keys = read_keys.call0(py)?.extract::<PythonKeys>(py)?;
            let api_keys = match keys.api_keys {
                Some(keys) => keys.iter().map(|(name, key)| ApiKey::new(name, key)).collect(),
                None => load_config(py, &config_path)?.authorized_ids,
            };
            Ok(Credentials { keys: api_keys, jwt_secret: keys.jwt_secret })
        });
        // Python's errors of ours repeat no key; of others nothing is said.
        read.map_err(|error: PyErr| message_of(&error))
    })
}

/// What Python says of a card.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Reading {
    device: String,
    name: String,
    uuid: String,
    memory_used_bytes: u64,
    memory_total_bytes: u64,
    utilization_ratio: Option<f64>,
    power_watts: Option<f64>,
    temperature_celsius: Option<f64>,
}

impl From<Reading> for GpuReading {
    fn from(reading: Reading) -> Self {
        Self {
            device: reading.device,
            name: reading.name,
            uuid: reading.uuid,
            memory_used_bytes: reading.memory_used_bytes,
            memory_total_bytes: reading.memory_total_bytes,
            utilization_ratio: reading.utilization_ratio,
            power_watts: reading.power_watts,
            temperature_celsius: reading.temperature_celsius,
        }
    }
}

/// Asks Python how the cards are; what it cannot say is missing, and said once in the log.
fn read_gpus(readings: Py<PyAny>) -> ReadGpus {
    let complained = std::sync::Once::new();
    Box::new(move || {
        let read = Python::attach(|py| readings.call0(py)?.extract::<Vec<Reading>>(py));
        match read {
            Ok(readings) => readings.into_iter().map(GpuReading::from).collect(),
            Err(error) => {
                complained.call_once(|| tracing::error!("no metrics of the cards: {error}"));
                Vec::new()
            }
        }
    })
}

/// The device called `name`.
pub(crate) fn device(py: Python<'_>, name: &str) -> PyResult<DeviceName> {
    name.parse().map_err(|error: UnknownDevice| {
        usage_error(py, &error.to_string(), "name a device of this machine")
    })
}

/// What the engine is asked for by `module`.
pub(crate) fn spec(module: &AsrModule, threads: Option<usize>) -> AsrSpec {
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
        lanes: match module.batch_size {
            BatchSize::Lanes(lanes) => lanes,
            // Whoever has not decided yet gets the least.
            BatchSize::Auto => 1,
        },
        temperature: module.temperature,
        conditioning,
        precision: module.precision,
        kv_precision: module.kv_precision,
        device: module.device,
        kernels: Kernels::default(),
        threads,
    }
}
