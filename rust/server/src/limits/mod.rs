//! Every bound the server keeps, in one place.

mod quantity;

use std::time::Duration;

use moshi_ctl_core::units::{FRAME_RATE_HZ, SAMPLE_RATE_HZ};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use quantity::{Count, Kibibytes, Mebibytes, Seconds};

use quantity::LimitValue;

/// Defines [`Limits`], its defaults and the table of its documentation in one go.
macro_rules! limits {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ident = $default:literal;)+) => {
        /// The `limits` section of a configuration: what a server bears of its clients and of its
        /// models. Whatever is left out has a safe default.
        #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Limits {
            $($(#[doc = $help])+ pub $name: $kind,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $kind::from($default),)+ }
            }
        }

        /// Every limit: `name`, `unit`, `default` and `help`, in the order of the documentation.
        pub fn limits_table() -> Value {
            json!([$({
                "name": stringify!($name),
                "unit": <$kind as LimitValue>::UNIT,
                "default": $default,
                "help": concat!($($help),+).trim(),
            }),+])
        }
    };
}

limits! {
    /// Largest WebSocket message. A longer one ends its session: `Error`, close code 1009. A session
    /// may take four times as much memory, for samples sent as small integers.
    message_mb: Mebibytes = 16.0;
    /// Largest body of a POST. A longer one is answered with 413.
    body_mb: Mebibytes = 100.0;
    /// All bodies that are held at the same time. What would be more is answered with 503.
    bodies_mb: Mebibytes = 1024.0;
    /// Audio that a lane holds unprocessed before its session stops reading: a client that sends
    /// faster is slowed down, and loses nothing.
    audio_ahead_s: Seconds = 60.0;
    /// Time between two pings to a client.
    ping_every_s: Seconds = 10.0;
    /// Time without anything from a client, answers to pings included, after which its session
    /// ends: `Error`, close code 1008.
    silent_s: Seconds = 20.0;
    /// Time without a message that carries data, after which a session ends: `Error`, close code
    /// 1008.
    no_data_s: Seconds = 120.0;
    /// Time that a client may take to read what it is sent. Then its connection is cut.
    not_reading_s: Seconds = 30.0;
    /// Time without a byte of a body. Then the request is answered with 408.
    body_idle_s: Seconds = 20.0;
    /// Time for TLS and the head of a request, from the connection's start or the answer before.
    handshake_s: Seconds = 10.0;
    /// Connections whose first request is not complete. Of more, the oldest is closed.
    handshakes: Count = 256;
    /// Head of a request: its line and headers. A longer one is answered with 431.
    header_kb: Kibibytes = 32.0;
    /// Connections. More are closed at once; there are never more than file descriptors allow.
    connections: Count = 4096;
    /// Connections from one IP address. More are closed at once.
    connections_per_address: Count = 1024;
    /// Sessions with one key, files included. More are answered with 429.
    connections_per_key: Count = 1024;
    /// Whether a key is also taken from the query, as `auth_id`: browsers cannot set headers.
    allow_key_in_query: bool = true;
    /// Time that sessions have to end once the server was told to.
    drain_s: Seconds = 8.0;
    /// Longest step of a model. One that takes longer hangs: the model has failed.
    step_s: Seconds = 2.5;
    /// Lag from which on nobody is let in, until it is below a quarter of that.
    lag_s: Seconds = 2.0;
}

impl Limits {
    /// Largest WebSocket message that is read at all, in bytes. A message between the two limits is
    /// read to its end, so that its sender can be told; one above is cut off on arrival.
    pub(crate) fn message_read_bytes(&self) -> usize {
        2 * self.message_mb.bytes()
    }

    /// Samples a lane holds unprocessed before its session stops reading.
    pub(crate) fn lane_input_samples(&self) -> usize {
        self.audio_ahead_s.times(f64::from(SAMPLE_RATE_HZ))
    }

    /// Frames whose arrival a lane remembers, to tell how long a word took: those that wait, and
    /// half a minute before them for the model's delay and the word itself.
    pub(crate) fn arrivals(&self) -> usize {
        self.audio_ahead_s.times(FRAME_RATE_HZ) + (30.0 * FRAME_RATE_HZ) as usize
    }
}

/// Bytes of a configuration; the longest in the field has some thousand.
pub(crate) const CONFIG_BYTES: usize = 1 << 20;

/// Lanes of a module; one device serves far fewer.
pub const MAX_LANES: usize = 4096;

