//! Every metric there is: its name, kind, labels and meaning. The registry is filled from these
//! and from nothing else, and the table in `docs/metrics.md` is written from them.

/// One metric, in Prometheus's terms.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) source: Source,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// Where the numbers of a metric come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// They are written when something happens.
    Counted,
    /// They are looked up when somebody asks.
    LookedUp,
}

/// What sort of numbers a metric has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, source: Source::Counted, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, source: Source::LookedUp, labels, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram(buckets), source: Source::Counted, labels, help }
}

/// The same metric, counted by somebody else.
const fn looked_up(metric: Metric) -> Metric {
    Metric { source: Source::LookedUp, ..metric }
}

const HANDLER: &[&str] = &["handler"];
const MODULE: &[&str] = &["module"];
const KEY: &[&str] = &["key"];
const GPU: &[&str] = &["device", "name", "uuid"];

/// Of a metric whose name and buckets are those of Kyutai's server.
const KYUTAI_STEP_S: &[f64] = &[20e-3, 30e-3, 40e-3, 50e-3, 60e-3, 70e-3, 80e-3];
const KYUTAI_STEPS: &[f64] = &[2., 25., 125., 250., 500., 750., 1125., 1500., 2250., 3000., 4500.];

/// Dense around 80 ms, which is what a frame lasts.
const STEP_S: &[f64] = &[
    1e-3, 2.5e-3, 5e-3, 10e-3, 20e-3, 30e-3, 40e-3, 50e-3, 60e-3, 65e-3, 70e-3, 75e-3, 80e-3,
    85e-3, 90e-3, 100e-3, 120e-3, 160e-3, 240e-3, 500e-3, 1., 2.5,
];
/// Dense where the delays of published models are: 0.5 and 2.5 s.
const WORD_LATENCY_S: &[f64] =
    &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1., 1.25, 1.5, 2., 2.5, 3., 4., 5., 7.5, 10.];
const WARMUP_S: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30., 60., 120.];

// Those that dashboards in the field ask Kyutai's server for.

pub(crate) const ASR_CONNECT: Metric =
    counter("asr_connect", HANDLER, "WebSocket connections with a valid key.");
pub(crate) const ASR_MODEL_STEP_DURATION: Metric = histogram(
    "asr_model_step_duration",
    &[],
    KYUTAI_STEP_S,
    "Duration of a step of any module, in seconds.",
);
pub(crate) const ASR_CONNECTION_NUM_STEPS: Metric =
    histogram("asr_connection_num_steps", &[], KYUTAI_STEPS, "Steps per session.");
pub(crate) const ASR_OPEN_CHANNELS: Metric =
    gauge("asr_open_channels", HANDLER, "Lanes in use, over all modules.");

// The start.

pub(crate) const WARMUP_DURATION: Metric = histogram(
    "warmup_duration_seconds",
    MODULE,
    WARMUP_S,
    "Duration of the warm-up, whether it succeeded or failed.",
);
pub(crate) const WARMUP_SUCCESS: Metric =
    counter("warmup_success_total", MODULE, "Warm-ups that succeeded.");
pub(crate) const WARMUP_FAILURE: Metric = counter(
    "warmup_failure_total",
    MODULE,
    "Warm-ups that failed. One ends the start before the port opens, so a server that is scraped \
     says 0.",
);
pub(crate) const WARMUP_SKIPPED: Metric =
    counter("warmup_skipped_total", MODULE, "Warm-ups that were switched off.");
pub(crate) const BUILD_INFO: Metric = gauge(
    "moshi_build_info",
    &["version", "git_hash", "rustc_version", "target"],
    "1; the labels say what was built.",
);
pub(crate) const MODULE_INFO: Metric = gauge(
    "moshi_module_info",
    &["module", "type", "path", "device", "precision", "kv_precision", "lanes"],
    "1; the labels say how the module is served.",
);
pub(crate) const READY: Metric =
    gauge("moshi_ready", &[], "1 while new sessions are welcome (/health/ready), else 0.");

// Capacity.

pub(crate) const LANES: Metric =
    gauge("moshi_lanes", MODULE, "Lanes offered: sessions at the same time.");
