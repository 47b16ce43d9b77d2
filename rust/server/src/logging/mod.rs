//! Where log lines go: the console, and the files of an instance.
//!
//! Both are written by threads of their own behind queues that drop what does not fit, so that
//! neither a session nor a model ever waits for a disk or a terminal.

mod format;
mod rotating_file;
pub mod traces;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{DefaultFields, Format};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use format::{FileFields, Json, JsonFields, Text};
use rotating_file::{RotatingFile, local_time};
use traces::Traces;

pub use tracing::level_filters::LevelFilter;

/// Our own crates, and our own half of Python; only they are ever logged below `info`, because
/// libraries may print requests in full there, keys included.
const OUR_TARGETS: &str = "moshi_ctl";
const OUR_LOGGER: &str = "moshi_ctl";

/// What Python says; the target of a line is then the name of its logger.
const CONTROLLER: &str = "moshi_ctl_controller";
/// The same, where the console shows it in another way.
const CONTROLLER_NOT_ON_CONSOLE: &str = "moshi_ctl_controller_not_on_console";

/// Lines that wait to be written: a few megabytes at most.
const QUEUE_LINES: usize = 16 * 1024;

static LOST: OnceLock<(Arc<AtomicU64>, ErrorCounter)> = OnceLock::new();
static ERRORS: AtomicU64 = AtomicU64::new(0);
static WARNINGS: AtomicU64 = AtomicU64::new(0);
static INFOS: AtomicU64 = AtomicU64::new(0);

/// How lines look, on the console and in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged, and where.
#[derive(Debug)]
pub struct LogOptions {
    /// Folder of the log files; made where there is none.
    pub dir: PathBuf,
    /// Name of the files behind `log.`
    pub instance: String,
    /// How much is logged.
    pub level: LevelFilter,
    /// How lines look.
    pub format: LogFormat,
    /// Whether the console stays empty.
    pub silent: bool,
    /// Bytes of a file before the next one is begun.
    pub max_file_bytes: u64,
    /// How many files are kept beside the one that is written.
    pub max_files: usize,
    /// Address of the OpenTelemetry collector that gets traces, if one does.
    pub otlp_endpoint: Option<String>,
}

/// What of the options cannot be done.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct LogError {
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl LogError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Writes what is left when it is dropped.
#[must_use]
#[derive(Debug)]
pub struct LogGuard {
    // Dropped first: it may have something to say.
    _traces: Option<Traces>,
    _writers: Vec<WorkerGuard>,
}

/// Starts logging, unless this process logs already. Files that cannot be written are a warning,
/// not a reason not to serve.
///
/// # Errors
/// When the collector's address is none.
pub fn start(options: LogOptions) -> Result<LogGuard, LogError> {
    let LogOptions { format, level, .. } = options;
    let traces = options.otlp_endpoint.as_deref();
    let traces = traces.map(|endpoint| Traces::new(endpoint, &options.instance)).transpose()?;
    let mut guards = Vec::new();

    let console = (!options.silent).then(|| {
        let (writer, guard) = queue("log-console", Console(io::stdout()));
        guards.push(guard);
        console_layer(format, level, wants_colours(format), writer)
    });

    let file = RotatingFile::new(
        &options.dir,
        &options.instance,
        options.max_file_bytes,
        options.max_files,
        Box::new(local_time),
        Box::new(move |lost, reason| format::lost_note(format, lost, reason)),
    );
    let lost = file.lost();
    let (writer, guard) = queue("log-file", file);
    guards.push(guard);
    let counter = writer.error_counter();
    let file = file_layer(format, level, writer);

    // Somebody else's subscriber stays; tests have one per process, and so may an embedder.
    let subscriber = tracing_subscriber::registry()
        .with(console)
        .with(file)
        .with(traces.as_ref().map(Traces::layer))
        .with(Counting.with_filter(filter(level)));
    if subscriber.try_init().is_ok() {
        // Only the first subscriber comes here.
        let _ = LOST.set((lost, counter));
    }
    Ok(LogGuard { _traces: traces, _writers: guards })
}

