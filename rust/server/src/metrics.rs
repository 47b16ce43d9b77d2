//! What dashboards in the field already ask for; names and buckets are those of Kyutai's server.

use prometheus::{Counter, Encoder, Gauge, Histogram, HistogramOpts, Opts, Registry, TextEncoder};

/// Upper bounds of a step's duration, in seconds; the last is a frame's own duration.
const STEP_DURATION_BUCKETS_S: [f64; 7] = [20e-3, 30e-3, 40e-3, 50e-3, 60e-3, 70e-3, 80e-3];

/// Upper bounds of a session's length, in steps.
const NUM_STEPS_BUCKETS: [f64; 11] =
    [2., 25., 125., 250., 500., 750., 1125., 1500., 2250., 3000., 4500.];

/// The metrics of one server.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    /// WebSocket connections with a valid key.
    pub(crate) connect: Counter,
    /// Seconds per step.
    pub(crate) step_duration: Histogram,
    /// Steps per session.
    pub(crate) num_steps: Histogram,
    /// Lanes in use.
    pub(crate) open_channels: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let all = |name: &str, help: &str| Opts::new(name, help).const_label("handler", "all");
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let metrics = Self {
            registry: Registry::new(),
            connect: Counter::with_opts(all("asr_connect", "Connections to speech to text."))?,
            step_duration: histogram(
                "asr_model_step_duration",
                "Duration of a speech-to-text model step, in seconds.",
                &STEP_DURATION_BUCKETS_S,
            )?,
            num_steps: histogram(
                "asr_connection_num_steps",
                "Steps per speech-to-text connection.",
                &NUM_STEPS_BUCKETS,
            )?,
            open_channels: Gauge::with_opts(all(
                "asr_open_channels",
                "Speech-to-text channels in use.",
            ))?,
        };
        metrics.registry.register(Box::new(metrics.connect.clone()))?;
        metrics.registry.register(Box::new(metrics.step_duration.clone()))?;
        metrics.registry.register(Box::new(metrics.num_steps.clone()))?;
        metrics.registry.register(Box::new(metrics.open_channels.clone()))?;
        Ok(metrics)
    }

    /// Content type and body of `/metrics`.
    pub(crate) fn render(&self) -> Result<(String, Vec<u8>), prometheus::Error> {
        let encoder = TextEncoder::new();
        let mut body = Vec::new();
        encoder.encode(&self.registry.gather(), &mut body)?;
        Ok((encoder.format_type().to_string(), body))
    }
}
