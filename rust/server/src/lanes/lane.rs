//! What one occupied lane holds: audio on its way in, messages on their way out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moshi_ctl_core::units::{FRAME_DURATION, FRAME_SAMPLES, seconds};
use moshi_ctl_core::{LaneFault, Prediction};
use tokio::sync::Notify;
use tracing::Span;

use crate::close_code;
use crate::limits::{self, Limits};
use crate::metrics::{ModuleMetrics, SessionEnd};
use crate::protocol::OutMsg;
use crate::tokenizer::TextDecoder;
use crate::transcript::{Spoken, Transcript};

use super::arrivals::Arrivals;

/// How a session ends: for the books, and as the WebSocket close code and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Close {
    pub(crate) end: SessionEnd,
    pub(crate) code: u16,
    pub(crate) reason: String,
}

/// Wakes the two halves of a session.
#[derive(Debug, Default)]
pub(super) struct Bells {
    /// There is room for input, or the lane will take no more.
    pub(super) room: Notify,
    /// There is something to send.
    pub(super) output: Notify,
}

/// The audio between one `Init` and the next.
#[derive(Debug)]
struct Stream {
    pcm: VecDeque<f32>,
    /// Samples that ever came in.
    received: u64,
    arrivals: Arrivals,
    /// Step after which each unanswered marker is due, and its id; in the order they came.
    markers: VecDeque<(u64, i64)>,
}

impl Stream {
    fn new(limits: &Limits) -> Self {
        Self {
            pcm: VecDeque::new(),
            received: 0,
            arrivals: Arrivals::new(limits.arrivals()),
            markers: VecDeque::new(),
        }
    }

    /// Whether no whole frame is left.
    fn is_through(&self) -> bool {
        self.pcm.len() < FRAME_SAMPLES
    }
}

/// An occupied lane.
#[derive(Debug)]
pub(super) struct Lane {
    /// Tells this occupant of the lane from those before and after.
    pub(super) session: u64,
    /// What is logged about the session belongs here.
    pub(super) span: Span,
    pub(super) bells: Arc<Bells>,
    delay: usize,
    limits: Limits,
    /// The stream being processed, and those that `Init`s queued behind it.
    streams: VecDeque<Stream>,
    /// Whether the model's lane must be reset before the front stream can go on.
    starting: bool,
    transcript: Transcript,
    total_steps: u64,
    outbox: VecDeque<OutMsg>,
    /// Since when the lane waits for its client to read.
    unread_since: Option<Instant>,
    /// How the session ends once all that came is processed.
    last_wish: Option<Close>,
    close: Option<Close>,
}

impl Lane {
    pub(super) fn new(session: u64, delay: usize, limits: &Limits) -> Self {
        Self {
            session,
            span: Span::current(),
            bells: Arc::default(),
            delay,
            limits: *limits,
            streams: VecDeque::from([Stream::new(limits)]),
            starting: true,
            transcript: Transcript::new(delay),
            total_steps: 0,
            outbox: VecDeque::new(),
            unread_since: None,
            last_wish: None,
            close: None,
        }
    }

    /// Frames processed for this session, over all its streams.
    pub(super) fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Whether nothing goes in any more.
    pub(super) fn is_ending(&self) -> bool {
        self.is_closed() || self.last_wish.is_some()
    }

    /// Whether nothing will be processed any more.
    fn is_closed(&self) -> bool {
        self.close.is_some()
    }

    // In: from the session.

    /// Samples that may come in now without holding more than a lane should.
    pub(super) fn room(&self) -> usize {
        self.limits.lane_input_samples().saturating_sub(self.waiting())
    }

    /// Samples that came in and were not taken.
    pub(super) fn waiting(&self) -> usize {
        self.streams.iter().map(|stream| stream.pcm.len()).sum()
    }

    pub(super) fn push_pcm(&mut self, pcm: &[f32]) {
        if let Some(stream) = self.streams.back_mut() {
            stream.pcm.extend(pcm);
            stream.received += pcm.len() as u64;
            stream.arrivals.note(stream.received / FRAME_SAMPLES as u64, Instant::now());
        }
    }

