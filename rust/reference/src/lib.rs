//! Development only: the published `moshi` crate as oracle for exactness and baseline for speed.

pub mod audio;
pub mod bench;
pub mod checkpoints;
pub mod compare;
pub mod forced;
pub mod oracle;
pub mod ours;
pub mod roofline;
pub mod shapes;

/// What the helpers of this crate fail with; its users are tests and benchmarks.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
