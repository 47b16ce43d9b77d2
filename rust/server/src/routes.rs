//! The routes, and what each asks of a request before it answers.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tower_http::services::ServeDir;
use tracing::{Instrument, Span, field};

use crate::app::{App, Module};
use crate::build_info::build_info;
use crate::keys::{KEY_HEADER, KeyQuery, KeyUse};
use crate::lanes::{JoinError, Seat, Visitor};
use crate::limits::POST_LANE_WAIT;
use crate::logging::traces::adopt_parent;
use crate::metrics::{Label, Refusal, SessionKind};
use crate::post::{PostError, retry_after, transcribe};
use crate::protocol::OutMsg;
use crate::session::{self, SHUTTING_DOWN};
use crate::{close_code, scrape};

/// Paths of the server's own routes, which no module can have.
pub(crate) const BUILT_IN_PATHS: [&str; 5] =
    ["/api/build_info", "/api/modules_info", "/metrics", "/health/live", "/health/ready"];

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
    match app.leaving() {
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

type MaybeQuery = Result<Query<KeyQuery>, QueryRejection>;

/// Why somebody is not let in, whatever they ask for.
enum Denied {
    NoKey,
    TooManySessions,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        match self {
            Self::NoKey => {
                let error =
                    format!("a valid key is needed, in the header {KEY_HEADER} or as ?auth_id=");
                (StatusCode::UNAUTHORIZED, Json(json!({ "error": error }))).into_response()
            }
            Self::TooManySessions => {
                let error =
                    Json(json!({ "error": "this key has as many sessions as it may have" }));
                (StatusCode::TOO_MANY_REQUESTS, retry_after(), error).into_response()
            }
        }
    }
}

/// Who asks, if they have a key that holds and not too many sessions already.
fn admit(
    app: &App,
    module: &Module,
    headers: &HeaderMap,
    query: MaybeQuery,
) -> Result<KeyUse, Denied> {
    let query = query.ok().map(|Query(query)| query);
    let Some(key) = app.keys.owner(headers, query.as_ref()) else {
        module.metrics().refused(Refusal::Unauthorized);
        return Err(Denied::NoKey);
    };
    app.keys.enter(key).ok_or_else(|| {
        module.metrics().refused(Refusal::TooMany);
        Denied::TooManySessions
    })
}

async fn stream(
    State((app, module)): SharedModule,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    query: MaybeQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let key = match admit(&app, &module, &headers, query) {
        Ok(key) => key,
        Err(denied) => return denied.into_response(),
    };
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => {
            module.metrics().refused(Refusal::BadRequest);
            return rejection.into_response();
        }
    };
    app.metrics.connect.inc();
    let visitor = app.visitor(SessionKind::Stream);
    let span = session_span(&module, visitor, &key, &headers);
    let present = app.sessions.enter();
    let most = app.limits.message_read_bytes();
    upgrade.max_message_size(most).max_frame_size(most).write_buffer_size(0).on_upgrade(
        async move |socket| {
            let limits = &app.limits;
            let session = async {
                match join(&app, &module, visitor) {
                    Ok(seat) => {
                        Span::current().record("lane", seat.lane());
                        tracing::info!(%peer, "session begins");
                        app.metrics.key_sessions(&key.name).inc();
                        session::serve(socket, seat, limits, app.going_away.subscribe()).await;
                    }
                    Err(error) => {
                        tracing::warn!(%peer, "session refused: {error}");
                        module.metrics().refused(error.refusal());
                        let code = match error {
                            JoinError::Full | JoinError::Overloaded { .. } => {
                                close_code::TRY_AGAIN_LATER
                            }
                            JoinError::Unavailable(_) => close_code::GOING_AWAY,
                        };
                        let why = error.to_string();
                        session::refuse(socket, &why, code, limits, module.metrics()).await;
                    }
                }
            };
            session.instrument(span).await;
            drop(present);
        },
    )
}

/// A lane, unless the server is ending.
fn join(app: &App, module: &Module, visitor: Visitor) -> Result<Seat, JoinError> {
    if app.is_ending() {
        return Err(JoinError::Unavailable(SHUTTING_DOWN.into()));
    }
    module.lanes.join(visitor)
}

/// What everything that is logged about a session belongs to.
fn session_span(module: &Module, visitor: Visitor, key: &KeyUse, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "session",
        id = visitor.session,
        module = module.name,
        kind = visitor.kind.value(),
        key = &*key.name,
        lane = field::Empty
    );
    adopt_parent(&span, headers);
    span
}

async fn file(
    State((app, module)): SharedModule,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    query: MaybeQuery,
    body: Body,
) -> Response {
    // Before the body is read: nobody without a key makes the server hold 100 MB.
    let key = match admit(&app, &module, &headers, query) {
        Ok(key) => key,
        Err(denied) => return denied.into_response(),
    };
    let present = app.sessions.enter();
    let visitor = app.visitor(SessionKind::File);
    let span = session_span(&module, visitor, &key, &headers);
    let answer = async {
        tracing::info!(%peer, "a file comes in");
        wait_for_a_lane(&app, &module).await?;
        let body = tokio::select! {
            body = app.bodies.receive(body, &app.limits) => body?,
            end = module.lanes.until_over() => return Err(end.into()),
        };
        module.metrics().received(body.bytes.len());
        app.metrics.key_sessions(&key.name).inc();
        let words = transcribe(&module.lanes, visitor, body.bytes.clone()).await?;
        tracing::info!(messages = words.len(), "the file is transcribed");
        Ok::<_, PostError>(words)
    };
    let answer = match answer.instrument(span.clone()).await {
        Ok(words) => transcript(&module, &words),
        Err(error) => {
            tracing::warn!(parent: &span, "no transcript: {error}");
            if let Some(refusal) = error.refusal() {
                module.metrics().refused(refusal);
            }
            error.into_response()
        }
    };
    drop(present);
    answer
}

/// Makes sure that a lane is free, so that no body is read that nobody will process.
async fn wait_for_a_lane(app: &App, module: &Module) -> Result<(), JoinError> {
    if app.is_ending() {
        return Err(JoinError::Unavailable(SHUTTING_DOWN.into()));
    }
    module.lanes.free_within(POST_LANE_WAIT).await
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
