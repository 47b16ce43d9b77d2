//! GGUF, the container of ggml: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! Magic bytes, version, the counts of tensors and of metadata; the metadata; for each tensor its
//! name, dimensions (fastest first), type and offset; then, aligned, the numbers. Everything is
//! little-endian; lengths and counts are 64 bits wide since version 2.

mod reader;
mod types;
mod writer;

pub(super) use reader::read;
pub(crate) use writer::{Tensor, Value, header, padding};

/// What a GGUF file begins with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written.
const VERSION: u32 = 3;

/// Metadata that says to what multiples offsets are rounded.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment where the metadata names none.
const DEFAULT_ALIGNMENT: usize = 32;

/// The most dimensions ggml's tensors have.
pub(crate) const MAX_DIMENSIONS: usize = 4;