/// A line of Python's: `level` is `error`, `warn`, `info`, `debug` or `trace`, `target` the name of
/// a logger. Those that end up on standard error anyway need not be `on_console` for people.
pub fn log(level: &str, target: &str, message: &str, on_console: bool) {
    let is_ours = target
        .strip_prefix(OUR_LOGGER)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    macro_rules! say {
        ($level:expr) => {
            if on_console {
                tracing::event!(target: CONTROLLER, $level, log.target = target, "{message}")
            } else {
                tracing::event!(
                    target: CONTROLLER_NOT_ON_CONSOLE, $level, log.target = target, "{message}"
                )
            }
        };
    }
    match level {
        "error" => say!(Level::ERROR),
        "warn" => say!(Level::WARN),
        "info" => say!(Level::INFO),
        "debug" if is_ours => say!(Level::DEBUG),
        "trace" if is_ours => say!(Level::TRACE),
        _ => {}
    }
}

/// Lines that did not get into the log file since the process began, because the disk is full, the
/// folder cannot be written or the queue was full.
pub fn dropped_lines() -> u64 {
    LOST.get()
        .map_or(0, |(lost, queue)| lost.load(Ordering::Relaxed) + queue.dropped_lines() as u64)
}

/// How many messages of each level were logged since the process began.
pub fn messages() -> [(&'static str, u64); 3] {
    [("error", &ERRORS), ("warn", &WARNINGS), ("info", &INFOS)]
        .map(|(level, count)| (level, count.load(Ordering::Relaxed)))
}

fn filter(level: LevelFilter) -> Targets {
    Targets::new().with_default(level.min(LevelFilter::INFO)).with_target(OUR_TARGETS, level)
}

fn wants_colours(format: LogFormat) -> bool {
    format == LogFormat::Text
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && io::stdout().is_terminal()
}

fn queue(thread: &str, writer: impl Write + Send + 'static) -> (NonBlocking, WorkerGuard) {
    NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE_LINES)
        .thread_name(thread)
        .finish(writer)
}

type AnyLayer<S> = Box<dyn Layer<S> + Send + Sync>;

fn console_layer<S, W>(
    format: LogFormat,
    level: LevelFilter,
    colours: bool,
    writer: W,
) -> AnyLayer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_ansi(colours).log_internal_errors(false).with_writer(writer);
    match format {
        LogFormat::Text => {
            let filter = filter(level).with_target(CONTROLLER_NOT_ON_CONSOLE, LevelFilter::OFF);
            layer.event_format(Text::new()).with_filter(filter).boxed()
        }
        LogFormat::Json => json_layer(layer, level),
    }
}

fn file_layer<S, W>(format: LogFormat, level: LevelFilter, writer: W) -> AnyLayer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // What goes wrong inside would go to standard error, and panic where that is closed.
    let layer = fmt::layer().with_ansi(false).log_internal_errors(false).with_writer(writer);
    match format {
        LogFormat::Text => {
            let layer = layer.fmt_fields(FileFields::default()).event_format(Text::new());
            layer.with_filter(filter(level)).boxed()
        }
        LogFormat::Json => json_layer(layer, level),
    }
}

fn json_layer<S, W>(
    layer: fmt::Layer<S, DefaultFields, Format, W>,
    level: LevelFilter,
) -> AnyLayer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    layer.fmt_fields(JsonFields).event_format(Json).with_filter(filter(level)).boxed()
}

/// Standard output, closed or full or not.
struct Console(io::Stdout);

impl Write for Console {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Counts messages by level.
struct Counting;

impl<S: Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let count = match *event.metadata().level() {
            Level::ERROR => &ERRORS,
            Level::WARN => &WARNINGS,
            Level::INFO => &INFOS,
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A disk that does nothing until it is told to.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            // Told to by the end of the sender.
            let _ = self.0.recv();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_disk_that_is_stuck() {
        let (go_on, told) = channel();
        let (mut queue, _guard) = queue("stuck", Stuck(told));
        for _ in 0..QUEUE_LINES + 100 {
            queue.write_all(b"line\n").unwrap();
        }
        // One may be on its way to the disk.
        assert!([99, 100].contains(&queue.error_counter().dropped_lines()));
        drop(go_on);
    }
}
