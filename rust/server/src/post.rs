//! A whole audio file in one POST: decoded on the side, transcribed in a lane like any stream.

use std::sync::Arc;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use moshi_ctl_core::units::FRAME_SAMPLES;
use serde_json::json;
use tokio::sync::mpsc;

use crate::audio_file::{self, AudioFileError};
use crate::body::BodyError;
use crate::close_code;
use crate::lanes::{Close, JoinError, Lanes, Seat, Visitor};
use crate::limits;
use crate::metrics::{Refusal, SessionEnd};
use crate::protocol::OutMsg;

/// Pieces of a file that are decoded before its lane takes them.
const DECODED_AHEAD: usize = 8;

/// Why there is no transcript.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("the body is empty; send the bytes of an audio file")]
    EmptyBody,
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    File(#[from] AudioFileError),
    /// As [`PostError::File`], but only found out when a lane was taken already.
    #[error(transparent)]
    Broken(AudioFileError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("{why}")]
    Ended { why: String, close: Close },
    #[error("decoding failed")]
    Decoder,
}

impl PostError {
    /// Why no lane was taken, if none was.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::EmptyBody | Self::File(_) => Some(Refusal::BadAudio),
            Self::Body(error) => Some(error.refusal()),
            Self::Join(error) => Some(error.refusal()),
            Self::Broken(_) | Self::Ended { .. } | Self::Decoder => None,
        }
    }
}

impl IntoResponse for PostError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::EmptyBody => StatusCode::BAD_REQUEST,
            Self::Body(error) => error.status(),
            Self::File(AudioFileError::Unknown(_)) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::File(_) | Self::Broken(_) => StatusCode::BAD_REQUEST,
            Self::Join(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Ended { close: Close { code: close_code::INVALID_DATA, .. }, .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::Ended { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Decoder => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let try_again = match &self {
            Self::Join(error) => !matches!(error, JoinError::Unavailable(_)),
            Self::Body(error) => matches!(error, BodyError::Busy),
            _ => false,
        };
        let retry_after = try_again.then(retry_after);
        (status, retry_after, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// When somebody who was refused should try again.
pub(crate) fn retry_after() -> [(header::HeaderName, String); 1] {
    [(header::RETRY_AFTER, limits::RETRY_AFTER_S.to_string())]
}

/// The words of an audio file, as the messages a stream would have got.
pub(crate) async fn transcribe(
    lanes: &Arc<Lanes>,
    visitor: Visitor,
    file: Bytes,
) -> Result<Vec<OutMsg>, PostError> {
    if file.is_empty() {
        return Err(PostError::EmptyBody);
    }
    let (pieces, mut decoded) = mpsc::channel(DECODED_AHEAD);
    let decoder = tokio::task::spawn_blocking(move || {
        audio_file::decode(file, |pcm| pieces.blocking_send(pcm).is_ok())
    });
    // No lane is taken for a file that cannot be decoded.
    let first = decoded.recv().await;
    let Some(first) = first else {
        decoder.await.map_err(|_| PostError::Decoder)??;
        return Err(AudioFileError::Silent.into());
    };
    let seat = lanes.join_within(visitor, limits::POST_LANE_WAIT).await?;
    tracing::Span::current().record("lane", seat.lane());
    let push = async {
        let mut samples = first.len();
        let mut pushed = seat.push_pcm(&first).await;
        while pushed.is_ok()
            && let Some(pcm) = decoded.recv().await
        {
            samples += pcm.len();
            pushed = seat.push_pcm(&pcm).await;
        }
        // Whoever ended the lane said why in its output.
        if pushed.is_ok() && seat.push_marker(0).await.is_ok() {
            let whole_frames = samples.next_multiple_of(FRAME_SAMPLES) - samples;
            let delay = (lanes.delay() + 1) * FRAME_SAMPLES;
            let _ = seat.push_pcm(&vec![0.0; whole_frames + delay]).await;
        }
    };
    let (words, ()) = tokio::join!(collect(&seat), push);
    decoded.close();
    let words = match words {
        Ok(words) => match decoder.await {
            Ok(Ok(())) => Ok(words),
            Ok(Err(error)) => Err(PostError::Broken(error)),
            Err(_) => Err(PostError::Decoder),
        },
        Err(error) => Err(error),
    };
    seat.leave(match &words {
        Ok(_) => SessionEnd::Completed,
        Err(PostError::Ended { close, .. }) => close.end,
        Err(_) => SessionEnd::Invalid,
    });
    words
}

/// The words up to the marker.
async fn collect(seat: &Seat) -> Result<Vec<OutMsg>, PostError> {
    let mut words = Vec::new();
    let mut error = None;
    loop {
        let (messages, close) = seat.output().await;
        for message in messages {
            match message {
                OutMsg::Word { .. } | OutMsg::EndWord { .. } => words.push(message),
                OutMsg::Marker { .. } => return Ok(words),
                OutMsg::Error { message } => error = Some(message),
                OutMsg::Ready | OutMsg::Step { .. } => {}
            }
        }
        if let Some(close) = close {
            let why = error.unwrap_or_else(|| close.reason.clone());
            return Err(PostError::Ended { why, close });
        }
    }
}
