//! Writes WAV files.

/// 16-bit samples, interleaved.
pub fn interleaved(rate_hz: u32, channels: u16, pcm: &[f32]) -> Vec<u8> {
    let samples = pcm.iter().flat_map(|sample| ((sample * 32768.0).round() as i16).to_le_bytes());
    file(INTEGERS, 2, rate_hz, channels, samples.collect())
}

/// 32-bit floating point samples, one channel.
pub fn mono_f32(rate_hz: u32, pcm: &[f32]) -> Vec<u8> {
    let samples = pcm.iter().flat_map(|sample| sample.to_le_bytes());
    file(FLOATS, 4, rate_hz, 1, samples.collect())
}

const INTEGERS: u16 = 1;
const FLOATS: u16 = 3;

fn file(format: u16, bytes: u16, rate_hz: u32, channels: u16, samples: Vec<u8>) -> Vec<u8> {
    let data = samples.len() as u32;
    let frame = channels * bytes;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + data).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0");
    wav.extend(format.to_le_bytes());
    wav.extend(channels.to_le_bytes());
    wav.extend(rate_hz.to_le_bytes());
    wav.extend((rate_hz * u32::from(frame)).to_le_bytes());
    wav.extend(frame.to_le_bytes());
    wav.extend((8 * bytes).to_le_bytes());
    wav.extend(b"data");
    wav.extend(data.to_le_bytes());
    wav.extend(samples);
    wav
}

/// 16-bit samples, one channel.
pub fn mono(rate_hz: u32, pcm: &[f32]) -> Vec<u8> {
    interleaved(rate_hz, 1, pcm)
}
