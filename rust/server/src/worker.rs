//! A server's life: load, warm up, listen, serve, end.

use std::net::IpAddr;

use moshi_ctl_core::{ModelError, StreamingModel};

use crate::config::{AsrModule, Config, ConfigError};

/// How to serve a configuration.
pub struct WorkerOptions {
    /// Address to listen on.
    pub addr: IpAddr,
    /// Port to listen on; 0: any free one.
    pub port: u16,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
    /// Whether the console stays empty.
    pub silent: bool,
    /// Keys that replace the configuration's, if there is at least one.
    pub api_keys: Option<Vec<String>>,
}

/// Loads the model of the module with this name.
pub type LoadModel =
    Box<dyn Fn(&str, &AsrModule) -> Result<Box<dyn StreamingModel>, ModelError> + Send + Sync>;

/// Why a server did not start, or ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The configuration names something that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model could not be loaded or warmed up, or failed while serving.
    #[error("module {module}: {message}")]
    Model {
        /// Name of the module.
        module: String,
        /// What happened.
        message: String,
        /// What to do next, where that is known.
        hint: Option<String>,
    },
    /// The server cannot run the way it was asked to.
    #[error("{message}")]
    Start {
        /// What happened.
        message: String,
        /// What to do next, where that is known.
        hint: Option<String>,
    },
}

impl WorkerError {
    /// What to do next, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Config(error) => error.hint.as_deref(),
            Self::Model { hint, .. } | Self::Start { hint, .. } => hint.as_deref(),
        }
    }
}

/// Serves until SIGINT or SIGTERM.
///
/// # Errors
/// When the start fails or a model fails while serving.
pub fn run(config: Config, options: WorkerOptions, load: LoadModel) -> Result<(), WorkerError> {
    let _ = (config, options, load);
    Err(WorkerError::Start { message: "serving is not built yet".into(), hint: None })
}

pub use crate::build_info::build_info;
