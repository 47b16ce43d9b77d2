//! Matrix products with the weights of a checkpoint.

use candle_core::{D, DType, Device, Storage, Tensor};
use moshi_ctl_core::Precision;

use crate::EngineError;
use crate::checkpoint::Format;
use crate::kernels::{PackedMatrix, Rows};
use crate::weights::{Kernels, Weights};

/// y = x Wᵀ + b, with W held as outputs × inputs.
pub(crate) enum Linear {
    Own(PackedMatrix),
    Candle { weight: Tensor, bias: Option<Tensor> },
}

impl Linear {
    /// Loads the matrix called `weight`, and `bias` where there should be one.
    pub(crate) fn load(
        outputs: usize,
        inputs: usize,
        bias: bool,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        Self::load_named("weight", &[outputs, inputs], bias.then_some("bias"), weights)
    }

    /// Loads the matrix called `name`, whose dimensions but the first are flattened, and the bias
    /// called `bias_name`.
    pub(crate) fn load_named(
        name: &str,
        shape: &[usize],
        bias_name: Option<&str>,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let raw = weights.raw(name, shape)?;
        let placement = weights.placement();
        let (outputs, inputs) = (shape[0], shape[1..].iter().product());
        let bias = bias_name.map(|name| weights.f32_vec(name, &[outputs])).transpose()?;
        let (precision, device) = (placement.precision, &placement.device);
        Ok(match placement.kernels {
            Kernels::Own => {
                Self::Own(PackedMatrix::pack(&raw, outputs, inputs, precision).with_bias(bias))
            }
            Kernels::Candle => Self::Candle {
                weight: raw.to_tensor(&[outputs, inputs], precision, device)?,
                bias: bias.map(|bias| Tensor::from_vec(bias, outputs, device)).transpose()?,
            },
        })
    }

    /// `x`: … × inputs, f32. Returns … × outputs, f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        let inputs = x.dim(D::Minus1)?;
        let rows = x.elem_count() / inputs;
        let y = match self {
            Self::Own(matrix) => {
                let y = with_slice(x, |x| {
                    let mut y = vec![0f32; rows * matrix.outputs()];
                    matrix.multiply(x, Rows::contiguous(rows, inputs), &mut y);
                    y
                })?;
                Tensor::from_vec(y, (rows, matrix.outputs()), &Device::Cpu)?
            }
            Self::Candle { weight, bias } => {
                let x = x.reshape((rows, inputs))?.to_dtype(weight.dtype())?;
                let y = x.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
                match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                }
            }
        };
        let mut shape = x.dims().to_vec();
        *shape.last_mut().expect("x has an inputs dimension") = y.dim(1)?;
        Ok(y.reshape(shape)?)
    }
}

/// Rows of a table, looked up by token. Held as the file has them where that is no loss, so that
/// sixteen-bit embeddings stay that.
pub(crate) struct Embedding(Tensor);

impl Embedding {
    pub(crate) fn load(
        rows: usize,
        dim: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let raw = weights.raw("weight", &[rows, dim])?;
        let placement = weights.placement();
        // A look-up reads no blocks; f16 rounds off an eighth of what the blocks did, or less.
        let stored = match raw.format() {
            Format::F32 => Precision::F32,
            Format::F16 | Format::Q8_0 => Precision::F16,
            Format::Bf16 => Precision::Bf16,
        };
        // Accelerators below compute capability 8.0 lack bf16 look-ups, so only the CPU keeps
        // the file's format.
        let precision = match placement.precision {
            Precision::F32 | Precision::Q8 if placement.device.is_cpu() => stored,
            Precision::Q8 => Precision::F16,
            precision => precision,
        };
        Ok(Self(raw.to_tensor(&[rows, dim], precision, &placement.device)?))
    }

    /// `tokens`: n, u32. Returns n × dim, f32.
    pub(crate) fn forward(&self, tokens: &Tensor) -> Result<Tensor, EngineError> {
        Ok(self.0.index_select(tokens, 0)?.to_dtype(DType::F32)?)
    }

    pub(crate) fn device(&self) -> &Device {
        self.0.device()
    }
}

/// Calls `f` with the numbers of a contiguous copy of `x`, an f32 tensor on the CPU.
pub(crate) fn with_slice<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R, EngineError> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(EngineError::new("a tensor for the CPU's kernels is on another device"));
    };
    let numbers = storage.as_slice::<f32>()?;
    Ok(f(&numbers[layout.start_offset()..][..x.elem_count()]))
}
