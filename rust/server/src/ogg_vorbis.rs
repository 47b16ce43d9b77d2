//! Ogg Vorbis (Vorbis I specification, appendix A) to samples, packet by packet.
//!
//! Pages and headers are read here, so that comments are passed over instead of collected, and a
//! setup header is looked at before a decoder believes it.

use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::well_known::CODEC_ID_VORBIS;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::packet::PacketRef;
use symphonia::core::units::{Duration, Timestamp};

use crate::ogg::{OggError, Packet, PacketReader};
use crate::vorbis_setup;

/// What the first packet begins with.
const HEAD_MAGIC: &[u8] = b"\x01vorbis";
const COMMENT_MAGIC: &[u8] = b"\x03vorbis";
const SETUP_MAGIC: &[u8] = b"\x05vorbis";

/// What makes a stream undecodable; the text is meant for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OggVorbisError {
    #[error(transparent)]
    Ogg(#[from] OggError),
    #[error("not a Vorbis stream: {0}")]
    Head(&'static str),
    #[error("a Vorbis packet cannot be decoded ({0})")]
    Packet(&'static str),
}

/// A decoder that is fed bytes and gives the audio of one packet at a time.
#[derive(Default)]
pub(crate) struct OggVorbisDecoder {
    reader: PacketReader,
    stream: Stream,
}

/// What a packet was.
pub(crate) enum Decoded<'a> {
    /// Audio, of which so many frames count.
    Audio(GenericAudioBufferRef<'a>, usize),
    /// Audio that is damaged, and how.
    Damaged(&'static str),
    /// No audio.
    Header,
}

/// A logical Vorbis stream, as far as its headers were seen.
#[derive(Default)]
enum Stream {
    /// None began.
    #[default]
    None,
    /// Its identification header was seen.
    Identified(Vec<u8>),
    /// The comments were seen too.
    Commented(Vec<u8>),
    /// Audio follows.
    Audio(Audio),
}

struct Audio {
    decoder: Box<dyn AudioDecoder>,
    /// Frames decoded so far.
    decoded: u64,
}

impl OggVorbisDecoder {
    /// Whether `bytes` begin like an Ogg stream whose first packet is a Vorbis header.
    pub(crate) fn recognizes(bytes: &[u8]) -> bool {
        PacketReader::first_packet_starts_with(bytes, HEAD_MAGIC)
    }

    /// Adds the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.reader.feed(bytes);
    }

    /// What the next packet is that is complete.
    pub(crate) fn next_packet(&mut self) -> Result<Option<Decoded<'_>>, OggVorbisError> {
        let Some(packet) = self.reader.next_packet()? else { return Ok(None) };
        if packet.first || !matches!(self.stream, Stream::Audio(_)) {
            self.stream = std::mem::take(&mut self.stream).after_header(packet)?;
        } else if let Stream::Audio(audio) = &mut self.stream {
            return audio.decode(&packet).map(Some);
        }
        Ok(Some(Decoded::Header))
    }
}

impl Stream {
    fn after_header(self, packet: Packet) -> Result<Self, OggVorbisError> {
        let magic = |magic: &[u8], what| {
            packet.data.starts_with(magic).then_some(()).ok_or(OggVorbisError::Head(what))
        };
        if packet.first {
            magic(HEAD_MAGIC, "its first packet is no identification header")?;
            return Ok(Self::Identified(packet.data));
        }
        match self {
            Self::Identified(head) => {
                magic(COMMENT_MAGIC, "its second packet is no comment header")?;
                Ok(Self::Commented(head))
            }
            Self::Commented(head) => {
                magic(SETUP_MAGIC, "its third packet is no setup header")?;
                vorbis_setup::check(&packet.data).map_err(OggVorbisError::Head)?;
                Ok(Self::Audio(Audio::open([head, packet.data].concat())?))
            }
            // The end of a stream whose beginning was never seen.
            other => Ok(other),
        }
    }
}

impl Audio {
    fn open(headers: Vec<u8>) -> Result<Self, OggVorbisError> {
        let mut parameters = AudioCodecParameters::new();
        parameters.for_codec(CODEC_ID_VORBIS).with_extra_data(headers.into());
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(&parameters, &AudioDecoderOptions::default())
            .map_err(|error| match error {
                SymphoniaError::DecodeError(what) | SymphoniaError::Unsupported(what) => {
                    OggVorbisError::Head(what)
                }
                _ => OggVorbisError::Head("its headers break off"),
            })?;
        Ok(Self { decoder, decoded: 0 })
    }

    fn decode(&mut self, packet: &Packet) -> Result<Decoded<'_>, OggVorbisError> {
        let data = PacketRef::new(0, Timestamp::ZERO, Duration::ZERO, &packet.data);
        let audio = match self.decoder.decode_ref(&data) {
            Ok(audio) => audio,
            Err(SymphoniaError::DecodeError(what)) => return Ok(Decoded::Damaged(what)),
            Err(SymphoniaError::IoError(_)) => return Ok(Decoded::Damaged("it breaks off")),
            Err(SymphoniaError::Unsupported(what)) => return Err(OggVorbisError::Packet(what)),
            Err(_) => return Err(OggVorbisError::Packet("its decoder cannot go on")),
        };
        let frames = audio.frames();
        self.decoded += frames as u64;
        Ok(Decoded::Audio(audio, packet.counted(frames, self.decoded, 1)))
    }
}
