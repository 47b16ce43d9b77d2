//! The lanes of one model: where sessions and the model's thread meet.
//!
//! One mutex guards them all. Sessions hold it to copy a piece of audio or to take messages, the
//! model's thread to collect a step's frames and to hand out its results; the step itself runs
//! without it.

mod lane;
mod seat;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{LaneFrame, LaneStep};
use tokio::sync::Notify;

use crate::close_code;
use crate::metrics::Metrics;
use crate::tokenizer::TextDecoder;
use lane::Lane;

pub(crate) use lane::Close;
pub(crate) use seat::{Ended, Seat};

/// Why nobody can join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("no free channels")]
    Full,
    #[error("{0}")]
    Unavailable(String),
}

/// The lanes of one model.
#[derive(Debug)]
pub(crate) struct Lanes {
    state: Mutex<State>,
    /// Rings for the model's thread.
    work: Condvar,
    /// Rings when a lane became free.
    freed: Notify,
    /// Frames between a sound and the text for it.
    delay: usize,
    text: TextDecoder,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Option<Lane>>,
    next_session: u64,
    /// Why no step will be made any more.
    over: Option<String>,
}

/// What the model's thread is to do next: first the resets, then one step over the frames.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    resets: Vec<Place>,
    places: Vec<Place>,
    pcm: Vec<f32>,
}

/// A lane and its occupant at that time.
#[derive(Debug, Clone, Copy)]
struct Place {
    lane: usize,
    session: u64,
}

impl Turn {
    pub(crate) fn resets(&self) -> impl Iterator<Item = usize> + '_ {
        self.resets.iter().map(|place| place.lane)
    }

    pub(crate) fn frames(&self) -> Vec<LaneFrame<'_>> {
        let pcm = self.pcm.chunks_exact(FRAME_SAMPLES);
        self.places
            .iter()
            .zip(pcm)
            .map(|(place, pcm)| LaneFrame { lane: place.lane, pcm })
            .collect()
    }
}

impl Lanes {
    pub(crate) fn new(count: usize, delay: usize, text: TextDecoder, metrics: Metrics) -> Self {
        let lanes = (0..count).map(|_| None).collect();
        Self {
            state: Mutex::new(State { lanes, next_session: 1, over: None }),
            work: Condvar::new(),
            freed: Notify::new(),
            delay,
            text,
            metrics,
        }
    }

    pub(crate) fn delay(&self) -> usize {
        self.delay
    }

    pub(crate) fn total(&self) -> usize {
        self.state().lanes.len()
    }

    pub(crate) fn used(&self) -> usize {
        self.state().lanes.iter().flatten().count()
    }

    /// Why no session is served any more, if that is so.
    pub(crate) fn over(&self) -> Option<String> {
        self.state().over.clone()
    }

    /// Takes a free lane. Its first message will be `Ready`.
    pub(crate) fn join(self: &Arc<Self>) -> Result<Seat, JoinError> {
        let mut state = self.state();
        if let Some(reason) = &state.over {
            return Err(JoinError::Unavailable(reason.clone()));
        }
        let free = state.lanes.iter().position(Option::is_none).ok_or(JoinError::Full)?;
        let session = state.next_session;
        state.next_session += 1;
        let lane = Lane::new(session, self.delay);
        let seat = Seat::new(Arc::clone(self), free, session, Arc::clone(&lane.bells));
        state.lanes[free] = Some(lane);
        self.metrics.open_channels.inc();
        self.work.notify_one();
        Ok(seat)
    }

    /// [`Lanes::join`], but waits up to `patience` for a lane to become free.
    pub(crate) async fn join_within(
        self: &Arc<Self>,
        patience: std::time::Duration,
    ) -> Result<Seat, JoinError> {
        let waiting = async {
            loop {
                // Registered before looking, so that no lane freed in between is missed.
                let freed = self.freed.notified();
                match self.join() {
                    Err(JoinError::Full) => freed.await,
                    joined => return joined,
                }
            }
        };
        tokio::time::timeout(patience, waiting).await.unwrap_or(Err(JoinError::Full))
    }

    /// Blocks until there is something to do and says what; `None` when there never will be.
    pub(crate) fn next_turn(&self, mut turn: Turn) -> Option<Turn> {
        turn.resets.clear();
        turn.places.clear();
        turn.pcm.clear();
        let mut state = self.state();
        while state.over.is_none() {
            for (index, lane) in state.lanes.iter_mut().enumerate() {
                let Some(lane) = lane else { continue };
                let place = Place { lane: index, session: lane.session };
                if lane.must_reset() {
                    turn.resets.push(place);
                } else if lane.take_frame(&mut turn.pcm) {
                    turn.places.push(place);
                }
            }
            if !turn.resets.is_empty() || !turn.places.is_empty() {
                return Some(turn);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// The turn's resets are done.
    pub(crate) fn were_reset(&self, turn: &Turn) {
        let mut state = self.state();
        for place in &turn.resets {
            if let Some(lane) = state.at(*place) {
                lane.was_reset();
            }
        }
    }

    /// The turn's step is done; hands each lane what is said about its frame.
    pub(crate) fn record(&self, turn: &Turn, steps: &[LaneStep]) {
        let mut state = self.state();
        for (place, step) in turn.places.iter().zip(steps) {
            // Whoever the frame was for may be gone, and somebody else in its place.
            let Some(lane) = state.at(*place) else { continue };
            match &step.outcome {
                Ok(prediction) => lane.record(prediction, &self.text),
                &Err(fault) => {
                    tracing::warn!(session = lane.session, lane = place.lane, %fault, "lane fault");
                    lane.fault(fault);
                }
            }
        }
    }

    /// Makes every session end and lets nobody join any more.
    pub(crate) fn finish(&self, reason: &str, error: Option<&str>, code: u16) {
        let mut state = self.state();
        state.over.get_or_insert_with(|| reason.to_string());
        for lane in state.lanes.iter_mut().flatten() {
            lane.end(error.map(str::to_string), Close { code, reason: reason.to_string() });
        }
        self.work.notify_one();
        self.freed.notify_waiters();
    }

    /// The model failed.
    pub(crate) fn fail(&self, reason: &str) {
        let to_clients = "the model failed and the server is stopping";
        self.finish(reason, Some(to_clients), close_code::INTERNAL_ERROR);
    }

    fn leave(&self, index: usize, session: u64) {
        let mut state = self.state();
        let place = Place { lane: index, session };
        if let Some(lane) = state.at(place) {
            self.metrics.num_steps.observe(lane.total_steps() as f64);
            self.metrics.open_channels.dec();
            state.lanes[index] = None;
            self.freed.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock; if it did, the lanes are still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The lane, if it still has that occupant.
    fn at(&mut self, place: Place) -> Option<&mut Lane> {
        let lane = self.lanes.get_mut(place.lane)?.as_mut()?;
        (lane.session == place.session).then_some(lane)
    }
}
