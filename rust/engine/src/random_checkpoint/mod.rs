//! Checkpoints with random weights, in the names and formats of Kyutai's published ones.
//!
//! A demo, a test, a benchmark or a capacity plan needs the shape of a model, not its knowledge.
//! These weights are scaled so that such a model behaves like a trained one in what can be
//! measured: activations keep their size through every layer, codebooks are used widely, text
//! follows the audio instead of settling into a loop, words end, VAD probabilities move.
//!
//! A file depends on shape, seed and precision only, not on the machine or its threads; the same
//! seed gives the same numbers in every precision, rounded.

mod codec;
mod language_model;
mod noise;
mod text_tokenizer;
mod writer;

use std::path::Path;

use moshi_ctl_core::{LmShape, Precision};

use crate::EngineError;
pub use text_tokenizer::write_text_tokenizer;

/// What a random checkpoint depends on besides its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomOptions {
    /// Another seed gives another model.
    pub seed: u64,
    /// Number format in the file. Kyutai publishes language models in bf16, the codec in f32.
    pub precision: Precision,
}

/// Writes a language model of `shape` to `file` (safetensors), replacing what is there.
///
/// # Errors
/// When `shape` is impossible or the file cannot be written; nothing is left behind then.
pub fn write_language_model(
    shape: &LmShape,
    file: &Path,
    options: &RandomOptions,
) -> Result<(), EngineError> {
    check(shape)?;
    writer::write(file, &language_model::plan(shape), options)
}

/// Writes the codec of `shape` to `file` (safetensors), replacing what is there: both halves,
/// with `shape.audio_codebooks` codebooks.
///
/// # Errors
/// When `shape` is impossible or the file cannot be written; nothing is left behind then.
pub fn write_audio_tokenizer(
    shape: &LmShape,
    file: &Path,
    options: &RandomOptions,
) -> Result<(), EngineError> {
    check(shape)?;
    writer::write(file, &codec::plan(&shape.codec, shape.audio_codebooks), options)
}

fn check(shape: &LmShape) -> Result<(), EngineError> {
    shape.check().map_err(|error| EngineError::new(format!("impossible model shape: {error}")))
}

/// A tensor to be written: C order, first dimension slowest.
#[derive(Debug)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

/// What a tensor holds.
#[derive(Debug, Clone, Copy)]
enum Fill {
    /// One number everywhere.
    Constant(f32),
    /// Independent numbers of this mean and standard deviation, the latter times a gain by row.
    Noise { mean: f32, deviation: f32, rows: RowGain },
    /// [`usage`] of the row.
    Usage,
}

/// Factor on the noise of a row (an index of the first dimension).
#[derive(Debug, Clone, Copy)]
enum RowGain {
    /// 1 everywhere.
    Even,
    /// `gain` for rows below `rows`, 1 elsewhere.
    Below { rows: usize, gain: f32 },
    /// Gains of two rows, 1 elsewhere.
    Two([(usize, f32); 2]),
    /// [`usage`] of the row.
    ByUsage,
}

impl RowGain {
    fn of(self, row: usize) -> f32 {
        match self {
            Self::Even => 1.0,
            Self::Below { rows, gain } => {
                if row < rows {
                    gain
                } else {
                    1.0
                }
            }
            Self::Two(gains) => {
                gains.iter().find(|(listed, _)| *listed == row).map_or(1.0, |(_, gain)| *gain)
            }
            Self::ByUsage => usage(row),
        }
    }
}

/// How often a codebook's entry was used, as the quantizer's training statistics would say. An
/// entry is stored as its sum over uses; dividing by this must not be forgotten, so it varies.
fn usage(row: usize) -> f32 {
    0.5 + 0.25 * (row % 8) as f32
}

impl Tensor {
    fn new(name: impl Into<String>, shape: &[usize], fill: Fill) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), fill }
    }

    fn noise(name: impl Into<String>, shape: &[usize], deviation: f32) -> Self {
        Self::new(name, shape, Fill::Noise { mean: 0.0, deviation, rows: RowGain::Even })
    }

    /// Weights `[out, in, ...]` whose outputs have `gain` times the size of their inputs.
    fn weights(name: impl Into<String>, shape: &[usize], gain: f32) -> Self {
        Self::noise(name, shape, gain / (fan_in(shape) as f32).sqrt())
    }

    /// A learnt scale near `mean`.
    fn scale(name: impl Into<String>, shape: &[usize], mean: f32) -> Self {
        let fill = Fill::Noise { mean, deviation: 0.1 * mean, rows: RowGain::Even };
        Self::new(name, shape, fill)
    }

    fn bias(name: impl Into<String>, len: usize) -> Self {
        Self::noise(name, &[len], 0.1)
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements per index of the first dimension.
    fn row_len(&self) -> usize {
        fan_in(&self.shape).max(1)
    }
}

/// Inputs of each output of weights of this shape.
fn fan_in(shape: &[usize]) -> usize {
    shape.iter().skip(1).product()
}