pub(crate) const LANES_USED: Metric = gauge("moshi_lanes_used", MODULE, "Lanes with a session.");
pub(crate) const SESSIONS: Metric = counter(
    "moshi_sessions_total",
    &["module", "kind"],
    "Sessions that got a lane. kind: stream (WebSocket) or file (POST).",
);
pub(crate) const SESSIONS_ENDED: Metric = counter(
    "moshi_sessions_ended_total",
    &["module", "kind", "end"],
    "Sessions that are over. end: completed (closed by the client; the file is done), lost (the \
     connection broke), idle (nothing came for too long), not_reading (the client did not read), \
     invalid (no message, no audio format, or too much of it), bad_audio (not finite), bad_output \
     (what the model made of good audio is not finite), model_failed, shutdown.",
);
pub(crate) const REFUSALS: Metric = counter(
    "moshi_refusals_total",
    &["module", "reason"],
    "Requests that got no lane. reason: unauthorized (no valid key), full (no free lane), \
     overloaded (streams lag behind), too_many (sessions with that key), busy (too many files at \
     once), unavailable (the model is dead or the server ends), bad_request (no WebSocket \
     handshake), too_large (the body), broken_off (the body), timeout (the body stopped coming), \
     bad_audio (no file that can be decoded).",
);
pub(crate) const OVERLOADED: Metric = gauge(
    "moshi_overloaded",
    MODULE,
    "1 while nobody gets a lane because streams lag behind (`lag_s` of the limits), else 0.",
);
pub(crate) const KEY_SESSIONS: Metric =
    counter("moshi_key_sessions_total", KEY, "Sessions that began, by the name of their key.");
pub(crate) const KEY_OPEN: Metric =
    gauge("moshi_key_sessions_open", KEY, "Sessions that are open, by the name of their key.");
pub(crate) const CONNECTIONS: Metric = gauge("moshi_connections", &[], "Open connections.");
pub(crate) const CONNECTIONS_DROPPED: Metric = counter(
    "moshi_connections_dropped_total",
    &["reason"],
    "Connections that were closed before their first request. reason: connections (there are as \
     many as there may be), address (as many from that address), handshakes (others came before it \
     was complete), timeout (it took too long), tls (no TLS, or none of ours).",
);
pub(crate) const RECEIVED_BYTES: Metric = counter(
    "moshi_received_bytes_total",
    MODULE,
    "Payload received from clients: messages, bodies of files.",
);
pub(crate) const SENT_BYTES: Metric =
    counter("moshi_sent_bytes_total", MODULE, "Payload sent to clients: messages, transcripts.");

// Real time.

pub(crate) const MODEL_LOOP_ALIVE: Metric = gauge(
    "moshi_model_loop_alive",
    MODULE,
    "1 while the model's thread serves; 0 once the model failed or the server ends.",
);
pub(crate) const STEP_RUNNING: Metric = gauge(
    "moshi_step_running_seconds",
    MODULE,
    "How long the step in progress has been running; 0 between steps.",
);
pub(crate) const STEP_DURATION: Metric =
    histogram("moshi_step_duration_seconds", MODULE, STEP_S, "Duration of a step.");
pub(crate) const DEADLINE_MISSES: Metric = counter(
    "moshi_deadline_misses_total",
    MODULE,
    "Steps that took longer than the 80 ms a frame lasts.",
);
pub(crate) const FRAMES: Metric =
    counter("moshi_frames_total", MODULE, "Frames processed, over all lanes: 80 ms of audio each.");
pub(crate) const LAG: Metric = gauge(
    "moshi_lag_seconds",
    MODULE,
    "Of the slowest lane: audio that arrived, and would have been spoken by now, but is not \
     processed. Audio sent faster than it is spoken, or held up and then delivered at once, does not \
     count before its time; time in which a client does not read does not count.",
);
pub(crate) const BACKLOG: Metric =
    gauge("moshi_backlog_seconds", MODULE, "Audio of all lanes that arrived and is not processed.");
pub(crate) const WORDS: Metric = counter("moshi_words_total", MODULE, "Words recognised.");
pub(crate) const WORD_LATENCY: Metric = histogram(
    "moshi_word_latency_seconds",
    MODULE,
    WORD_LATENCY_S,
    "From the arrival of the audio where a word begins until the word is handed out, the model's \
     delay included. Audio sent faster than it is spoken is left out.",
);

