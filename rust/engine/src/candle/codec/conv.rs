//! A causal convolution that remembers, per lane, the end of what it has seen.

use candle_core::{IndexOp, Tensor};

use crate::EngineError;
use crate::conv_shape::{Activation, ConvShape, Padding};
use crate::weights::Weights;

/// Activations are lanes × time × channels. A lane's memory is none while it is fresh.
pub(super) struct Conv {
    shape: ConvShape,
    /// outputs × inputs × kernel
    weight: Tensor,
    bias: Option<Tensor>,
    memories: Vec<Option<Tensor>>,
}

impl Conv {
    /// Loads `conv.conv.{weight,bias}` below `weights`.
    pub(super) fn load(
        shape: ConvShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let ConvShape { inputs, outputs, kernel, .. } = shape;
        let weights = weights.at("conv").at("conv");
        Ok(Self {
            shape,
            weight: weights.tensor("weight", &[outputs, inputs, kernel])?,
            bias: shape.bias.then(|| weights.tensor("bias", &[outputs])).transpose()?,
            memories: vec![None; lanes],
        })
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.memories[lane] = None;
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.memories.truncate(count);
    }

    /// `x`: lanes × time × inputs, time a multiple of the stride. Returns
    /// lanes × time / stride × outputs.
    pub(super) fn forward(
        &mut self,
        x: &Tensor,
        activation: Activation,
        lanes: &[usize],
    ) -> Result<Tensor, EngineError> {
        let x = match activation {
            Activation::None => x.clone(),
            Activation::Elu => x.elu(1.0)?,
        };
        let y = self
            .extend(&x, lanes)?
            .transpose(1, 2)?
            .contiguous()?
            .conv1d(&self.weight, 0, self.shape.stride, self.shape.dilation, 1)?
            .transpose(1, 2)?
            .contiguous()?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }

    /// Puts what each lane remembers before its input, and remembers the end of that.
    fn extend(&mut self, x: &Tensor, lanes: &[usize]) -> Result<Tensor, EngineError> {
        let (memory, inputs) = (self.shape.memory(), self.shape.inputs);
        if memory == 0 {
            return Ok(x.contiguous()?);
        }
        let mut past = Vec::with_capacity(lanes.len());
        for (i, &lane) in lanes.iter().enumerate() {
            past.push(match (&self.memories[lane], self.shape.padding) {
                (Some(memory), _) => memory.clone(),
                (None, Padding::Zero) => Tensor::zeros((memory, inputs), x.dtype(), x.device())?,
                (None, Padding::Replicate) => x.i((i, 0..1))?.broadcast_as((memory, inputs))?,
            });
        }
        let extended = Tensor::cat(&[&Tensor::stack(&past, 0)?, x], 1)?;
        let time = x.dim(1)?;
        for (i, &lane) in lanes.iter().enumerate() {
            // A copy, because a view would keep the whole step alive.
            self.memories[lane] = Some(extended.i((i, time..))?.force_contiguous()?);
        }
        Ok(extended)
    }
}
