//! Protocol, sessions and scheduling over a streaming model.

mod app;
mod audio_file;
mod build_info;
mod close_code;
pub mod config;
mod gpu;
mod lanes;
mod limits;
mod lock;
pub mod logging;
#[cfg(feature = "measure")]
pub mod measure;
mod metrics;
mod model_thread;
mod ogg;
mod ogg_opus;
mod port;
mod post;
mod process;
mod protocol;
mod resample;
mod routes;
mod scrape;
mod secret;
mod session;
mod signals;
mod token;
mod tokenizer;
mod transcript;
pub mod worker;

pub use gpu::{GpuReading, ReadGpus};
pub use metrics::metrics_table;
pub use secret::ApiKey;
