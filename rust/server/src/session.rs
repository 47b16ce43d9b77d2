//! One WebSocket session: what its peer sends goes to its lane, what the lane says to its peer.
//!
//! Generic over the socket, so that tests drive it on channels.

use std::error::Error as StdError;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes};
use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::sync::watch;
use tokio::task::consume_budget;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout, timeout_at};

use tungstenite::Error;
use tungstenite::error::ProtocolError;

use crate::app::until_going_away;
use crate::close_code;
use crate::lanes::{Close, Ended, Seat};
use crate::limits::{CLOSE_HANDSHAKE, IN_FLIGHT, Limits};
use crate::metrics::{Label, ModuleMetrics, SessionEnd};
use crate::ogg_opus::OggOpusDecoder;
use crate::protocol::{self, DecodeError, InMsg, OutMsg};

/// What is said to whom a server that ends does not serve any further.
pub(crate) const SHUTTING_DOWN: &str = "the server is shutting down";

/// Why the reading half stopped.
#[derive(Debug)]
enum ReadEnd {
    /// The peer closed the connection, or it broke.
    PeerLeft(SessionEnd),
    /// The lane ended the session; what there is to say is in its output.
    LaneEnded,
    /// The peer cannot be served any further.
    Refused { error: String, end: SessionEnd, code: u16 },
}

impl From<Ended> for ReadEnd {
    fn from(_: Ended) -> Self {
        Self::LaneEnded
    }
}

/// Why the writing half stopped.
#[derive(Debug)]
enum WriteEnd {
    /// Everything was sent but the close frame.
    Over(Close),
    /// Nothing more can be sent, and why.
    Broken(SessionEnd, &'static str),
}

/// Serves one session to its end and frees its lane.
pub(crate) async fn serve<S, E>(
    socket: S,
    seat: Seat,
    limits: &Limits,
    going_away: watch::Receiver<bool>,
) where
    S: Stream<Item = Result<Message, E>> + Sink<Message>,
    E: StdError + 'static,
{
    let (mut sink, mut stream) = socket.split();
    let mut refusal = None;
    let end = {
        let read = read(&mut stream, &seat, limits);
        let write = write(&mut sink, &seat, limits);
        let last_words = until_gone_and_heard(going_away);
        tokio::pin!(read, write, last_words);
        tokio::select! {
            end = &mut read => match end {
                ReadEnd::PeerLeft(end) => WriteEnd::Broken(end, "the peer left"),
                ReadEnd::LaneEnded => write.await,
                ReadEnd::Refused { error, end, code } => {
                    seat.end(Some(error.clone()), end, code, &error);
                    refusal = Some(error);
                    write.await
                }
            },
            end = &mut write => end,
            () = &mut last_words => {
                seat.wind_up(SessionEnd::Shutdown, close_code::GOING_AWAY, SHUTTING_DOWN);
                write.await
            }
        }
    };
    let steps = seat.steps();
    let counts_as = match &end {
        WriteEnd::Over(close) => close.end,
        WriteEnd::Broken(end, _) => *end,
    };
    // Free before the peer hears of the end: it may be back a moment later.
    seat.leave(counts_as);
    let ended = match end {
        WriteEnd::Over(close) => send(&mut sink, close_frame(close.code, close.reason), limits)
            .await
            .err()
            .map_or("closed", |(_, why)| why),
        WriteEnd::Broken(_, why) => why,
    };
    let refusal = refusal.map(|error| error + "; ").unwrap_or_default();
    tracing::info!(steps, end = counts_as.value(), "session over: {refusal}{ended}");
    linger(&mut sink, &mut stream).await;
}

/// Waits until the server is ending, and what peers sent until then is here.
async fn until_gone_and_heard(going_away: watch::Receiver<bool>) {
    until_going_away(going_away).await;
    sleep(IN_FLIGHT).await;
}

/// Tells a peer that was let in why there is no session for it, and closes.
pub(crate) async fn refuse<S, E>(
    socket: S,
    message: &str,
    code: u16,
    limits: &Limits,
    metrics: &ModuleMetrics,
) where
    S: Stream<Item = Result<Message, E>> + Sink<Message>,
{
    let (mut sink, mut stream) = socket.split();
    let error = OutMsg::Error { message: message.to_string() };
    if say(&mut sink, &error, limits, metrics).await.is_ok()
        && send(&mut sink, close_frame(code, message.to_string()), limits).await.is_ok()
    {
        linger(&mut sink, &mut stream).await;
    }
}

/// Reads until the peer answered the close. Closing with unread data would reset the connection,
/// and the peer could lose what it was told last.
async fn linger<S, T>(sink: &mut S, stream: &mut T)
where
    S: Sink<Message> + Unpin,
    T: Stream + Unpin,
{
    let answered = async {
        let _ = sink.close().await;
        while stream.next().await.is_some() {}
    };
    let _ = timeout(CLOSE_HANDSHAKE, answered).await;
}

async fn read<T, E>(stream: &mut T, seat: &Seat, limits: &Limits) -> ReadEnd
where
    T: Stream<Item = Result<Message, E>> + Unpin,
    E: StdError + 'static,
{
    let mut opus = OggOpusDecoder::default();
    let (silent, no_data) = (limits.silent_s.duration(), limits.no_data_s.duration());
    let mut last_data = Instant::now();
    loop {
        let silent_at = Instant::now() + silent;
        let no_data_at = last_data + no_data;
        let message = match timeout_at(silent_at.min(no_data_at), stream.next()).await {
            Err(_) => {
                let (what, after) = if no_data_at <= silent_at {
                    ("no data", no_data)
                } else {
                    ("no answer to pings", silent)
                };
                let error = format!("{what} for {} s", after.as_secs_f64());
                return ReadEnd::Refused { error, end: SessionEnd::Idle, code: close_code::POLICY };
            }
            Ok(Some(Ok(Message::Close(_)))) => return ReadEnd::PeerLeft(SessionEnd::Completed),
            Ok(None) => return ReadEnd::PeerLeft(SessionEnd::Lost),
            Ok(Some(Err(error))) => return broken(&error),
            Ok(Some(Ok(Message::Binary(bytes)))) => bytes,
            // Pings are answered below us; text is nothing we know, and harmless.
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_)))) => continue,
        };
        seat.metrics().received(message.len());
        if let Err(end) = take(message, seat, limits, &mut opus).await {
            return end;
        }
        // Only now: waiting for room in the lane is not the peer's silence.
        last_data = Instant::now();
    }
}