/// Messages a lane holds unsent before it is not stepped any more: more than a minute's worth.
pub(crate) const LANE_OUTPUT_MESSAGES: usize = 1024;

/// Markers a lane holds unanswered before its session is refused.
pub(crate) const LANE_MARKERS: usize = 1 << 16;

/// Restarts (`Init`) a lane holds unprocessed before its session stops reading.
pub(crate) const LANE_RESTARTS: usize = 16;

/// Tokens of one word before it is sent unfinished; speech stays far below.
pub(crate) const WORD_TOKENS: usize = 1024;

/// Bytes of one Ogg packet; audio stays far below, comments with a picture may come close.
pub(crate) const OGG_PACKET_BYTES: usize = 4 << 20;

/// Sample rates of audio files, in Hz.
pub(crate) const FILE_RATES_HZ: std::ops::RangeInclusive<u32> = 1_000..=384_000;

/// Audio of one file, in samples: a day. Silence compresses to nothing, so the length of a body says
/// little about how long it would keep its lane.
pub(crate) const FILE_SAMPLES: u64 = 24 * 3600 * SAMPLE_RATE_HZ as u64;

/// How long a POST waits for a free lane before it is refused.
pub(crate) const POST_LANE_WAIT: Duration = Duration::from_millis(300);

/// When somebody who was refused should try again, in seconds.
pub(crate) const RETRY_AFTER_S: u32 = 5;

/// How long a closed connection may take to answer the close.
pub(crate) const CLOSE_HANDSHAKE: Duration = Duration::from_secs(2);

/// How long a failed server keeps answering, so that clients, health checks and a scrape learn of
/// it.
pub(crate) const FAILURE_GRACE: Duration = Duration::from_secs(3);

/// How long what a client sent may be on its way when the server is told to end.
pub(crate) const IN_FLIGHT: Duration = Duration::from_millis(250);

/// How long before the end of `drain_s` sessions are cut, so that they still hear of it.
pub(crate) const CUT_BEFORE_END: Duration = Duration::from_millis(500);

/// What the system holds of a connection's output, in bytes; it may double that. Much more costs
/// megabytes for each client that does not read, and makes one that reads slowly look like that: there
/// is room again only when a good part of it is read.
pub(crate) const SEND_BUFFER_BYTES: usize = 128 << 10;

/// How often a step is looked at that may hang.
pub(crate) const WATCH_EVERY: Duration = Duration::from_millis(125);

/// How often longer the first step of a model may take that was not warmed up.
pub(crate) const COLD_STEP: u32 = 24;

/// How often the files of a certificate are looked at.
pub(crate) const CERTIFICATE_LOOKS: Duration = Duration::from_secs(2);

/// File descriptors kept for everything but connections: log, models, listener, metrics.
pub(crate) const SPARE_DESCRIPTORS: usize = 64;

/// How long nothing is accepted after the system refused a connection for want of descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Limits, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_string())
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let limits = read("message_mb = 1\nsilent_s = 0.5\nconnections = 7").unwrap();
        assert_eq!(limits.message_mb.bytes(), 1 << 20);
        assert_eq!(limits.silent_s.duration(), Duration::from_millis(500));
        assert_eq!(limits.connections.get(), 7);
        let defaults = Limits { message_mb: 1.0.into(), silent_s: 0.5.into(), ..Limits::default() };
        assert_eq!(limits, Limits { connections: 7.into(), ..defaults });
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (text, says) in [
            ("silent_s = 0", "expected a number of seconds from 0.05 to 86400.0"),
            ("silent_s = -1", "seconds"),
            ("silent_s = nan", "seconds"),
            ("silent_s = inf", "seconds"),
            ("message_mb = 1e9", "MiB"),
            ("header_kb = 4", "from 8.0 to 1024.0"),
            ("connections = 0", "expected a whole number, at least 1"),
            ("connections = -1", "invalid value"),
            ("connections = 1.5", "invalid type"),
            ("allow_key_in_query = 1", "invalid type"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn the_table_has_every_limit_with_its_default() {
        let table = limits_table();
        let defaults = json!(Limits::default());
        let rows = table.as_array().unwrap();
        assert_eq!(rows.len(), defaults.as_object().unwrap().len());
        for row in rows {
            let name = row["name"].as_str().unwrap();
            assert_eq!(row["default"], defaults[name], "{name}");
        }
    }
}
