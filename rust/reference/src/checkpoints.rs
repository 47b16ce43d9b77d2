//! Random checkpoints in a folder, and what loads them.

use std::path::{Path, PathBuf};

use moshi_ctl_core::{LmShape, Precision};
use moshi_ctl_engine::random_checkpoint::{
    RandomOptions, write_audio_tokenizer, write_language_model,
};
use moshi_ctl_engine::{AsrModel, AsrSpec, Conditioning, Kernels};

use crate::Result;
use crate::oracle::Oracle;

/// A language model and a codec on disk.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// Shapes of both.
    pub shape: LmShape,
    /// The language model.
    pub lm_file: PathBuf,
    /// The codec, in f32.
    pub codec_file: PathBuf,
    /// What a model with a conditioner is told; its learnt padding unless changed.
    pub conditioning: Option<Conditioning>,
}

impl Checkpoints {
    /// Where [`Checkpoints::write`] puts its files.
    pub fn at(folder: &Path, shape: LmShape) -> Self {
        let conditioning = shape.conditioners.as_ref().map(|_| Conditioning::LearntPadding);
        Self {
            shape,
            lm_file: folder.join("lm.safetensors"),
            codec_file: folder.join("codec.safetensors"),
            conditioning,
        }
    }

    /// Writes random weights to `folder`, the language model's in `precision`.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(folder: &Path, shape: LmShape, seed: u64, precision: Precision) -> Result<Self> {
        let written = Self::at(folder, shape);
        let (shape, options) = (&written.shape, RandomOptions { seed, precision });
        write_language_model(shape, &written.lm_file, &options)?;
        let options = RandomOptions { precision: Precision::F32, ..options };
        write_audio_tokenizer(shape, &written.codec_file, &options)?;
        Ok(written)
    }

    /// The published crate with these files.
    ///
    /// # Errors
    /// When it cannot load them.
    pub fn oracle(&self) -> Result<Oracle> {
        Oracle::load(&self.shape, &self.lm_file, &self.codec_file, self.conditioning)
    }

    /// How our engine is asked for these files: greedily, in f32 on the CPU.
    pub fn spec(&self, lanes: usize) -> AsrSpec {
        AsrSpec {
            lm_model_file: self.lm_file.clone(),
            audio_tokenizer_file: self.codec_file.clone(),
            shape: self.shape.clone(),
            lanes,
            temperature: 0.0,
            conditioning: self.conditioning,
            precision: Some(Precision::F32),
            kv_precision: None,
            cpu: true,
            kernels: Kernels::Own,
            threads: None,
        }
    }

    /// Our engine with these files.
    ///
    /// # Errors
    /// When it cannot load them.
    pub fn engine(&self, lanes: usize) -> Result<AsrModel> {
        Ok(AsrModel::load(&self.spec(lanes))?)
    }
}