// The process's own log, and the cards.

pub(crate) const LOG_MESSAGES: Metric = looked_up(counter(
    "moshi_log_messages_total",
    &["level"],
    "Messages logged by this server and its libraries. level: error, warn or info.",
));
pub(crate) const LOG_LINES_DROPPED: Metric = looked_up(counter(
    "moshi_log_lines_dropped_total",
    &[],
    "Lines that are not in the log file: the disk was full or read-only, or too slow.",
));
pub(crate) const GPU_MEMORY_USED: Metric = gauge(
    "moshi_gpu_memory_used_bytes",
    GPU,
    "Memory of the card that is taken, by anybody. Like all of moshi_gpu_*: absent without a \
     card, and where the driver does not tell.",
);
pub(crate) const GPU_MEMORY_TOTAL: Metric =
    gauge("moshi_gpu_memory_total_bytes", GPU, "Memory of the card.");
pub(crate) const GPU_UTILIZATION: Metric = gauge(
    "moshi_gpu_utilization_ratio",
    GPU,
    "Share of the driver's last sampling period in which the card computed, for anybody.",
);
pub(crate) const GPU_POWER: Metric = gauge("moshi_gpu_power_watts", GPU, "What the card draws.");
pub(crate) const GPU_TEMPERATURE: Metric =
    gauge("moshi_gpu_temperature_celsius", GPU, "The card's temperature.");

// Those that every Prometheus client has.

pub(crate) const PROCESS_CPU: Metric = looked_up(counter(
    "process_cpu_seconds_total",
    &[],
    "User and system CPU time. Like all of process_*: on Linux.",
));
pub(crate) const PROCESS_RESIDENT: Metric =
    gauge("process_resident_memory_bytes", &[], "Memory in use.");
pub(crate) const PROCESS_VIRTUAL: Metric =
    gauge("process_virtual_memory_bytes", &[], "Address space in use.");
pub(crate) const PROCESS_OPEN_FDS: Metric =
    gauge("process_open_fds", &[], "Open file descriptors, sockets included.");
pub(crate) const PROCESS_MAX_FDS: Metric = gauge("process_max_fds", &[], "How many may be open.");
pub(crate) const PROCESS_THREADS: Metric = gauge("process_threads", &[], "Threads.");
pub(crate) const PROCESS_START: Metric =
    gauge("process_start_time_seconds", &[], "Start of the process, in seconds since 1970.");

/// All of them, in the order of the documentation.
pub(super) const ALL: [Metric; 46] = [
    WARMUP_DURATION,
    WARMUP_SUCCESS,
    WARMUP_FAILURE,
    WARMUP_SKIPPED,
    BUILD_INFO,
    MODULE_INFO,
    READY,
    LANES,
    LANES_USED,
    SESSIONS,
    SESSIONS_ENDED,
    REFUSALS,
    OVERLOADED,
    KEY_SESSIONS,
    KEY_OPEN,
    CONNECTIONS,
    CONNECTIONS_DROPPED,
    RECEIVED_BYTES,
    SENT_BYTES,
    MODEL_LOOP_ALIVE,
    STEP_RUNNING,
    STEP_DURATION,
    DEADLINE_MISSES,
    FRAMES,
    LAG,
    BACKLOG,
    WORDS,
    WORD_LATENCY,
    LOG_MESSAGES,
    LOG_LINES_DROPPED,
    GPU_MEMORY_USED,
    GPU_MEMORY_TOTAL,
    GPU_UTILIZATION,
    GPU_POWER,
    GPU_TEMPERATURE,
    ASR_CONNECT,
    ASR_MODEL_STEP_DURATION,
    ASR_CONNECTION_NUM_STEPS,
    ASR_OPEN_CHANNELS,
    PROCESS_CPU,
    PROCESS_RESIDENT,
    PROCESS_VIRTUAL,
    PROCESS_OPEN_FDS,
    PROCESS_MAX_FDS,
    PROCESS_THREADS,
    PROCESS_START,
];
