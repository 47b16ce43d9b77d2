//! Audio to measure with where there is no recording.

use std::f32::consts::TAU;

use moshi_ctl_core::units::{FRAME_SAMPLES, SAMPLE_RATE_HZ};

const HARMONICS: usize = 24;
const SYLLABLE_RATE_HZ: f32 = 3.7;
/// Syllables between two pauses.
const PHRASE_SYLLABLES: f32 = 9.0;
const PEAK: f32 = 0.3;

/// `frames` frames of something with the rhythm of speech: voiced syllables whose pitch and colour
/// move, hisses between them, pauses. The same on every call.
pub fn synthetic_speech(frames: usize) -> Vec<Vec<f32>> {
    let mut voice = Voice { phase: 0.0, noise: 0x9e37_79b9 };
    (0..frames)
        .map(|frame| (0..FRAME_SAMPLES).map(|n| voice.sample(frame * FRAME_SAMPLES + n)).collect())
        .collect()
}

struct Voice {
    /// Of the fundamental, in turns.
    phase: f32,
    noise: u32,
}

impl Voice {
    fn sample(&mut self, n: usize) -> f32 {
        let time_s = (n as f64 / f64::from(SAMPLE_RATE_HZ)) as f32;
        let pitch_hz = 120.0 + 25.0 * (TAU * 0.31 * time_s).sin();
        self.phase = (self.phase + pitch_hz / SAMPLE_RATE_HZ as f32).fract();
        let syllable = time_s * SYLLABLE_RATE_HZ;
        if syllable % (PHRASE_SYLLABLES + 2.0) > PHRASE_SYLLABLES {
            return 0.0;
        }
        let loudness = (TAU / 2.0 * syllable.fract()).sin();
        let hiss = 0.15 * (1.0 - loudness) * self.white();
        PEAK * (loudness * self.voiced(pitch_hz, time_s) + hiss)
    }

    /// Harmonics below a formant that wanders between the vowels.
    fn voiced(&self, pitch_hz: f32, time_s: f32) -> f32 {
        let formant_hz = 900.0 + 600.0 * (TAU * 1.3 * time_s).sin();
        let harmonic = |k: usize| {
            let distance = (k as f32 * pitch_hz - formant_hz) / 400.0;
            (TAU * (self.phase * k as f32).fract()).sin() / (1.0 + distance * distance)
        };
        (1..=HARMONICS).map(harmonic).sum::<f32>() / 8.0
    }

    /// xorshift32 (Marsaglia 2003), within ±1.
    fn white(&mut self) -> f32 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 17;
        self.noise ^= self.noise << 5;
        self.noise as i32 as f32 / i32::MAX as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_audio_with_sound_and_pauses() {
        let speech = synthetic_speech(100);
        assert!(speech.iter().all(|frame| frame.len() == FRAME_SAMPLES));
        assert!(speech.iter().flatten().all(|x| x.abs() <= 1.0));
        let loud = |frame: &&Vec<f32>| frame.iter().any(|x| x.abs() > 0.05);
        let loud = speech.iter().filter(loud).count();
        assert!((50..100).contains(&loud), "{loud} of 100 frames have sound");
        assert_eq!(speech, synthetic_speech(100));
    }
}
