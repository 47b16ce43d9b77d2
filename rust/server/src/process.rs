//! What this process takes of the machine, under the names that every Prometheus client has for
//! it: <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>. Read from
//! `/proc`, so on Linux only.

/// What the system says of this process at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProcessStanding {
    /// User and system time.
    pub(crate) cpu_s: f64,
    /// Memory in use.
    pub(crate) resident_bytes: u64,
    /// Address space in use.
    pub(crate) virtual_bytes: u64,
    /// File descriptors in use.
    pub(crate) open_fds: usize,
    /// How many there may be; none: any number.
    pub(crate) max_fds: Option<u64>,
    pub(crate) threads: i64,
    /// When it began, in seconds since 1970.
    pub(crate) started_s: f64,
}

/// Asks the system; nothing where it does not tell.
#[cfg(target_os = "linux")]
pub(crate) fn standing() -> Option<ProcessStanding> {
    use procfs::process::{LimitValue, Process};

    let process = Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let ticks_per_s = procfs::ticks_per_second() as f64;
    Some(ProcessStanding {
        cpu_s: (stat.utime + stat.stime) as f64 / ticks_per_s,
        resident_bytes: stat.rss * procfs::page_size(),
        virtual_bytes: stat.vsize,
        open_fds: process.fd_count().ok()?,
        max_fds: match process.limits().ok()?.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most),
            LimitValue::Unlimited => None,
        },
        threads: stat.num_threads,
        started_s: procfs::boot_time_secs().ok()? as f64 + stat.starttime as f64 / ticks_per_s,
    })
}

/// Asks the system; nothing where it does not tell.
#[cfg(not(target_os = "linux"))]
pub(crate) fn standing() -> Option<ProcessStanding> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn it_is_this_process() {
        let before = standing().unwrap();
        let _open = std::fs::File::open("/proc/self/stat").unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {}
        let after = standing().unwrap();
        assert!(after.cpu_s >= before.cpu_s + 0.05, "{before:?} {after:?}");
        assert!(after.resident_bytes > 1 << 20 && after.resident_bytes < after.virtual_bytes);
        assert!(after.threads >= 1 && after.open_fds >= 4, "{after:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 3600.0..=now + 1.0).contains(&after.started_s), "{after:?} at {now}");
    }
}