async fn take(
    bytes: Bytes,
    seat: &Seat,
    limits: &Limits,
    opus: &mut OggOpusDecoder,
) -> Result<(), ReadEnd> {
    let most = limits.message_mb.bytes();
    if bytes.len() > most {
        let error = format!("a message of {} bytes is too long; send at most {most}", bytes.len());
        return Err(refused(error, close_code::TOO_BIG));
    }
    let invalid = |error: String| refused(error, close_code::INVALID_DATA);
    let message = protocol::decode(&bytes).map_err(|error| match error {
        DecodeError::UnknownType(_) => refused(error.to_string(), close_code::UNSUPPORTED),
        DecodeError::Malformed(_) => invalid(error.to_string()),
    })?;
    // Decoded, it may be four times as long, and wait here for room in its lane.
    drop(bytes);
    match message {
        InMsg::Init => {
            *opus = OggOpusDecoder::default();
            seat.push_init().await?;
        }
        InMsg::Audio(pcm) => seat.push_pcm(&pcm).await?,
        InMsg::Marker(id) => seat.push_marker(id).await?,
        InMsg::OggOpus(data) => {
            opus.feed(&data);
            while let Some(pcm) = opus.next_pcm().map_err(|error| invalid(error.to_string()))? {
                seat.push_pcm(&pcm).await?;
                // Packets may hold nothing to push, and a message hours of them.
                consume_budget().await;
            }
        }
    }
    Ok(())
}

/// What the peer sent cannot be used.
fn refused(error: String, code: u16) -> ReadEnd {
    ReadEnd::Refused { error, end: SessionEnd::Invalid, code }
}

/// A peer that sends too much or breaks the protocol deserves an explanation; one whose connection
/// broke can hear none.
fn broken(error: &(dyn StdError + 'static)) -> ReadEnd {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(Error::Capacity(error)) => return refused(error.to_string(), close_code::TOO_BIG),
            Some(Error::Utf8(error)) => {
                let error = format!("text that is no UTF-8: {error}");
                return refused(error, close_code::INVALID_DATA);
            }
            Some(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => break,
            Some(Error::Protocol(error)) => {
                return refused(error.to_string(), close_code::PROTOCOL);
            }
            _ => cause = error.source(),
        }
    }
    ReadEnd::PeerLeft(SessionEnd::Lost)
}

async fn write<T>(sink: &mut T, seat: &Seat, limits: &Limits) -> WriteEnd
where
    T: Sink<Message> + Unpin,
{
    let ping_every = limits.ping_every_s.duration();
    let mut pings = interval_at(Instant::now() + ping_every, ping_every);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (messages, close) = tokio::select! {
            output = seat.output() => output,
            _ = pings.tick() => {
                if let Err((end, why)) = send(sink, Message::Ping(Bytes::new()), limits).await {
                    return WriteEnd::Broken(end, why);
                }
                continue;
            }
        };
        for message in &messages {
            if let Err((end, why)) = say(sink, message, limits, seat.metrics()).await {
                return WriteEnd::Broken(end, why);
            }
        }
        if let Some(close) = close {
            return WriteEnd::Over(close);
        }
    }
}

/// Sends what the server says, and counts it.
async fn say<T>(
    sink: &mut T,
    message: &OutMsg,
    limits: &Limits,
    metrics: &ModuleMetrics,
) -> Result<(), (SessionEnd, &'static str)>
where
    T: Sink<Message> + Unpin,
{
    let message = message.encode();
    let bytes = message.len();
    send(sink, Message::Binary(message.into()), limits).await?;
    metrics.sent(bytes);
    Ok(())
}

/// Sends a message, or says why that is impossible.
async fn send<T>(
    sink: &mut T,
    message: Message,
    limits: &Limits,
) -> Result<(), (SessionEnd, &'static str)>
where
    T: Sink<Message> + Unpin,
{
    match timeout(limits.not_reading_s.duration(), sink.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err((SessionEnd::Lost, "the connection broke")),
        Err(_) => Err((SessionEnd::NotReading, "the peer does not read what it is sent")),
    }
}

fn close_frame(code: u16, mut reason: String) -> Message {
    // A control frame holds 125 bytes, the code included.
    while reason.len() > 123 {
        reason.pop();
    }
    Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::from(reason) }))
}

#[cfg(test)]
mod tests;
