//! Kyutai's streaming speech models for many independent lanes. No sockets, no Python.

mod asr;
mod attention;
mod checkpoint;
mod codec;
mod conditioner;
mod device;
mod error;
mod kernels;
mod linear;
mod lm;
mod norm;
mod quantization;
mod quantize;
pub mod random_checkpoint;
mod sampling;
mod transformer;
mod weights;
mod whole_file;

pub use asr::{AsrModel, AsrSpec, StepTiming, StepTrace};
pub use conditioner::Conditioning;
pub use error::EngineError;
pub use quantize::{Quantized, quantize};
pub use weights::Kernels;
