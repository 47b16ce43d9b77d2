//! Ogg Opus (RFC 7845) to samples at 24 kHz, mono, from bytes that come in any pieces.

use moshi_ctl_core::units::SAMPLE_RATE_HZ;
use opusic_c::{Channels, Decoder, ErrorCode, SampleRate};

use crate::ogg::{OggError, Packet, PacketReader};

const HEAD_MAGIC: &[u8] = b"OpusHead";
/// Bytes of an identification header without a channel mapping table.
const HEAD_BYTES: usize = 19;
/// Granule positions and pre-skip count samples at this rate whatever the stream's own.
const GRANULE_RATE_HZ: u32 = 48_000;
const GRANULES_PER_SAMPLE: u64 = (GRANULE_RATE_HZ / SAMPLE_RATE_HZ) as u64;
/// Samples of the longest packet: 120 ms.
const MAX_PACKET_SAMPLES: usize = SAMPLE_RATE_HZ as usize * 120 / 1000;

/// What makes a stream undecodable; the text is meant for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OggOpusError {
    #[error(transparent)]
    Ogg(#[from] OggError),
    #[error("not an Opus stream: {0}")]
    Head(&'static str),
    #[error("an Opus packet cannot be decoded ({0})")]
    Packet(&'static str),
}

/// A decoder that is fed bytes and gives samples, one packet at a time.
#[derive(Default)]
pub(crate) struct OggOpusDecoder {
    reader: PacketReader,
    stream: Option<Stream>,
}

/// A logical Opus stream.
struct Stream {
    decoder: Decoder,
    /// Whether the comment header was seen and audio follows.
    tagged: bool,
    /// Samples still to be dropped from the start.
    skip: usize,
    /// Samples decoded so far, the skipped ones included.
    decoded: u64,
}

impl OggOpusDecoder {
    /// Whether `bytes` begin like an Ogg stream whose first packet is an Opus header.
    pub(crate) fn recognizes(bytes: &[u8]) -> bool {
        let mut reader = PacketReader::default();
        reader.feed(&bytes[..bytes.len().min(1024)]);
        matches!(reader.next_packet(), Ok(Some(packet)) if packet.data.starts_with(HEAD_MAGIC))
    }

    /// Adds the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.reader.feed(bytes);
    }

    /// The samples of the next packet that is complete.
    pub(crate) fn next_pcm(&mut self) -> Result<Option<Vec<f32>>, OggOpusError> {
        while let Some(packet) = self.reader.next_packet()? {
            if packet.first {
                self.stream = Some(Stream::open(&packet.data)?);
                continue;
            }
            let Some(stream) = &mut self.stream else { continue };
            if !stream.tagged {
                stream.tagged = true;
                continue;
            }
            let pcm = stream.decode(&packet)?;
            if !pcm.is_empty() {
                return Ok(Some(pcm));
            }
        }
        Ok(None)
    }
}

impl Stream {
    fn open(head: &[u8]) -> Result<Self, OggOpusError> {
        if head.len() < HEAD_BYTES || !head.starts_with(HEAD_MAGIC) {
            return Err(OggOpusError::Head("its first packet is no OpusHead"));
        }
        let (version, channels, mapping_family) = (head[8], head[9], head[18]);
        if version >> 4 != 0 {
            return Err(OggOpusError::Head("its version is unknown"));
        }
        if mapping_family != 0 || !(1..=2).contains(&channels) {
            return Err(OggOpusError::Head("only mono and stereo are supported"));
        }
        let pre_skip = u16::from_le_bytes([head[10], head[11]]);
        let gain = i16::from_le_bytes([head[16], head[17]]);
        // A mono decoder mixes stereo packets down.
        let mut decoder =
            Decoder::new(Channels::Mono, SampleRate::Hz24000).map_err(packet_error)?;
        if gain != 0 {
            decoder.set_gain(gain.into()).map_err(packet_error)?;
        }
        let skip = usize::from(pre_skip) / GRANULES_PER_SAMPLE as usize;
        Ok(Self { decoder, tagged: false, skip, decoded: 0 })
    }

    fn decode(&mut self, packet: &Packet) -> Result<Vec<f32>, OggOpusError> {
        if packet.data.is_empty() {
            return Ok(Vec::new());
        }
        let mut pcm = vec![0.0; MAX_PACKET_SAMPLES];
        let samples = self
            .decoder
            .decode_float_to_slice(&packet.data, &mut pcm, false)
            .map_err(packet_error)?;
        pcm.truncate(samples);
        self.decoded += samples as u64;
        if let Some(end) = packet.end {
            // An end before this very packet's begin is not one to believe: live encoders write
            // what they like there.
            let excess = self.decoded.saturating_sub(end.div_ceil(GRANULES_PER_SAMPLE));
            if excess < samples as u64 {
                pcm.truncate(samples - excess as usize);
            }
        }
        let skipped = self.skip.min(pcm.len());
        self.skip -= skipped;
        pcm.drain(..skipped);
        Ok(pcm)
    }
}

fn packet_error(code: ErrorCode) -> OggOpusError {
    OggOpusError::Packet(code.message())
}
