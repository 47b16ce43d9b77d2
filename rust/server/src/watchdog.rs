//! Notices a step that never ends.

use std::sync::Arc;
use std::time::Instant;

use moshi_ctl_core::ModelError;
use tokio::time::{MissedTickBehavior, interval};

use crate::app::Module;
use crate::limits::{COLD_STEP, Limits, WATCH_EVERY};
use crate::model_thread::ModelFailure;

/// What to do about it.
const HINT: &str = "the device may hang: see the system's log; a slow machine may need a larger \
                    `step_s` in [limits]";

/// Waits until a step of one of the modules takes longer than it may, ends the module's sessions and
/// says which one it is. `warm`: whether models stepped before they served; the first step of one
/// that did not may take long.
pub(crate) async fn hanging_step(
    modules: &[Arc<Module>],
    limits: &Limits,
    warm: bool,
) -> ModelFailure {
    let most = (limits.step_s.duration().as_nanos() / WATCH_EVERY.as_nanos()) as u32;
    let mut looks = interval(WATCH_EVERY);
    // A process that was stopped for a while looks once when it goes on, and nothing hangs.
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = vec![Seen::default(); modules.len()];
    loop {
        looks.tick().await;
        for (module, seen) in modules.iter().zip(&mut seen) {
            let looked = seen.look(module.metrics().step_began());
            let cold = !warm && !module.metrics().has_stepped();
            if looked > most.saturating_mul(if cold { COLD_STEP } else { 1 }) {
                let after_s = (WATCH_EVERY * looked).as_secs_f64();
                let error = ModelError::new(format!("a step hangs since {after_s:.1} s"));
                tracing::error!(module = module.name, "the model failed: {error}");
                module.lanes.fail(&format!("module {}: {error}", module.name));
                return ModelFailure { module: module.name.clone(), error: error.with_hint(HINT) };
            }
        }
    }
}

/// The step that was running when a module was looked at last.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    step: Option<Instant>,
    times: u32,
}

impl Seen {
    /// How often in a row this step was seen before. Looks are counted, not seconds: they pass for
    /// a stopped process too.
    fn look(&mut self, step: Option<Instant>) -> u32 {
        let same = step.is_some() && step == self.step;
        self.times = if same { self.times + 1 } else { 0 };
        self.step = step;
        self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_step_again_and_again_counts() {
        let (one, other) = (Instant::now(), Instant::now() + WATCH_EVERY);
        let mut seen = Seen::default();
        let looked: Vec<u32> = [None, None, Some(one), Some(one), Some(one), Some(other), None]
            .into_iter()
            .map(|step| seen.look(step))
            .collect();
        assert_eq!(looked, [0, 0, 0, 1, 2, 0, 0]);
    }
}
