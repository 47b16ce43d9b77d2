//! Kyutai's streaming speech models for many independent lanes. No sockets, no Python.

mod asr;
mod backend;
mod candle;
mod checkpoint;
mod codebook;
mod conditioner;
mod conv_shape;
mod cpu;
#[cfg(cuda)]
mod cuda;
mod device;
mod epsilon;
mod error;
mod fit;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod measure;
mod memory;
mod positions;
mod precision;
mod quantization;
mod quantize;
pub mod random_checkpoint;
mod sampling;
mod weights;
mod whole_file;

pub use asr::{AsrModel, AsrSpec, StepTrace};
pub use backend::{Processor, StepTiming, ThreadTime, WorkTime};
pub use conditioner::Conditioning;
pub use cpu::{MAX_THREADS, available_instructions, processor};
pub use device::{accelerators, card_bandwidth, cuda_obstacle};
pub use error::EngineError;
pub use fit::{RealTimeModel, load_what_fits};
pub use memory::{MemoryNeeds, MemorySubject};
pub use precision::{DeviceKind, PrecisionChoice, choose_precision};
pub use quantize::{Quantized, quantize};
pub use weights::Kernels;
