//! A server's life: load, warm up, listen, serve, end.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::serve::ListenerExt;
use moshi_ctl_core::{ModelError, StreamingModel};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::app::{App, Module, Presence, until_going_away};
use crate::config::{AsrModule, Config, ConfigError, ModuleConfig};
use crate::gpu::{GpuWatch, ReadGpus};
use crate::limits::{DRAIN_DEADLINE, FAILURE_GRACE, Patience};
use crate::metrics::Metrics;
use crate::model_thread::{ModelFailure, ModelThread};
use crate::port::Port;
use crate::routes;
use crate::secret::{ApiKey, KeyRing};
use crate::signals::Signals;
use crate::token::TokenVerifier;
use crate::tokenizer::TextDecoder;

pub use crate::build_info::build_info;

/// How to serve a configuration.
pub struct WorkerOptions {
    /// Address to listen on.
    pub addr: IpAddr,
    /// Port to listen on; 0: any free one.
    pub port: u16,
    /// Keys that replace the configuration's, if there is at least one.
    pub api_keys: Option<Vec<String>>,
    /// Secret of JSON Web Tokens (HS256) that are keys beside the plain ones; blank is none.
    pub jwt_secret: Option<String>,
    /// What asks the machine's cards how they are, every few seconds on a thread of its own; none
    /// without a card.
    pub read_gpus: Option<ReadGpus>,
}

/// Loads the model of the module with this name; called on the thread that will step it. The model
/// may have another number of lanes than the configuration says.
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

    fn start(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Start { message: message.into(), hint: Some(hint.into()) }
    }

    fn model(module: &str, error: ModelError) -> Self {
        Self::Model { module: module.into(), message: error.message, hint: error.hint }
    }
}

/// Serves until SIGINT or SIGTERM, and then until the sessions are closed or a second signal.
/// Logging, and to log the error, are up to the caller.
///
/// # Errors
/// When the start fails or a model fails while serving.
pub fn run(config: Config, options: WorkerOptions, load: LoadModel) -> Result<(), WorkerError> {
    let info = build_info();
    let [version, commit, built, target] =
        ["version", "git_hash", "build_timestamp", "cargo_target_triple"]
            .map(|fact| info[fact].as_str().unwrap_or_default());
    tracing::info!(version, commit, built, target, "starting");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
            WorkerError::start(format!("no threads: {error}"), "raise the limit of processes")
        })?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new().map_err(|error| {
            WorkerError::start(format!("no signal handlers: {error}"), "report this")
        })?;
        let worker = tokio::select! {
            worker = Worker::start(config, options, load) => worker?,
            () = signals.next() => return Ok(()),
        };
        let stop = worker.stopper();
        let ended = worker.wait();
        tokio::pin!(ended);
        tokio::select! {
            result = &mut ended => return result,
            () = signals.next() => stop.shut_down(),
        }
        tokio::select! {
            result = ended => result,
            () = signals.next() => Ok(()),
        }
    });
    if result.is_ok() {
        tracing::info!("ended");
    }
    // A model in the middle of a step is not waited for.
    runtime.shutdown_background();
    result
}

/// Starts servers.
#[derive(Debug)]
pub struct Worker;

/// A server that accepts connections.
#[derive(Debug)]
pub struct RunningWorker {
    addr: SocketAddr,
    stop: Stopper,
    supervisor: JoinHandle<Result<(), WorkerError>>,
}

/// Ends a [`RunningWorker`].
#[derive(Debug, Clone)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Closes every session, lets nobody in any more and ends the server.
    pub fn shut_down(&self) {
        self.0.send_replace(true);
    }
}

