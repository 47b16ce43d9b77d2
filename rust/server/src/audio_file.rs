//! An audio file's bytes to samples at 24 kHz, mono.

use std::io::Cursor;

use bytes::Bytes;
use moshi_ctl_core::units::SAMPLE_RATE_HZ;
use symphonia::core::audio::GenericAudioBufferRef;
use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::{Hint, Probe};
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;
use symphonia::default::formats::{FlacReader, MpaReader, WavReader};

use crate::containers::Container;
use crate::limits::{FILE_RATES_HZ, FILE_SAMPLES};
use crate::ogg_opus::{OggOpusDecoder, OggOpusError};
use crate::ogg_vorbis::{Decoded, OggVorbisDecoder, OggVorbisError};
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
    #[error("the audio is longer than {} hours; send it in parts", FILE_SAMPLES / HOUR_SAMPLES)]
    TooLong,
}

const HOUR_SAMPLES: u64 = 3600 * SAMPLE_RATE_HZ as u64;

impl From<OggVorbisError> for AudioFileError {
    fn from(error: OggVorbisError) -> Self {
        Self::Undecodable(error.to_string())
    }
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

/// Decodes a file piece by piece, each of a second or so. `take` gets samples and says whether it
/// wants more.
pub(crate) fn decode(
    file: Bytes,
    take: impl FnMut(Vec<f32>) -> bool,
) -> Result<(), AudioFileError> {
    let mut limited = Limited::new(take);
    let mut take_some = |pcm| limited.take(pcm);
    if OggOpusDecoder::recognizes(&file) {
        decode_opus(&file, &mut take_some)?;
    } else if OggVorbisDecoder::recognizes(&file) {
        decode_vorbis(&file, &mut take_some)?;
    } else {
        AudioFile::open(file)?.decode(&mut take_some)?;
    }
    limited.end()
}

/// Hands samples on, up to a limit.
struct Limited<T> {
    take: T,
    samples: u64,
}

impl<T: FnMut(Vec<f32>) -> bool> Limited<T> {
    fn new(take: T) -> Self {
        Self { take, samples: 0 }
    }

    fn take(&mut self, pcm: Vec<f32>) -> bool {
        self.samples += pcm.len() as u64;
        self.samples <= FILE_SAMPLES && (pcm.is_empty() || (self.take)(pcm))
    }

