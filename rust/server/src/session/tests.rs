//! What a session tolerates, on channels and on a clock that tests turn.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::mpsc;

use super::*;
use crate::lanes::{Lanes, Visitor};
use crate::metrics::{Metrics, SessionKind};
use crate::tokenizer::TextDecoder;

/// A socket whose other end is two channels.
struct Socket {
    lanes: Arc<Lanes>,
    incoming: mpsc::UnboundedReceiver<Message>,
    outgoing: mpsc::Sender<Message>,
}

impl Stream for Socket {
    type Item = Result<Message, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_next_unpin(cx).map(|message| message.map(Ok))
    }
}

impl Sink<Message> for Socket {
    type Error = mpsc::SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), Self::Error> {
        if matches!(message, Message::Close(_)) {
            // Whoever hears this may join again the same moment.
            assert_eq!(self.lanes.used(), 0);
        }
        self.outgoing.start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_flush_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_close_unpin(cx)
    }
}

/// A session in a lane that no model steps, and its peer's two ends.
struct Peer {
    metrics: Metrics,
    lanes: Arc<Lanes>,
    speak: mpsc::UnboundedSender<Message>,
    hear: mpsc::Receiver<Message>,
    going_away: watch::Sender<bool>,
    session: tokio::task::JoinHandle<Duration>,
}

/// Starts a session that may send `unread` messages before its peer has to read one.
fn session(unread: usize) -> Peer {
    let metrics = Metrics::new().unwrap();
    let limits = Limits::default();
    let lanes = Arc::new(Lanes::new(1, 0, &limits, TextDecoder::default(), metrics.module("asr")));
    let seat = lanes.join(Visitor { session: 1, kind: SessionKind::Stream }).unwrap();
    let (speak, incoming) = mpsc::unbounded();
    let (outgoing, hear) = mpsc::channel(unread);
    let going_away = watch::Sender::new(false);
    let receiver = going_away.subscribe();
    let socket = Socket { lanes: Arc::clone(&lanes), incoming, outgoing };
    let session = tokio::spawn(async move {
        let start = Instant::now();
        serve(socket, seat, &limits, receiver).await;
        start.elapsed()
    });
    Peer { metrics, lanes, speak, hear, going_away, session }
}

impl Peer {
    /// Sends a message every five seconds until the session is over.
    fn keep_sending(&self, message: impl Fn() -> Message + Send + 'static) {
        let speak = self.speak.clone();
        tokio::spawn(async move {
            while speak.unbounded_send(message()).is_ok() {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }

    /// Everything the session says, when it ended, and that it counts as ended that way.
    async fn listen(mut self, end: SessionEnd) -> (Vec<Message>, Duration) {
        let mut heard = Vec::new();
        while let Some(message) = self.hear.next().await {
            if matches!(message, Message::Close(_)) {
                // A peer that closes its end lets the session go.
                self.speak.close_channel();
            }
            heard.push(message);
        }
        let lasted = self.session.await.unwrap();
        assert_eq!(self.lanes.used(), 0);
        assert_counted(&self.metrics, end);
        (heard, lasted)
    }
}

/// One session is over, and ended this way.
fn assert_counted(metrics: &Metrics, end: SessionEnd) {
    let (_, scrape) = metrics.render(|_| {}).unwrap();
    let scrape = String::from_utf8(scrape).unwrap();
    let mut ended = scrape
        .lines()
        .filter(|line| line.starts_with("moshi_sessions_ended_total{") && !line.ends_with(" 0"));
    let labels = format!("{{end=\"{}\",kind=\"stream\",module=\"asr\"}}", end.value());
    assert_eq!(ended.next(), Some(format!("moshi_sessions_ended_total{labels} 1").as_str()));
    assert_eq!(ended.next(), None);
}

/// The error, and the close code after it.
fn said(heard: &[Message]) -> (String, u16) {
    match heard {
        [.., Message::Binary(error), Message::Close(Some(frame))] => {
            (String::from_utf8_lossy(error).into_owned(), frame.code)
        }
        other => panic!("{other:?}"),
    }
}

fn about(lasted: Duration, seconds: u64) -> bool {
    lasted.abs_diff(Duration::from_secs(seconds)) < Duration::from_secs(1)
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_pinged_then_told_and_closed() {
    let (heard, lasted) = session(100).listen(SessionEnd::Idle).await;
    assert!(matches!(heard[0], Message::Ping(_)));
    let (error, code) = said(&heard);
    assert!(error.contains("no answer to pings for 20 s"), "{error}");
    assert_eq!(code, close_code::POLICY);
    assert!(about(lasted, 20), "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_only_answers_pings_is_closed_after_two_minutes() {
    let peer = session(100);
    peer.keep_sending(|| Message::Pong(Bytes::new()));
    let (heard, lasted) = peer.listen(SessionEnd::Idle).await;
    let (error, _) = said(&heard);
    assert!(error.contains("no data for 120 s"), "{error}");
    assert!(about(lasted, 120), "{lasted:?}");
    let pings = heard.iter().filter(|message| matches!(message, Message::Ping(_))).count();
    assert!((11..=12).contains(&pings), "{pings}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_cut_off() {
    let peer = session(0);
    peer.keep_sending(|| Message::Binary(b"\x81\xa4type\xa4Init".to_vec().into()));
    let lanes = Arc::clone(&peer.lanes);
    let lasted = peer.session.await.unwrap();
    // The first ping waits half a minute in vain; then the close handshake gets its time.
    assert!(about(lasted, 10 + 30 + CLOSE_HANDSHAKE.as_secs()), "{lasted:?}");
    assert_eq!(lanes.used(), 0);
    assert_counted(&peer.metrics, SessionEnd::NotReading);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_goes_says_so() {
    let peer = session(100);
    peer.going_away.send_replace(true);
    let (heard, _) = peer.listen(SessionEnd::Shutdown).await;
    let [Message::Close(Some(frame))] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!(frame.code, close_code::GOING_AWAY);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_gives_its_lane_back_at_once() {
    let peer = session(100);
    peer.speak.unbounded_send(Message::Close(None)).unwrap();
    let (heard, lasted) = peer.listen(SessionEnd::Completed).await;
    assert_eq!(heard, []);
    assert!(lasted <= CLOSE_HANDSHAKE, "{lasted:?}");
}
