//! The values of labels that are known beforehand. Each of their series exists from the start, so
//! that the first event is an increase from 0.

use prometheus::IntCounter;
use prometheus::IntCounterVec;

/// A label whose values are the variants of an enum.
pub(crate) trait Label: Copy + PartialEq + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// The value in Prometheus.
    fn value(self) -> &'static str;
}

/// How a session reached the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionKind {
    /// Over a WebSocket.
    Stream,
    /// As the body of a POST.
    File,
}

impl Label for SessionKind {
    const ALL: &'static [Self] = &[Self::Stream, Self::File];

    fn value(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::File => "file",
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The client closed the connection; the file is transcribed.
    Completed,
    /// The connection broke.
    Lost,
    /// Nothing came from the client for too long.
    Idle,
    /// The client did not read what it was sent.
    NotReading,
    /// What came is no message or no audio format, or too much of it.
    Invalid,
    /// The audio is not finite.
    BadAudio,
    /// What the model made of finite audio is not.
    BadOutput,
    /// The model failed.
    ModelFailed,
    /// The server ended.
    Shutdown,
}

impl Label for SessionEnd {
    const ALL: &'static [Self] = &[
        Self::Completed,
        Self::Lost,
        Self::Idle,
        Self::NotReading,
        Self::Invalid,
        Self::BadAudio,
        Self::BadOutput,
        Self::ModelFailed,
        Self::Shutdown,
    ];

    fn value(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Lost => "lost",
            Self::Idle => "idle",
            Self::NotReading => "not_reading",
            Self::Invalid => "invalid",
            Self::BadAudio => "bad_audio",
            Self::BadOutput => "bad_output",
            Self::ModelFailed => "model_failed",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Why a request got no lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has no valid key.
    Unauthorized,
    /// All lanes are in use.
    Full,
    /// Those who have a lane lag behind.
    Overloaded,
    /// Its key has as many sessions as it may have.
    TooMany,
    /// All the memory for files is in use.
    Busy,
    /// The model is dead or the server is ending.
    Unavailable,
    /// It is no WebSocket handshake.
    BadRequest,
    /// Its body is too large.
    TooLarge,
    /// Its body broke off.
    BrokenOff,
    /// Its body stopped coming.
    Timeout,
    /// Its body is no audio file.
    BadAudio,
}

impl Label for Refusal {
    const ALL: &'static [Self] = &[
        Self::Unauthorized,
        Self::Full,
        Self::Overloaded,
        Self::TooMany,
        Self::Busy,
        Self::Unavailable,
        Self::BadRequest,
        Self::TooLarge,
        Self::BrokenOff,
        Self::Timeout,
        Self::BadAudio,
    ];

    fn value(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Full => "full",
            Self::Overloaded => "overloaded",
            Self::TooMany => "too_many",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::BrokenOff => "broken_off",
            Self::Timeout => "timeout",
            Self::BadAudio => "bad_audio",
        }
    }
}

/// Why a connection was closed before its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// There are as many connections as there may be.
    Connections,
    /// As many from its address.
    Address,
    /// Too many others came before it had sent the head of a request.
    Handshakes,
    /// The head of its request, or TLS, took too long.
    Timeout,
    /// It does not speak TLS, or not as this server does.
    Tls,
}

impl Label for Dropped {
    const ALL: &'static [Self] =
        &[Self::Connections, Self::Address, Self::Handshakes, Self::Timeout, Self::Tls];

    fn value(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Address => "address",
            Self::Handshakes => "handshakes",
            Self::Timeout => "timeout",
            Self::Tls => "tls",
        }
    }
}

/// One counter for each value of a label.
#[derive(Debug, Clone)]
pub(crate) struct CounterBy<L>(Vec<(L, IntCounter)>);

impl<L: Label> CounterBy<L> {
    /// Those of `family` whose other labels, which come before, have the values `others`.
    pub(super) fn new(family: &IntCounterVec, others: &[&str]) -> Self {
        let counter = |label: &L| {
            let values = [others, &[label.value()]].concat();
            (*label, family.with_label_values(&values))
        };
        Self(L::ALL.iter().map(counter).collect())
    }

    pub(crate) fn inc(&self, label: L) {
        if let Some((_, counter)) = self.0.iter().find(|(of, _)| *of == label) {
            counter.inc();
        }
    }
}
