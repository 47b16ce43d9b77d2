//! What the routes of one server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use crate::body::Bodies;
use crate::config::ModuleConfig;
use crate::connections::Connections;
use crate::gpu::GpuWatch;
use crate::keys::Keys;
use crate::lanes::{Lanes, Visitor};
use crate::limits::Limits;
use crate::metrics::{Metrics, ModuleMetrics, SessionKind};
use crate::session::SHUTTING_DOWN;

/// A model being served.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) config: ModuleConfig,
    pub(crate) lanes: Arc<Lanes>,
}

impl Module {
    pub(crate) fn metrics(&self) -> &ModuleMetrics {
        self.lanes.metrics()
    }
}

/// What the routes of one server share.
pub(crate) struct App {
    pub(crate) modules: Vec<Arc<Module>>,
    pub(crate) keys: Keys,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gpus: GpuWatch,
    pub(crate) limits: Limits,
    pub(crate) bodies: Bodies,
    pub(crate) connections: Arc<Connections>,
    /// Whether the server is ending.
    pub(crate) going_away: watch::Sender<bool>,
    /// Sessions that are not over.
    pub(crate) sessions: Presence,
    /// Threads that still have their model.
    pub(crate) threads: Presence,
    /// How many have come, the refused ones included.
    pub(crate) visitors: AtomicU64,
}

impl App {
    /// Somebody who wants a lane, with a number of their own.
    pub(crate) fn visitor(&self, kind: SessionKind) -> Visitor {
        Visitor { session: self.visitors.fetch_add(1, Ordering::Relaxed) + 1, kind }
    }

    /// Whether the server was told to end.
    pub(crate) fn is_ending(&self) -> bool {
        *self.going_away.borrow()
    }

    /// Why the server cannot be used any more, if so.
    pub(crate) fn dead(&self) -> Vec<String> {
        self.modules.iter().filter_map(|module| module.lanes.over()).collect()
    }

    /// Why the server is not what it should be, if so: it is dead, or ending.
    pub(crate) fn leaving(&self) -> Vec<String> {
        let ending = self.is_ending().then(|| SHUTTING_DOWN.to_string());
        self.dead().into_iter().chain(ending).collect()
    }

    /// Why the server should get no new sessions at the moment, if so.
    pub(crate) fn unready(&self) -> Vec<String> {
        let overloaded = self.modules.iter().filter_map(|module| {
            let standing = module.lanes.standing();
            let lag_s = standing.lag.as_secs_f64();
            standing.overloaded.then(|| {
                format!("module {} is overloaded: streams lag {lag_s:.1} s behind", module.name)
            })
        });
        self.leaving().into_iter().chain(overloaded).collect()
    }
}

/// Counts those who are still there.
#[derive(Clone)]
pub(crate) struct Presence(watch::Sender<usize>);

/// Somebody who is still there.
pub(crate) struct Present(watch::Sender<usize>);

impl Presence {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    pub(crate) fn enter(&self) -> Present {
        self.0.send_modify(|present| *present += 1);
        Present(self.0.clone())
    }

    /// How many are there.
    pub(crate) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Waits until nobody is there.
    pub(crate) async fn nobody(&self) {
        // The sender is in `self`, so this cannot fail before it succeeds.
        let _ = self.0.subscribe().wait_for(|present| *present == 0).await;
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.send_modify(|present| *present -= 1);
    }
}

/// Waits until the server is ending.
pub(crate) async fn until_going_away(mut going_away: watch::Receiver<bool>) {
    // The sender lives as long as the server; without it there is nothing to stay for either.
    let _ = going_away.wait_for(|going| *going).await;
}
