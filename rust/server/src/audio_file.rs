//! An audio file's bytes to samples at 24 kHz, mono.

use std::io::Cursor;

use bytes::Bytes;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use crate::limits::FILE_RATES_HZ;
use crate::ogg_opus::{OggOpusDecoder, OggOpusError};
use crate::resample::{ResampleError, Resampler};

/// Why a file has no samples for us; the text is meant for the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AudioFileError {
    #[error("not an audio file this server knows (WAV, MP3, FLAC, Ogg Vorbis, Ogg Opus): {0}")]
    Unknown(String),
    #[error("the audio cannot be decoded: {0}")]
    Undecodable(String),
    #[error("the audio file holds no samples")]
    Silent,
}

impl From<OggOpusError> for AudioFileError {
    fn from(error: OggOpusError) -> Self {
        Self::Undecodable(error.to_string())
    }
}

impl From<ResampleError> for AudioFileError {
    fn from(error: ResampleError) -> Self {
        Self::Undecodable(error.to_string())
    }
}

/// Decodes a file piece by piece. `take` gets samples and says whether it wants more.
pub(crate) fn decode(
    file: Bytes,
    mut take: impl FnMut(Vec<f32>) -> bool,
) -> Result<(), AudioFileError> {
    let mut any = false;
    let mut take_some = |pcm: Vec<f32>| {
        any |= !pcm.is_empty();
        pcm.is_empty() || take(pcm)
    };
    if OggOpusDecoder::recognizes(&file) {
        decode_opus(&file, &mut take_some)?;
    } else {
        AudioFile::open(file)?.decode(&mut take_some)?;
    }
    if any { Ok(()) } else { Err(AudioFileError::Silent) }
}

fn decode_opus(file: &[u8], take: &mut impl FnMut(Vec<f32>) -> bool) -> Result<(), AudioFileError> {
    const PIECE_BYTES: usize = 1 << 16;
    let mut decoder = OggOpusDecoder::default();
    for piece in file.chunks(PIECE_BYTES) {
        decoder.feed(piece);
        while let Some(pcm) = decoder.next_pcm()? {
            if !take(pcm) {
                return Ok(());
            }
        }
    }
    Ok(())
}

struct AudioFile {
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
}

impl AudioFile {
    fn open(file: Bytes) -> Result<Self, AudioFileError> {
        let unknown = |error: SymphoniaError| AudioFileError::Unknown(error.to_string());
        let stream = MediaSourceStream::new(Box::new(Cursor::new(file)), Default::default());
        let format = symphonia::default::get_probe()
            .probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
            .map_err(unknown)?;
        let track = format
            .default_track(TrackType::Audio)
            .ok_or_else(|| AudioFileError::Unknown("it has no audio track".into()))?;
        let parameters = track
            .codec_params
            .as_ref()
            .and_then(|parameters| parameters.audio())
            .ok_or_else(|| AudioFileError::Unknown("its audio has no known codec".into()))?;
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(parameters, &AudioDecoderOptions::default())
            .map_err(unknown)?;
        let track = track.id;
        Ok(Self { format, decoder, track })
    }

    fn decode(mut self, take: &mut impl FnMut(Vec<f32>) -> bool) -> Result<(), AudioFileError> {
        let mut resampler: Option<(u32, Resampler)> = None;
        let mut last_error = None;
        let mut interleaved: Vec<f32> = Vec::new();
        // A file that breaks off is transcribed as far as it goes.
        while let Ok(Some(packet)) = self.format.next_packet() {
            if packet.track_id != self.track {
                continue;
            }
            let audio = match self.decoder.decode(&packet) {
                Ok(audio) => audio,
                Err(SymphoniaError::DecodeError(error)) => {
                    last_error = Some(error);
                    continue;
                }
                Err(error) => return Err(AudioFileError::Undecodable(error.to_string())),
            };
            let rate_hz = audio.spec().rate();
            let channels = audio.num_planes();
            if channels == 0 || !FILE_RATES_HZ.contains(&rate_hz) {
                let what = format!("{channels} channels at {rate_hz} Hz");
                return Err(AudioFileError::Undecodable(what));
            }
            audio.copy_to_vec_interleaved(&mut interleaved);
            let mono = interleaved
                .chunks_exact(channels)
                .map(|frame| frame.iter().sum::<f32>() / channels as f32)
                .collect();
            let resampler = match &mut resampler {
                Some((rate, resampler)) if *rate == rate_hz => resampler,
                Some(_) => {
                    return Err(AudioFileError::Undecodable("its sample rate changes".into()));
                }
                none => &mut none.insert((rate_hz, Resampler::new(rate_hz)?)).1,
            };
            if !take(resampler.push(mono)?) {
                return Ok(());
            }
        }
        match (resampler, last_error) {
            (Some((_, resampler)), _) => {
                take(resampler.finish()?);
                Ok(())
            }
            (None, Some(error)) => Err(AudioFileError::Undecodable(error.to_string())),
            (None, None) => Ok(()),
        }
    }
}
