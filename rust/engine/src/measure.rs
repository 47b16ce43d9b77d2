//! How long the steps of a model take: the loop behind `moshi-ctl bench`, which the benchmarks
//! beside the reference use as well.

mod memory;
mod real_time;
mod speech;

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use moshi_ctl_core::units::FRAME_RATE_HZ;
use moshi_ctl_core::{LaneFrame, ModelError, StreamingModel};
use serde::Serialize;

use crate::{AsrModel, StepTiming};
pub use memory::Memory;
pub use real_time::{RealTimeLanes, lanes_in_real_time};
pub use speech::synthetic_speech;

/// What a frame lasts in real time, in milliseconds.
pub const FRAME_MS: f64 = 1e3 / FRAME_RATE_HZ;

/// How far apart neighbouring lanes are in the recording they hear, in frames.
const LANE_OFFSET_FRAMES: usize = 29;

/// What can be measured: our engine, or another beside it.
pub trait Subject {
    /// Makes `lane` as good as never used.
    ///
    /// # Errors
    /// When the lane does not exist or the engine fails.
    fn restart(&mut self, lane: usize) -> Result<(), ModelError>;

    /// Puts `lane` in the state of having listened for a whole context.
    ///
    /// # Errors
    /// As [`Subject::restart`].
    fn fill(&mut self, lane: usize) -> Result<(), ModelError>;

    /// Advances the lanes named in `frames` and says how long the parts took.
    ///
    /// # Errors
    /// When the engine fails, or one of the lanes.
    fn advance(&mut self, frames: &[LaneFrame<'_>]) -> Result<StepTiming, ModelError>;
}

impl Subject for AsrModel {
    fn restart(&mut self, lane: usize) -> Result<(), ModelError> {
        self.reset(lane, 0)
    }

    fn fill(&mut self, lane: usize) -> Result<(), ModelError> {
        Ok(self.fill_context(lane)?)
    }

    fn advance(&mut self, frames: &[LaneFrame<'_>]) -> Result<StepTiming, ModelError> {
        for step in self.step(frames)? {
            if let Err(fault) = &step.outcome {
                return Err(ModelError::new(format!("lane {}: {fault}", step.lane)));
            }
        }
        Ok(self.last_timing())
    }
}

/// How much the lanes have heard before they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Nothing: a stream that begins.
    Empty,
    /// As much as the model can look back on: a stream in its second minute.
    Full,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The lanes that have a frame in every step: the first so many.
    pub active: usize,
    /// What they have heard before.
    pub context: Context,
    /// Steps before the first that counts.
    pub warmup: usize,
    /// Steps that count.
    pub steps: NonZeroUsize,
}

/// How long one step took.
#[derive(Debug, Clone, Copy)]
pub struct StepTime {
    /// From handing over the frames to having the results.
    pub whole: Duration,
    /// The engine's own account of it.
    pub parts: StepTiming,
}

/// Restarts the lanes of `plan`, steps them and returns the times of the steps that count. Each
/// lane hears `recording` (frames; at least one) in a loop, from its own place on. `proceed` is
/// asked before every step, outside of what is timed.
///
/// # Errors
/// When the subject fails, and whatever `proceed` answers.
pub fn measure<E: From<ModelError>>(
    subject: &mut dyn Subject,
    recording: &[Vec<f32>],
    plan: &Plan,
    mut proceed: impl FnMut() -> Result<(), E>,
) -> Result<Vec<StepTime>, E> {
    for lane in 0..plan.active {
        subject.restart(lane)?;
        if plan.context == Context::Full {
            subject.fill(lane)?;
        }
    }
    let mut times = Vec::with_capacity(plan.steps.get());
    for step in 0..plan.warmup + plan.steps.get() {
        proceed()?;
        let pcm = |lane| &recording[(step + LANE_OFFSET_FRAMES * lane) % recording.len()];
        let frames: Vec<_> =
            (0..plan.active).map(|lane| LaneFrame { lane, pcm: pcm(lane) }).collect();
        let started = Instant::now();
        let parts = subject.advance(&frames)?;
        let whole = started.elapsed();
        if step >= plan.warmup {
            times.push(StepTime { whole, parts });
        }
    }
    Ok(times)
}

/// What the times of many steps say together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Half of the steps took at most this.
    pub step_median_ms: f64,
    /// 95 of 100 steps took at most this.
    pub step_p95_ms: f64,
    /// 99 of 100 steps took at most this.
    pub step_p99_ms: f64,
    /// The codec's part, median.
    pub codec_median_ms: f64,
    /// The language model's part, median.
    pub lm_median_ms: f64,
    /// How many times faster than the audio the median step is.
    pub real_time_factor: f64,
    /// Whether 99 of 100 steps were done before the next frame was there.
    pub keeps_real_time: bool,
}

impl Summary {
    /// Summarises at least one step; without any, every number is NaN.
    pub fn new(times: &[StepTime]) -> Self {
        let sorted = |part: fn(&StepTime) -> Duration| {
            let mut ms: Vec<f64> = times.iter().map(|t| 1e3 * part(t).as_secs_f64()).collect();
            ms.sort_by(f64::total_cmp);
            ms
        };
        let step = sorted(|t| t.whole);
        let step_median_ms = percentile(&step, 50);
        let step_p99_ms = percentile(&step, 99);
        Self {
            step_median_ms,
            step_p95_ms: percentile(&step, 95),
            step_p99_ms,
            codec_median_ms: percentile(&sorted(|t| t.parts.codec), 50),
            lm_median_ms: percentile(&sorted(|t| t.parts.lm), 50),
            real_time_factor: FRAME_MS / step_median_ms,
            keeps_real_time: step_p99_ms <= FRAME_MS,
        }
    }
}

/// The least of `sorted` that `percent` of a hundred do not exceed (nearest rank).
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it was asked for, in order.
    #[derive(Debug, Clone, PartialEq)]
    enum Asked {
        Restart(usize),
        Fill(usize),
        /// Lane and first sample of each frame.
        Step(Vec<(usize, f32)>),
    }

