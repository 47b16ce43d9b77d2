//! A client over a real socket.

use std::net::SocketAddr;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{KEY, PATH, PATIENCE};

/// What the server says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type")]
pub enum Msg {
    Ready,
    Step { step_idx: u64, prs: Vec<f32>, buffered_pcm: usize },
    Word { text: String, start_time: f64 },
    EndWord { stop_time: f64 },
    Marker { id: i64 },
    Error { message: String },
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Say<'a> {
    Init,
    Audio { pcm: &'a [f32] },
    Marker { id: i64 },
    OggOpus { data: &'a [u8] },
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A connection that speaks and listens in turn.
pub struct Client(pub Socket);

/// The speaking half of a connection.
pub struct Speaker(SplitSink<Socket, Message>);

/// The listening half of a connection.
pub struct Listener(SplitStream<Socket>);

impl Client {
    /// Connects with a request the test may change.
    pub async fn request(
        addr: SocketAddr,
        path: &str,
        headers: &[(&str, &[u8])],
    ) -> Result<Self, Error> {
        let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.to_vec().try_into().unwrap());
        }
        timeout(PATIENCE, connect_async(request)).await.unwrap().map(|(socket, _)| Self(socket))
    }

    pub async fn connect(addr: SocketAddr) -> Self {
        Self::request(addr, PATH, &[("kyutai-api-key", KEY.as_bytes())]).await.unwrap()
    }

    /// Connects and waits until the server is ready.
    pub async fn ready(addr: SocketAddr) -> Self {
        let mut client = Self::connect(addr).await;
        assert_eq!(client.next().await, Some(Msg::Ready));
        client
    }

    pub fn split(self) -> (Speaker, Listener) {
        let (sink, stream) = self.0.split();
        (Speaker(sink), Listener(stream))
    }

    pub async fn send(&mut self, bytes: Vec<u8>) {
        send(&mut self.0, bytes).await;
    }

    pub async fn audio(&mut self, pcm: &[f32]) {
        self.send(Say::Audio { pcm }.encode()).await;
    }

    pub async fn opus(&mut self, data: &[u8]) {
        self.send(Say::OggOpus { data }.encode()).await;
    }

    pub async fn marker(&mut self, id: i64) {
        self.send(Say::Marker { id }.encode()).await;
    }

    pub async fn init(&mut self) {
        self.send(Say::Init.encode()).await;
    }

    /// The next message; `None` after the server closed.
    pub async fn next(&mut self) -> Option<Msg> {
        next(&mut self.0).await
    }

    /// Messages up to and with the marker of this id.
    pub async fn until_marker(&mut self, id: i64) -> Vec<Msg> {
        let mut messages = Vec::new();
        while let Some(message) = self.next().await {
            let is_it = message == Msg::Marker { id };
            messages.push(message);
            if is_it {
                return messages;
            }
        }
        panic!("closed without marker {id}, after {messages:?}");
    }

    /// The error the server ends with, and its close code.
    pub async fn error_and_close(&mut self) -> (String, u16) {
        let mut error = String::new();
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("the server says nothing") {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Msg::Error { message } = rmp_serde::from_slice(&bytes).unwrap() {
                        error = message;
                    }
                }
                Some(Ok(Message::Close(frame))) => return (error, frame.unwrap().code.into()),
                Some(Ok(_)) => {}
                end => panic!("no close frame, but {end:?} after {error:?}"),
            }
        }
    }
}

impl Speaker {
    pub async fn audio(&mut self, pcm: &[f32]) {
        send(&mut self.0, Say::Audio { pcm }.encode()).await;
    }
}

impl Listener {
    pub async fn next(&mut self) -> Option<Msg> {
        next(&mut self.0).await
    }
}

impl Say<'_> {
    fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).unwrap()
    }
}

async fn send(sink: &mut (impl Sink<Message, Error = Error> + Unpin), bytes: Vec<u8>) {
    let sent = sink.send(Message::Binary(bytes.into()));
    timeout(PATIENCE, sent).await.expect("the server does not read").unwrap();
}

async fn next(stream: &mut (impl Stream<Item = Result<Message, Error>> + Unpin)) -> Option<Msg> {
    loop {
        match timeout(PATIENCE, stream.next()).await.expect("the server says nothing")? {
            Ok(Message::Binary(bytes)) => return Some(rmp_serde::from_slice(&bytes).unwrap()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// The words among the messages.
pub fn words(messages: &[Msg]) -> Vec<&str> {
    let texts = messages.iter().filter_map(|message| match message {
        Msg::Word { text, .. } => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}
