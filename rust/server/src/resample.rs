//! Mono audio of any rate to 24 kHz, in step with the input: no delay, no sample too many.

use moshi_ctl_core::units::SAMPLE_RATE_HZ;
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _};

/// Input samples per turn of the resampler, at least.
const MIN_TURN_SAMPLES: usize = 1024;

/// The longest turn is two blocks of so many input samples. Rates up to 48 kHz all stay within it, and so do
/// those in use above; for others tables of a hundred megabytes would be made.
const MAX_BLOCK_SAMPLES: usize = 48_000;

/// Samples are within ±1; from here on sums of them may not be finite.
const TOO_LOUD: f32 = 1e30;

/// A streaming resampler.
pub(crate) enum Resampler {
    /// The audio has the right rate already.
    Through,
    /// It does not.
    Fft(Box<FftState>),
}

pub(crate) struct FftState {
    fft: Fft<f32>,
    rate_hz: u32,
    pending: Vec<f32>,
    out: Vec<f32>,
    received: u64,
    /// Samples of the resampler's own delay still to be dropped.
    skip: usize,
    sent: u64,
}

/// The rates cannot be brought together.
#[derive(Debug, thiserror::Error)]
#[error("audio at {rate_hz} Hz cannot be resampled: {cause}")]
pub(crate) struct ResampleError {
    rate_hz: u32,
    cause: String,
}

impl Resampler {
    pub(crate) fn new(rate_hz: u32) -> Result<Self, ResampleError> {
        if rate_hz == SAMPLE_RATE_HZ {
            return Ok(Self::Through);
        }
        let (from, to) = (rate_hz as usize, SAMPLE_RATE_HZ as usize);
        // The fewest samples that are a whole number of output samples, an even number of times:
        // the resampler's delay is half a turn, and only then a whole number of samples.
        let block = from / greatest_common_divisor(from, to);
        if block > MAX_BLOCK_SAMPLES {
            let cause = format!("it has too little in common with {SAMPLE_RATE_HZ} Hz");
            return Err(ResampleError { rate_hz, cause });
        }
        let turn = block * MIN_TURN_SAMPLES.div_ceil(block).next_multiple_of(2);
        let fft = Fft::<f32>::new(from, to, turn, 1, FixedSync::Both)
            .map_err(|error| ResampleError { rate_hz, cause: error.to_string() })?;
        Ok(Self::Fft(Box::new(FftState {
            rate_hz,
            pending: Vec::with_capacity(fft.input_frames_max()),
            out: vec![0.0; fft.output_frames_max()],
            received: 0,
            skip: fft.output_delay(),
            sent: 0,
            fft,
        })))
    }

    /// What `pcm` adds to the output.
    pub(crate) fn push(&mut self, pcm: Vec<f32>) -> Result<Vec<f32>, ResampleError> {
        match self {
            Self::Through => Ok(pcm),
            Self::Fft(state) => {
                // The FFT panics over a spectrum that is not finite, and sums thousands of samples.
                if !pcm.iter().all(|sample| sample.abs() < TOO_LOUD) {
                    let cause = "a sample is not finite (NaN, infinite or far too loud)".into();
                    return Err(ResampleError { rate_hz: state.rate_hz, cause });
                }
                state.received += pcm.len() as u64;
                state.push(&pcm)
            }
        }
    }

