//! A place in a checkpoint, and how what is found there is to be held.

use candle_core::{Device, Tensor};
use moshi_ctl_core::{LmShape, Precision};

use crate::EngineError;
use crate::checkpoint::{Checkpoint, RawTensor};
use crate::conditioner::Conditioning;

/// Who computes the products, convolutions and attention of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// Our own kernels; CPU only.
    #[default]
    Own,
    /// candle's operations, on any device. On the CPU a lane's results can then differ in their
    /// last bits with the number of lanes that are stepped together.
    Candle,
}

/// Where a model's tensors go.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) device: Device,
    /// Of matrices; everything else is f32.
    pub(crate) precision: Precision,
    /// Of key/value rings.
    pub(crate) kv_precision: Precision,
}

/// What is to be loaded, apart from where it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) shape: &'a LmShape,
    pub(crate) lanes: usize,
    pub(crate) conditioning: Option<Conditioning>,
}

/// The tensors below one prefix of a checkpoint.
#[derive(Clone)]
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
    placement: &'a Placement,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, placement: &'a Placement) -> Self {
        Self { checkpoint, prefix: String::new(), placement }
    }

    /// The tensors below `name`.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.path(name), ..self.clone() }
    }

    pub(crate) fn placement(&self) -> &'a Placement {
        self.placement
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.path(name))
    }

    pub(crate) fn raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'a>, EngineError> {
        self.checkpoint.raw(&self.path(name), shape)
    }

    pub(crate) fn f32_vec(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        Ok(self.raw(name, shape)?.to_f32())
    }

    /// An f32 tensor.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        self.raw(name, shape)?.to_tensor(shape, Precision::F32, &self.placement.device)
    }

    /// A vector, stored as `[len]` or, by Kyutai's norms, as `[1, 1, len]`.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        let published = [1, 1, len];
        match self.checkpoint.format(&self.path(name), &published) {
            Ok(_) => self.f32_vec(name, &published),
            Err(_) => self.f32_vec(name, &[len]),
        }
    }

    /// The same place, with what is found there held otherwise.
    pub(crate) fn placed<'b>(&self, placement: &'b Placement) -> Weights<'b>
    where
        'a: 'b,
    {
        Weights { checkpoint: self.checkpoint, prefix: self.prefix.clone(), placement }
    }

    /// The name of a tensor in the file.
    pub(crate) fn path(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}
