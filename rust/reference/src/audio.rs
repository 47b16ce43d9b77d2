//! Reads the bundled recordings.

use std::path::{Path, PathBuf};

use moshi_ctl_core::units::FRAME_SAMPLES;

use crate::Result;

/// A file of the repository's `assets` folder.
pub fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets").join(name)
}

/// The samples of a 24 kHz mono 16-bit WAV file, within ±1.
///
/// # Errors
/// When the file cannot be read or is not of that kind.
pub fn read_wav(file: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let chunk = |name: &[u8]| {
        let mut rest = bytes.get(12..)?;
        while let [a, b, c, d, s0, s1, s2, s3, ..] = *rest {
            let len = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
            if [a, b, c, d] == name {
                return rest.get(8..8 + len);
            }
            rest = rest.get(8 + len.next_multiple_of(2)..)?;
        }
        None
    };
    // PCM, one channel, 24 kHz; 48,000 bytes a second; 2 bytes a sample of 16 bits.
    let expected = [1, 0, 1, 0, 0xc0, 0x5d, 0, 0, 0x80, 0xbb, 0, 0, 2, 0, 16, 0];
    if chunk(b"fmt ").and_then(|format| format.get(..16)) != Some(expected.as_slice()) {
        return Err(format!("{}: not 24 kHz mono 16-bit WAV", file.display()).into());
    }
    let data = chunk(b"data").ok_or_else(|| format!("{}: no samples", file.display()))?;
    let sample = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0;
    Ok(data.chunks_exact(2).map(sample).collect())
}

/// The whole frames of a recording.
///
/// # Errors
/// As [`read_wav`].
pub fn read_frames(file: &Path) -> Result<Vec<Vec<f32>>> {
    Ok(read_wav(file)?.chunks_exact(FRAME_SAMPLES).map(<[f32]>::to_vec).collect())
}

/// Frames of the long recording, of noise, and of the recording again, at another loudness; as many
/// as asked for.
///
/// # Errors
/// As [`read_wav`].
pub fn long_audio(frames: usize) -> Result<Vec<Vec<f32>>> {
    const NOISE_FRAMES: usize = 13;
    let speech = read_frames(&asset("speech-long.wav"))?;
    let mut audio: Vec<Vec<f32>> = vec![];
    let mut state = 1u32;
    for loudness in [1.0, 0.4, 0.7, 0.2].into_iter().cycle() {
        if audio.len() >= frames {
            break;
        }
        audio.extend(speech.iter().map(|pcm| pcm.iter().map(|x| x * loudness).collect()));
        for _ in 0..NOISE_FRAMES {
            audio.push(
                (0..FRAME_SAMPLES)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        0.1 * loudness * (state.cast_signed() as f32 / (1u32 << 31) as f32)
                    })
                    .collect(),
            );
        }
    }
    audio.truncate(frames);
    Ok(audio)
}
