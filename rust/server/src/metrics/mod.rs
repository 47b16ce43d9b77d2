//! What the server counts and measures, for Prometheus.
//!
//! Counters and histograms are written where things happen: atomics, looked up once per module.
//! Gauges are looked up when `/metrics` is asked for (in [`crate::scrape`]), and cost nothing
//! until then.

pub(crate) mod catalogue;
mod labels;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use moshi_ctl_core::units::FRAME_DURATION;
use prometheus::{
    CounterVec, Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, Opts, Registry, TextEncoder,
};
use serde_json::{Value, json};

use crate::lock::lock;
use catalogue::{Kind, Metric, Source};
pub(crate) use labels::{CounterBy, Dropped, Label, Refusal, SessionEnd, SessionKind};

/// The `handler` of Kyutai's metrics.
pub(crate) const ALL_HANDLERS: &[&str] = &["all"];

/// Every metric: `name`, `kind`, `labels` and `help`, in the order of the documentation.
pub fn metrics_table() -> Value {
    catalogue::ALL
        .iter()
        .map(|metric| {
            json!({
                "name": metric.name,
                "kind": metric.kind.name(),
                "labels": metric.labels,
                "help": metric.help,
            })
        })
        .collect()
}

/// The metrics of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    families: Families,
    looked_up: Mutex<LookedUp>,
    /// WebSocket connections with a valid key.
    pub(crate) connect: IntCounter,
    /// Connections that were closed before their first request.
    pub(crate) dropped: CounterBy<Dropped>,
    key_sessions: IntCounterVec,
}

/// What has a series for each module.
#[derive(Debug)]
struct Families {
    warmup_duration: HistogramVec,
    warmup_success: IntCounterVec,
    warmup_failure: IntCounterVec,
    warmup_skipped: IntCounterVec,
    sessions: IntCounterVec,
    sessions_ended: IntCounterVec,
    refusals: IntCounterVec,
    received_bytes: IntCounterVec,
    sent_bytes: IntCounterVec,
    step_duration: HistogramVec,
    deadline_misses: IntCounterVec,
    frames: IntCounterVec,
    words: IntCounterVec,
    word_latency: HistogramVec,
    asr_step_duration: Histogram,
    asr_num_steps: Histogram,
}

/// What is looked up for each scrape, by name.
#[derive(Debug, Default)]
pub(crate) struct LookedUp {
    gauges: BTreeMap<&'static str, GaugeVec>,
    counters: BTreeMap<&'static str, CounterVec>,
}

impl LookedUp {
    /// Says what is so now, or how often something happened so far.
    pub(crate) fn set(&self, metric: Metric, labels: &[&str], value: f64) {
        if let Some(gauge) = self.gauges.get(metric.name) {
            gauge.with_label_values(labels).set(value);
        } else if let Some(counter) = self.counters.get(metric.name) {
            let counter = counter.with_label_values(labels);
            counter.inc_by((value - counter.get()).max(0.0));
        }
    }

