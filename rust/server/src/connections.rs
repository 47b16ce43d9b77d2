//! Connections, from the moment the system hands one over: how many there may be, how long each may
//! take to say what it wants, TLS, and HTTP.

mod socket;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tower::Service;

use crate::app::{Presence, until_going_away as until};
use crate::limits::{ACCEPT_PAUSE, Limits, SPARE_DESCRIPTORS};
use crate::lock::lock;
use crate::metrics::{Dropped, Metrics};
use crate::process;
use crate::tls::Certificate;
use socket::Socket;

/// Connections there may be where the system allows hardly any.
const FEWEST_CONNECTIONS: usize = 8;

/// Seconds between two complaints that the system hands over no connection.
const COMPLAINTS_S: u64 = 10;

/// The connections of a server.
pub(crate) struct Connections {
    limits: Limits,
    /// How many there may be, as configured and as the system allows.
    most: usize,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// Those that still speak HTTP.
    talking: Presence,
}

#[derive(Default)]
struct State {
    open: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Those that have not sent the head of a request, in the order they came.
    handshakes: BTreeMap<u64, Arc<Notify>>,
    arrivals: u64,
}

/// The right to a connection, held as long as its socket.
struct Ticket {
    of: Arc<Connections>,
    address: IpAddr,
    number: u64,
    /// Rings when the connection must make room before its first request.
    evicted: Arc<Notify>,
}

impl Connections {
    pub(crate) fn new(limits: &Limits, metrics: Arc<Metrics>) -> Arc<Self> {
        let wanted = limits.connections.get();
        let allowed = process::standing().and_then(|process| {
            let most = usize::try_from(process.max_fds?).ok()?;
            Some(most.saturating_sub(process.open_fds + SPARE_DESCRIPTORS).max(FEWEST_CONNECTIONS))
        });
        let most = allowed.map_or(wanted, |allowed| allowed.min(wanted));
        if most < wanted {
            tracing::info!("{most} connections at most: the limit of open files allows no more");
        }
        Arc::new(Self {
            limits: *limits,
            most,
            metrics,
            state: Mutex::default(),
            talking: Presence::new(),
        })
    }

    /// How many there are.
    pub(crate) fn open(&self) -> usize {
        lock(&self.state).open
    }

    /// Waits until nobody speaks HTTP any more.
    pub(crate) async fn silence(&self) {
        self.talking.nobody().await;
    }

    /// Lets a connection in, if there may be another one.
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Ticket> {
        let address = address.to_canonical();
        let mut state = lock(&self.state);
        let from_address = state.by_address.get(&address).copied().unwrap_or_default();
        let refusal = if state.open >= self.most {
            Some(Dropped::Connections)
        } else if from_address >= self.limits.connections_per_address.get() {
            Some(Dropped::Address)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.metrics.dropped.inc(refusal);
            return None;
        }
        // Whoever means it needs a moment; those who do not would keep everybody out.
        if state.handshakes.len() >= self.limits.handshakes.get()
            && let Some((_, oldest)) = state.handshakes.pop_first()
        {
            self.metrics.dropped.inc(Dropped::Handshakes);
            oldest.notify_one();
        }
        state.open += 1;
        *state.by_address.entry(address).or_default() += 1;
        state.arrivals += 1;
        let (number, evicted) = (state.arrivals, Arc::new(Notify::new()));
        state.handshakes.insert(number, Arc::clone(&evicted));
        Some(Ticket { of: Arc::clone(self), address, number, evicted })
    }

    /// Takes connections until `closing`, and serves them to their ends.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        router: Router,
        certificate: Option<Arc<Certificate>>,
        closing: watch::Receiver<bool>,
    ) {
        let mut complained: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = until(closing.clone()) => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(ticket) = self.admit(peer.ip()) else { continue };
                    let connection = Connection {
                        peer,
                        ticket: Arc::new(ticket),
                        router: router.clone(),
                        closing: closing.clone(),
                    };
                    let certificate = certificate.clone();
                    let talking = self.talking.enter();
                    tokio::spawn(async move {
                        connection.serve(stream, certificate).await;
                        drop(talking);
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                // No descriptor is left, or no memory: those who are connected go on.
                Err(error) => {
                    if complained.is_none_or(|at| at.elapsed().as_secs() >= COMPLAINTS_S) {
                        complained = Some(Instant::now());
                        tracing::warn!("the system hands over no connection: {error}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether the next connection may come all the same.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

impl Ticket {
    /// Whether the head of a request was never here.
    fn waits(&self) -> bool {
        lock(&self.of.state).handshakes.contains_key(&self.number)
    }

    /// The head of a request is here: nobody evicts the connection any more.
    fn has_request(&self) {
        lock(&self.of.state).handshakes.remove(&self.number);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.of.state);
        state.open -= 1;
        state.handshakes.remove(&self.number);
        if let Some(from_address) = state.by_address.get_mut(&self.address) {
            *from_address -= 1;
            if *from_address == 0 {
                state.by_address.remove(&self.address);
            }
        }
    }
}

/// One connection and what it gets to see.
struct Connection {
    peer: SocketAddr,
    ticket: Arc<Ticket>,
    router: Router,
    closing: watch::Receiver<bool>,
}

impl Connection {
    async fn serve(self, stream: TcpStream, certificate: Option<Arc<Certificate>>) {
        // Messages are small and wanted at once; without this the connection still works.
        let _ = stream.set_nodelay(true);
        let ticket = Arc::clone(&self.ticket);
        let connections = Arc::clone(&ticket.of);
        let patience = connections.limits.not_reading_s.duration();
        let socket = Socket::new(stream, patience, Arc::clone(&ticket));
        let served = async {
            let Some(certificate) = certificate else { return self.http(socket).await };
            let handshake = certificate.acceptor().accept(socket);
            match timeout(connections.limits.handshake_s.duration(), handshake).await {
                Ok(Ok(socket)) => self.http(socket).await,
                Ok(Err(error)) => {
                    tracing::debug!(peer = %self.peer, "no TLS: {error}");
                    connections.metrics.dropped.inc(Dropped::Tls);
                }
                Err(_) => connections.metrics.dropped.inc(Dropped::Timeout),
            }
        };
        tokio::select! {
            () = served => {}
            () = ticket.evicted.notified() => {}
        }
    }

    async fn http(&self, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let limits = &self.ticket.of.limits;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.handshake_s.duration())
            .max_header_size(limits.header_kb.bytes())
            .serve_connection(TokioIo::new(socket), service_fn(|request| self.answer(request)))
            .with_upgrades();
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = until(self.closing.clone()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if ended.is_err_and(|error| error.is_timeout()) && self.ticket.waits() {
            self.ticket.of.metrics.dropped.inc(Dropped::Timeout);
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        self.ticket.has_request();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(self.peer));
        // A router is always ready.
        self.router.clone().call(request).await
    }
}
