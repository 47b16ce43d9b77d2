//! The thread that owns a model: loads it, warms it up, steps it.

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{LaneFrame, LaneStep, ModelError, StreamingModel};
use tokio::sync::{mpsc, oneshot};

use crate::app::Present;
use crate::lanes::{Lanes, Turn};
use crate::limits::Limits;
use crate::metrics::ModuleMetrics;
use crate::tokenizer::TextDecoder;

/// Frames of silence that a model steps before it is ready.
const WARMUP_FRAMES: usize = 2;

/// What to do where the model does not know better.
const WARMUP_HINT: &str = "the weights may be damaged or too large for this precision: fetch the \
                           files again, or try --precision f32";

/// A model that cannot be used any further.
#[derive(Debug, Clone)]
pub(crate) struct ModelFailure {
    pub(crate) module: String,
    pub(crate) error: ModelError,
}

/// What a model's thread needs.
pub(crate) struct ModelThread {
    /// Name of the module.
    pub(crate) module: String,
    pub(crate) warmup: bool,
    /// Frames between a sound and the text for it.
    pub(crate) delay: usize,
    pub(crate) limits: Limits,
    pub(crate) text: TextDecoder,
    pub(crate) metrics: ModuleMetrics,
    /// Told when the model fails after it was ready.
    pub(crate) failures: mpsc::UnboundedSender<ModelFailure>,
    /// Dropped last, when the model is gone.
    pub(crate) present: Present,
}

impl ModelThread {
    /// Starts the thread. The receiver gets the lanes of the model when it is ready, or why it never
    /// will be.
    pub(crate) fn spawn(
        self,
        load: impl FnOnce() -> Result<Box<dyn StreamingModel>, ModelError> + Send + 'static,
    ) -> std::io::Result<oneshot::Receiver<Result<Arc<Lanes>, ModelError>>> {
        let (ready, is_ready) = oneshot::channel();
        let name = format!("model-{}", self.module);
        std::thread::Builder::new().name(name).spawn(move || self.run(load, ready))?;
        Ok(is_ready)
    }

    fn run(
        self,
        load: impl FnOnce() -> Result<Box<dyn StreamingModel>, ModelError>,
        ready: oneshot::Sender<Result<Arc<Lanes>, ModelError>>,
    ) {
        // Bound before the model, so dropped after it.
        let Self { module, warmup, delay, limits, text, metrics, failures, present: _present } =
            self;
        let prepared = tracing::info_span!("model", module)
            .in_scope(|| guarded(|| prepare(warmup, &metrics, load)));
        let mut model = match prepared {
            Ok(model) => model,
            // Nobody listening means that the start was given up.
            Err(error) => return drop(ready.send(Err(error))),
        };
        let lanes = Arc::new(Lanes::new(model.lanes(), delay, &limits, text, metrics.clone()));
        if ready.send(Ok(Arc::clone(&lanes))).is_err() {
            return;
        }
        if let Err(error) = guarded(|| serve(&lanes, model.as_mut(), &metrics)) {
            tracing::error!(module, "the model failed: {error}");
            lanes.fail(&format!("module {module}: {error}"));
            // Nobody listening means that the server is ending already.
            let _ = failures.send(ModelFailure { module, error });
        }
    }
}

/// Loads a model and warms it up.
fn prepare(
    warmup: bool,
    metrics: &ModuleMetrics,
    load: impl FnOnce() -> Result<Box<dyn StreamingModel>, ModelError>,
) -> Result<Box<dyn StreamingModel>, ModelError> {
    let start = Instant::now();
    let mut model = tracing::info_span!("load").in_scope(load)?;
    if model.lanes() == 0 {
        return Err(ModelError::new("the model has no lanes"));
    }
    tracing::info!(lanes = model.lanes(), "model loaded in {:.1} s", start.elapsed().as_secs_f64());
    if warmup {
        tracing::info_span!("warm-up").in_scope(|| observed_warm_up(model.as_mut(), metrics))?;
        tracing::info_span!("settle").in_scope(|| model.settle())?;
    } else {
        metrics.warmup_skipped();
        tracing::info!("warm-up skipped: it is switched off; the first sessions may wait longer");
    }
    Ok(model)
}

