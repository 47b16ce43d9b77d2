//! The lanes of one model: where sessions and the model's thread meet.
//!
//! One mutex guards them all. Sessions hold it to copy a piece of audio or to take messages, the
//! model's thread to collect a step's frames and to hand out its results; the step itself runs
//! without it.

mod arrivals;
mod lane;
mod seat;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moshi_ctl_core::units::{FRAME_SAMPLES, SAMPLE_RATE_HZ};
use moshi_ctl_core::{LaneFrame, LaneStep};
use tokio::sync::Notify;

use crate::close_code;
use crate::limits::Limits;
use crate::lock::lock;
use crate::metrics::{ModuleMetrics, Refusal, SessionEnd, SessionKind};
use crate::tokenizer::TextDecoder;
use lane::Lane;

#[cfg(feature = "measure")]
pub(crate) use arrivals::Arrivals;
pub(crate) use lane::Close;
pub(crate) use seat::{Ended, Seat};

/// Why nobody can join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("no free channels")]
    Full,
    #[error("overloaded: streams lag {:.1} s behind, try again later", .lag.as_secs_f64())]
    Overloaded { lag: Duration },
    #[error("{0}")]
    Unavailable(String),
}

impl JoinError {
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Full => Refusal::Full,
            Self::Overloaded { .. } => Refusal::Overloaded,
            Self::Unavailable(_) => Refusal::Unavailable,
        }
    }
}

/// Who wants a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visitor {
    /// Number of the session among all of the server.
    pub(crate) session: u64,
    pub(crate) kind: SessionKind,
}

/// How the lanes are doing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) offered: usize,
    pub(crate) used: usize,
    /// Whether steps will still be made.
    pub(crate) alive: bool,
    /// Whether nobody is let in because those who are in lag behind.
    pub(crate) overloaded: bool,
    /// Of the slowest lane: audio that should be processed by now, and is not.
    pub(crate) lag: Duration,
    /// Seconds of audio of all lanes that are not processed.
    pub(crate) backlog_s: f64,
}

/// The lanes of one model.
#[derive(Debug)]
pub(crate) struct Lanes {
    state: Mutex<State>,
    /// Rings for the model's thread.
    work: Condvar,
    /// Rings when a lane became free.
    freed: Notify,
    /// Rings when nobody is served any more.
    ended: Notify,
    /// Frames between a sound and the text for it.
    delay: usize,
    limits: Limits,
    text: TextDecoder,
    metrics: ModuleMetrics,
}

