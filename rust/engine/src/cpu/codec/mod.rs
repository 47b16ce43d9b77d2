//! The encoder half of a Mimi codec: audio in, audio tokens out, frame by frame.

mod buffer;
mod conv;
mod quantizer;
mod seanet;

use moshi_ctl_core::CodecShape;

use self::buffer::Buffer;
use self::conv::{Conv, Scratch};
use self::quantizer::SplitQuantizer;
use self::seanet::Encoder;
use super::pool::Pool;
use super::transformer::Transformer;
use crate::EngineError;
use crate::backend::Codes;
use crate::conv_shape::{Activation, ConvShape};
use crate::weights::Weights;

/// Mimi's encoder for many lanes (arXiv:2410.00037, section 3.3).
pub(super) struct Codec {
    encoder: Encoder,
    transformer: Transformer,
    downsample: Conv,
    quantizer: SplitQuantizer,
    /// lanes × dimension
    latents: Buffer,
    scratch: Scratch,
}

impl Codec {
    pub(super) fn load(
        shape: &CodecShape,
        codebooks: usize,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let downsample = weights.at("downsample").at("conv");
        Ok(Self {
            encoder: Encoder::load(shape, lanes, &weights.at("encoder").at("model"))?,
            transformer: Transformer::load(
                &shape.transformer(),
                lanes,
                &weights.at("encoder_transformer").at("transformer"),
            )?,
            downsample: Conv::load(ConvShape::downsample(shape), lanes, &downsample)?,
            quantizer: SplitQuantizer::load(shape, codebooks, &weights.at("quantizer"))?,
            latents: Buffer::default(),
            scratch: Scratch::default(),
        })
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.encoder.reset(lane);
        self.transformer.reset(lane);
        self.downsample.reset(lane);
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.encoder.keep_lanes(count);
        self.transformer.keep_lanes(count);
        self.downsample.keep_lanes(count);
    }

    /// Puts `lane` as if it had heard a whole context, for measurements.
    pub(super) fn fill_context(&mut self, lane: usize) {
        self.transformer.fill_context(lane);
    }

    /// Encodes one frame of each of `lanes`. `pcm`: lanes × `FRAME_SAMPLES`.
    pub(super) fn encode(
        &mut self,
        pcm: &[f32],
        lanes: &[usize],
        codes: &mut Codes,
        pool: &mut Pool,
    ) {
        codes.begin(lanes.len());
        let Self { downsample, latents, scratch, .. } = self;
        let x = self.encoder.forward(pcm, lanes, pool);
        self.transformer.forward(x, lanes, pool);
        downsample.forward(x, Activation::None, lanes, latents, scratch, pool);
        self.quantizer.encode(latents, codes, pool);
    }
}
