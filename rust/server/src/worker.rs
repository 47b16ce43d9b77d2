//! A server's life: load, warm up, listen, serve, end.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use moshi_ctl_core::{ModelError, StreamingModel};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::app::{App, Module, Presence, until_going_away};
use crate::body::Bodies;
use crate::config::{AsrModule, Config, ConfigError, ModuleConfig};
use crate::connections::Connections;
use crate::gpu::{GpuWatch, ReadGpus};
use crate::keys::{Keys, ReadCredentials};
use crate::limits::{CLOSE_HANDSHAKE, CUT_BEFORE_END, FAILURE_GRACE, Limits};
use crate::metrics::Metrics;
use crate::model_thread::{ModelFailure, ModelThread};
use crate::port::Port;
use crate::routes;
use crate::session::SHUTTING_DOWN;
use crate::signals::Signals;
use crate::tls::{Certificate, TlsFiles};
use crate::tokenizer::TextDecoder;
use crate::watchdog::hanging_step;

pub use crate::build_info::build_info;

/// How to serve a configuration.
pub struct WorkerOptions {
    /// Address to listen on.
    pub addr: IpAddr,
    /// Port to listen on; 0: any free one.
    pub port: u16,
    /// What opens the server; asked again at SIGHUP.
    pub credentials: ReadCredentials,
    /// Encrypts connections with this certificate; they are plain without one.
    pub tls: Option<TlsFiles>,
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
        let reload_when_started = Cell::new(false);
        let worker = tokio::select! {
            worker = Worker::start(config, options, load) => worker?,
            () = signals.until_end(|| reload_when_started.set(true)) => return Ok(()),
        };
        let (stop, reloader) = (worker.stopper(), worker.reloader());
        if reload_when_started.get() {
            reloader.reload();
        }
        let ended = worker.wait();
        tokio::pin!(ended);
        tokio::select! {
            result = &mut ended => return result,
            () = signals.until_end(|| reloader.reload()) => stop.shut_down(),
        }
        tokio::select! {
            result = ended => result,
            () = signals.until_end(|| {}) => {
                tracing::warn!("ending at once: a second signal");
                Ok(())
            }
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
pub struct RunningWorker {
    addr: SocketAddr,
    stop: Stopper,
    reloader: Reloader,
    supervisor: JoinHandle<Result<(), WorkerError>>,
}

impl std::fmt::Debug for RunningWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningWorker").field("addr", &self.addr).finish_non_exhaustive()
    }
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

/// Has a [`RunningWorker`] read its keys and its certificate again.
#[derive(Clone)]
pub struct Reloader {
    app: Arc<App>,
    certificate: Option<Arc<Certificate>>,
}

impl Reloader {
    /// Reads keys and certificate again, on a thread of its own: a disk may hang. What cannot be
    /// used is logged, and what there was stays.
    pub fn reload(&self) {
        let Self { app, certificate } = self.clone();
        tokio::task::spawn_blocking(move || {
            app.keys.reload();
            if let Some(certificate) = certificate {
                certificate.reload();
            }
        });
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

    /// A handle that has it read its keys and its certificate again.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
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
        let limits = config.limits;
        let port = claim_port(&options)?;
        let certificate = options.tls.take().map(certificate).transpose()?;
        let keys = keys(&limits, options.addr, options.credentials)?;
        let metrics =
            Metrics::new().map_err(|error| WorkerError::start(error.to_string(), "report this"))?;
        let (failures, failed) = mpsc::unbounded_channel();
        let threads = Presence::new();
        let load = Arc::new(load);
        let mut modules: Vec<Arc<Module>> = Vec::new();
        let warmup = config.warmup.enabled;
        for (name, module) in config.modules {
            let load = Arc::clone(&load);
            let thread = |text, delay| ModelThread {
                module: name.clone(),
                warmup,
                delay,
                limits,
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
        let metrics = Arc::new(metrics);
        let connections = Connections::new(&limits, Arc::clone(&metrics));
        let app = Arc::new(App {
            modules,
            keys,
            metrics,
            gpus: GpuWatch::new(options.read_gpus.take()),
            limits,
            bodies: Bodies::new(&limits),
            connections: Arc::clone(&connections),
            going_away: watch::Sender::new(false),
            sessions: Presence::new(),
            threads,
            visitors: AtomicU64::new(0),
        });
        let addr = port.addr();
        let listener = port.open().map_err(|error| port_error(addr, &error))?;
        let scheme = if certificate.is_some() { "https" } else { "http" };
        tracing::info!("listening on {scheme}://{addr}");
        let stop = Stopper(app.going_away.clone());
        let reloader = Reloader { app: Arc::clone(&app), certificate: certificate.clone() };
        let follower = certificate.clone().map(|certificate| tokio::spawn(certificate.follow()));
        let router = routes::router(Arc::clone(&app), &config.static_dir);
        let closing = watch::Sender::new(false);
        tokio::spawn(connections.serve(listener, router, certificate, closing.subscribe()));
        let supervisor = tokio::spawn(async move {
            let result = supervise(app, failed, warmup, closing).await;
            if let Some(follower) = follower {
                follower.abort();
            }
            result
        });
        Ok(RunningWorker { addr, stop, reloader, supervisor })
    }
}

fn keys(limits: &Limits, addr: IpAddr, credentials: ReadCredentials) -> Result<Keys, WorkerError> {
    let sessions_each = limits.connections_per_key.get();
    let keys =
        Keys::new(credentials, limits.allow_key_in_query, sessions_each).map_err(|error| {
            WorkerError::start(error, "correct the keys in .env, the environment or authorized_ids")
        })?;
    if keys.is_empty() && !addr.is_loopback() {
        return Err(WorkerError::start(
            format!("there is no API key, and {addr} can be reached by others"),
            "set MOSHI_API_KEY (in .env or the environment) or authorized_ids, or listen on 127.0.0.1",
        ));
    }
    Ok(keys)
}

fn certificate(files: TlsFiles) -> Result<Arc<Certificate>, WorkerError> {
    Certificate::load(files)
        .map(Arc::new)
        .map_err(|error| WorkerError::start(error.message, error.hint))
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

/// Waits for an end of the server and goes through with it. `warm`: whether models were warmed up;
/// `closing` closes the port and what has no session.
async fn supervise(
    app: Arc<App>,
    mut failed: mpsc::UnboundedReceiver<ModelFailure>,
    warm: bool,
    closing: watch::Sender<bool>,
) -> Result<(), WorkerError> {
    let mut failure = tokio::select! {
        failure = first_failure(&app, &mut failed, warm) => Some(failure),
        () = until_going_away(app.going_away.subscribe()) => None,
    };
    let deadline = if failure.is_some() {
        // Long enough for clients, health checks and a scrape to see what happened.
        sleep(FAILURE_GRACE).await;
        app.going_away.send_replace(true);
        Instant::now() + CLOSE_HANDSHAKE / 2
    } else {
        tracing::info!(sessions = app.sessions.count(), "shutting down");
        let deadline = Instant::now() + app.limits.drain_s.duration();
        failure = drain(&app, &mut failed, warm, deadline - CUT_BEFORE_END).await;
        deadline
    };
    for module in &app.modules {
        module.lanes.shut_down(SHUTTING_DOWN);
    }
    if timeout_at(deadline, app.sessions.nobody()).await.is_err() {
        tracing::warn!(sessions = app.sessions.count(), "some sessions did not end in time");
    }
    closing.send_replace(true);
    if timeout_at(deadline, app.connections.silence()).await.is_err() {
        tracing::warn!(connections = app.connections.open(), "some connections are cut");
    }
    // A step that hangs or failed is not waited for.
    if failure.is_none() && timeout_at(deadline, app.threads.nobody()).await.is_err() {
        tracing::warn!("a model is still in the middle of a step");
    }
    app.gpus.stop();
    match failure {
        Some(failure) => Err(WorkerError::model(&failure.module, failure.error)),
        None => Ok(()),
    }
}

/// Waits until a model fails or hangs.
async fn first_failure(
    app: &App,
    failed: &mut mpsc::UnboundedReceiver<ModelFailure>,
    warm: bool,
) -> ModelFailure {
    tokio::select! {
        Some(failure) = failed.recv() => failure,
        failure = hanging_step(&app.modules, &app.limits, warm) => failure,
    }
}

/// Gives sessions time to end by themselves; says so if a model fails meanwhile.
async fn drain(
    app: &App,
    failed: &mut mpsc::UnboundedReceiver<ModelFailure>,
    warm: bool,
    until: Instant,
) -> Option<ModelFailure> {
    tokio::select! {
        () = app.sessions.nobody() => None,
        failure = first_failure(app, failed, warm) => Some(failure),
        () = sleep_until(until) => {
            tracing::warn!(sessions = app.sessions.count(), "cutting sessions: drain_s is over");
            None
        }
    }
}