#[derive(Debug)]
struct State {
    lanes: Vec<Option<Lane>>,
    /// Since the lag was too large, and until it is small again.
    overloaded: bool,
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
    pub(crate) fn new(
        count: usize,
        delay: usize,
        limits: &Limits,
        text: TextDecoder,
        metrics: ModuleMetrics,
    ) -> Self {
        let lanes = (0..count).map(|_| None).collect();
        Self {
            state: Mutex::new(State { lanes, overloaded: false, over: None }),
            work: Condvar::new(),
            freed: Notify::new(),
            ended: Notify::new(),
            delay,
            limits: *limits,
            text,
            metrics,
        }
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

    /// Waits until no session is served any more, and says why.
    pub(crate) async fn until_over(&self) -> JoinError {
        loop {
            // Registered before looking, so that no end in between is missed.
            let ended = self.ended.notified();
            if let Some(reason) = self.over() {
                return JoinError::Unavailable(reason);
            }
            ended.await;
        }
    }

    pub(crate) fn metrics(&self) -> &ModuleMetrics {
        &self.metrics
    }

    pub(crate) fn standing(&self) -> Standing {
        let mut state = self.state();
        let (lag, overloaded) = state.load(&self.limits);
        let occupied = || state.lanes.iter().flatten();
        let waiting: usize = occupied().map(Lane::waiting).sum();
        Standing {
            offered: state.lanes.len(),
            used: occupied().count(),
            alive: state.over.is_none(),
            lag,
            overloaded,
            backlog_s: waiting as f64 / f64::from(SAMPLE_RATE_HZ),
        }
    }

    /// Takes a free lane. Its first message will be `Ready`. What is logged about the session
    /// goes to the current span.
    pub(crate) fn join(self: &Arc<Self>, visitor: Visitor) -> Result<Seat, JoinError> {
        let mut state = self.state();
        let free = state.free(&self.limits)?;
        let lane = Lane::new(visitor.session, self.delay, &self.limits);
        let seat = Seat::new(Arc::clone(self), free, visitor, Arc::clone(&lane.bells));
        state.lanes[free] = Some(lane);
        self.metrics.session_began(visitor.kind);
        self.work.notify_one();
        Ok(seat)
    }

    /// [`Lanes::join`], but waits up to `patience` for a lane to become free.
    pub(crate) async fn join_within(
        self: &Arc<Self>,
        visitor: Visitor,
        patience: Duration,
    ) -> Result<Seat, JoinError> {
        self.within(patience, || self.join(visitor)).await
    }

    /// Waits up to `patience` for a lane to become free, and does not take it.
    pub(crate) async fn free_within(&self, patience: Duration) -> Result<(), JoinError> {
        self.within(patience, || self.state().free(&self.limits).map(drop)).await
    }

    /// What `attempt` gives once not all lanes are in use any more.
    async fn within<T>(
        &self,
        patience: Duration,
        attempt: impl Fn() -> Result<T, JoinError>,
    ) -> Result<T, JoinError> {
        let waiting = async {
            loop {
                // Registered before looking, so that no lane freed in between is missed.
                let freed = self.freed.notified();
                match attempt() {
                    Err(JoinError::Full) => freed.await,
                    done => return done,
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
                Ok(prediction) => lane.record(prediction, &self.text, &self.metrics),
                &Err(fault) => {
                    tracing::warn!(parent: &lane.span, %fault, "lane fault");
                    lane.fault(fault);
                }
            }
        }
    }

    /// Nobody is served any more, for a reason that is nobody's fault. Whoever was not told
    /// everything hears that.
    pub(crate) fn shut_down(&self, reason: &str) {
        self.finish(reason, |lane| {
            let error = lane.owes().then(|| format!("{reason}: not everything was transcribed"));
            let (end, code) = (SessionEnd::Shutdown, close_code::GOING_AWAY);
            lane.end(error, Close { end, code, reason: reason.to_string() });
        });
    }

    /// The model failed.
    pub(crate) fn fail(&self, reason: &str) {
        self.finish(reason, |lane| {
            let to_client = "the model failed and the server is stopping".to_string();
            let (end, code) = (SessionEnd::ModelFailed, close_code::INTERNAL_ERROR);
            lane.end(Some(to_client), Close { end, code, reason: reason.to_string() });
        });
    }

    /// Makes every session end and lets nobody join any more.
    fn finish(&self, reason: &str, end: impl Fn(&mut Lane)) {
        let mut state = self.state();
        state.over.get_or_insert_with(|| reason.to_string());
        state.lanes.iter_mut().flatten().for_each(end);
        self.work.notify_one();
        self.freed.notify_waiters();
        self.ended.notify_waiters();
    }

    fn leave(&self, index: usize, visitor: Visitor, end: SessionEnd) {
        let mut state = self.state();
        let place = Place { lane: index, session: visitor.session };
        if let Some(lane) = state.at(place) {
            self.metrics.session_ended(visitor.kind, end, lane.total_steps());
            state.lanes[index] = None;
            self.freed.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock; if it did, the lanes are still whole.
        lock(&self.state)
    }
}

impl State {
    /// A lane that somebody may have now.
    fn free(&mut self, limits: &Limits) -> Result<usize, JoinError> {
        if let Some(reason) = &self.over {
            return Err(JoinError::Unavailable(reason.clone()));
        }
        if let (lag, true) = self.load(limits) {
            return Err(JoinError::Overloaded { lag });
        }
        self.lanes.iter().position(Option::is_none).ok_or(JoinError::Full)
    }

    /// The lag of the slowest lane, and whether it keeps others out.
    fn load(&mut self, limits: &Limits) -> (Duration, bool) {
        let now = Instant::now();
        let lag = self.lanes.iter().flatten().map(|lane| lane.lag(now)).max().unwrap_or_default();
        let most = limits.lag_s.duration();
        self.overloaded = if self.overloaded { lag >= most / 4 } else { lag > most };
        (lag, self.overloaded)
    }

    /// The lane, if it still has that occupant.
    fn at(&mut self, place: Place) -> Option<&mut Lane> {
        let lane = self.lanes.get_mut(place.lane)?.as_mut()?;
        (lane.session == place.session).then_some(lane)
    }
}

#[cfg(test)]
mod tests {
    use moshi_ctl_core::Prediction;

    use super::*;
    use crate::limits::LANE_OUTPUT_MESSAGES;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn who_does_not_read_is_no_reason_to_keep_others_out() {
        let metrics = Metrics::new().unwrap();
        let limits = Limits { lag_s: 0.2.into(), ..Limits::default() };
        let text = TextDecoder::default();
        let lanes = Arc::new(Lanes::new(2, 0, &limits, text, metrics.module("asr")));
        let visitor = |session| Visitor { session, kind: SessionKind::Stream };
        let seat = lanes.join(visitor(1)).unwrap();
        seat.push_pcm(&[0.0; FRAME_SAMPLES]).await.unwrap();
        for id in 0..LANE_OUTPUT_MESSAGES as i64 {
            seat.push_marker(id).await.unwrap();
        }
        // A reset, then the frame, whose end answers all markers: more than is held unread.
        let turn = lanes.next_turn(Turn::default()).unwrap();
        lanes.were_reset(&turn);
        let turn = lanes.next_turn(turn).unwrap();
        let outcome = Ok(Prediction { text_token: 3, vad: vec![] });
        lanes.record(&turn, &[LaneStep { lane: 0, outcome }]);
        seat.push_pcm(&[0.0; 20 * FRAME_SAMPLES]).await.unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(lanes.standing().lag, Duration::ZERO);
        // Once it reads, what is not processed in time is the model's fault again.
        assert!(seat.output().await.0.len() > LANE_OUTPUT_MESSAGES);
        std::thread::sleep(Duration::from_millis(500));
        assert!(lanes.standing().overloaded);
        assert!(matches!(lanes.join(visitor(2)), Err(JoinError::Overloaded { .. })));
    }
}
