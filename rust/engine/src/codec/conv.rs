//! A causal convolution that remembers, per lane, the end of what it has seen.

use candle_core::{Device, IndexOp, Tensor};
use rayon::prelude::*;

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

/// What is applied to the input of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    /// x where positive, else eˣ − 1.
    Elu,
}

/// Activations are lanes × time × channels. A lane's memory is none while it is fresh.
pub(crate) struct Conv {
    shape: ConvShape,
    kernel: Kernel,
}

enum Kernel {
    Own {
        /// outputs × (kernel · inputs): a window is one row where time is the outer dimension.
        matrix: PackedMatrix,
        memories: Vec<Option<Vec<f32>>>,
    },
    Candle {
        /// outputs × inputs × kernel
        weight: Tensor,
        bias: Option<Tensor>,
        memories: Vec<Option<Tensor>>,
    },
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
        let bias = bias.then(|| weights.f32_vec("bias", &[outputs])).transpose()?;
        let kernel = match placement.kernels {
            Kernels::Own => Kernel::Own {
                matrix: PackedMatrix::pack_with(outputs, kernel * inputs, |output, i| {
                    raw.get((output * inputs + i % inputs) * kernel + i / inputs)
                })
                .with_bias(bias),
                memories: vec![None; lanes],
            },
            Kernels::Candle => Kernel::Candle {
                weight: raw.to_tensor(
                    &[outputs, inputs, kernel],
                    placement.precision,
                    &placement.device,
                )?,
                bias: bias
                    .map(|bias| Tensor::from_vec(bias, outputs, &placement.device))
                    .transpose()?,
                memories: vec![None; lanes],
            },
        };
        Ok(Self { shape, kernel })
    }

    pub(crate) fn reset(&mut self, lane: usize) {
        match &mut self.kernel {
            Kernel::Own { memories, .. } => memories[lane] = None,
            Kernel::Candle { memories, .. } => memories[lane] = None,
        }
    }

    /// `x`: lanes × time × inputs, time a multiple of the stride. Returns
    /// lanes × time / stride × outputs.
    pub(crate) fn forward(
        &mut self,
        x: &Tensor,
        activation: Activation,
        lanes: &[usize],
    ) -> Result<Tensor, EngineError> {
        match &mut self.kernel {
            Kernel::Own { matrix, memories } => {
                convolve_own(self.shape, matrix, memories, x, activation, lanes)
            }
            Kernel::Candle { weight, bias, memories } => {
                let x = match activation {
                    Activation::None => x.clone(),
                    Activation::Elu => x.elu(1.0)?,
                };
                let y = extend(self.shape, memories, &x, lanes)?
                    .transpose(1, 2)?
                    .contiguous()?
                    .conv1d(weight, 0, self.shape.stride, self.shape.dilation, 1)?
                    .transpose(1, 2)?
                    .contiguous()?;
                Ok(match bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                })
            }
        }
    }
}

fn convolve_own(
    shape: ConvShape,
    matrix: &PackedMatrix,
    memories: &mut [Option<Vec<f32>>],
    x: &Tensor,
    activation: Activation,
    lanes: &[usize],
) -> Result<Tensor, EngineError> {
    let ConvShape { inputs, kernel, stride, dilation, padding, .. } = shape;
    let time = x.dim(1)?;
    // What each lane remembers, then its input: lanes × (memory + time) × inputs.
    let memory_len = shape.memory() * inputs;
    let length = memory_len + time * inputs;
    let extended = with_slice(x, |x| {
        let mut extended = vec![0f32; lanes.len() * length];
        let parts = extended.chunks_exact_mut(length).zip(x.chunks_exact(time * inputs));
        for (&lane, (extended, x)) in lanes.iter().zip(parts) {
            let (past, present) = extended.split_at_mut(memory_len);
            activate(activation, x, present);
            match &memories[lane] {
                Some(memory) => past.copy_from_slice(memory),
                None if padding == Padding::Replicate => {
                    past.chunks_exact_mut(inputs)
                        .for_each(|p| p.copy_from_slice(&present[..inputs]));
                }
                None => {}
            }
            memories[lane] = Some(extended[length - memory_len..].to_vec());
        }
        extended
    })?;
    let windows = time / stride;
    let count = lanes.len() * windows;
    let mut y = vec![0f32; count * matrix.outputs()];
    if dilation == 1 {
        let rows =
            Rows { count, group_rows: windows, group_stride: length, row_stride: stride * inputs };
        matrix.multiply(&extended, rows, &mut y);
    } else {
        let taps = |window: usize| {
            let start = window / windows * length + window % windows * stride * inputs;
            let extended = &extended;
            (0..kernel).flat_map(move |tap| &extended[start + tap * dilation * inputs..][..inputs])
        };
        let gathered: Vec<f32> = (0..count).flat_map(taps).copied().collect();
        matrix.multiply(&gathered, Rows::contiguous(count, kernel * inputs), &mut y);
    }
    Ok(Tensor::from_vec(y, (lanes.len(), windows, matrix.outputs()), &Device::Cpu)?)
}

/// Numbers a thread activates at a time.
const ACTIVATION_CHUNK: usize = 1 << 13;

fn activate(activation: Activation, x: &[f32], y: &mut [f32]) {
    match activation {
        Activation::None => y.copy_from_slice(x),
        Activation::Elu => y
            .par_chunks_mut(ACTIVATION_CHUNK)
            .zip(x.par_chunks(ACTIVATION_CHUNK))
            .for_each(|(y, x)| {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = if x > 0.0 { x } else { x.exp() - 1.0 };
                }
            }),
    }
}

/// Puts what each lane remembers before its input, and remembers the end of that.
fn extend(
    shape: ConvShape,
    memories: &mut [Option<Tensor>],
    x: &Tensor,
    lanes: &[usize],
) -> Result<Tensor, EngineError> {
    let (memory, inputs) = (shape.memory(), shape.inputs);
    if memory == 0 {
        return Ok(x.contiguous()?);
    }
    let mut past = Vec::with_capacity(lanes.len());
    for (i, &lane) in lanes.iter().enumerate() {
        past.push(match (&memories[lane], shape.padding) {
            (Some(memory), _) => memory.clone(),
            (None, Padding::Zero) => Tensor::zeros((memory, inputs), x.dtype(), x.device())?,
            (None, Padding::Replicate) => x.i((i, 0..1))?.broadcast_as((memory, inputs))?,
        });
    }
    let extended = Tensor::cat(&[&Tensor::stack(&past, 0)?, x], 1)?;
    let time = x.dim(1)?;
    for (i, &lane) in lanes.iter().enumerate() {
        // A copy, because a view would keep the whole step alive.
        memories[lane] = Some(extended.i((i, time..))?.force_contiguous()?);
    }
    Ok(extended)
}