/// Warms a model up, counted and logged.
fn observed_warm_up(
    model: &mut dyn StreamingModel,
    metrics: &ModuleMetrics,
) -> Result<(), ModelError> {
    tracing::info!("warm-up begins");
    let start = Instant::now();
    // Inside of `guarded` already; here so that a panic is counted as the failure it is.
    let warmed = guarded(|| warm_up(model));
    let took = start.elapsed();
    match warmed {
        Ok(()) => {
            metrics.warmed_up(took);
            tracing::info!(duration_s = took.as_secs_f64(), "warm-up done");
            Ok(())
        }
        Err(error) => {
            metrics.warmup_failed(took);
            tracing::error!(duration_s = took.as_secs_f64(), "warm-up failed: {error}");
            let hint = error.hint.or_else(|| Some(WARMUP_HINT.into()));
            Err(ModelError { message: format!("warm-up failed: {}", error.message), hint })
        }
    }
}

/// Steps the model until nobody will want it any more.
fn serve(
    lanes: &Lanes,
    model: &mut dyn StreamingModel,
    metrics: &ModuleMetrics,
) -> Result<(), ModelError> {
    let mut turn = Turn::default();
    while let Some(next) = lanes.next_turn(turn) {
        turn = next;
        let step = metrics.step();
        for lane in turn.resets() {
            model.reset(lane, fresh_seed())?;
        }
        lanes.were_reset(&turn);
        let frames = turn.frames();
        if !frames.is_empty() {
            let steps = checked_step(model, &frames)?;
            step.done(frames.len());
            drop(frames);
            lanes.record(&turn, steps);
        }
    }
    Ok(())
}

fn warm_up(model: &mut dyn StreamingModel) -> Result<(), ModelError> {
    let silence = [0.0; FRAME_SAMPLES];
    for _ in 0..WARMUP_FRAMES {
        let steps = checked_step(model, &[LaneFrame { lane: 0, pcm: &silence }])?;
        for step in steps {
            step.outcome.as_ref().map_err(|fault| ModelError::new(fault.to_string()))?;
        }
    }
    model.reset(0, 0)
}

/// Steps and makes sure that each frame got its own answer.
fn checked_step<'a>(
    model: &'a mut dyn StreamingModel,
    frames: &[LaneFrame<'_>],
) -> Result<&'a [LaneStep], ModelError> {
    let steps = model.step(frames)?;
    if steps.iter().map(|step| step.lane).eq(frames.iter().map(|frame| frame.lane)) {
        Ok(steps)
    } else {
        Err(ModelError::new("the model answered for other lanes than it was asked for"))
    }
}

/// What a lane samples with, where the temperature is above zero: different for every stream.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(Instant::now())
}

/// A panic as the error it is.
fn guarded<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    // Whatever a panic left half done is inside the model, and that is never used again.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        Err(ModelError::new(format!("panicked: {text}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    /// Fails or panics in its first step.
    struct Broken {
        panics: bool,
    }

    impl StreamingModel for Broken {
        fn lanes(&self) -> usize {
            1
        }

        fn reset(&mut self, _: usize, _: u64) -> Result<(), ModelError> {
            Ok(())
        }

        fn step(&mut self, _: &[LaneFrame<'_>]) -> Result<&[LaneStep], ModelError> {
            assert!(!self.panics, "it panics");
            Err(ModelError::new("it fails"))
        }
    }

    #[test]
    fn a_warm_up_that_fails_or_panics_is_counted_and_keeps_its_reason() {
        for (panics, reason) in [(false, "it fails"), (true, "panicked: it panics")] {
            let metrics = Metrics::new().unwrap();
            let load = || Ok(Box::new(Broken { panics }) as Box<dyn StreamingModel>);
            let error = prepare(true, &metrics.module("asr"), load).err().unwrap();
            assert_eq!(error.message, format!("warm-up failed: {reason}"));
            let (_, scrape) = metrics.render(|_| {}).unwrap();
            let scrape = String::from_utf8(scrape).unwrap();
            for line in [
                "warmup_failure_total{module=\"asr\"} 1",
                "warmup_success_total{module=\"asr\"} 0",
                "warmup_duration_seconds_count{module=\"asr\"} 1",
            ] {
                assert!(scrape.contains(line), "{line}: {scrape}");
            }
        }
    }
}