    #[derive(Default)]
    struct Fake {
        asked: Vec<Asked>,
        fails_at_step: Option<usize>,
    }

    impl Subject for Fake {
        fn restart(&mut self, lane: usize) -> Result<(), ModelError> {
            self.asked.push(Asked::Restart(lane));
            Ok(())
        }

        fn fill(&mut self, lane: usize) -> Result<(), ModelError> {
            self.asked.push(Asked::Fill(lane));
            Ok(())
        }

        fn advance(&mut self, frames: &[LaneFrame<'_>]) -> Result<StepTiming, ModelError> {
            if self.fails_at_step == Some(self.steps().len()) {
                return Err(ModelError::new("broken"));
            }
            let heard = frames.iter().map(|frame| (frame.lane, frame.pcm[0])).collect();
            self.asked.push(Asked::Step(heard));
            let ms = Duration::from_millis;
            Ok(StepTiming { codec: ms(1), lm: ms(2), threads: None })
        }
    }

    impl Fake {
        fn steps(&self) -> Vec<&Asked> {
            self.asked.iter().filter(|asked| matches!(asked, Asked::Step(_))).collect()
        }
    }

    /// Frames that each hold their own number.
    fn recording(frames: usize) -> Vec<Vec<f32>> {
        (0..frames).map(|n| vec![n as f32]).collect()
    }

    fn plan(active: usize, context: Context) -> Plan {
        Plan { active, context, warmup: 2, steps: NonZeroUsize::new(3).unwrap() }
    }

    fn run(fake: &mut Fake, plan: &Plan) -> Result<Vec<StepTime>, ModelError> {
        measure(fake, &recording(50), plan, || Ok(()))
    }

    #[test]
    fn warm_up_steps_do_not_count() {
        let mut fake = Fake::default();
        let times = run(&mut fake, &plan(1, Context::Empty)).unwrap();
        assert_eq!((times.len(), fake.steps().len()), (3, 5));
        assert_eq!(times[0].parts.lm, Duration::from_millis(2));
    }

    #[test]
    fn every_lane_is_fresh_and_has_its_own_place_in_the_recording() {
        let mut fake = Fake::default();
        run(&mut fake, &plan(2, Context::Empty)).unwrap();
        assert_eq!(fake.asked[..2], [Asked::Restart(0), Asked::Restart(1)]);
        assert_eq!(fake.asked[2], Asked::Step(vec![(0, 0.0), (1, 29.0)]));
        assert_eq!(fake.asked[3], Asked::Step(vec![(0, 1.0), (1, 30.0)]));
    }

    #[test]
    fn a_full_context_comes_after_the_restart() {
        let mut fake = Fake::default();
        run(&mut fake, &plan(1, Context::Full)).unwrap();
        assert_eq!(fake.asked[..2], [Asked::Restart(0), Asked::Fill(0)]);
    }

    #[test]
    fn a_failure_and_a_refusal_to_proceed_end_it() {
        let mut fake = Fake { fails_at_step: Some(3), ..Fake::default() };
        let error = run(&mut fake, &plan(1, Context::Empty)).unwrap_err();
        assert_eq!(error.to_string(), "broken");

        let mut fake = Fake::default();
        let mut steps_left = 2;
        let ended = measure(&mut fake, &recording(1), &plan(1, Context::Empty), || {
            steps_left -= 1;
            if steps_left < 0 { Err(ModelError::new("interrupted")) } else { Ok(()) }
        });
        assert_eq!(ended.unwrap_err().to_string(), "interrupted");
        assert_eq!(fake.steps().len(), 2);
    }

    fn times(whole_ms: impl IntoIterator<Item = u64>) -> Vec<StepTime> {
        let ms = Duration::from_millis;
        let time = |whole| StepTime {
            whole: ms(whole),
            parts: StepTiming { codec: ms(whole / 4), lm: ms(whole / 2), threads: None },
        };
        whole_ms.into_iter().map(time).collect()
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let summary = Summary::new(&times((1..=100).rev()));
        assert_eq!(summary.step_median_ms, 50.0);
        assert_eq!((summary.step_p95_ms, summary.step_p99_ms), (95.0, 99.0));
        assert_eq!((summary.codec_median_ms, summary.lm_median_ms), (12.0, 25.0));
        assert_eq!(summary.real_time_factor, 80.0 / 50.0);
        assert!(!summary.keeps_real_time);
        let alone = Summary::new(&times([80]));
        assert_eq!((alone.step_median_ms, alone.step_p99_ms), (80.0, 80.0));
        assert!(alone.keeps_real_time);
        assert!(!Summary::new(&[]).keeps_real_time);
    }
}
