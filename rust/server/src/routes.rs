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
use tracing::Instrument;

use crate::app::{App, Module};
use crate::build_info::build_info;
use crate::lanes::JoinError;
use crate::limits::{MAX_MESSAGE_READ_BYTES, MAX_POST_BYTES};
use crate::logging::traces::adopt_parent;
use crate::post::{PostError, transcribe};
use crate::{close_code, session};

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
    match app.metrics.render() {
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
        return unauthorized();
    }
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    app.metrics.connect.inc();
    let present = app.sessions.enter();
    upgrade
        .max_message_size(MAX_MESSAGE_READ_BYTES)
        .max_frame_size(MAX_MESSAGE_READ_BYTES)
        .write_buffer_size(0)
        .on_upgrade(async move |socket| {
            let (patience, going_away) = (app.patience, app.going_away.subscribe());
            match module.lanes.join() {
                Ok(seat) => {
                    let span = tracing::info_span!(
                        "session",
                        id = seat.session(),
                        module = module.name,
                        lane = seat.lane()
                    );
                    adopt_parent(&span, &headers);
                    tracing::info!(parent: &span, %peer, "session begins");
                    session::serve(socket, seat, patience, going_away).instrument(span).await;
                }
                Err(error) => {
                    tracing::warn!(module = module.name, %peer, "session refused: {error}");
                    let code = match error {
                        JoinError::Full => close_code::TRY_AGAIN_LATER,
                        JoinError::Unavailable(_) => close_code::GOING_AWAY,
                    };
                    session::refuse(socket, &error.to_string(), code, patience).await;
                }
            }
            drop(present);
        })
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
        return unauthorized();
    }
    let span = tracing::info_span!("file", module = module.name, %peer);
    adopt_parent(&span, &headers);
    let answer = async {
        let body = axum::body::to_bytes(body, MAX_POST_BYTES).await.map_err(|_| PostError::Body)?;
        transcribe(&module.lanes, body).await
    };
    match answer.instrument(span.clone()).await {
        Ok(words) => Json(words).into_response(),
        Err(error) => {
            tracing::warn!(parent: &span, "file refused: {error}");
            error.into_response()
        }
    }
}
