//! Writes WAV files.

/// 16-bit samples, interleaved.
pub fn interleaved(rate_hz: u32, channels: u16, pcm: &[f32]) -> Vec<u8> {
    let data = pcm.len() as u32 * 2;
    let frame = channels * 2;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + data).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0");
    wav.extend(channels.to_le_bytes());
    wav.extend(rate_hz.to_le_bytes());
    wav.extend((rate_hz * u32::from(frame)).to_le_bytes());
    wav.extend(frame.to_le_bytes());
    wav.extend(b"\x10\0data");
    wav.extend(data.to_le_bytes());
    for sample in pcm {
        wav.extend(((sample * 32768.0).round() as i16).to_le_bytes());
    }
    wav
}

/// 16-bit samples, one channel.
pub fn mono(rate_hz: u32, pcm: &[f32]) -> Vec<u8> {
    interleaved(rate_hz, 1, pcm)
}
