//! When the audio of a stream arrived.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use moshi_ctl_core::units::FRAME_DURATION;

/// How much earlier than it is spoken audio may arrive and still count as live: networks deliver
/// a first piece late and those after it in time.
const AHEAD: Duration = Duration::from_secs(1);

/// When the frames of a stream were complete; the last `capacity` of them.
#[derive(Debug)]
pub(crate) struct Arrivals {
    capacity: usize,
    /// Of the first sample.
    begun: Option<Instant>,
    /// Frames before those in `frames`.
    forgotten: u64,
    frames: VecDeque<Frame>,
    /// When the last frame is due.
    last_due: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    arrival: Instant,
    /// When somebody who goes on speaking as soon as the network lets them has spoken it.
    due: Instant,
}

impl Arrivals {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, begun: None, forgotten: 0, frames: VecDeque::new(), last_due: None }
    }

    /// So many frames are complete now.
    pub(crate) fn note(&mut self, complete: u64, now: Instant) {
        let begun = *self.begun.get_or_insert(now);
        let known = self.forgotten + self.frames.len() as u64;
        // Of very many at once only the last can be asked for.
        let skipped = (complete - known).saturating_sub(self.capacity as u64);
        if skipped > 0 {
            self.forgotten = known + skipped;
            self.frames.clear();
            self.last_due = Some(self.due_next(begun, now) + spoken(skipped - 1));
        }
        for _ in known + skipped..complete {
            if self.frames.len() == self.capacity {
                self.frames.pop_front();
                self.forgotten += 1;
            }
            let due = self.due_next(begun, now);
            self.last_due = Some(due);
            self.frames.push_back(Frame { arrival: now, due });
        }
    }

    /// When a frame that arrives now is due: not before it is here, and a frame's length after the
    /// one before. What a network holds up and then delivers at once is spread out again, and what
    /// comes faster than it is spoken is due as if it did not.
    fn due_next(&self, begun: Instant, now: Instant) -> Instant {
        (self.last_due.unwrap_or(begun) + FRAME_DURATION).max(now)
    }

    /// The stream stood still for so long for reasons of its own: all is due later.
    pub(crate) fn postpone(&mut self, by: Duration) {
        for frame in &mut self.frames {
            frame.due += by;
        }
        self.last_due = self.last_due.map(|due| due + by);
    }

    /// When `frame` arrived, unless that is forgotten.
    pub(crate) fn of(&self, frame: u64) -> Option<Instant> {
        let index = usize::try_from(frame.checked_sub(self.forgotten)?).ok()?;
        self.frames.get(index).map(|frame| frame.arrival)
    }

    /// When `frame` arrived, if what came from there to `last` came as somebody speaks: no more than
    /// twice as fast, and not well before it can have been spoken. Otherwise it is from a file.
    pub(crate) fn of_live(&self, frame: u64, last: u64) -> Option<Instant> {
        let (arrival, arrival_of_last) = (self.of(frame)?, self.of(last)?);
        let took = arrival_of_last.duration_since(arrival);
        let as_spoken = 2 * took >= spoken(last.saturating_sub(frame))
            && arrival_of_last + AHEAD >= self.begun? + spoken(last);
        as_spoken.then_some(arrival)
    }

    /// Frames that are due by now.
    pub(crate) fn due(&self, now: Instant) -> u64 {
        self.forgotten + self.frames.partition_point(|frame| frame.due <= now) as u64
    }
}

