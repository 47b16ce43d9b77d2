//! Kyutai's streaming speech models for many independent lanes. No sockets, no Python.

mod asr;
mod error;

pub use asr::{AsrModel, AsrSpec, Conditioning};
pub use error::EngineError;
