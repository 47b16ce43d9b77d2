//! The routes, and what each asks of a request before it answers.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_http::services::ServeDir;
use tracing::{Instrument, Span, field};

use crate::app::{App, Module};
use crate::build_info::build_info;
use crate::lanes::{JoinError, Visitor};
use crate::limits::{MAX_MESSAGE_READ_BYTES, MAX_POST_BYTES};
use crate::logging::traces::adopt_parent;
use crate::metrics::{Label, Refusal, SessionKind};
use crate::post::{PostError, transcribe};
use crate::protocol::OutMsg;
use crate::{close_code, scrape, session};

/// Paths of the server's own routes, which no module can have.
pub(crate) const BUILT_IN_PATHS: [&str; 5] =
    ["/api/build_info", "/api/modules_info", "/metrics", "/health/live", "/health/ready"];

/// Where a key is looked for first.
const KEY_HEADER: &str = "kyutai-api-key";

type Shared = State<Arc<App>>;
type SharedModule = State<(Arc<App>, Arc<Module>)>;

/// All routes of a server.
pub(crate) fn router(app: Arc<App>, static_dir: &str) -> Router {
    let [build_info_path, modules_info_path, metrics_path, live_path, ready_path] = BUILT_IN_PATHS;
    let mut router = Router::new()
        .route(build_info_path, get(get_build_info))
        .route(modules_info_path, get(modules_info))
        .route(metrics_path, get(metrics))
        .route(live_path, get(live))
        .route(ready_path, get(ready))
        .fallback_service(ServeDir::new(static_dir))
        .with_state(Arc::clone(&app));
    for module in &app.modules {
        let state = (Arc::clone(&app), Arc::clone(module));
        let methods = get(stream).merge(post(file)).with_state(state);
        router = router.route(&module.config.asr().path, methods);
    }
    router
}

async fn get_build_info(State(app): Shared) -> Response {
    match app.unready() {
        reasons if reasons.is_empty() => Json(build_info()).into_response(),
        reasons => unavailable(&reasons),
    }
}

async fn modules_info(State(app): Shared) -> Json<Vec<Value>> {
    let modules = app.modules.iter().map(|module| {
        let asr = module.config.asr();
        json!({
            "type": module.config.info_type(),
            "path": asr.path,
            "lm": asr.lm_model_file,
            "audio_tokenizer": asr.audio_tokenizer_file,
            "used_slots": module.lanes.used().to_string(),
            "total_slots": module.lanes.total().to_string(),
        })
    });
    Json(modules.collect())
}

async fn metrics(State(app): Shared) -> Response {
    match scrape::render(&app) {
        Ok((content_type, body)) => ([(header::CONTENT_TYPE, content_type)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn live(State(app): Shared) -> Response {
    healthy_unless(&app.dead())
}

async fn ready(State(app): Shared) -> Response {
    healthy_unless(&app.unready())
}

fn healthy_unless(reasons: &[String]) -> Response {
    if reasons.is_empty() {
        Json(json!({ "status": "ok" })).into_response()
    } else {
        unavailable(reasons)
    }
}

fn unavailable(reasons: &[String]) -> Response {
    let body = Json(json!({ "status": "unavailable", "reasons": reasons }));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

/// Browsers cannot set headers on a WebSocket, so the key may be in the query.
#[derive(Default, Deserialize)]
struct KeyQuery {
    auth_id: Option<String>,
}

fn has_key(app: &App, headers: &HeaderMap, query: Option<&KeyQuery>) -> bool {
    let key = match headers.get(KEY_HEADER) {
        Some(header) => header.to_str().ok(),
        None => query.and_then(|query| query.auth_id.as_deref()),
    };
    app.keys.admits(key)
}

fn unauthorized() -> Response {
    let error = format!("a valid key is needed, in the header {KEY_HEADER} or as ?auth_id=");
    (StatusCode::UNAUTHORIZED, Json(json!({ "error": error }))).into_response()
}

async fn stream(
    State((app, module)): SharedModule,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    query: Result<Query<KeyQuery>, axum::extract::rejection::QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if !has_key(&app, &headers, query.ok().map(|Query(query)| query).as_ref()) {
        module.metrics().refused(Refusal::Unauthorized);
        return unauthorized();
    }
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            module.metrics().refused(Refusal::BadRequest);
            return rejection.into_response();
        }
    };
    app.metrics.connect.inc();
    let visitor = app.visitor(SessionKind::Stream);
    let span = session_span(&module, visitor, &headers);
    let present = app.sessions.enter();
    upgrade
        .max_message_size(MAX_MESSAGE_READ_BYTES)
        .max_frame_size(MAX_MESSAGE_READ_BYTES)
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            let (patience, going_away) = (app.patience, app.going_away.subscribe());
            let session = async {
                match module.lanes.join(visitor) {
                    Ok(seat) => {
                        Span::current().record("lane", seat.lane());
                        tracing::info!(%peer, "session begins");
                        session::serve(socket, seat, patience, going_away).await;
                    }
                    Err(error) => {
                        tracing::warn!(%peer, "session refused: {error}");
                        module.metrics().refused(error.refusal());
                        let code = match error {
                            JoinError::Full => close_code::TRY_AGAIN_LATER,
                            JoinError::Unavailable(_) => close_code::GOING_AWAY,
                        };
                        session::refuse(socket, &error.to_string(), code, patience).await;
                    }
                }
            };
            session.instrument(span).await;
            drop(present);
        })
}

/// What everything that is logged about a session belongs to.
fn session_span(module: &Module, visitor: Visitor, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "session",
        id = visitor.session,
        module = module.name,
        kind = visitor.kind.value(),
        lane = field::Empty
    );
    adopt_parent(&span, headers);
    span
}

async fn file(
    State((app, module)): SharedModule,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    query: Result<Query<KeyQuery>, axum::extract::rejection::QueryRejection>,
    body: Body,
) -> Response {
    // Before the body is read: nobody without a key makes the server hold 100 MB.
    if !has_key(&app, &headers, query.ok().map(|Query(query)| query).as_ref()) {
        module.metrics().refused(Refusal::Unauthorized);
        return unauthorized();
    }
    let visitor = app.visitor(SessionKind::File);
    let span = session_span(&module, visitor, &headers);
    let answer = async {
        tracing::info!(%peer, "a file comes in");
        let body = axum::body::to_bytes(body, MAX_POST_BYTES).await.map_err(|_| PostError::Body)?;
        module.metrics().received(body.len());
        let words = transcribe(&module.lanes, visitor, body).await?;
        tracing::info!(messages = words.len(), "the file is transcribed");
        Ok::<_, PostError>(words)
    };
    match answer.instrument(span.clone()).await {
        Ok(words) => transcript(&module, &words),
        Err(error) => {
            tracing::warn!(parent: &span, "no transcript: {error}");
            if let Some(refusal) = error.refusal() {
                module.metrics().refused(refusal);
            }
            error.into_response()
        }
    }
}

fn transcript(module: &Module, words: &[OutMsg]) -> Response {
    match serde_json::to_vec(words) {
        Ok(body) => {
            module.metrics().sent(body.len());
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
