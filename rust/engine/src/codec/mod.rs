//! The encoder half of a Mimi codec: audio in, audio tokens out, frame by frame.

mod conv;
mod quantizer;
mod seanet;

use candle_core::Tensor;
use moshi_ctl_core::CodecShape;
use moshi_ctl_core::units::FRAME_SAMPLES;

use self::conv::{Activation, Conv, ConvShape, Padding};
use self::quantizer::SplitQuantizer;
use self::seanet::Encoder;
use crate::EngineError;
use crate::transformer::Transformer;
use crate::weights::Weights;

/// Mimi's encoder for many lanes (arXiv:2410.00037, section 3.3).
pub(crate) struct Codec {
    encoder: Encoder,
    transformer: Transformer,
    downsample: Conv,
    quantizer: SplitQuantizer,
}

/// The audio tokens of one frame of one lane.
pub(crate) struct Codes {
    /// One per codebook.
    pub(crate) tokens: Vec<u32>,
    /// The smallest margin of any codebook's choice; see `Nearest::margin`.
    pub(crate) margin: f32,
}

impl Codec {
    pub(crate) fn load(
        shape: &CodecShape,
        codebooks: usize,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let stride = shape.latents_per_frame();
        let downsample = ConvShape {
            inputs: shape.dimension,
            outputs: shape.dimension,
            kernel: 2 * stride,
            stride,
            dilation: 1,
            bias: false,
            padding: Padding::Replicate,
        };
        Ok(Self {
            encoder: Encoder::load(shape, lanes, &weights.at("encoder").at("model"))?,
            transformer: Transformer::load(
                &shape.transformer(),
                lanes,
                &weights.at("encoder_transformer").at("transformer"),
            )?,
            downsample: Conv::load(downsample, lanes, &weights.at("downsample").at("conv"))?,
            quantizer: SplitQuantizer::load(shape, codebooks, &weights.at("quantizer"))?,
        })
    }

    pub(crate) fn reset(&mut self, lane: usize) {
        self.encoder.reset(lane);
        self.transformer.reset(lane);
        self.downsample.reset(lane);
    }

    /// Encodes one frame of each of `lanes`. The result has one entry per lane: none where the
    /// audio led to numbers that are not finite.
    ///
    /// `pcm`: lanes × [`FRAME_SAMPLES`].
    pub(crate) fn encode(
        &mut self,
        pcm: Tensor,
        lanes: &[usize],
    ) -> Result<Vec<Option<Codes>>, EngineError> {
        let x = self.encoder.forward(pcm.reshape((lanes.len(), FRAME_SAMPLES, 1))?, lanes)?;
        let x = self.transformer.forward(x, lanes)?;
        let latents = self.downsample.forward(&x, Activation::None, lanes)?;
        self.quantizer.encode(&latents.squeeze(1)?)
    }
}