    fn end(self) -> Result<(), AudioFileError> {
        match self.samples {
            0 => Err(AudioFileError::Silent),
            samples if samples > FILE_SAMPLES => Err(AudioFileError::TooLong),
            _ => Ok(()),
        }
    }
}

/// Bytes of an Ogg stream that are looked at together.
const PIECE_BYTES: usize = 1 << 16;

fn decode_opus(file: &[u8], take: &mut impl FnMut(Vec<f32>) -> bool) -> Result<(), AudioFileError> {
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

fn decode_vorbis(
    file: &[u8],
    take: &mut impl FnMut(Vec<f32>) -> bool,
) -> Result<(), AudioFileError> {
    let mut decoder = OggVorbisDecoder::default();
    let mut mixer = Mixer::default();
    for piece in file.chunks(PIECE_BYTES) {
        decoder.feed(piece);
        while let Some(packet) = decoder.next_packet()? {
            match packet {
                Decoded::Audio(audio, frames) => {
                    if !mixer.mix(&audio, frames, take)? {
                        return Ok(());
                    }
                }
                Decoded::Damaged(what) => mixer.damage = Some(what),
                Decoded::Header => {}
            }
        }
    }
    mixer.finish(take)
}

/// Formats whose container is not Ogg.
struct AudioFile {
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
}

impl AudioFile {
    fn open(file: Bytes) -> Result<Self, AudioFileError> {
        let unknown = |error: SymphoniaError| AudioFileError::Unknown(error.to_string());
        let options = FormatOptions::default();
        let source = |file| MediaSourceStream::new(Box::new(Cursor::new(file)), Default::default());
        let container =
            Container::of(file).map_err(|why| AudioFileError::Unknown(why.to_string()))?;
        let format: Box<dyn FormatReader> = match container {
            Container::Wav(file) => {
                Box::new(WavReader::try_new(source(file), options).map_err(unknown)?)
            }
            Container::Flac(file) => {
                Box::new(FlacReader::try_new(source(file), options).map_err(unknown)?)
            }
            // MP3s have no beginning of their own, and are searched for.
            Container::Other(file) => {
                let mut probe = Probe::default();
                probe.register_format::<MpaReader<'_>>();
                probe
                    .probe(&Hint::new(), source(file), options, MetadataOptions::default())
                    .map_err(unknown)?
            }
        };
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
        let mut mixer = Mixer::default();
        // A file that breaks off is transcribed as far as it goes.
        while let Ok(Some(packet)) = self.format.next_packet() {
            if packet.track_id != self.track {
                continue;
            }
            match self.decoder.decode(&packet) {
                Ok(audio) => {
                    if !mixer.mix(&audio, audio.frames(), take)? {
                        return Ok(());
                    }
                }
                Err(SymphoniaError::DecodeError(what)) => mixer.damage = Some(what),
                Err(error) => return Err(AudioFileError::Undecodable(error.to_string())),
            }
        }
        mixer.finish(take)
    }
}

/// A decoder's frames to samples at 24 kHz, mono.
#[derive(Default)]
struct Mixer {
    /// Once the rate is known, which is in Hz.
    resampler: Option<(u32, Resampler)>,
    interleaved: Vec<f32>,
    /// What the last packet suffered from that could not be decoded.
    damage: Option<&'static str>,
}

impl Mixer {
    /// Hands on the first `frames` of `audio`. Says whether more is wanted.
    fn mix(
        &mut self,
        audio: &GenericAudioBufferRef<'_>,
        frames: usize,
        take: &mut impl FnMut(Vec<f32>) -> bool,
    ) -> Result<bool, AudioFileError> {
        let rate_hz = audio.spec().rate();
        let channels = audio.num_planes();
        if channels == 0 || !FILE_RATES_HZ.contains(&rate_hz) {
            let what = format!("{channels} channels at {rate_hz} Hz");
            return Err(AudioFileError::Undecodable(what));
        }
        let resampler = match &mut self.resampler {
            Some((rate, resampler)) if *rate == rate_hz => resampler,
            Some(_) => return Err(AudioFileError::Undecodable("its sample rate changes".into())),
            none => &mut none.insert((rate_hz, Resampler::new(rate_hz)?)).1,
        };
        audio.copy_to_vec_interleaved(&mut self.interleaved);
        // By the second: a packet of FLAC may be a minute long.
        for second in self.interleaved[..frames * channels].chunks(rate_hz as usize * channels) {
            let frames = second.chunks_exact(channels);
            let mono = frames.map(|frame| frame.iter().sum::<f32>() / channels as f32).collect();
            if !take(resampler.push(mono)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hands on what is left.
    fn finish(self, take: &mut impl FnMut(Vec<f32>) -> bool) -> Result<(), AudioFileError> {
        match (self.resampler, self.damage) {
            (Some((_, resampler)), _) => {
                take(resampler.finish()?);
                Ok(())
            }
            (None, Some(what)) => Err(AudioFileError::Undecodable(what.into())),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file that fuzzing sets out from: a tone that gets louder, made by libsndfile.
    fn seed(name: &str) -> Bytes {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/audio_file/");
        fs::read(format!("{folder}{name}")).unwrap().into()
    }

    fn pcm(file: Bytes) -> Result<Vec<f32>, AudioFileError> {
        let mut all = Vec::new();
        decode(file, |pcm| {
            all.extend(pcm);
            true
        })?;
        Ok(all)
    }

    #[test]
    fn every_format_has_all_of_its_audio() {
        // How much an encoder may add: MP3 to fill its frames, others nothing.
        for (name, duration_s, more_s) in [
            ("pcm16.wav", 0.2, 0.0),
            ("extensible.wav", 0.02, 0.0),
            ("mono.flac", 0.2, 0.0),
            ("mono.mp3", 0.2, 0.15),
            ("mono.vorbis.ogg", 0.2, 0.0),
            ("stereo.vorbis.ogg", 0.1, 0.0),
            ("mono.opus.ogg", 0.2, 0.0),
        ] {
            let samples = pcm(seed(name)).unwrap().len() as f64;
            let found_s = samples / f64::from(SAMPLE_RATE_HZ);
            assert!(found_s > duration_s - 1e-3, "{name}: {found_s} s");
            assert!(found_s < duration_s + more_s + 1e-3, "{name}: {found_s} s");
        }
    }

    #[test]
    fn vorbis_is_the_tone_that_went_in() {
        let (vorbis, wav) =
            (pcm(seed("mono.vorbis.ogg")).unwrap(), pcm(seed("pcm16.wav")).unwrap());
        let worst = vorbis.iter().zip(&wav).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.1, "off by {worst}");
        let twice = [seed("mono.vorbis.ogg"), seed("mono.vorbis.ogg")].concat();
        assert_eq!(pcm(twice.into()).unwrap().len(), 2 * vorbis.len());
    }

    #[test]
    fn a_file_comes_in_pieces_of_a_second() {
        for name in ["mono.flac", "pcm16.wav", "double.wav"] {
            decode(seed(name), |pcm| {
                assert!(pcm.len() <= 2 * SAMPLE_RATE_HZ as usize);
                true
            })
            .unwrap();
        }
    }

    #[test]
    fn days_of_silence_end_after_one() {
        // What decodes to a second, over and over.
        let mut taken = 0;
        let mut limited = Limited::new(|_| {
            taken += 1;
            true
        });
        while limited.take(vec![0.0; SAMPLE_RATE_HZ as usize]) {}
        assert!(matches!(limited.end(), Err(AudioFileError::TooLong)));
        assert_eq!(taken, 24 * 3600);
        let error = AudioFileError::TooLong.to_string();
        assert!(error.contains("24 hours"), "{error}");
    }
}