/// How long it takes to speak so many frames.
fn spoken(frames: u64) -> Duration {
    FRAME_DURATION * u32::try_from(frames).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 1125;

    #[test]
    fn a_live_frame_is_known_by_its_own_arrival() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(CAPACITY);
        for frame in 0..10 {
            arrivals.note(frame + 1, start + FRAME_DURATION * frame as u32);
        }
        assert_eq!(arrivals.of_live(7, 9), Some(start + FRAME_DURATION * 7));
        assert_eq!(arrivals.of_live(7, 7), Some(start + FRAME_DURATION * 7));
        assert_eq!(arrivals.of_live(7, 10), None);
    }

    #[test]
    fn what_comes_faster_than_it_is_spoken_is_not_live() {
        let start = Instant::now();
        let mut all_at_once = Arrivals::new(CAPACITY);
        all_at_once.note(100, start);
        assert_eq!(all_at_once.of(99), Some(start));
        assert_eq!(all_at_once.of_live(1, 7), None);
        assert_eq!(all_at_once.of_live(93, 99), None);

        // Slow enough at the moment, but seconds ahead.
        let mut held_up = Arrivals::new(CAPACITY);
        held_up.note(50, start);
        for frame in 50..60 {
            held_up.note(frame + 1, start + FRAME_DURATION * (frame as u32 - 49));
        }
        assert_eq!(held_up.of_live(51, 59), None);

        // Held up by a network, then caught up with.
        let mut bursts = Arrivals::new(CAPACITY);
        for frame in 0..10 {
            bursts.note(frame + 1, start + FRAME_DURATION * (frame as u32 / 5 * 5));
        }
        assert_eq!(bursts.of_live(3, 9), Some(start));
    }

    #[test]
    fn what_comes_late_counts_from_when_it_came() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(CAPACITY);
        arrivals.note(1, start);
        let after_a_pause = start + Duration::from_secs(60);
        arrivals.note(2, after_a_pause);
        assert_eq!(arrivals.of_live(1, 1), Some(after_a_pause));
    }

    #[test]
    fn long_streams_and_large_pieces_forget_the_oldest() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(CAPACITY);
        let at = |frame: u64| start + FRAME_DURATION * frame as u32;
        let last = 3 * CAPACITY as u64;
        for frame in 0..last {
            arrivals.note(frame + 1, at(frame));
        }
        assert_eq!(arrivals.frames.len(), CAPACITY);
        assert_eq!(arrivals.of(last - 1), Some(at(last - 1)));
        assert_eq!(arrivals.of(last - CAPACITY as u64 - 1), None);
        let later = at(last) + Duration::from_secs(3600);
        arrivals.note(last + 5 * CAPACITY as u64, later);
        assert_eq!(arrivals.frames.len(), CAPACITY);
        assert_eq!(arrivals.of(last + 5 * CAPACITY as u64 - 1), Some(later));
        assert_eq!(arrivals.of(last), None);
    }

    #[test]
    fn what_comes_at_once_is_due_a_frame_at_a_time() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(CAPACITY);
        assert_eq!(arrivals.due(start), 0);
        arrivals.note(0, start);
        arrivals.note(100, start);
        assert_eq!(arrivals.due(start + Duration::from_millis(79)), 0);
        assert_eq!(arrivals.due(start + Duration::from_millis(81)), 1);
        assert_eq!(arrivals.due(start + Duration::from_secs(8)), 100);
        assert_eq!(arrivals.due(start + Duration::from_secs(80)), 100);
    }

    #[test]
    fn what_a_network_held_up_is_due_from_when_it_came() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(CAPACITY);
        arrivals.note(1, start);
        let later = start + Duration::from_secs(60);
        arrivals.note(751, later);
        assert_eq!(arrivals.due(later), 2);
        assert_eq!(arrivals.due(later + FRAME_DURATION), 3);
        assert_eq!(arrivals.due(later + FRAME_DURATION * 749), 751);
    }

    #[test]
    fn what_stood_still_is_due_later() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(CAPACITY);
        arrivals.note(10, start);
        arrivals.postpone(Duration::from_secs(5));
        assert_eq!(arrivals.due(start + Duration::from_secs(5)), 0);
        assert_eq!(arrivals.due(start + Duration::from_secs(5) + FRAME_DURATION * 10), 10);
        arrivals.note(11, start);
        assert_eq!(arrivals.due(start + Duration::from_secs(5) + FRAME_DURATION * 10), 10);
    }

    #[test]
    fn pieces_that_are_longer_than_what_is_remembered_are_due_in_their_time() {
        let start = Instant::now();
        let mut arrivals = Arrivals::new(CAPACITY);
        let frames = 3 * CAPACITY as u64;
        arrivals.note(frames, start);
        assert_eq!(arrivals.due(start + spoken(frames)), frames);
        assert_eq!(arrivals.due(start + spoken(frames) - FRAME_DURATION), frames - 1);
    }
}
