//! Random checkpoints in a folder, and what loads them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use moshi_ctl_core::units::{TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};
use moshi_ctl_core::{DeviceName, LmShape, Precision};
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

    /// Replaces the numbers of one of the language model's tensors by what `change` makes of their
    /// place and themselves. In bf16 they lose what does not fit.
    ///
    /// # Errors
    /// When there is no such tensor, or it is in another format than f32 and bf16.
    pub fn change(&self, tensor: &str, change: impl Fn(usize, f32) -> f32) -> Result<()> {
        let mut file = File::options().read(true).write(true).open(&self.lm_file)?;
        let mut len = [0; 8];
        file.read_exact(&mut len)?;
        let mut header = vec![0; u64::from_le_bytes(len) as usize];
        file.read_exact(&mut header)?;
        let header: serde_json::Value = serde_json::from_slice(&header)?;
        let place = |i: usize| header[tensor]["data_offsets"][i].as_u64();
        let (Some(from), Some(to)) = (place(0), place(1)) else {
            return Err(format!("no tensor {tensor}").into());
        };
        let start = SeekFrom::Start(8 + u64::from_le_bytes(len) + from);
        let mut data = vec![0; (to - from) as usize];
        file.seek(start)?;
        file.read_exact(&mut data)?;
        match header[tensor]["dtype"].as_str() {
            Some("F32") => {
                for (i, bytes) in data.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    *bytes = change(i, f32::from_le_bytes(*bytes)).to_le_bytes();
                }
            }
            Some("BF16") => {
                for (i, bytes) in data.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let number = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                    *bytes = ((change(i, number).to_bits() >> 16) as u16).to_le_bytes();
                }
            }
            other => return Err(format!("{tensor} is in {other:?}").into()),
        }
        file.seek(start)?;
        Ok(file.write_all(&data)?)
    }

    /// Makes a random language model as sure of its text as a trained one, which knows most tokens
    /// and is torn between a few in places: logits spread further, those of padding less so,
    /// because they already do.
    ///
    /// # Errors
    /// As [`Checkpoints::change`].
    pub fn sharpen_text(&self) -> Result<()> {
        let width = self.shape.transformer.d_model;
        let padding = [TEXT_TOKEN_PADDING, TEXT_TOKEN_END_OF_PADDING].map(|token| token as usize);
        self.change("text_linear.weight", |place, number| {
            number * if padding.contains(&(place / width)) { 2.0 } else { 4.0 }
        })
    }

    /// The published crate with these files.
    ///
    /// # Errors
    /// When it cannot load them.
    pub fn oracle(&self) -> Result<Oracle> {
        Oracle::load(&self.shape, &self.lm_file, &[&self.codec_file], self.conditioning)
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
            device: Some(DeviceName::Cpu),
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