    /// The rest of the output, once there is no more input.
    pub(crate) fn finish(self) -> Result<Vec<f32>, ResampleError> {
        match self {
            Self::Through => Ok(Vec::new()),
            Self::Fft(state) => state.finish(),
        }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl FftState {
    fn push(&mut self, pcm: &[f32]) -> Result<Vec<f32>, ResampleError> {
        let mut output = Vec::new();
        self.pending.extend(pcm);
        let mut used = 0;
        while self.pending.len() - used >= self.fft.input_frames_next() {
            let wanted = self.fft.input_frames_next();
            let written =
                Self::turn(&mut self.fft, &self.pending[used..used + wanted], &mut self.out)
                    .map_err(|cause| ResampleError { rate_hz: self.rate_hz, cause })?;
            used += wanted;
            let skipped = self.skip.min(written);
            self.skip -= skipped;
            output.extend(&self.out[skipped..written]);
        }
        self.pending.drain(..used);
        self.sent += output.len() as u64;
        Ok(output)
    }

    fn turn(fft: &mut Fft<f32>, input: &[f32], out: &mut [f32]) -> Result<usize, String> {
        let out_len = out.len();
        let input = InterleavedSlice::new(input, 1, input.len()).map_err(|e| e.to_string())?;
        let mut out = InterleavedSlice::new_mut(out, 1, out_len).map_err(|e| e.to_string())?;
        let (_, written) =
            fft.process_into_buffer(&input, &mut out, None).map_err(|e| e.to_string())?;
        Ok(written)
    }

    fn finish(mut self) -> Result<Vec<f32>, ResampleError> {
        let wanted = (self.received * u64::from(SAMPLE_RATE_HZ)).div_ceil(u64::from(self.rate_hz));
        let mut output = Vec::new();
        while self.sent < wanted {
            let silence = vec![0.0; self.fft.input_frames_next() - self.pending.len()];
            output.extend(self.push(&silence)?);
        }
        let excess = self.sent - wanted;
        output.truncate(output.len() - (excess as usize).min(output.len()));
        Ok(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tone with a Gaussian envelope around `at_s`.
    fn chirp(rate_hz: u32, duration_s: f64, at_s: f64) -> Vec<f32> {
        let samples = (f64::from(rate_hz) * duration_s) as usize;
        (0..samples)
            .map(|i| {
                let t = i as f64 / f64::from(rate_hz) - at_s;
                ((std::f64::consts::TAU * 440.0 * t).cos() * (-(t / 0.01).powi(2)).exp()) as f32
            })
            .collect()
    }

    #[test]
    fn output_lines_up_with_input_at_any_rate_and_chunking() {
        let expected = chirp(SAMPLE_RATE_HZ, 0.5, 0.2);
        for rate_hz in [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000] {
            let input = chirp(rate_hz, 0.5, 0.2);
            for chunk in [1, 777, input.len()] {
                let mut resampler = Resampler::new(rate_hz).unwrap();
                let mut output = Vec::new();
                for piece in input.chunks(chunk) {
                    output.extend(resampler.push(piece.to_vec()).unwrap());
                }
                output.extend(resampler.finish().unwrap());
                assert!(output.len().abs_diff(expected.len()) <= 1, "{rate_hz} Hz, by {chunk}");
                let error = output.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let worst = error.fold(0.0, f32::max);
                assert!(worst < 0.01, "{rate_hz} Hz, by {chunk}: off by {worst}");
            }
        }
    }

    #[test]
    fn samples_that_are_no_numbers_are_refused() {
        for rate_hz in [8_000, 44_100, 47_999] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
                let mut resampler = Resampler::new(rate_hz).unwrap();
                resampler.push(vec![0.5; 100]).unwrap();
                let error = resampler.push(vec![0.0, bad, 0.0]).unwrap_err().to_string();
                assert!(error.contains("not finite"), "{error}");
            }
            let mut resampler = Resampler::new(rate_hz).unwrap();
            for _ in 0..10 {
                let loud = resampler.push(vec![0.99 * TOO_LOUD; 50_000]).unwrap();
                assert!(loud.iter().all(|sample| sample.is_finite()));
            }
        }
    }

    #[test]
    fn rates_that_would_take_endless_tables_are_refused() {
        for rate_hz in [88_200, 96_000, 176_400, 192_000, 352_800, 384_000, 47_999] {
            assert!(Resampler::new(rate_hz).is_ok(), "{rate_hz} Hz");
        }
        for rate_hz in [48_001, 191_999, 383_993] {
            let error = Resampler::new(rate_hz).err().unwrap().to_string();
            assert!(error.starts_with(&format!("audio at {rate_hz} Hz cannot be")), "{error}");
        }
    }

    #[test]
    fn audio_shorter_than_a_chunk_keeps_its_length() {
        let mut resampler = Resampler::new(48_000).unwrap();
        let mut output = resampler.push(vec![0.5; 10]).unwrap();
        output.extend(resampler.finish().unwrap());
        assert_eq!(output.len(), 5);
    }
}
