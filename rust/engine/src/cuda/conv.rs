//! A causal convolution that remembers, per lane, the end of what it has seen.

use std::sync::Arc;

use super::driver::{Card, Grid, Kernel};
use super::launch;
use super::linear::{Ending, Matrix, Windows, address};
use super::memory::Memory;
use super::rows::Rows;
use crate::EngineError;
use crate::conv_shape::{Activation, ConvShape, Padding};
use crate::weights::Weights;

/// Numbers that a block of `extend` activates.
const EXTENDED_BY_BLOCK: usize = 4 * 256;

/// Blocks of large tiles that keep a card busy: two for each multiprocessor of a small one.
const BUSY: usize = 72;

/// What a convolution hears.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input {
    /// Where it is: rows × time × inputs.
    pub(super) x: u64,
    /// What is made of each number first.
    pub(super) activation: Activation,
    /// A multiple of the stride.
    pub(super) time: usize,
}

/// Activations are rows × time × channels.
pub(super) struct Conv {
    shape: ConvShape,
    /// outputs × (kernel · inputs): a window is one row where time is the outer dimension.
    matrix: Matrix,
    bias: Option<Memory>,
    /// lanes × memory × inputs, activated.
    memories: Memory,
    extend: Kernel,
    convolve: Kernel,
    /// The same in small tiles, whose inputs are shared among threads.
    convolve_little: Kernel,
}

impl Conv {
    /// Loads `conv.conv.{weight,bias}` below `weights`.
    pub(super) fn load(
        card: &Arc<Card>,
        shape: ConvShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let ConvShape { inputs, outputs, kernel, .. } = shape;
        let weights = weights.at("conv").at("conv");
        let bias = shape.bias.then(|| weights.f32_vec("bias", &[outputs])).transpose()?;
        let raw = weights.raw("weight", &[outputs, inputs, kernel])?;
        let number =
            |output: usize, i: usize| raw.get((output * inputs + i % inputs) * kernel + i / inputs);
        let memory = lanes * shape.memory() * inputs;
        Ok(Self {
            shape,
            matrix: Matrix::of(card, outputs, kernel * inputs, number)?,
            bias: bias.map(|numbers| Memory::of(card, &numbers)).transpose()?,
            memories: Memory::zeroed(card, memory * size_of::<f32>())?,
            extend: card.kernel("extend")?,
            convolve: card.kernel("convolve")?,
            convolve_little: card.kernel("product_tile_f32")?,
        })
    }

    /// `y`: rows × time / stride × outputs. `extended`: room for rows × (memory + time) × inputs.
    pub(super) fn forward(
        &self,
        input: Input,
        rows: Rows<'_>,
        extended: &Memory,
        y: &Memory,
        ending: Ending,
    ) -> Result<(), EngineError> {
        let Input { x, activation, time } = input;
        let Rows { table, count } = rows;
        let Self { shape, matrix, bias, memories, .. } = self;
        let ConvShape { inputs, outputs, kernel, stride, dilation, .. } = *shape;
        let card = y.card();
        let [is_elu, is_replicated] = [
            i32::from(activation == Activation::Elu),
            i32::from(shape.padding == Padding::Replicate),
        ];
        let past = shape.memory();
        let blocks = [(time * inputs).div_ceil(EXTENDED_BY_BLOCK), count, 1];
        launch!(card, self.extend, Grid { blocks, threads: 256 };
            x, extended.address(), memories.address(), table.address(),
            time as i32, inputs as i32, past as i32, is_elu, is_replicated)?;
        let of_lane = time / stride;
        let (width, tap) = (kernel * inputs, if dilation == 1 { kernel * inputs } else { inputs });
        let windows = Windows {
            rows: (count * of_lane) as i32,
            group_rows: of_lane as i32,
            row_stride: (stride * inputs) as i32,
            tap: tap as i32,
            tap_stride: (dilation * tap) as i32,
            group_stride: ((past + time) * inputs) as u64,
        };
        let blocks = |tile: usize| [outputs.div_ceil(tile), (count * of_lane).div_ceil(tile), 1];
        let (kernel, blocks) = match blocks(64) {
            [x, y, _] if x * y < BUSY => (self.convolve_little, blocks(32)),
            blocks => (self.convolve, blocks),
        };
        launch!(card, kernel, Grid { blocks, threads: 256 };
            extended.address(), matrix.address(), address(bias.as_ref()), 0u64, y.address(), windows,
            outputs as i32, width as i32, matrix.padded() as i32, ending as i32)
    }

    pub(super) fn stride(&self) -> usize {
        self.shape.stride
    }
}
