//! The convolutions of a Mimi encoder: their sizes, and their places in a checkpoint.

use moshi_ctl_core::CodecShape;

/// What a fresh lane has before its first input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    Zero,
    /// The first input, repeated.
    Replicate,
}

/// What is applied to the input of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    None,
    /// x where positive, else eˣ − 1.
    Elu,
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
    /// A convolution with bias, stride 1 and no dilation.
    pub(crate) fn plain(inputs: usize, outputs: usize, kernel: usize) -> Self {
        let (stride, dilation, bias, padding) = (1, 1, true, Padding::Zero);
        Self { inputs, outputs, kernel, stride, dilation, bias, padding }
    }

    /// From the encoder's rate to the frame rate.
    pub(crate) fn downsample(shape: &CodecShape) -> Self {
        let stride = shape.latents_per_frame();
        Self {
            stride,
            bias: false,
            padding: Padding::Replicate,
            ..Self::plain(shape.dimension, shape.dimension, 2 * stride)
        }
    }

    /// Inputs a lane remembers: what the next window needs of the past.
    pub(crate) fn memory(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1 - self.stride
    }
}

/// A convolution and the path of its tensors below the encoder.
#[derive(Debug, Clone)]
pub(crate) struct NamedConv {
    pub(crate) name: String,
    pub(crate) shape: ConvShape,
}

/// The convolutional encoder (SEANet, arXiv:2009.02095). Modules are numbered through; activations
/// count, and have no tensors.
#[derive(Debug, Clone)]
pub(crate) struct EncoderShape {
    pub(crate) first: NamedConv,
    pub(crate) stages: Vec<StageShape>,
    pub(crate) last: NamedConv,
}

/// Residual blocks, then a strided convolution that doubles the channels.
#[derive(Debug, Clone)]
pub(crate) struct StageShape {
    /// x + narrow(elu(wide(elu(x))))
    pub(crate) residuals: Vec<[NamedConv; 2]>,
    pub(crate) downsample: NamedConv,
}

impl EncoderShape {
    pub(crate) fn new(shape: &CodecShape) -> Self {
        let plain = ConvShape::plain;
        let named = |name: String, shape| NamedConv { name, shape };
        let mut channels = shape.n_filters;
        let first = named("0".into(), plain(1, channels, shape.kernel_size));
        let mut index = 1;
        let mut stages = Vec::with_capacity(shape.ratios.len());
        for &ratio in shape.ratios.iter().rev() {
            let mut residuals = Vec::with_capacity(shape.n_residual_layers);
            for j in 0..shape.n_residual_layers {
                let (inner, dilation) =
                    (channels / shape.compress, shape.dilation_base.pow(j as u32));
                let wide = plain(channels, inner, shape.residual_kernel_size);
                residuals.push([
                    named(format!("{index}.block.1"), ConvShape { dilation, ..wide }),
                    named(format!("{index}.block.3"), plain(inner, channels, 1)),
                ]);
                index += 1;
            }
            let strided = ConvShape { stride: ratio, ..plain(channels, 2 * channels, 2 * ratio) };
            stages.push(StageShape {
                residuals,
                downsample: named(format!("{}", index + 1), strided),
            });
            index += 2;
            channels *= 2;
        }
        let last = plain(channels, shape.dimension, shape.last_kernel_size);
        Self { first, stages, last: named(format!("{}", index + 1), last) }
    }
}
