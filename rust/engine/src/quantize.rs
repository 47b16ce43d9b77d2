//! Makes the eight-bit file of a language model.
//!
//! The file is GGUF, version 3, little-endian, aligned to 32 bytes. Its tensors have the names,
//! shapes and order of the file it was made from, safetensors or GGUF. Its metadata:
//!
//! | key | value |
//! |---|---|
//! | `general.architecture` | `moshi` |
//! | `general.name` | the input's file name without its extension |
//! | `general.file_type` | 7: mostly Q8_0 |
//! | `general.quantization_version` | 2 |
//! | `general.alignment` | 32 |
//!
//! Q8_0 ([`crate::quantization`]) become the matrices that a step multiplies with: tensors of two
//! dimensions, the last a multiple of 32, below `transformer.` and `depformer.` (but for the
//! embeddings there), `text_linear.weight` and `linears.N.weight`. All others keep the format they
//! have: of embeddings a step reads a row each, norms and biases are small, and the few outputs of
//! `extra_heads.N` decide when a speaker is done.

use std::io::Write;
use std::path::Path;

use rayon::prelude::*;

use crate::EngineError;
use crate::checkpoint::gguf::{self, Tensor, Value};
use crate::checkpoint::{Checkpoint, Format, RawTensor};
use crate::quantization::{self, BLOCK, BLOCK_BYTES};
use crate::whole_file::{self, Failure};

const ARCHITECTURE: &str = "moshi";

/// ggml's number for "mostly Q8_0".
const FILE_TYPE: u32 = 7;

/// ggml's number for the present layout of its blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// Blocks a thread makes at a time.
const PIECE_BLOCKS: usize = 1 << 13;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantized {
    /// Matrices that were quantized.
    pub quantized: usize,
    /// Tensors that stayed as they were.
    pub kept: usize,
    /// Size of the file read.
    pub bytes_in: u64,
    /// Size of the file written.
    pub bytes_out: u64,
}

/// Writes the language model in `input`, safetensors or GGUF, to `output` with its matrices in
/// eight bits, replacing what is there.
///
/// # Errors
/// When `input` cannot be read, has nothing to quantize, has a tensor that is not of
/// floating-point numbers, or one with numbers that are not finite or too large; when `output` is the same
/// file or cannot be written. Nothing is left behind then.
pub fn quantize(input: &Path, output: &Path) -> Result<Quantized, EngineError> {
    let checkpoint = Checkpoint::open(input)?;
    if let (Ok(from), Ok(to)) = (input.canonicalize(), output.canonicalize())
        && from == to
    {
        return Err(checkpoint
            .error("cannot be quantized into itself")
            .with_hint("name another file for the result"));
    }
    let plan = plan(&checkpoint)?;
    let quantized = plan.iter().filter(|planned| planned.quantize).count();
    if quantized == 0 {
        let done = plan.iter().any(|planned| planned.tensor.format == Format::Q8_0);
        let why = if done { "it is Q8_0 already" } else { "it has no matrix of a language model" };
        return Err(checkpoint
            .error(format!("nothing to quantize: {why}"))
            .with_hint("give the language model's file, as published; the codec stays as it is"));
    }
    let tensors: Vec<_> = plan.iter().map(|planned| planned.tensor).collect();
    let name = input.file_stem().unwrap_or_default().to_string_lossy();
    let metadata = [
        ("general.architecture", Value::Text(ARCHITECTURE)),
        ("general.name", Value::Text(&name)),
        ("general.file_type", Value::U32(FILE_TYPE)),
        ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
    ];
    let header = gguf::header(&metadata, &tensors);
    let mut bytes_out = header.len() as u64;
    whole_file::write(output, |out| {
        out.write_all(&header)?;
        for Planned { tensor, quantize } in &plan {
            let raw = checkpoint.any(tensor.name)?;
            if *quantize {
                write_blocks(out, &checkpoint, tensor.name, &raw)?;
            } else {
                out.write_all(raw.bytes())?;
            }
            let padding = gguf::padding(tensor.bytes());
            out.write_all(padding)?;
            bytes_out += (tensor.bytes() + padding.len()) as u64;
        }
        Ok(())
    })?;
    Ok(Quantized {
        quantized,
        kept: plan.len() - quantized,
        bytes_in: checkpoint.len() as u64,
        bytes_out,
    })
}

/// A tensor of the result.
struct Planned<'a> {
    tensor: Tensor<'a>,
    /// Whether its numbers change.
    quantize: bool,
}

fn plan(checkpoint: &Checkpoint) -> Result<Vec<Planned<'_>>, EngineError> {
    let planned = |name| {
        let (shape, format) = checkpoint.describe(name)?;
        if shape.len() > gguf::MAX_DIMENSIONS {
            return Err(checkpoint.error(format!(
                "tensor `{name}` has {} dimensions; GGUF has at most {}",
                shape.len(),
                gguf::MAX_DIMENSIONS
            )));
        }
        let quantize = format != Format::Q8_0 && is_matrix(name, shape);
        let format = if quantize { Format::Q8_0 } else { format };
        Ok(Planned { tensor: Tensor { name, shape, format }, quantize })
    };
    checkpoint.names().into_iter().map(planned).collect()
}

/// Whether a language model multiplies with this tensor, and blocks fit into its rows.
fn is_matrix(name: &str, shape: &[usize]) -> bool {
    let &[outputs, inputs] = shape else { return false };
    let parts: Vec<_> = name.split('.').collect();
    let multiplied = match parts.as_slice() {
        ["transformer" | "depformer", .., _] => !parts.contains(&"emb"),
        ["text_linear", "weight"] | ["linears", _, "weight"] => true,
        _ => false,
    };
    multiplied && outputs > 0 && inputs > 0 && inputs.is_multiple_of(BLOCK)
}

/// Quantizes a tensor a few pieces per thread at a time, so that memory stays small.
fn write_blocks(
    out: &mut impl Write,
    checkpoint: &Checkpoint,
    name: &str,
    raw: &RawTensor<'_>,
) -> Result<(), Failure> {
    let blocks = raw.len() / BLOCK;
    let at_once = 4 * rayon::current_num_threads();
    let starts: Vec<_> = (0..blocks).step_by(PIECE_BLOCKS).collect();
    for starts in starts.chunks(at_once) {
        let made: Option<Vec<_>> = starts
            .par_iter()
            .map(|&start| piece(raw, start, PIECE_BLOCKS.min(blocks - start)))
            .collect();
        let made = made.ok_or_else(|| {
            checkpoint
                .error(format!("tensor `{name}` has numbers that are too large for eight bits"))
                .with_hint("the file is damaged; if it was downloaded, download it again")
        })?;
        made.iter().try_for_each(|bytes| out.write_all(bytes))?;
    }
    Ok(())
}

fn piece(raw: &RawTensor<'_>, start: usize, blocks: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; blocks * BLOCK_BYTES];
    let mut numbers = [0.0; BLOCK];
    let (out, _) = bytes.as_chunks_mut();
    for (block, out) in (start..).zip(out) {
        raw.read(block * BLOCK, &mut numbers);
        *out = quantization::quantize(&numbers)?.to_bytes();
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
