//! Bodies of requests: so long, so many at once, and no longer than they make progress.

use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::limits::{CLOSE_HANDSHAKE, Limits};
use crate::metrics::Refusal;

/// What memory for bodies is given out in, in bytes.
const GRAIN_BYTES: usize = 1 << 10;

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body is over {most} bytes")]
    TooLarge { most: usize },
    #[error("too many files are being sent at the moment, try again later")]
    Busy,
    #[error("nothing of the body came for {after_s} s")]
    Stalled { after_s: f64 },
    #[error("the body broke off")]
    BrokenOff,
}

impl BodyError {
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::TooLarge { .. } => Refusal::TooLarge,
            Self::Busy => Refusal::Busy,
            Self::Stalled { .. } => Refusal::Timeout,
            Self::BrokenOff => Refusal::BrokenOff,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Stalled { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BrokenOff => StatusCode::BAD_REQUEST,
        }
    }
}

/// Memory for the bodies of all requests together.
#[derive(Debug, Clone)]
pub(crate) struct Bodies {
    free: Arc<Semaphore>,
}

/// A body, and its share of the memory for them.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl Bodies {
    pub(crate) fn new(limits: &Limits) -> Self {
        // One body can always be held.
        let bytes = limits.bodies_mb.bytes().max(limits.body_mb.bytes());
        Self { free: Arc::new(Semaphore::new(bytes.div_ceil(GRAIN_BYTES))) }
    }

    /// Reads a body to its end. What is refused before that is read on for a moment, so that its
    /// sender, who may still be writing, gets to read the answer.
    pub(crate) async fn receive(&self, body: Body, limits: &Limits) -> Result<Held, BodyError> {
        let mut body = body;
        let received = self.read(&mut body, limits).await;
        if received.is_err() {
            discard(body);
        }
        received
    }

    async fn read(&self, body: &mut Body, limits: &Limits) -> Result<Held, BodyError> {
        let most = limits.body_mb.bytes();
        let hint = body.size_hint();
        if hint.lower() > most as u64 {
            return Err(BodyError::TooLarge { most });
        }
        // A body of unknown length may be as long as any.
        let expected = hint.upper().and_then(|upper| usize::try_from(upper).ok()).unwrap_or(most);
        let grains = u32::try_from(expected.min(most).div_ceil(GRAIN_BYTES)).unwrap_or(u32::MAX);
        let share = Arc::clone(&self.free).try_acquire_many_owned(grains);
        let share = share.map_err(|_| BodyError::Busy)?;
        let idle = limits.body_idle_s.duration();
        let mut bytes = BytesMut::new();
        loop {
            match timeout(idle, body.frame()).await {
                Err(_) => return Err(BodyError::Stalled { after_s: idle.as_secs_f64() }),
                Ok(None) => return Ok(Held { bytes: bytes.freeze(), _share: share }),
                Ok(Some(Err(_))) => return Err(BodyError::BrokenOff),
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if bytes.len() + data.len() > most {
                        return Err(BodyError::TooLarge { most });
                    }
                    bytes.extend_from_slice(&data);
                }
            }
        }
    }
}

/// Reads and forgets the rest of a body for a moment. Closing with unread data would reset the
/// connection, and the answer could be lost.
pub(crate) fn discard(mut body: Body) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(timeout(
        CLOSE_HANDSHAKE,
        async move { while let Some(Ok(_)) = body.frame().await {} },
    ));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::stream;

    use super::*;

    fn limits() -> Limits {
        Limits {
            body_mb: (2.0 / 1024.0).into(),
            bodies_mb: (4.0 / 1024.0).into(),
            ..Limits::default()
        }
    }

    fn chunked(chunks: Vec<Vec<u8>>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)))
    }

    #[tokio::test]
    async fn a_body_may_be_so_long_and_no_longer() {
        let (limits, bodies) = (limits(), Bodies::new(&limits()));
        let most = limits.body_mb.bytes();
        for length in [0, 1, most - 1, most] {
            for body in [Body::from(vec![7; length]), chunked(vec![vec![7; length]])] {
                let held = bodies.receive(body, &limits).await.unwrap();
                assert_eq!(held.bytes, vec![7; length]);
            }
        }
        for body in [Body::from(vec![7; most + 1]), chunked(vec![vec![7; most], vec![7]])] {
            let error = bodies.receive(body, &limits).await.unwrap_err();
            assert!(matches!(error, BodyError::TooLarge { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn all_bodies_together_have_a_limit_too() {
        let (limits, bodies) = (limits(), Bodies::new(&limits()));
        // Of unknown length: each counts as the longest.
        let body = || chunked(vec![vec![1]]);
        let first = bodies.receive(body(), &limits).await.unwrap();
        let _second = bodies.receive(body(), &limits).await.unwrap();
        let error = bodies.receive(body(), &limits).await.unwrap_err();
        assert!(matches!(error, BodyError::Busy), "{error}");
        drop(first);
        bodies.receive(body(), &limits).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_is_given_up() {
        let limits = limits();
        let body = Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let start = tokio::time::Instant::now();
        let error = Bodies::new(&limits).receive(body, &limits).await.unwrap_err();
        assert_eq!(error.to_string(), "nothing of the body came for 20 s");
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }
}
