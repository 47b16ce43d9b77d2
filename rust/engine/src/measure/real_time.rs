//! How many lanes are kept in real time.

use std::num::NonZeroUsize;
use std::time::Duration;

use moshi_ctl_core::ModelError;
use moshi_ctl_core::units::FRAME_RATE_HZ;

use super::{Context, Plan, Subject, Summary, measure, synthetic_speech};

/// The part of a frame's duration that steps may take. The rest is for what comes beside them:
/// decoding audio, sending words, other programs.
const SHARE_FOR_STEPS: f64 = 0.9;

/// Steps that count for a number of lanes, and that come before them.
const STEPS: NonZeroUsize = NonZeroUsize::new(11).expect("11 is not zero");
const WARMUP_STEPS: usize = 2;

/// Numbers of lanes that are tried; after as many, the best one so far is taken.
const MOST_TRIES: usize = 8;

/// The number that is tried first, where there may be so many.
const FIRST_TRY: usize = 4;

/// Frames of the recording; more than the steps of one try.
const RECORDING_FRAMES: usize = 64;

/// How many lanes a model keeps in real time.
#[derive(Debug, Clone, PartialEq)]
pub struct RealTimeLanes {
    /// As many as were wished for, or as fit; 0 when not even one does.
    pub lanes: usize,
    /// What steps may take.
    pub limit: Duration,
    /// What was tried, in order: lanes, and the median duration of their steps.
    pub tried: Vec<(usize, Duration)>,
}

impl RealTimeLanes {
    /// The duration of steps with so many lanes, where it was tried.
    pub fn step(&self, lanes: usize) -> Option<Duration> {
        self.tried.iter().find(|(tried, _)| *tried == lanes).map(|(_, step)| *step)
    }
}

/// Measures how many lanes, up to `most`, a model steps in real time when all of them have heard a
/// whole context and `models` such models share the device. The lanes that were measured have to
/// be reset afterwards.
///
/// # Errors
/// When the subject fails.
pub fn lanes_in_real_time(
    subject: &mut dyn Subject,
    most: usize,
    models: usize,
) -> Result<RealTimeLanes, ModelError> {
    let recording = synthetic_speech(RECORDING_FRAMES);
    let limit = Duration::from_secs_f64(SHARE_FOR_STEPS / FRAME_RATE_HZ / models.max(1) as f64);
    search(most, limit, |active| {
        let plan = Plan { active, context: Context::Full, warmup: WARMUP_STEPS, steps: STEPS };
        let times = measure::<ModelError>(subject, &recording, &plan, || Ok(()))?;
        Ok(Duration::from_secs_f64(Summary::new(&times).step_median_ms / 1e3))
    })
}

/// The most lanes up to `most` whose `step` takes no longer than `limit`. A step takes longer the
/// more lanes it has.
fn search<E>(
    most: usize,
    limit: Duration,
    mut step: impl FnMut(usize) -> Result<Duration, E>,
) -> Result<RealTimeLanes, E> {
    // So many keep up, so many do not.
    let (mut kept, mut missed) = (0, most + 1);
    let mut tried: Vec<(usize, Duration)> = vec![];
    let mut next = FIRST_TRY.min(most);
    while kept + 1 < missed && tried.len() < MOST_TRIES {
        let took = step(next)?;
        tried.push((next, took));
        if took <= limit {
            kept = next;
        } else {
            missed = next;
        }
        // Twice as many at most: lanes that were never tried take no memory.
        let guess = extrapolate(&tried, limit).unwrap_or(2 * kept).min(2 * kept.max(1));
        next = guess.clamp(kept + 1, (missed - 1).max(kept + 1));
    }
    Ok(RealTimeLanes { lanes: kept, limit, tried })
}

/// Where a line through the two latest tries reaches `limit`.
fn extrapolate(tried: &[(usize, Duration)], limit: Duration) -> Option<usize> {
    let [.., (a, step_a), (b, step_b)] = tried else { return None };
    let slope = (step_b.as_secs_f64() - step_a.as_secs_f64()) / (*b as f64 - *a as f64);
    let lanes = *b as f64 + (limit.as_secs_f64() - step_b.as_secs_f64()) / slope;
    // Steps that do not get longer leave the next try to doubling.
    (slope > 0.0 && lanes.is_finite()).then_some(lanes.max(0.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(72);

    fn find(most: usize, ms: impl Fn(usize) -> f64) -> RealTimeLanes {
        let step = |lanes| Ok::<_, ()>(Duration::from_secs_f64(ms(lanes) / 1e3));
        search(most, LIMIT, step).unwrap()
    }

    #[test]
    fn it_finds_the_last_number_that_keeps_up() {
        for most in [1, 2, 5, 8, 64, 4096] {
            for true_limit in [0, 1, 3, 4, 7, 9, 40] {
                let found = find(most, |n| 30.0 + 42.0 * n as f64 / (true_limit as f64 + 0.5));
                assert_eq!(found.lanes, true_limit.min(most), "{most}, {true_limit}: {found:?}");
                assert!(found.tried.iter().all(|(lanes, _)| (1..=most).contains(lanes)));
            }
        }
    }

    #[test]
    fn few_lanes_beyond_the_limit_are_touched() {
        let found = find(64, |n| 25.0 + 5.0 * n as f64);
        assert_eq!(found.lanes, 9);
        assert!(found.tried.iter().all(|(lanes, _)| *lanes <= 16), "{found:?}");
        assert!(found.tried.len() <= 5, "{found:?}");
    }

    #[test]
    fn what_is_offered_was_measured() {
        // Steps that jump, as where a batch outgrows a cache.
        for jump in 1..40 {
            let found = find(40, |n| if n >= jump { 100.0 } else { 50.0 });
            assert_eq!(found.lanes > 0, found.step(found.lanes).is_some_and(|step| step <= LIMIT));
            assert!(found.lanes < jump, "{jump}: {found:?}");
        }
    }

    #[test]
    fn an_error_ends_it() {
        assert_eq!(search(4, LIMIT, |_| Err("broken")), Err("broken"));
    }
}
