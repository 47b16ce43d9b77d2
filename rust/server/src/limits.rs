//! Every bound the server keeps, in one place.

use std::time::Duration;

use moshi_ctl_core::units::{FRAME_SAMPLES, SAMPLE_RATE_HZ};

/// Largest WebSocket message, in bytes: over two minutes of audio as MessagePack floats.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Largest WebSocket message that is read at all, in bytes. A message between the two limits is
/// read to its end, so that its sender can be told; one above is cut off on arrival.
pub(crate) const MAX_MESSAGE_READ_BYTES: usize = 2 * MAX_MESSAGE_BYTES;

/// Largest body of a POST, in bytes: over an hour of compressed audio.
pub(crate) const MAX_POST_BYTES: usize = 100 << 20;

/// Lanes of a module; one device serves far fewer.
pub const MAX_LANES: usize = 4096;

/// Samples a lane holds unprocessed before its session stops reading: one minute. Clients in the
/// field end a recording with up to 40 s of silence at once and expect their pings to be read
/// meanwhile.
pub(crate) const LANE_INPUT_SAMPLES: usize = 60 * SAMPLE_RATE_HZ as usize;

/// Messages a lane holds unsent before it is not stepped any more: more than a minute's worth.
pub(crate) const LANE_OUTPUT_MESSAGES: usize = 1024;

/// Markers a lane holds unanswered before its session is refused.
pub(crate) const LANE_MARKERS: usize = 1 << 16;

/// Restarts (`Init`) a lane holds unprocessed before its session stops reading.
pub(crate) const LANE_RESTARTS: usize = 16;

/// Frames whose arrival a lane remembers, to tell how long a word took: those that wait, and half a
/// minute before them for the model's delay and the word itself.
pub(crate) const ARRIVALS: usize =
    (LANE_INPUT_SAMPLES + 30 * SAMPLE_RATE_HZ as usize) / FRAME_SAMPLES;

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
pub(crate) const POST_LANE_WAIT: Duration = Duration::from_secs(1);

/// When a refused POST should be tried again, in seconds.
pub(crate) const POST_RETRY_AFTER_S: u32 = 5;

/// How long a closed connection may take to answer the close.
pub(crate) const CLOSE_HANDSHAKE: Duration = Duration::from_secs(2);

/// How long a failed server keeps answering, so that clients and health checks learn of it.
pub(crate) const FAILURE_GRACE: Duration = Duration::from_secs(1);

/// How long sessions may take to end when the server does.
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// What a session tolerates of its peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Between two pings.
    pub(crate) ping_every: Duration,
    /// Without a message of any sort, the answers to pings included.
    pub(crate) silent: Duration,
    /// Without a message that carries data.
    pub(crate) no_data: Duration,
    /// Without reading what it is sent.
    pub(crate) not_reading: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_secs(10),
            silent: Duration::from_secs(20),
            no_data: Duration::from_secs(120),
            not_reading: Duration::from_secs(30),
        }
    }
}
