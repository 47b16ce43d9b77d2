//! Matrix products and look-ups with the weights of a checkpoint.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};
use moshi_ctl_core::Precision;

use crate::EngineError;
use crate::weights::Weights;

/// y = x Wᵀ + b
pub(super) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

/// outputs × inputs
enum Weight {
    Full(Tensor),
    Quantized(QMatMul),
}

impl Linear {
    /// Loads the matrix called `weight`, and `bias` where there should be one.
    pub(super) fn load(
        outputs: usize,
        inputs: usize,
        bias: bool,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        Self::load_named("weight", &[outputs, inputs], bias.then_some("bias"), weights)
    }

    /// Loads the matrix called `name`, whose dimensions but the first are flattened, and the bias
    /// called `bias_name`.
    pub(super) fn load_named(
        name: &str,
        shape: &[usize],
        bias_name: Option<&str>,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let raw = weights.raw(name, shape)?;
        let (outputs, inputs) = (shape[0], shape[1..].iter().product::<usize>());
        let device = &weights.placement().device;
        let weight = match weights.placement().precision {
            // Rows of another length cannot be divided into blocks.
            Precision::Q8 if inputs % GgmlDType::Q8_0.block_size() == 0 => {
                let exact = raw.to_tensor(&[outputs, inputs], Precision::F32, device)?;
                let quantized = QTensor::quantize(&exact, GgmlDType::Q8_0)?;
                Weight::Quantized(QMatMul::from_qtensor(quantized)?)
            }
            precision => {
                Weight::Full(raw.to_tensor(&[outputs, inputs], precision.or_f32(), device)?)
            }
        };
        let bias = bias_name.map(|name| weights.tensor(name, &[outputs])).transpose()?;
        Ok(Self { weight, bias })
    }

    /// `x`: … × inputs, f32. Returns … × outputs, f32.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let inputs = x.dim(D::Minus1)?;
        let rows = x.reshape((x.elem_count() / inputs, inputs))?;
        let y = match &self.weight {
            Weight::Full(weight) => {
                rows.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32)?
            }
            Weight::Quantized(weight) => weight.forward(&rows)?,
        };
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        let mut shape = x.dims().to_vec();
        *shape.last_mut().expect("x has an inputs dimension") = y.dim(1)?;
        Ok(y.reshape(shape)?)
    }
}

/// Rows of a table, looked up by token.
pub(super) struct Embedding(Tensor);

impl Embedding {
    pub(super) fn load(
        rows: usize,
        dim: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let placement = weights.placement();
        let raw = weights.raw("weight", &[rows, dim])?;
        Ok(Self(raw.to_tensor(&[rows, dim], placement.precision.or_f32(), &placement.device)?))
    }

    /// `tokens`: n, u32. Returns n × dim, f32.
    pub(super) fn forward(&self, tokens: &Tensor) -> Result<Tensor, EngineError> {
        Ok(self.0.index_select(tokens, 0)?.to_dtype(DType::F32)?)
    }

    pub(super) fn device(&self) -> &Device {
        self.0.device()
    }
}
