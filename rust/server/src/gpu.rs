//! How the machine's cards are doing, for `/metrics`.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Between two readings.
const PERIOD: Duration = Duration::from_secs(5);

/// How long the last reading may take when the server ends.
const LAST_READING: Duration = Duration::from_secs(1);

/// A reading older than this says nothing any more: the driver does not answer.
const STALE: Duration = PERIOD.saturating_mul(3);

/// What a card's driver says of it at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuReading {
    /// `cuda:N`, as in configurations.
    pub device: String,
    /// The product's name.
    pub name: String,
    /// `GPU-…` or `MIG-…`; empty where the driver does not tell it.
    pub uuid: String,
    /// Memory that is taken, by anybody.
    pub memory_used_bytes: u64,
    /// All memory.
    pub memory_total_bytes: u64,
    /// Share of the last sampling period in which it computed, from 0 to 1.
    pub utilization_ratio: Option<f64>,
    /// What it draws.
    pub power_watts: Option<f64>,
    /// How warm it is.
    pub temperature_celsius: Option<f64>,
}

/// Asks the driver; may take its time.
pub type ReadGpus = Box<dyn Fn() -> Vec<GpuReading> + Send>;

type Latest = Arc<Mutex<Option<(Instant, Vec<GpuReading>)>>>;

/// Keeps the latest readings, on a thread of its own. A driver that hangs makes readings disappear,
/// not scrapes wait.
pub(crate) struct GpuWatch {
    latest: Latest,
    thread: Mutex<Option<Thread>>,
}

/// The two ways to a thread: one tells it to end when it is dropped, the other that it has.
struct Thread {
    alive: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl GpuWatch {
    /// Watches with `read`, if there is something to watch.
    pub(crate) fn new(read: Option<ReadGpus>) -> Self {
        let latest = Latest::default();
        let thread = read.and_then(|read| {
            let (alive, end) = mpsc::channel::<()>();
            let (ending, ended) = mpsc::channel();
            let latest = Arc::clone(&latest);
            let watch = move || {
                let _ending = ending;
                loop {
                    let readings = read();
                    *lock(&latest) = Some((Instant::now(), readings));
                    if end.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            };
            match std::thread::Builder::new().name("gpu-readings".into()).spawn(watch) {
                Ok(_) => Some(Thread { alive, ended }),
                Err(error) => {
                    tracing::warn!("no metrics of the cards: no thread for them: {error}");
                    None
                }
            }
        });
        Self { latest, thread: Mutex::new(thread) }
    }

    /// Ends the thread, and waits for that unless the driver hangs: what it calls may belong to
    /// somebody who is about to end.
    pub(crate) fn stop(&self) {
        if let Some(Thread { alive, ended }) = lock(&self.thread).take() {
            drop(alive);
            if ended.recv_timeout(LAST_READING) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("the driver of the cards does not answer");
            }
        }
    }

    /// What the cards said last; nothing where that was too long ago.
    pub(crate) fn readings(&self) -> Vec<GpuReading> {
        match &*lock(&self.latest) {
            Some((at, readings)) if at.elapsed() < STALE => readings.clone(),
            _ => Vec::new(),
        }
    }
}

impl fmt::Debug for GpuWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuWatch").field("latest", &self.latest).finish_non_exhaustive()
    }
}
