//! The shape of a language model as a configuration's `model` section describes it. Names and
//! defaults follow Kyutai's published configurations, so those load as they are.

mod codec;
mod transformer;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

pub use codec::CodecShape;
pub use transformer::{Gating, Norm, PositionalEmbedding, TransformerShape};

/// The conditioner that tells a speech-to-text model how far behind the audio it may be.
pub const DELAY_CONDITIONER: &str = "delay";

/// A combination of values that no model can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ShapeError {
    /// Path of the offending key below the model section, e.g. `transformer.num_heads`.
    pub key: &'static str,
    /// What is wrong with its value.
    pub message: String,
}

fn shape_error<T>(key: &'static str, message: impl Into<String>) -> Result<T, ShapeError> {
    Err(ShapeError { key, message: message.into() })
}

/// The widest layer, and the most rows of a table: far more than any model has, and few enough that
/// the bytes of a whole model can be counted.
const WIDEST: usize = 1 << 18;
const MOST_ROWS: usize = 1 << 22;
/// Of codebooks, or of heads beside the text's.
const MOST_CODEBOOKS: usize = 1 << 10;

/// Checks that each value, named by its key, is within its range.
fn check_within(values: &[(&'static str, usize, RangeInclusive<usize>)]) -> Result<(), ShapeError> {
    for (key, value, range) in values {
        let (least, most) = (range.start(), range.end());
        if value > most {
            return shape_error(key, format!("is {value}, but can be at most {most}"));
        }
        if value < least {
            return shape_error(
                key,
                match least {
                    1 => "is 0, but must be positive".to_owned(),
                    least => format!("is {value}, but must be at least {least}"),
                },
            );
        }
    }
    Ok(())
}

/// A temporal transformer over a text stream and `audio_codebooks` audio streams
/// (Moshi, arXiv:2410.00037; Delayed Streams Modeling, arXiv:2509.08753).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmShape {
    /// The transformer itself.
    pub transformer: TransformerShape,
    /// Rows of the text embedding; the last one is the token a stream starts with.
    pub text_in_vocab_size: usize,
    /// Text tokens that can be predicted.
    pub text_out_vocab_size: usize,
    /// Rows of each audio embedding; the last one stands for "no audio yet".
    pub audio_vocab_size: usize,
    /// Audio tokens per frame.
    pub audio_codebooks: usize,
    /// Conditioners by name; their sum is added to every input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditioners: Option<BTreeMap<String, Conditioner>>,
    /// Semantic VAD heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_heads: Option<ExtraHeads>,
    /// The codec that makes the audio tokens; Mimi's own shape when absent.
    #[serde(default)]
    pub codec: CodecShape,
}

/// Semantic VAD heads: each is a small classifier whose first class is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraHeads {
    /// How many.
    pub num_heads: usize,
    /// Classes of each.
    pub dim: usize,
}

/// A source of a vector that is added to every input of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Conditioner {
    /// One of a list of values.
    Lut(LookUpTable),
    /// A number.
    ContinuousAttribute(ContinuousAttribute),
}

/// A conditioner with a learnt vector per value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LookUpTable {
    /// Values the table has room for; it has one more row.
    pub n_bins: usize,
    /// Width of a row before its projection.
    pub dim: usize,
    /// Names of the values, in row order.
    pub possible_values: Vec<String>,
}

/// A conditioner that embeds a number by sines and cosines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinuousAttribute {
    /// Width of the embedding before its projection; even, at least 4.
    pub dim: usize,
    /// Factor applied to the number first.
    pub scale_factor: f32,
    /// Longest wavelength.
    pub max_period: f32,
}

impl LmShape {
    /// The text token a stream starts with.
    pub fn text_start_token(&self) -> u32 {
        self.text_in_vocab_size as u32 - 1
    }

    /// The audio token that stands for "no audio yet".
    pub fn audio_pad_token(&self) -> u32 {
        self.audio_vocab_size as u32 - 1
    }

    /// Checks what the types cannot: that the numbers describe a model that can exist and that
    /// the engine can run.
    ///
    /// # Errors
    /// Names the key and the value that is wrong.
    pub fn check(&self) -> Result<(), ShapeError> {
        check_within(&[
            ("text_in_vocab_size", self.text_in_vocab_size, 2..=MOST_ROWS),
            ("text_out_vocab_size", self.text_out_vocab_size, 2..=MOST_ROWS),
            ("audio_vocab_size", self.audio_vocab_size, 2..=MOST_ROWS),
            ("audio_codebooks", self.audio_codebooks, 1..=MOST_CODEBOOKS),
        ])?;
        if let Some(ExtraHeads { num_heads, dim }) = self.extra_heads {
            check_within(&[
                ("extra_heads.num_heads", num_heads, 1..=MOST_CODEBOOKS),
                ("extra_heads.dim", dim, 1..=MOST_ROWS),
            ])?;
        }
        self.codec.check()?;
        if self.codec.quantizer_bins >= self.audio_vocab_size {
            return shape_error(
                "codec.quantizer_bins",
                format!(
                    "is {}, but audio_vocab_size = {} has to hold them and one more",
                    self.codec.quantizer_bins, self.audio_vocab_size
                ),
            );
        }
        for conditioner in self.conditioners.iter().flat_map(BTreeMap::values) {
            conditioner.check()?;
        }
        self.transformer.check()
    }
}

impl Conditioner {
    fn check(&self) -> Result<(), ShapeError> {
        match self {
            Self::Lut(lut) if lut.possible_values.len() > lut.n_bins => shape_error(
                "conditioners.possible_values",
                format!("has {} entries for {} bins", lut.possible_values.len(), lut.n_bins),
            ),
            Self::ContinuousAttribute(c) if c.dim < 4 || c.dim % 2 != 0 => shape_error(
                "conditioners.dim",
                format!("is {}, but must be even and at least 4", c.dim),
            ),
            _ => Ok(()),
        }
    }
}
