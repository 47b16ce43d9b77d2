//! The encoder half of a Mimi codec: audio in, audio tokens out, frame by frame.

mod conv;
mod quantizer;
mod seanet;

use candle_core::Tensor;
use moshi_ctl_core::CodecShape;
use moshi_ctl_core::units::FRAME_SAMPLES;

use self::conv::Conv;
use self::quantizer::SplitQuantizer;
use self::seanet::Encoder;
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
}

impl Codec {
    pub(super) fn load(
        shape: &CodecShape,
        codebooks: usize,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            encoder: Encoder::load(shape, lanes, &weights.at("encoder").at("model"))?,
            transformer: Transformer::load(
                &shape.transformer(),
                lanes,
                &weights.at("encoder_transformer").at("transformer"),
            )?,
            downsample: Conv::load(
                ConvShape::downsample(shape),
                lanes,
                &weights.at("downsample").at("conv"),
            )?,
            quantizer: SplitQuantizer::load(shape, codebooks, &weights.at("quantizer"))?,
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

    pub(super) fn fill_context(&mut self, lane: usize) {
        self.transformer.fill_context(lane);
    }

    /// Encodes one frame of each of `lanes` into `codes`. `pcm`: lanes × [`FRAME_SAMPLES`].
    pub(super) fn encode(
        &mut self,
        pcm: Tensor,
        lanes: &[usize],
        codes: &mut Codes,
    ) -> Result<(), EngineError> {
        let x = self.encoder.forward(pcm.reshape((lanes.len(), FRAME_SAMPLES, 1))?, lanes)?;
        let x = self.transformer.forward(x, lanes)?;
        let latents = self.downsample.forward(&x, Activation::None, lanes)?;
        self.quantizer.encode(&latents.squeeze(1)?, codes)
    }
}