    /// Takes a marker, or says that there are too many.
    pub(super) fn push_marker(&mut self, id: i64) -> Result<(), ()> {
        if self.streams.iter().map(|stream| stream.markers.len()).sum::<usize>()
            >= limits::LANE_MARKERS
        {
            return Err(());
        }
        if let Some(stream) = self.streams.back_mut() {
            let due = stream.received.div_ceil(FRAME_SAMPLES as u64) + self.delay as u64;
            stream.markers.push_back((due, id));
        }
        self.answer_due_markers();
        Ok(())
    }

    pub(super) fn has_room_for_init(&self) -> bool {
        self.streams.len() <= limits::LANE_RESTARTS
    }

    /// Whether the session may cause another message; one that does not read may not.
    pub(super) fn has_room_for_output(&self) -> bool {
        self.outbox.len() < limits::LANE_OUTPUT_MESSAGES
    }

    pub(super) fn push_init(&mut self) {
        self.streams.push_back(Stream::new(&self.limits));
    }

    // Through: from the model thread.

    /// Whether the model's lane must be reset now. Moves on to the next stream when the one at
    /// the front is through; what it still owes is answered then.
    pub(super) fn must_reset(&mut self) -> bool {
        if self.is_closed() || !self.has_room_for_output() {
            return false;
        }
        let through = self.streams.front().is_some_and(Stream::is_through);
        if !self.starting && self.streams.len() > 1 && through {
            for (_, id) in self.streams.pop_front().into_iter().flat_map(|s| s.markers) {
                self.say(OutMsg::Marker { id });
            }
            self.starting = true;
            self.bells.room.notify_one();
        }
        self.starting
    }

    /// The model's lane is as new.
    pub(super) fn was_reset(&mut self) {
        self.starting = false;
        self.transcript = Transcript::new(self.delay);
        self.say(OutMsg::Ready);
        self.answer_due_markers();
        self.end_if_through();
    }

    /// Appends the lane's next frame to `frames`, if there is one and it is the lane's turn.
    pub(super) fn take_frame(&mut self, frames: &mut Vec<f32>) -> bool {
        if self.starting || self.is_closed() || !self.has_room_for_output() {
            return false;
        }
        let Some(stream) = self.streams.front_mut() else { return false };
        if stream.is_through() {
            return false;
        }
        frames.extend(stream.pcm.drain(..FRAME_SAMPLES));
        self.bells.room.notify_one();
        true
    }

    /// What the model says about the frame taken last.
    pub(super) fn record(
        &mut self,
        prediction: &Prediction,
        text: &TextDecoder,
        metrics: &ModuleMetrics,
    ) {
        let mut spoken = Vec::new();
        self.transcript.step(prediction.text_token, |said| spoken.push(said));
        self.total_steps += 1;
        if !prediction.vad.is_empty() {
            let step_idx = self.transcript.steps();
            let buffered_pcm = self.waiting();
            self.say(OutMsg::Step { step_idx, prs: prediction.vad.clone(), buffered_pcm });
        }
        for said in spoken {
            self.say_spoken(said, text, metrics);
        }
        self.answer_due_markers();
        if self.is_at_its_end()
            && let Some(word) = self.transcript.finish()
        {
            self.say_spoken(word, text, metrics);
        }
        self.end_if_through();
    }

    fn say_spoken(&mut self, said: Spoken, text: &TextDecoder, metrics: &ModuleMetrics) {
        self.say(match said {
            Spoken::Word { tokens, start } => {
                metrics.word(self.latency(start));
                OutMsg::Word { text: text.decode(&tokens), start_time: seconds(start) }
            }
            Spoken::EndWord { stop } => OutMsg::EndWord { stop_time: seconds(stop) },
        });
    }

