//! A causal convolution that remembers, per lane, the end of what it has seen.

use candle_core::{Device, IndexOp, Tensor};

use crate::EngineError;
use crate::kernels::{PackedMatrix, Rows};
use crate::linear::with_slice;
use crate::weights::{Kernels, Weights};

/// What a fresh lane has before its first input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    Zero,
    /// The first input, repeated.
    Replicate,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvShape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    pub(crate) bias: bool,
    pub(crate) padding: Padding,
}

impl ConvShape {
    /// Inputs a lane remembers: what the next window needs of the past.
    fn memory(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1 - self.stride
    }
}

/// Activations are lanes × time × channels.
pub(crate) struct Conv {
    shape: ConvShape,
    kernel: Kernel,
    bias: Option<Tensor>,
    /// Per lane, memory × inputs; none for a fresh lane.
    memories: Vec<Option<Tensor>>,
}

enum Kernel {
    /// outputs × (kernel · inputs): a window is one row where time is the outer dimension.
    Packed(PackedMatrix),
    /// outputs × inputs × kernel
    Tensor(Tensor),
}

impl Conv {
    /// Loads `conv.conv.{weight,bias}` below `weights`.
    pub(crate) fn load(
        shape: ConvShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let ConvShape { inputs, outputs, kernel, bias, .. } = shape;
        let weights = weights.at("conv").at("conv");
        let raw = weights.raw("weight", &[outputs, inputs, kernel])?;
        let placement = weights.placement();
        let loaded = match placement.kernels {
            Kernels::Own => {
                Kernel::Packed(PackedMatrix::pack_with(outputs, kernel * inputs, |output, i| {
                    raw.get((output * inputs + i % inputs) * kernel + i / inputs)
                }))
            }
            Kernels::Candle => Kernel::Tensor(raw.to_tensor(
                &[outputs, inputs, kernel],
                placement.precision,
                &placement.device,
            )?),
        };
        let bias = bias.then(|| weights.tensor("bias", &[outputs])).transpose()?;
        Ok(Self { shape, kernel: loaded, bias, memories: vec![None; lanes] })
    }

    pub(crate) fn reset(&mut self, lane: usize) {
        self.memories[lane] = None;
    }

    /// `x`: lanes × time × inputs, time a multiple of the stride. Returns
    /// lanes × time / stride × outputs.
    pub(crate) fn forward(&mut self, x: &Tensor, lanes: &[usize]) -> Result<Tensor, EngineError> {
        let extended = self.extend(x, lanes)?;
        let y = match &self.kernel {
            Kernel::Packed(matrix) => self.multiply(matrix, &extended)?,
            Kernel::Tensor(weight) => extended
                .transpose(1, 2)?
                .contiguous()?
                .conv1d(weight, 0, self.shape.stride, self.shape.dilation, 1)?
                .transpose(1, 2)?
                .contiguous()?,
        };
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

    /// Windows of `extended`, lanes × (memory + time) × inputs, times the kernel.
    fn multiply(&self, matrix: &PackedMatrix, extended: &Tensor) -> Result<Tensor, EngineError> {
        let ConvShape { inputs, kernel, stride, dilation, .. } = self.shape;
        let (lanes, length, _) = extended.dims3()?;
        let windows = (length - self.shape.memory()) / stride;
        let count = lanes * windows;
        let y = with_slice(extended, |x| {
            let mut y = vec![0f32; count * matrix.outputs()];
            if dilation == 1 {
                let rows = Rows {
                    count,
                    group_rows: windows,
                    group_stride: length * inputs,
                    row_stride: stride * inputs,
                };
                matrix.multiply(x, rows, &mut y);
            } else {
                let taps = |window: usize| {
                    let (lane, window) = (window / windows, window % windows);
                    let start = lane * length + window * stride;
                    (0..kernel)
                        .flat_map(move |tap| &x[(start + tap * dilation) * inputs..][..inputs])
                };
                let gathered: Vec<f32> = (0..count).flat_map(taps).copied().collect();
                matrix.multiply(&gathered, Rows::contiguous(count, kernel * inputs), &mut y);
            }
            y
        })?;
        Ok(Tensor::from_vec(y, (lanes, windows, matrix.outputs()), &Device::Cpu)?)
    }
}
