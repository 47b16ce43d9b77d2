//! How much memory the parts of a model take here.

use moshi_ctl_core::{CodecShape, Precision, TransformerShape};

use super::attention::ring_bytes;
use super::codec::{BufferNumbers, best_bytes};
use super::linear::{Held, bytes};
use super::transformer::scratch_bytes;
use crate::checkpoint::Format;
use crate::conv_shape::ConvShape;
use crate::memory::{Layout, floats};
use crate::precision::DeviceKind;

/// What the driver keeps on a card for each process: its own code, stacks, the kernels.
/// A round number above what NVIDIA's tools show for small programs; no card was measured yet.
const CONTEXT_BYTES: u64 = 300 << 20;

/// The memory of [`super::CudaBackend`].
pub(crate) struct CudaLayout;

impl Layout for CudaLayout {
    fn matrix(&self, outputs: usize, inputs: usize, format: Format, precision: Precision) -> u64 {
        bytes(outputs, inputs, Held::of(inputs, format, precision)) as u64
    }

    fn exact_matrix(&self, outputs: usize, inputs: usize, _: Precision) -> u64 {
        bytes(outputs, inputs, Held::F32) as u64
    }

    fn embedding(&self, rows: usize, dim: usize, format: Format, precision: Precision) -> u64 {
        bytes(rows, dim, Held::of_table(dim, format, precision)) as u64
    }

    fn codebook(&self, bins: usize, dim: usize) -> u64 {
        floats(bins * dim + bins)
    }

    fn ring(&self, shape: &TransformerShape, precision: Precision) -> u64 {
        ring_bytes(shape, precision) as u64
    }

    fn transformer_row(&self, shape: &TransformerShape, precision: Precision) -> u64 {
        scratch_bytes(shape, precision) as u64
    }

    fn transformer_workspace(&self, _: &TransformerShape, _: Precision) -> u64 {
        0
    }

    fn encoder_lane(&self, shape: &CodecShape, _: &[(ConvShape, usize)]) -> u64 {
        let BufferNumbers { outer, inner, extended } = BufferNumbers::of(shape);
        floats(2 * outer + inner + extended) + 2 * best_bytes(shape.quantizer_bins) as u64
    }

    fn device_bytes(&self, _: DeviceKind) -> u64 {
        CONTEXT_BYTES
    }
}
