//! Measures what metrics and log lines take of the threads they are for, and prints one line of
//! JSON: nanoseconds of each step, line and
//! scrape.
//!
//!     moshi-ctl-observability LANES STEPS LINES SCRAPES
//!
//! Lines go to a log file in a temporary folder, and nowhere else.

use std::time::Duration;

use moshi_ctl_reference::Result;
use moshi_ctl_server::logging::{self, LevelFilter, LogFormat, LogOptions};
use moshi_ctl_server::measure;
use serde_json::json;

fn main() -> Result<()> {
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse())
        .collect::<std::result::Result<_, _>>()?;
    let [lanes, steps, lines, scrapes] = numbers[..] else {
        return Err("give LANES STEPS LINES SCRAPES".into());
    };
    let folder = tempfile::tempdir()?;
    let _log = logging::start(LogOptions {
        dir: folder.path().into(),
        instance: "measured".into(),
        level: LevelFilter::INFO,
        format: LogFormat::Text,
        silent: true,
        max_file_bytes: 100 << 20,
        max_files: 1,
        otlp_endpoint: None,
    })?;
    let nanoseconds = |times: Vec<Duration>| -> Vec<u128> {
        times.into_iter().map(|time| time.as_nanos()).collect()
    };
    let line = json!({
        "metrics_ns": nanoseconds(measure::metrics_of_steps(lanes, steps)),
        "log_line_ns": nanoseconds(measure::log_lines(lines)),
        "scrape_ns": nanoseconds(measure::scrapes(lanes, scrapes)),
        "lines_dropped": logging::dropped_lines(),
    });
    println!("{line}");
    Ok(())
}
