//! OpenTelemetry traces: the spans of our crates, with the log lines inside them, sent to a
//! collector as OTLP over HTTP.
//!
//! Spans wait in a bounded queue and are sent by a thread of their own; where the collector is slow
//! or gone they are lost.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::uri::{PathAndQuery, Scheme};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use super::{LogError, OUR_TARGETS};
use crate::lock::lock;

const SERVICE_NAME: &str = "moshi-ctl";
const SERVICE_NAME_VARIABLE: &str = "OTEL_SERVICE_NAME";

/// Where collectors take traces, by the specification of OTLP.
const TRACES_PATH: &str = "/v1/traces";
const DEFAULT_PORT: u16 = 80;

/// How long the collector may take for a batch.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// How long the end of the process waits for the last batch.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Between two warnings.
const QUIET: Duration = Duration::from_secs(60);

/// Sends what is left when it is dropped, for as long as that may take.
#[derive(Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        // Lost is lost: the warnings of the last minute said why.
        let _ = self.0.shutdown_with_timeout(FLUSH_DEADLINE);
    }
}

impl Traces {
    /// Traces of this instance for the collector at `endpoint`.
    ///
    /// # Errors
    /// When that is no address of a collector.
    pub(super) fn new(endpoint: &str, instance: &str) -> Result<Self, LogError> {
        let cannot = |error: &dyn std::fmt::Display| {
            LogError::new(format!("traces cannot be exported: {error}"), "report this")
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new().map_err(|error| cannot(&error))?)
            .with_endpoint(traces_uri(endpoint)?.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_retry_policy(RetryPolicy::disabled())
            .build()
            .map_err(|error| cannot(&error))?;
        let name = std::env::var(SERVICE_NAME_VARIABLE).ok().filter(|name| !name.is_empty());
        let resource = Resource::builder()
            .with_service_name(name.unwrap_or_else(|| SERVICE_NAME.into()))
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance.to_string()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self(provider))
    }

    /// What notes the spans of our crates, and the lines inside them.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(SERVICE_NAME))
            // Not where in the source, on which thread and how busy: that costs more than it says.
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(OUR_TARGETS, LevelFilter::INFO))
    }
}

/// Makes the span that a request names in `traceparent` (W3C Trace Context), if it does, the parent
/// of `span`, which nobody may have entered yet.
pub fn adopt_parent(span: &Span, headers: &HeaderMap) {
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    if context.span().span_context().is_valid() {
        // Refused where traces are off, which is nothing to tell.
        let _ = span.set_parent(context);
    }
}

/// Where the collector at `endpoint` takes traces.
fn traces_uri(endpoint: &str) -> Result<Uri, LogError> {
    // An address may hold a password, so no message repeats more than its scheme.
    let wrong = |what: &str, hint: &str| {
        LogError::new(format!("the address of the OpenTelemetry collector {what}"), hint)
    };
    let example = "write http://HOST:4318, the collector's port of OTLP over HTTP";
    let uri: Uri = endpoint.trim().parse().map_err(|_| wrong("is none", example))?;
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => {}
        Some(scheme) if *scheme == Scheme::HTTPS => {
            let hint = "write http:// and let a collector on this machine or network encrypt";
            return Err(wrong("begins with https://, which is not supported", hint));
        }
        _ => return Err(wrong("does not begin with http://", example)),
    }
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.contains('@') || uri.query().is_some() {
        let hint = "put what it is to know into OTEL_EXPORTER_OTLP_HEADERS";
        return Err(wrong("holds more than host, port and path", hint));
    }
    if uri.host().is_none_or(str::is_empty) || authority.ends_with(':') {
        return Err(wrong("is incomplete", example));
    }
    let base = uri.path().trim_end_matches('/');
    let path =
        if base.ends_with(TRACES_PATH) { base.into() } else { format!("{base}{TRACES_PATH}") };
    let path: PathAndQuery = path.parse().map_err(|_| wrong("has an unusable path", example))?;
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| wrong("is none", example))
}

/// An HTTP client that says once in a while why nothing arrives.
#[derive(Debug)]
struct Collector {
    /// Only ever used by the thread that sends.
    runtime: Option<Runtime>,
    warned: Mutex<Option<Instant>>,
}

impl Collector {
    fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime: Some(runtime), warned: Mutex::new(None) })
    }

    fn warn(&self, problem: &str) {
        let mut warned = lock(&self.warned);
        if warned.is_none_or(|time| time.elapsed() >= QUIET) {
            *warned = Some(Instant::now());
            tracing::warn!("traces are lost, the collector does not take them: {problem}");
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A look-up of a name may take longer than anybody wants to wait.
            runtime.shutdown_background();
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let Some(runtime) = &self.runtime else { return Err("the client is gone".into()) };
        // The exporter's thread waits for this future outside of any runtime, so it may block.
        let sent = runtime.block_on(async {
            tokio::time::timeout(SEND_DEADLINE, post(request))
                .await
                .unwrap_or_else(|_| Err("no answer in time".into()))
        });
        match &sent {
            Err(error) => self.warn(&error.to_string()),
            Ok(answer) if !answer.status().is_success() => {
                self.warn(&format!("HTTP {}", answer.status()));
            }
            Ok(_) => {}
        }
        sent
    }
}

async fn post(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("no host")?.clone();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(DEFAULT_PORT))).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    parts.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    parts.uri = Uri::from(parts.uri.path_and_query().cloned().ok_or("no path")?);
    let exchange = async {
        let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_collector_gets_the_path_of_traces() {
        for (endpoint, expected) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            (" http://localhost:4318/ ", "http://localhost:4318/v1/traces"),
            ("HTTP://[::1]:4318", "http://[::1]:4318/v1/traces"),
            ("http://host/otlp/", "http://host/otlp/v1/traces"),
            ("http://host/v1/traces", "http://host/v1/traces"),
        ] {
            assert_eq!(traces_uri(endpoint).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_repeating_it() {
        for (endpoint, says) in [
            ("https://canary:4318", "https://, which is not supported"),
            ("http://canary:canary@host:4318", "more than host, port and path"),
            ("http://host:4318/?key=canary", "more than host, port and path"),
            ("canary:4318", "does not begin with http://"),
            ("canary", "does not begin with http://"),
            ("grpc://canary:4317", "does not begin with http://"),
            ("http://", "is none"),
            ("http://canary:", "is incomplete"),
            ("http://ca nary", "is none"),
        ] {
            let error = traces_uri(endpoint).unwrap_err();
            assert!(error.message.contains(says), "{endpoint}: {error}");
            assert!(!format!("{error:?}").contains("canary"), "{endpoint}: {error:?}");
        }
    }

    #[test]
    fn a_parent_is_taken_even_where_there_are_no_traces() {
        let headers = HeaderMap::from_iter([(
            header::HeaderName::from_static("traceparent"),
            HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        )]);
        adopt_parent(&tracing::info_span!("session"), &headers);
        adopt_parent(&Span::none(), &headers);
    }
}
