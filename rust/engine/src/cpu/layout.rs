//! How much memory the parts of a model take here.

use moshi_ctl_core::{CodecShape, Precision, TransformerShape};

use super::kernels::{AttentionShape, Codebook, PackedMatrix, Q8Matrix, Ring};
use super::linear::Embedding;
use crate::checkpoint::Format;
use crate::conv_shape::ConvShape;
use crate::memory::{Layout, floats, matrices_of_layer};
use crate::precision::DeviceKind;

/// The memory of [`super::CpuBackend`].
pub(crate) struct CpuLayout;

impl Layout for CpuLayout {
    fn matrix(&self, outputs: usize, inputs: usize, _: Format, precision: Precision) -> u64 {
        match precision {
            Precision::Q8 => Q8Matrix::bytes_of(outputs, inputs),
            precision => PackedMatrix::bytes_of(outputs, inputs, precision),
        }
    }

    fn exact_matrix(&self, outputs: usize, inputs: usize, _: Precision) -> u64 {
        PackedMatrix::bytes_of(outputs, inputs, Precision::F32)
    }

    fn embedding(&self, rows: usize, dim: usize, format: Format, precision: Precision) -> u64 {
        Embedding::held_as(format, precision).bytes(rows * dim) as u64
    }

    fn codebook(&self, bins: usize, dim: usize) -> u64 {
        Codebook::bytes_of(bins, dim)
    }

    fn ring(&self, shape: &TransformerShape, precision: Precision) -> u64 {
        Ring::bytes_of(AttentionShape::of(shape), precision)
    }

    fn transformer_row(&self, shape: &TransformerShape, _: Precision) -> u64 {
        let d = shape.d_model;
        // Of every layer: projections, and what heads make of the values.
        let of_layer = 4 * d;
        // In turn: the residual stream, normed, a branch of it, and both ends of the block.
        let wide: usize = matrices_of_layer(shape)[2..].iter().map(|(o, i)| o.max(i)).sum();
        floats(shape.num_layers * of_layer + 3 * d + wide)
    }

    fn transformer_workspace(&self, _: &TransformerShape, _: Precision) -> u64 {
        0
    }

    fn encoder_lane(&self, _: &CodecShape, convolutions: &[(ConvShape, usize)]) -> u64 {
        let most = |size: fn(&ConvShape, usize) -> usize| {
            convolutions.iter().map(|(shape, time)| size(shape, *time)).max().unwrap_or_default()
        };
        let output = most(|shape, time| time / shape.stride * shape.outputs);
        let extended = most(|shape, time| (shape.memory() + time) * shape.inputs);
        let windows = most(|shape, time| match shape.dilation {
            1 => 0,
            _ => time / shape.stride * shape.kernel * shape.inputs,
        });
        // What a stage has, what a residual block makes of it, and what lies between.
        floats(3 * output + extended + windows)
    }

    fn device_bytes(&self, _: DeviceKind) -> u64 {
        0
    }
}
