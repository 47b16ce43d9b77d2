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
        PacketReader::first_packet_starts_with(bytes, HEAD_MAGIC)
    }

    /// Adds the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.reader.feed(bytes);
    }

    /// The samples of the next packet that is complete; of one that is no audio, none. One packet
    /// at a time, so that the caller can let others have their turn: a message may hold hours of
    /// audio that is all to be dropped.
    pub(crate) fn next_pcm(&mut self) -> Result<Option<Vec<f32>>, OggOpusError> {
        let Some(packet) = self.reader.next_packet()? else { return Ok(None) };
        if packet.first {
            self.stream = Some(Stream::open(&packet.data)?);
            return Ok(Some(Vec::new()));
        }
        match &mut self.stream {
            Some(stream) if stream.tagged => stream.decode(&packet).map(Some),
            Some(stream) => {
                stream.tagged = true;
                Ok(Some(Vec::new()))
            }
            None => Ok(Some(Vec::new())),
        }
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
        self.decoded += samples as u64;
        pcm.truncate(packet.counted(samples, self.decoded, GRANULES_PER_SAMPLE));
        let skipped = self.skip.min(pcm.len());
        self.skip -= skipped;
        pcm.drain(..skipped);
        Ok(pcm)
    }
}

fn packet_error(code: ErrorCode) -> OggOpusError {
    OggOpusError::Packet(code.message())
}

#[cfg(test)]
#[path = "../tests/support/ogg.rs"]
#[allow(unreachable_pub, reason = "shared with the tests over sockets")]
mod writer;

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(stream: &[u8], piece: usize) -> Result<Vec<f32>, OggOpusError> {
        let mut decoder = OggOpusDecoder::default();
        let mut pcm = Vec::new();
        for bytes in stream.chunks(piece) {
            decoder.feed(bytes);
            while let Some(more) = decoder.next_pcm()? {
                pcm.extend(more);
            }
        }
        Ok(pcm)
    }

    fn tone(rate_hz: u32, samples: usize) -> Vec<f32> {
        let phase = std::f32::consts::TAU * 300.0 / rate_hz as f32;
        (0..samples).map(|i| (i as f32 * phase).sin() * 0.5).collect()
    }

    #[test]
    fn audio_comes_back_in_place_whatever_the_packets_and_pieces() {
        let (original, expected) = (tone(48_000, 60_010), tone(24_000, 30_005));
        for (packet_samples, per_page) in
            [(120, 1), (240, 200), (480, 3), (960, 50), (1920, 1), (2880, 9)]
        {
            let stream = writer::encode(&original, 1, packet_samples, per_page);
            let pcm = decode(&stream, stream.len()).unwrap();
            assert_eq!(pcm.len(), expected.len(), "packets of {packet_samples}");
            // The encoder needs a moment to begin, and the last packet was padded with silence.
            let errors =
                pcm.iter().zip(&expected).skip(2000).take(26_000).map(|(a, b)| (a - b).abs());
            let worst = errors.fold(0.0, f32::max);
            assert!(worst < 0.05, "packets of {packet_samples}: off by {worst}");
            for piece in [1, 27, 4096] {
                assert_eq!(decode(&stream, piece).unwrap(), pcm, "pieces of {piece}");
            }
        }
    }

    #[test]
    fn streams_may_follow_each_other() {
        let one = writer::encode(&tone(48_000, 9600), 2, 960, 2);
        let pcm = decode(&[one.clone(), one.clone()].concat(), 100).unwrap();
        assert_eq!(pcm, decode(&one, 100).unwrap().repeat(2));
    }

    #[test]
    fn packets_are_decoded_one_at_a_time() {
        // What begins too late by a second, in packets of 2.5 ms on one page: nothing is to be heard.
        let mut stream = writer::encode(&tone(48_000, 4800), 1, 120, 200);
        stream[28 + 10..28 + 12].copy_from_slice(&u16::MAX.to_le_bytes());
        let head = crate::ogg::page_bytes(&stream).unwrap();
        stream[22..26].fill(0);
        let checksum = crate::ogg::checksum(&stream[..head]);
        stream[22..26].copy_from_slice(&checksum.to_le_bytes());
        let mut decoder = OggOpusDecoder::default();
        decoder.feed(&stream);
        let mut packets = 0;
        while let Some(pcm) = decoder.next_pcm().unwrap() {
            assert!(pcm.is_empty());
            packets += 1;
        }
        assert_eq!(packets, 2 + (4800 + writer::PRE_SKIP).div_ceil(120));
    }

    #[test]
    fn broken_streams_end_with_a_reason_and_never_with_a_panic() {
        let stream = writer::encode(&tone(48_000, 9600), 1, 960, 2);
        let audio_at = stream.len() - 200;
        for at in (0..300).chain(audio_at..stream.len()) {
            for flip in [1, 128] {
                let mut stream = stream.clone();
                stream[at] ^= flip;
                // A page that claims to be longer waits for more; nothing else goes unnoticed.
                if let Ok(pcm) = decode(&stream, 50) {
                    assert!(pcm.len() < 4800, "byte {at}");
                }
            }
        }
        for length in 0..stream.len().min(400) {
            assert!(decode(&stream[..length], 64).is_ok(), "cut at {length}");
        }
        assert_eq!(decode(b"RIFF", 4), Err(OggOpusError::Ogg(OggError::NoPage)));
    }
}
