//! A model whose predictions are in the audio: a frame of value `t / 1000` predicts token `t`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{LaneFault, LaneFrame, LaneStep, ModelError, Prediction, StreamingModel};

/// Audio that makes the model fail.
pub const PANIC: u32 = 901;
pub const ERROR: u32 = 902;
/// Audio of which the model makes numbers that are none, for its lane.
pub const NO_NUMBERS: u32 = 903;

#[derive(Clone)]
pub struct FakeModel {
    /// Frames each lane saw since its reset; the first VAD value, so that tests see leftovers.
    seen: Vec<usize>,
    pub vad_heads: usize,
    /// How many lanes stay after the warm-up, if fewer.
    pub settles_for: Option<usize>,
    pub step_takes: Duration,
    /// Steps wait while this is closed.
    pub gate: Arc<Gate>,
    pub steps: Arc<AtomicUsize>,
    /// Every step fails.
    pub broken: Arc<AtomicBool>,
    /// Of the last step.
    results: Vec<LaneStep>,
}

#[derive(Default)]
pub struct Gate(Mutex<bool>, Condvar);

impl Gate {
    pub fn close(&self) {
        *self.0.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.0.lock().unwrap() = false;
        self.1.notify_all();
    }

    fn pass(&self) {
        let closed = self.0.lock().unwrap();
        drop(self.1.wait_while(closed, |closed| *closed).unwrap());
    }
}

impl FakeModel {
    pub fn new(lanes: usize) -> Self {
        Self {
            seen: vec![0; lanes],
            vad_heads: 0,
            settles_for: None,
            step_takes: Duration::ZERO,
            gate: Arc::default(),
            steps: Arc::default(),
            broken: Arc::default(),
            results: vec![],
        }
    }
}

impl StreamingModel for FakeModel {
    fn lanes(&self) -> usize {
        self.seen.len()
    }

    fn settle(&mut self) -> Result<(), ModelError> {
        assert!(self.steps.load(Ordering::SeqCst) > 0, "settled before it is warm");
        self.seen.truncate(self.settles_for.unwrap_or(usize::MAX));
        Ok(())
    }

    fn reset(&mut self, lane: usize, _seed: u64) -> Result<(), ModelError> {
        self.seen[lane] = 0;
        Ok(())
    }

    fn step(&mut self, frames: &[LaneFrame<'_>]) -> Result<&[LaneStep], ModelError> {
        self.gate.pass();
        std::thread::sleep(self.step_takes);
        self.steps.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(ModelError::new("out of memory"));
        }
        let steps = frames
            .iter()
            .map(|&LaneFrame { lane, pcm }| {
                assert_eq!(pcm.len(), FRAME_SAMPLES);
                if pcm.iter().any(|sample| !sample.is_finite()) {
                    return Ok(LaneStep { lane, outcome: Err(LaneFault::NonFiniteAudio) });
                }
                let token = (pcm[0] * 1000.0).round() as u32;
                assert_ne!(token, PANIC, "told to panic");
                if token == ERROR {
                    return Err(ModelError::new("told to fail"));
                }
                if token == NO_NUMBERS {
                    return Ok(LaneStep { lane, outcome: Err(LaneFault::NonFiniteLogits) });
                }
                self.seen[lane] += 1;
                let vad = vec![self.seen[lane] as f32; self.vad_heads];
                Ok(LaneStep { lane, outcome: Ok(Prediction { text_token: token, vad }) })
            })
            .collect::<Result<_, _>>()?;
        self.results = steps;
        Ok(&self.results)
    }
}

/// A frame that predicts `token`.
pub fn frame(token: u32) -> Vec<f32> {
    vec![token as f32 / 1000.0; FRAME_SAMPLES]
}

/// Frames that predict these tokens.
pub fn frames(tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|&token| frame(token)).collect()
}