impl RunningWorker {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// A handle that ends it.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// [`Stopper::shut_down`].
    pub fn shutdown(&self) {
        self.stop.shut_down();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When a model failed.
    pub async fn wait(self) -> Result<(), WorkerError> {
        self.supervisor.await.unwrap_or_else(|error| {
            Err(WorkerError::start(format!("the server failed: {error}"), "report this"))
        })
    }
}

impl Worker {
    /// Loads and warms up every model, then opens the port. Needs a tokio runtime; logging is up
    /// to the caller.
    ///
    /// # Errors
    /// When anything the configuration asks for is not to be had.
    pub async fn start(
        config: Config,
        mut options: WorkerOptions,
        load: LoadModel,
    ) -> Result<RunningWorker, WorkerError> {
        let keys = keys(&config, &options)?;
        let port = claim_port(&options)?;
        let metrics =
            Metrics::new().map_err(|error| WorkerError::start(error.to_string(), "report this"))?;
        let (failures, failed) = mpsc::unbounded_channel();
        let threads = Presence::new();
        let load = Arc::new(load);
        let mut modules: Vec<Arc<Module>> = Vec::new();
        for (name, module) in config.modules {
            let load = Arc::clone(&load);
            let warmup = config.warmup.enabled;
            let thread = |text, delay| ModelThread {
                module: name.clone(),
                warmup,
                delay,
                text,
                metrics: metrics.module(&name),
                failures: failures.clone(),
                present: threads.enter(),
            };
            let started = start_module(name.clone(), module, load, thread);
            match started.await {
                Ok(module) => modules.push(Arc::new(module)),
                Err(error) => {
                    // Their threads end, and the memory of their models is free again.
                    for module in modules {
                        module.lanes.shut_down("the start failed");
                    }
                    return Err(error);
                }
            }
        }
        let app = Arc::new(App {
            modules,
            keys,
            metrics,
            gpus: GpuWatch::new(options.read_gpus.take()),
            patience: Patience::default(),
            going_away: watch::Sender::new(false),
            sessions: Presence::new(),
            threads,
            visitors: AtomicU64::new(0),
        });
        let addr = port.addr();
        let listener = port.open().map_err(|error| port_error(addr, &error))?;
        tracing::info!("listening on http://{addr}");
        let stop = Stopper(app.going_away.clone());
        let server = tokio::spawn(serve(listener, Arc::clone(&app), config.static_dir));
        let supervisor = tokio::spawn(supervise(app, server, failed));
        Ok(RunningWorker { addr, stop, supervisor })
    }
}

fn keys(config: &Config, options: &WorkerOptions) -> Result<KeyRing, WorkerError> {
    let keys = match &options.api_keys {
        Some(keys) if !keys.is_empty() => keys.iter().map(ApiKey::new).collect(),
        _ => config.authorized_ids.clone(),
    };
    let secret = options.jwt_secret.as_deref().filter(|secret| !secret.trim().is_empty());
    let ring = KeyRing::new(keys, secret.map(|secret| TokenVerifier::new(secret.as_bytes())));
    if ring.is_empty() && !options.addr.is_loopback() {
        return Err(WorkerError::start(
            format!("there is no API key, and {} can be reached by others", options.addr),
            "set MOSHI_API_KEY (in .env or the environment) or authorized_ids, or listen on 127.0.0.1",
        ));
    }
    Ok(ring)
}

fn claim_port(options: &WorkerOptions) -> Result<Port, WorkerError> {
    let addr = SocketAddr::new(options.addr, options.port);
    Port::claim(addr).map_err(|error| port_error(addr, &error))
}

fn port_error(addr: SocketAddr, error: &std::io::Error) -> WorkerError {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => WorkerError::start(
            format!("port {} on {} is in use", addr.port(), addr.ip()),
            "end the program that uses it, or choose another port with --port",
        ),
        std::io::ErrorKind::PermissionDenied => WorkerError::start(
            format!("port {} needs rights this user does not have", addr.port()),
            "choose a port above 1023 with --port",
        ),
        _ => WorkerError::start(
            format!("cannot listen on {addr}: {error}"),
            "choose an address of this machine with --addr",
        ),
    }
}

/// Loads and warms up one model on the thread that `thread` makes of its text decoder and delay.
async fn start_module(
    name: String,
    config: ModuleConfig,
    load: Arc<LoadModel>,
    thread: impl FnOnce(TextDecoder, usize) -> ModelThread,
) -> Result<Module, WorkerError> {
    let asr = config.asr();
    if asr.log_frequency_s.is_some() {
        tracing::warn!(module = name, "log_frequency_s has no effect: tokens are not logged");
    }
    let tokenizer = Path::new(&asr.text_tokenizer_file);
    let text = TextDecoder::load(tokenizer, asr.model.text_out_vocab_size).map_err(|error| {
        WorkerError::model(&name, ModelError::new(error.message).with_hint(error.hint))
    })?;
    tracing::info!(module = name, path = asr.path, "loading the model");
    let ready = {
        let (name, asr) = (name.clone(), asr.clone());
        thread(text, config.delay_in_tokens()).spawn(move || load(&name, &asr))
    };
    let ready = match ready {
        Ok(ready) => ready.await.unwrap_or_else(|_| Err(ModelError::new("its thread ended"))),
        Err(error) => Err(ModelError::new(format!("no thread for it: {error}"))),
    };
    let lanes = ready.map_err(|error| WorkerError::model(&name, error))?;
    Ok(Module { name, config, lanes })
}

async fn serve(listener: TcpListener, app: Arc<App>, static_dir: String) {
    let ending = until_going_away(app.going_away.subscribe());
    let service =
        routes::router(app, &static_dir).into_make_service_with_connect_info::<SocketAddr>();
    let listener = listener.tap_io(|connection| {
        // Messages are small and wanted at once; without this the connection still works.
        let _ = connection.set_nodelay(true);
    });
    // `serve` survives every error of a connection and returns no other.
    let _ = axum::serve(listener, service).with_graceful_shutdown(ending).await;
}

/// Waits for an end of the server and goes through with it.
async fn supervise(
    app: Arc<App>,
    mut server: JoinHandle<()>,
    mut failed: mpsc::UnboundedReceiver<ModelFailure>,
) -> Result<(), WorkerError> {
    let result = tokio::select! {
        Some(failure) = failed.recv() => {
            // Long enough for clients and health checks to see what happened.
            sleep(FAILURE_GRACE).await;
            app.going_away.send_replace(true);
            Err(WorkerError::model(&failure.module, failure.error))
        }
        () = until_going_away(app.going_away.subscribe()) => {
            tracing::info!("shutting down");
            Ok(())
        }
    };
    let deadline = Instant::now() + DRAIN_DEADLINE;
    if timeout_at(deadline, app.sessions.nobody()).await.is_err() {
        tracing::warn!("some sessions did not end in time");
    }
    for module in &app.modules {
        module.lanes.shut_down("the server is shutting down");
    }
    if timeout_at(deadline, &mut server).await.is_err() {
        server.abort();
    }
    if timeout_at(deadline, app.threads.nobody()).await.is_err() {
        tracing::warn!("a model is still in the middle of a step");
    }
    app.gpus.stop();
    result
}
