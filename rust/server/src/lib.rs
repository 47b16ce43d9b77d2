//! Protocol, sessions and scheduling over a streaming model.

mod app;
mod audio_file;
mod body;
mod build_info;
mod close_code;
pub mod config;
mod connections;
mod containers;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gpu;
mod keys;
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
mod ogg_vorbis;
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
mod tls;
mod token;
mod tokenizer;
mod transcript;
mod vorbis_setup;
mod watchdog;
pub mod worker;

pub use gpu::{GpuReading, ReadGpus};
pub use keys::{Credentials, ReadCredentials};
pub use metrics::metrics_table;
pub use secret::{ApiKey, KeyError};
pub use tls::TlsFiles;
