//! A server with a model that says what the audio tells it to, and clients for it.
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as a test does")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod client;
pub mod http;
pub mod model;
pub mod ogg;
pub mod token;
pub mod wav;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use moshi_ctl_server::config::Config;
use moshi_ctl_server::worker::{LoadModel, RunningWorker, Worker, WorkerError, WorkerOptions};
use moshi_ctl_server::{ApiKey, Credentials, ReadCredentials};

pub use client::{Client, Msg};
use model::FakeModel;

pub const KEY: &str = "test key";
pub const PATH: &str = "/api/asr-streaming";
pub const DELAY: usize = 3;

/// Far above what anything here takes; only a bug waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How a test wants its server.
pub struct Setup {
    pub lanes: usize,
    pub delay: usize,
    pub module_type: &'static str,
    pub model: FakeModel,
    pub folder: tempfile::TempDir,
}

impl Setup {
    pub fn new(lanes: usize) -> Self {
        Self {
            lanes,
            delay: DELAY,
            module_type: "BatchedAsr",
            model: FakeModel::new(lanes),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn model(mut self, change: impl FnOnce(&mut FakeModel)) -> Self {
        change(&mut self.model);
        self
    }

    pub fn config(&self) -> Config {
        let folder = self.folder.path();
        std::fs::create_dir_all(folder.join("static")).unwrap();
        write_tokenizer(&folder.join("text.model"));
        let (lanes, delay, module_type) = (self.lanes, self.delay, self.module_type);
        let text = format!(
            "static_dir = '{0}/static'\nlog_dir = '{0}/logs'\ninstance_name = 'test'\n\
             [modules.asr]\ntype = '{module_type}'\npath = '{PATH}'\n\
             lm_model_file = 'lm'\naudio_tokenizer_file = 'mimi'\n\
             text_tokenizer_file = '{0}/text.model'\n\
             asr_delay_in_tokens = {delay}\nbatch_size = {lanes}\n{MODEL}",
            folder.display(),
        );
        Config::parse(&text, Path::new("test.toml"), |_| None).unwrap()
    }

    pub fn options() -> WorkerOptions {
        WorkerOptions {
            addr: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            credentials: credentials(&["other", KEY], None),
            tls: None,
            read_gpus: None,
        }
    }

    pub fn load(&self) -> LoadModel {
        let model = self.model.clone();
        Box::new(move |name, module| {
            assert_eq!((name, module.path.as_str()), ("asr", PATH));
            Ok(Box::new(model.clone()))
        })
    }

    pub async fn try_start(&self) -> Result<RunningWorker, WorkerError> {
        Worker::start(self.config(), Self::options(), self.load()).await
    }

    pub async fn start(&self) -> RunningWorker {
        self.try_start().await.unwrap()
    }
}

/// What opens a server: always these keys and this secret.
pub fn credentials(keys: &[&str], jwt_secret: Option<&str>) -> ReadCredentials {
    let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
    let keys = ApiKey::parse_all(&keys).unwrap();
    let jwt_secret = jwt_secret.map(ToString::to_string);
    Box::new(move || Ok(Credentials { keys: keys.clone(), jwt_secret: jwt_secret.clone() }))
}

const MODEL: &str = "
[modules.asr.model]
audio_vocab_size = 2049
text_in_vocab_size = 101
text_out_vocab_size = 100
audio_codebooks = 8
[modules.asr.model.transformer]
d_model = 16
num_heads = 2
num_layers = 1
dim_feedforward = 64
causal = true
norm_first = true
bias_ff = false
bias_attn = false
context = 8
max_period = 10000
use_conv_block = false
use_conv_bias = true
gating = 'silu'
norm = 'RmsNorm'
positional_embedding = 'Rope'
conv_layout = false
conv_kernel_size = 3
kv_repeat = 1
max_seq_len = 4096
";

/// A SentencePiece model whose piece 7 is " w7" and so on; 0 to 3 are as in published ones.
fn write_tokenizer(path: &Path) {
    let mut model = Vec::new();
    for id in 0..100u8 {
        let (piece, kind) = match id {
            0 => ("<unk>".to_string(), 2),
            1..=3 => (format!("<{id}>"), 3),
            _ => (format!("\u{2581}w{id}"), 1),
        };
        // Field 1: the piece; field 3: its kind. Both inside field 1 of the model.
        let mut message = vec![0x0a, piece.len() as u8];
        message.extend(piece.as_bytes());
        message.extend([0x18, kind]);
        model.extend([0x0a, message.len() as u8]);
        model.extend(message);
    }
    std::fs::write(path, model).unwrap();
}

/// Lanes in use, as the server says.
pub async fn used_slots(addr: SocketAddr) -> String {
    let info = http::get(addr, "/api/modules_info").await.json();
    info[0]["used_slots"].as_str().unwrap().to_string()
}

/// Waits until no lane is in use.
pub async fn wait_until_free(addr: SocketAddr) {
    let start = Instant::now();
    while used_slots(addr).await != "0" {
        assert!(start.elapsed() < PATIENCE, "a lane is never given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