    /// Forgets what was said of a gauge.
    pub(crate) fn forget(&self, metric: Metric) {
        if let Some(gauge) = self.gauges.get(metric.name) {
            gauge.reset();
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let new = Registrar(&registry);
        let families = Families {
            warmup_duration: new.histograms(catalogue::WARMUP_DURATION)?,
            warmup_success: new.counters(catalogue::WARMUP_SUCCESS)?,
            warmup_failure: new.counters(catalogue::WARMUP_FAILURE)?,
            warmup_skipped: new.counters(catalogue::WARMUP_SKIPPED)?,
            sessions: new.counters(catalogue::SESSIONS)?,
            sessions_ended: new.counters(catalogue::SESSIONS_ENDED)?,
            refusals: new.counters(catalogue::REFUSALS)?,
            received_bytes: new.counters(catalogue::RECEIVED_BYTES)?,
            sent_bytes: new.counters(catalogue::SENT_BYTES)?,
            step_duration: new.histograms(catalogue::STEP_DURATION)?,
            deadline_misses: new.counters(catalogue::DEADLINE_MISSES)?,
            frames: new.counters(catalogue::FRAMES)?,
            words: new.counters(catalogue::WORDS)?,
            word_latency: new.histograms(catalogue::WORD_LATENCY)?,
            asr_step_duration: new
                .histograms(catalogue::ASR_MODEL_STEP_DURATION)?
                .with_label_values::<&str>(&[]),
            asr_num_steps: new
                .histograms(catalogue::ASR_CONNECTION_NUM_STEPS)?
                .with_label_values::<&str>(&[]),
        };
        let mut looked_up = LookedUp::default();
        for metric in catalogue::ALL.into_iter().filter(|it| it.source == Source::LookedUp) {
            match metric.kind {
                Kind::Counter => {
                    let counters = CounterVec::new(options(metric), metric.labels)?;
                    looked_up.counters.insert(metric.name, new.register(counters)?);
                }
                _ => {
                    let gauges = GaugeVec::new(options(metric), metric.labels)?;
                    looked_up.gauges.insert(metric.name, new.register(gauges)?);
                }
            }
        }
        let connect = new.counters(catalogue::ASR_CONNECT)?.with_label_values(ALL_HANDLERS);
        let dropped = CounterBy::new(&new.counters(catalogue::CONNECTIONS_DROPPED)?, &[]);
        let key_sessions = new.counters(catalogue::KEY_SESSIONS)?;
        let looked_up = Mutex::new(looked_up);
        Ok(Self { registry, families, looked_up, connect, dropped, key_sessions })
    }

    /// The metrics of the module called `name`; all of its series exist from now on.
    pub(crate) fn module(&self, name: &str) -> ModuleMetrics {
        let all = &self.families;
        let counter = |family: &IntCounterVec| family.with_label_values(&[name]);
        let ended = |kind: SessionKind| CounterBy::new(&all.sessions_ended, &[name, kind.value()]);
        ModuleMetrics(Arc::new(Handles {
            warmup_duration: all.warmup_duration.with_label_values(&[name]),
            warmup_success: counter(&all.warmup_success),
            warmup_failure: counter(&all.warmup_failure),
            warmup_skipped: counter(&all.warmup_skipped),
            sessions: CounterBy::new(&all.sessions, &[name]),
            streams_ended: ended(SessionKind::Stream),
            files_ended: ended(SessionKind::File),
            refusals: CounterBy::new(&all.refusals, &[name]),
            received_bytes: counter(&all.received_bytes),
            sent_bytes: counter(&all.sent_bytes),
            step_duration: all.step_duration.with_label_values(&[name]),
            deadline_misses: counter(&all.deadline_misses),
            frames: counter(&all.frames),
            words: counter(&all.words),
            word_latency: all.word_latency.with_label_values(&[name]),
            asr_step_duration: all.asr_step_duration.clone(),
            asr_num_steps: all.asr_num_steps.clone(),
            step_began: Mutex::new(None),
        }))
    }

    /// A session of the key called `name` begins.
    pub(crate) fn key_session(&self, name: &str) {
        self.key_sessions.with_label_values(&[name]).inc();
    }

    /// Content type and body of `/metrics`, after `look` has looked up what is looked up.
    pub(crate) fn render(
        &self,
        look: impl FnOnce(&LookedUp),
    ) -> Result<(String, Vec<u8>), prometheus::Error> {
        // Held to the end, so that two scrapes at once do not mix what they found.
        let looked_up = lock(&self.looked_up);
        look(&looked_up);
        let encoder = TextEncoder::new();
        let mut body = Vec::new();
        encoder.encode(&self.registry.gather(), &mut body)?;
        Ok((encoder.format_type().to_string(), body))
    }
}

/// The metrics of one module.
#[derive(Debug, Clone)]
pub(crate) struct ModuleMetrics(Arc<Handles>);

#[derive(Debug)]
struct Handles {
    warmup_duration: Histogram,
    warmup_success: IntCounter,
    warmup_failure: IntCounter,
    warmup_skipped: IntCounter,
    sessions: CounterBy<SessionKind>,
    streams_ended: CounterBy<SessionEnd>,
    files_ended: CounterBy<SessionEnd>,
    refusals: CounterBy<Refusal>,
    received_bytes: IntCounter,
    sent_bytes: IntCounter,
    step_duration: Histogram,
    deadline_misses: IntCounter,
    frames: IntCounter,
    words: IntCounter,
    word_latency: Histogram,
    asr_step_duration: Histogram,
    asr_num_steps: Histogram,
    step_began: Mutex<Option<Instant>>,
}

impl ModuleMetrics {
    pub(crate) fn warmed_up(&self, took: Duration) {
        self.0.warmup_duration.observe(took.as_secs_f64());
        self.0.warmup_success.inc();
    }

