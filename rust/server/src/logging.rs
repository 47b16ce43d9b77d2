//! Where log lines go: the console, and a file per instance.

use std::io::IsTerminal;
use std::path::Path;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::time::ChronoLocal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

const TIME_FORMAT: &str = "%Y-%m-%d %H:%M:%S%.3f";

/// Our own crates; only they are ever logged below `info`, because libraries may print requests
/// in full there, keys included.
const OUR_TARGETS: &str = "moshi_ctl";

/// Keeps the log file written until it is dropped.
pub(crate) struct LogGuard(
    #[expect(dead_code, reason = "flushes when dropped")] Option<WorkerGuard>,
);

/// Starts logging, unless this process logs already. A log file that cannot be written is a
/// warning, not a reason not to serve.
pub(crate) fn init(
    log_dir: &str,
    instance_name: &str,
    level: LevelFilter,
    silent: bool,
) -> LogGuard {
    let filter =
        Targets::new().with_default(level.min(LevelFilter::INFO)).with_target(OUR_TARGETS, level);
    let console = (!silent).then(|| {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            && std::io::stdout().is_terminal();
        fmt::layer()
            .with_timer(ChronoLocal::new(TIME_FORMAT.into()))
            .with_ansi(colour)
            .with_writer(std::io::stdout)
            .with_filter(filter.clone())
    });
    let opened = open_log_file(Path::new(log_dir), instance_name);
    let (file, guard, problem) = match opened {
        Ok(file) => {
            let (writer, guard) = tracing_appender::non_blocking(file);
            let layer = fmt::layer()
                .with_timer(ChronoLocal::new(TIME_FORMAT.into()))
                .with_ansi(false)
                .with_writer(writer)
                .with_filter(filter);
            (Some(layer), Some(guard), None)
        }
        Err(error) => (None, None, Some(error)),
    };
    // Somebody else's subscriber stays; tests have one per process, and so may an embedder.
    let _ = tracing_subscriber::registry().with(console).with(file).try_init();
    if let Some(error) = problem {
        tracing::warn!(log_dir, "no log file: {error}");
    }
    LogGuard(guard)
}

fn open_log_file(log_dir: &Path, instance_name: &str) -> std::io::Result<std::fs::File> {
    std::fs::create_dir_all(log_dir)?;
    let path = log_dir.join(format!("log.{instance_name}"));
    std::fs::OpenOptions::new().create(true).append(true).open(path)
}
