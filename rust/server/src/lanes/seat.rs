//! A session's side of its lane.

use std::sync::Arc;

use super::lane::{Bells, Close, Lane};
use super::{Lanes, Place, Visitor};
use crate::close_code;
use crate::metrics::{ModuleMetrics, SessionEnd};
use crate::protocol::OutMsg;

/// The lane takes nothing any more; what there is to say about it is in its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended;

/// The right to a lane. Dropping it frees the lane at once; without [`Seat::leave`] the session
/// counts as lost.
#[derive(Debug)]
pub(crate) struct Seat {
    lanes: Arc<Lanes>,
    lane: usize,
    visitor: Visitor,
    bells: Arc<Bells>,
    end: SessionEnd,
}

impl Seat {
    pub(super) fn new(lanes: Arc<Lanes>, lane: usize, visitor: Visitor, bells: Arc<Bells>) -> Self {
        Self { lanes, lane, visitor, bells, end: SessionEnd::Lost }
    }

    pub(crate) fn metrics(&self) -> &ModuleMetrics {
        &self.lanes.metrics
    }

    pub(crate) fn lane(&self) -> usize {
        self.lane
    }

    /// Frames processed for this session.
    pub(crate) fn steps(&self) -> u64 {
        self.with(|lane| lane.total_steps()).unwrap_or_default()
    }

    /// Hands over audio; waits whenever the lane holds as much as it should.
    pub(crate) async fn push_pcm(&self, mut pcm: &[f32]) -> Result<(), Ended> {
        while !pcm.is_empty() {
            let taken = self.push_when(Lane::room, |lane, room| {
                let taken = room.min(pcm.len());
                lane.push_pcm(&pcm[..taken]);
                taken
            });
            pcm = &pcm[taken.await?..];
        }
        Ok(())
    }

    /// Starts a new stream after the audio handed over so far.
    pub(crate) async fn push_init(&self) -> Result<(), Ended> {
        self.push_when(|lane| usize::from(lane.has_room_for_init()), |lane, _| lane.push_init())
            .await
    }

    /// Asks for a marker after the audio handed over so far.
    pub(crate) async fn push_marker(&self, id: i64) -> Result<(), Ended> {
        let room = |lane: &Lane| usize::from(lane.has_room_for_output());
        match self.push_when(room, |lane, _| lane.push_marker(id)).await? {
            Ok(()) => Ok(()),
            Err(()) => {
                let reason = "too many unanswered markers";
                self.end(Some(reason.into()), SessionEnd::Invalid, close_code::POLICY, reason);
                Err(Ended)
            }
        }
    }

    /// Waits until `room` is above zero, pushes, and wakes the model.
    async fn push_when<T>(
        &self,
        room: impl Fn(&Lane) -> usize,
        mut push: impl FnMut(&mut Lane, usize) -> T,
    ) -> Result<T, Ended> {
        loop {
            let pushed = self
                .with(|lane| match room(lane) {
                    _ if lane.is_ending() => Err(Ended),
                    0 => Ok(None),
                    room => Ok(Some(push(lane, room))),
                })
                .unwrap_or(Err(Ended))?;
            match pushed {
                Some(pushed) => {
                    self.lanes.work.notify_one();
                    return Ok(pushed);
                }
                None => self.bells.room.notified().await,
            }
        }
    }

    /// Waits for messages to send. After the messages that come with a [`Close`] there are none.
    pub(crate) async fn output(&self) -> (Vec<OutMsg>, Option<Close>) {
        loop {
            let output = self.with(Lane::take_output).unwrap_or_default();
            if !output.0.is_empty() || output.1.is_some() {
                // The lane may have waited for its outbox to be emptied.
                self.lanes.work.notify_one();
                return output;
            }
            self.bells.output.notified().await;
        }
    }

    /// Ends the session after what there is to be sent already.
    pub(crate) fn end(&self, error: Option<String>, end: SessionEnd, code: u16, reason: &str) {
        self.with(|lane| lane.end(error, Close { end, code, reason: reason.to_string() }));
    }

    /// Ends the session once everything that came is processed and sent.
    pub(crate) fn wind_up(&self, end: SessionEnd, code: u16, reason: &str) {
        self.with(|lane| lane.wind_up(Close { end, code, reason: reason.to_string() }));
        self.lanes.work.notify_one();
    }

    /// Frees the lane of a session that ended this way.
    pub(crate) fn leave(mut self, end: SessionEnd) {
        self.end = end;
    }

    fn with<T>(&self, what: impl FnOnce(&mut Lane) -> T) -> Option<T> {
        let place = Place { lane: self.lane, session: self.visitor.session };
        self.lanes.state().at(place).map(what)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lanes.leave(self.lane, self.visitor, self.end);
    }
}
