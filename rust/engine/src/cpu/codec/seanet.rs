//! The convolutional encoder.

use moshi_ctl_core::CodecShape;

use super::buffer::Buffer;
use super::conv::{Conv, Scratch};
use crate::EngineError;
use crate::conv_shape::{Activation, EncoderShape, NamedConv};
use crate::cpu::kernels::add_scaled;
use crate::cpu::pool::Pool;
use crate::weights::Weights;

/// Numbers a thread adds at a time.
const SUM_CHUNK: usize = 1 << 14;

/// Samples in, latents out, [`CodecShape::encoder_stride`] samples to one.
pub(super) struct Encoder {
    first: Conv,
    stages: Vec<Stage>,
    last: Conv,
    buffers: Buffers,
}

struct Stage {
    /// x + narrow(elu(wide(elu(x))))
    residuals: Vec<[Conv; 2]>,
    downsample: Conv,
}

/// What the convolutions use in turn.
#[derive(Default)]
struct Buffers {
    /// Input of the next module, lanes × time × channels.
    x: Buffer,
    /// What a residual block makes of it, between and after its convolutions.
    inner: Buffer,
    y: Buffer,
    scratch: Scratch,
}

impl Encoder {
    pub(super) fn load(
        shape: &CodecShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let conv = |conv: &NamedConv| Conv::load(conv.shape, lanes, &weights.at(&conv.name));
        let EncoderShape { first, stages, last } = EncoderShape::new(shape);
        let stages = stages.iter().map(|stage| {
            let residuals = stage
                .residuals
                .iter()
                .map(|[wide, narrow]| Ok::<_, EngineError>([conv(wide)?, conv(narrow)?]));
            let residuals = residuals.collect::<Result<_, _>>()?;
            Ok(Stage { residuals, downsample: conv(&stage.downsample)? })
        });
        let stages = stages.collect::<Result<_, EngineError>>()?;
        let buffers = Buffers::default();
        Ok(Self { first: conv(&first)?, stages, last: conv(&last)?, buffers })
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.convolutions().for_each(|conv| conv.reset(lane));
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.convolutions().for_each(|conv| conv.keep_lanes(count));
    }

    fn convolutions(&mut self) -> impl Iterator<Item = &mut Conv> {
        let Self { first, stages, last, .. } = self;
        let inner = stages.iter_mut().flat_map(|Stage { residuals, downsample }| {
            residuals.iter_mut().flatten().chain([downsample])
        });
        inner.chain([first, last])
    }

    /// `pcm`: lanes × samples. Returns lanes × latents × dimension.
    pub(super) fn forward(&mut self, pcm: &[f32], lanes: &[usize], pool: &mut Pool) -> &mut [f32] {
        let Buffers { x, inner, y, scratch } = &mut self.buffers;
        self.first.forward(pcm, Activation::None, lanes, x, scratch, pool);
        for stage in &mut self.stages {
            for [wide, narrow] in &mut stage.residuals {
                wide.forward(x, Activation::Elu, lanes, inner, scratch, pool);
                narrow.forward(inner, Activation::Elu, lanes, y, scratch, pool);
                pool.for_each_chunk(x, SUM_CHUNK, |chunk, x| {
                    add_scaled(x, &y[chunk * SUM_CHUNK..][..x.len()], None);
                });
            }
            stage.downsample.forward(x, Activation::Elu, lanes, y, scratch, pool);
            std::mem::swap(x, y);
        }
        self.last.forward(x, Activation::Elu, lanes, y, scratch, pool);
        y
    }
}
