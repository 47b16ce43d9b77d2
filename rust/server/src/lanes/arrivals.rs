//! When the audio of a stream arrived.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use moshi_ctl_core::units::FRAME_DURATION;

use crate::limits::ARRIVALS;

/// How much earlier than it is spoken audio may arrive and still count as live: networks deliver
/// a first piece late and those after it in time.
const AHEAD: Duration = Duration::from_secs(1);

/// When the frames of a stream were complete; the last [`ARRIVALS`] of them.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    /// Of the first sample.
    begun: Option<Instant>,
    /// Frames before those in `frames`.
    forgotten: u64,
    frames: VecDeque<Instant>,
}

impl Arrivals {
    /// So many frames are complete now.
    pub(crate) fn note(&mut self, complete: u64, now: Instant) {
        self.begun.get_or_insert(now);
        let known = self.forgotten + self.frames.len() as u64;
        // Of very many at once only the last can be asked for.
        let skipped = (complete - known).saturating_sub(ARRIVALS as u64);
        if skipped > 0 {
            self.forgotten = known + skipped;
            self.frames.clear();
        }
        for _ in known + skipped..complete {
            if self.frames.len() == ARRIVALS {
                self.frames.pop_front();
                self.forgotten += 1;
            }
            self.frames.push_back(now);
        }
    }

    /// When `frame` arrived, unless that is forgotten.
    pub(crate) fn of(&self, frame: u64) -> Option<Instant> {
        let index = usize::try_from(frame.checked_sub(self.forgotten)?).ok()?;
        self.frames.get(index).copied()
    }

    /// Whether `frame` arrived when somebody can have spoken it, and not well before, as from a
    /// file.
    pub(crate) fn is_live(&self, frame: u64) -> bool {
        let (Some(begun), Some(arrival)) = (self.begun, self.of(frame)) else { return false };
        let spoken = FRAME_DURATION * u32::try_from(frame).unwrap_or(u32::MAX);
        arrival + AHEAD >= begun + spoken
    }

    /// Frames that somebody who began to speak with the stream's first sample has spoken by now.
    pub(crate) fn due(&self, now: Instant) -> u64 {
        let spoken = self.begun.map_or(Duration::ZERO, |begun| now.duration_since(begun));
        (spoken.as_nanos() / FRAME_DURATION.as_nanos()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_frame_is_known_by_its_own_arrival() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        for frame in 0..10 {
            arrivals.note(frame + 1, start + FRAME_DURATION * frame as u32);
        }
        assert_eq!(arrivals.of(7), Some(start + FRAME_DURATION * 7));
        assert!(arrivals.is_live(7));
        assert_eq!(arrivals.of(10), None);
    }

    #[test]
    fn a_file_is_known_to_be_one_after_its_first_second() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        arrivals.note(100, now);
        assert_eq!(arrivals.of(99), Some(now));
        assert!(arrivals.is_live(12));
        assert!(!arrivals.is_live(13));
        assert!(!arrivals.is_live(99));
    }

    #[test]
    fn what_comes_late_counts_from_when_it_came() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        arrivals.note(1, start);
        let after_a_pause = start + Duration::from_secs(60);
        arrivals.note(2, after_a_pause);
        assert_eq!(arrivals.of(1), Some(after_a_pause));
        assert!(arrivals.is_live(1));
    }

    #[test]
    fn long_streams_and_large_pieces_forget_the_oldest() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        let at = |frame: u64| start + FRAME_DURATION * frame as u32;
        let last = 3 * ARRIVALS as u64;
        for frame in 0..last {
            arrivals.note(frame + 1, at(frame));
        }
        assert_eq!(arrivals.frames.len(), ARRIVALS);
        assert_eq!(arrivals.of(last - 1), Some(at(last - 1)));
        assert_eq!(arrivals.of(last - ARRIVALS as u64 - 1), None);
        let later = at(last) + Duration::from_secs(3600);
        arrivals.note(last + 5 * ARRIVALS as u64, later);
        assert_eq!(arrivals.frames.len(), ARRIVALS);
        assert_eq!(arrivals.of(last + 5 * ARRIVALS as u64 - 1), Some(later));
        assert_eq!(arrivals.of(last), None);
    }

    #[test]
    fn nothing_is_due_before_the_first_sample_and_then_a_frame_at_a_time() {
        let start = Instant::now();
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.due(start), 0);
        arrivals.note(0, start);
        assert_eq!(arrivals.due(start + Duration::from_millis(79)), 0);
        assert_eq!(arrivals.due(start + Duration::from_millis(81)), 1);
        assert_eq!(arrivals.due(start + Duration::from_secs(8)), 100);
    }
}