    pub(crate) fn warmup_failed(&self, after: Duration) {
        self.0.warmup_duration.observe(after.as_secs_f64());
        self.0.warmup_failure.inc();
    }

    pub(crate) fn warmup_skipped(&self) {
        self.0.warmup_skipped.inc();
    }

    pub(crate) fn refused(&self, why: Refusal) {
        self.0.refusals.inc(why);
    }

    pub(crate) fn session_began(&self, kind: SessionKind) {
        self.0.sessions.inc(kind);
    }

    pub(crate) fn session_ended(&self, kind: SessionKind, end: SessionEnd, steps: u64) {
        match kind {
            SessionKind::Stream => self.0.streams_ended.inc(end),
            SessionKind::File => self.0.files_ended.inc(end),
        }
        self.0.asr_num_steps.observe(steps as f64);
    }

    /// Payload that came from a client.
    pub(crate) fn received(&self, bytes: usize) {
        self.0.received_bytes.inc_by(bytes as u64);
    }

    /// Payload that a client was sent.
    pub(crate) fn sent(&self, bytes: usize) {
        self.0.sent_bytes.inc_by(bytes as u64);
    }

    /// A word was recognised, so long after the audio where it begins arrived, if that is known
    /// and says something.
    pub(crate) fn word(&self, latency: Option<Duration>) {
        self.0.words.inc();
        if let Some(latency) = latency {
            self.0.word_latency.observe(latency.as_secs_f64());
        }
    }

    /// A step begins.
    pub(crate) fn step(&self) -> StepInProgress<'_> {
        let began = Instant::now();
        *lock(&self.0.step_began) = Some(began);
        StepInProgress { metrics: &self.0, began }
    }

    /// When the step in progress began.
    pub(crate) fn step_began(&self) -> Option<Instant> {
        *lock(&self.0.step_began)
    }

    /// Whether a step was ever done.
    pub(crate) fn has_stepped(&self) -> bool {
        self.0.frames.get() > 0
    }
}

/// A step that runs; dropped without [`StepInProgress::done`], one that failed.
pub(crate) struct StepInProgress<'a> {
    metrics: &'a Handles,
    began: Instant,
}

impl StepInProgress<'_> {
    /// The step is over, with a frame of each of so many lanes.
    pub(crate) fn done(self, frames: usize) {
        let took = self.began.elapsed();
        self.metrics.step_duration.observe(took.as_secs_f64());
        self.metrics.asr_step_duration.observe(took.as_secs_f64());
        self.metrics.frames.inc_by(frames as u64);
        if took > FRAME_DURATION {
            self.metrics.deadline_misses.inc();
        }
    }
}

impl Drop for StepInProgress<'_> {
    fn drop(&mut self) {
        *lock(&self.metrics.step_began) = None;
    }
}

/// Makes metrics from their descriptions.
struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn counters(&self, metric: Metric) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(options(metric), metric.labels)?)
    }

    fn histograms(&self, metric: Metric) -> Result<HistogramVec, prometheus::Error> {
        let Kind::Histogram(buckets) = metric.kind else {
            return Err(prometheus::Error::Msg(format!("{} has no buckets", metric.name)));
        };
        let options = HistogramOpts::new(metric.name, metric.help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(options, metric.labels)?)
    }

    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        collector: C,
    ) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }
}

fn options(metric: Metric) -> Opts {
    Opts::new(metric.name, metric.help)
}
