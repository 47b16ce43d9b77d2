//! How much memory the parts of a model take here.

use candle_core::quantized::GgmlDType;
use moshi_ctl_core::{CodecShape, Precision, TransformerShape};

use crate::checkpoint::Format;
use crate::conv_shape::ConvShape;
use crate::memory::{Layout, floats, matrices_of_layer};
use crate::precision::DeviceKind;

/// What the CUDA driver and cuBLAS keep on a card for each process: kernels, stacks and workspaces.
/// A round number above what NVIDIA's tools show for small programs; no card was measured yet.
const CUDA_CONTEXT_BYTES: u64 = 400 << 20;

/// The memory of [`super::CandleBackend`].
pub(crate) struct CandleLayout;

impl Layout for CandleLayout {
    fn matrix(&self, outputs: usize, inputs: usize, _: Format, precision: Precision) -> u64 {
        let elements = outputs * inputs;
        match precision {
            Precision::Q8 if inputs.is_multiple_of(GgmlDType::Q8_0.block_size()) => {
                Format::Q8_0.bytes(elements) as u64
            }
            precision => bytes(elements, precision),
        }
    }

    fn exact_matrix(&self, outputs: usize, inputs: usize, precision: Precision) -> u64 {
        self.matrix(outputs, inputs, Format::F32, precision)
    }

    fn embedding(&self, rows: usize, dim: usize, _: Format, precision: Precision) -> u64 {
        bytes(rows * dim, precision)
    }

    fn codebook(&self, bins: usize, dim: usize) -> u64 {
        floats(bins * dim + bins)
    }

    fn ring(&self, shape: &TransformerShape, precision: Precision) -> u64 {
        2 * bytes(shape.context * shape.d_model, precision)
    }

    fn transformer_row(&self, shape: &TransformerShape, _: Precision) -> u64 {
        let wide: usize =
            matrices_of_layer(shape).iter().map(|(outputs, inputs)| outputs + inputs).sum();
        // Before and after each change of format.
        2 * floats(wide)
    }

    fn transformer_workspace(&self, shape: &TransformerShape, precision: Precision) -> u64 {
        // One lane at a time: its keys and values in f32, and once more in order.
        let attention = 4 * floats(shape.context * shape.d_model);
        let largest = matrices_of_layer(shape).iter().map(|(o, i)| o * i).max().unwrap_or_default();
        let loading = if precision == Precision::Q8 { floats(largest) } else { 0 };
        attention.max(loading)
    }

    fn encoder_lane(&self, _: &CodecShape, convolutions: &[(ConvShape, usize)]) -> u64 {
        let of_one = |&(shape, time): &(ConvShape, usize)| {
            let ConvShape { inputs, outputs, kernel, stride, .. } = shape;
            let windows = time / stride;
            // The input, activated; with its past, and that transposed; its windows; the product,
            // transposed and with its bias.
            2 * time * inputs
                + 2 * (shape.memory() + time) * inputs
                + windows * kernel * inputs
                + 3 * windows * outputs
        };
        floats(convolutions.iter().map(of_one).max().unwrap_or_default())
    }

    fn device_bytes(&self, device: DeviceKind) -> u64 {
        match device {
            DeviceKind::Cuda { .. } => CUDA_CONTEXT_BYTES,
            DeviceKind::Cpu | DeviceKind::Metal => 0,
        }
    }
}

fn bytes(elements: usize, precision: Precision) -> u64 {
    (elements * precision.number_bytes()) as u64
}