    /// The frame taken last could not be processed.
    pub(super) fn fault(&mut self, fault: LaneFault) {
        let (end, code) = match fault {
            LaneFault::NonFiniteAudio => (SessionEnd::BadAudio, close_code::INVALID_DATA),
            LaneFault::NonFiniteLogits => (SessionEnd::BadOutput, close_code::INTERNAL_ERROR),
        };
        let reason = "the stream cannot go on".into();
        self.end(Some(fault.to_string()), Close { end, code, reason });
    }

    /// How long ago the frame arrived with which a word begins, unless the audio comes from a file.
    fn latency(&self, start_frame: u64) -> Option<Duration> {
        let arrivals = &self.streams.front()?.arrivals;
        let processed_last = self.transcript.steps().checked_sub(1)?;
        arrivals.of_live(start_frame, processed_last).map(|arrival| arrival.elapsed())
    }

    /// Audio of the stream being processed that has arrived, and that would have been spoken by
    /// now, but is not processed; whole frames only. The time in which a client did not read is
    /// its own.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        let Some(stream) = self.streams.front() else { return Duration::ZERO };
        let processed = if self.starting { 0 } else { self.transcript.steps() };
        let now = self.unread_since.unwrap_or(now);
        let late = stream.arrivals.due(now).saturating_sub(processed);
        FRAME_DURATION * u32::try_from(late).unwrap_or(u32::MAX)
    }

    fn answer_due_markers(&mut self) {
        let steps = self.transcript.steps();
        while !self.starting
            && let Some(stream) = self.streams.front_mut()
            && let Some(&(due, id)) = stream.markers.front()
            && due <= steps
        {
            stream.markers.pop_front();
            self.say(OutMsg::Marker { id });
        }
    }

    // Out: to the session.

    /// Lets nothing more in. What came before is processed as if silence followed, long enough for
    /// the model's delay; then the session ends this way.
    pub(super) fn wind_up(&mut self, close: Close) {
        if self.is_ending() {
            return;
        }
        if let Some(stream) = self.streams.back_mut()
            && (stream.received > 0 || !stream.markers.is_empty())
        {
            let whole = stream.pcm.len().next_multiple_of(FRAME_SAMPLES);
            stream.pcm.resize(whole + (self.delay + 1) * FRAME_SAMPLES, 0.0);
        }
        self.last_wish = Some(close);
        self.bells.room.notify_one();
        self.end_if_through();
    }

    /// Whether the session was to end once all that came is processed, and that is so now.
    fn is_at_its_end(&self) -> bool {
        let through = self.streams.front().is_none_or(Stream::is_through);
        self.last_wish.is_some() && self.streams.len() <= 1 && through
    }

    /// Keeps the promise of [`Lane::wind_up`].
    fn end_if_through(&mut self) {
        if self.is_at_its_end()
            && let Some(close) = self.last_wish.take()
        {
            self.end(None, close);
        }
    }

    /// Whether the session was not told everything about what it sent.
    pub(super) fn owes(&self) -> bool {
        self.streams.iter().any(|stream| !stream.is_through() || !stream.markers.is_empty())
    }

    /// Ends the session after what is still to be sent. Only the first end counts.
    pub(super) fn end(&mut self, error: Option<String>, close: Close) {
        if self.is_closed() {
            return;
        }
        if let Some(message) = error {
            self.say(OutMsg::Error { message });
        }
        self.close = Some(close);
        self.streams.clear();
        self.bells.output.notify_one();
        self.bells.room.notify_one();
    }

    fn say(&mut self, message: OutMsg) {
        self.outbox.push_back(message);
        if !self.has_room_for_output() {
            self.unread_since.get_or_insert_with(Instant::now);
        }
        self.bells.output.notify_one();
    }

    /// Everything to be sent now, and how to close after that.
    pub(super) fn take_output(&mut self) -> (Vec<OutMsg>, Option<Close>) {
        self.bells.room.notify_one();
        if let Some(since) = self.unread_since.take() {
            for stream in &mut self.streams {
                stream.arrivals.postpone(since.elapsed());
            }
        }
        (self.outbox.drain(..).collect(), self.close.clone())
    }
}
