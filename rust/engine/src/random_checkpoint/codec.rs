//! The tensors of a codec.

use moshi_ctl_core::CodecShape;

use super::language_model::transformer;
use super::{Fill, RowGain, Tensor};

/// Speech of ordinary loudness has about this root mean square.
const SPEECH_LEVEL: f32 = 0.07;

/// ELU shrinks standard normal input to a root mean square of 0.80.
const ELU_GAIN: f32 = 1.25;

/// What a residual block adds to its input of size 1.
const BLOCK_GAIN: f32 = 0.5;

pub(super) fn plan(shape: &CodecShape, codebooks: usize) -> Vec<Tensor> {
    let dimension = shape.dimension;
    let latents = &shape.transformer();
    let stride = shape.latents_per_frame();
    let mut tensors = encoder(shape);
    tensors.extend(transformer("encoder_transformer.transformer", latents));
    let down = &[dimension, dimension, 2 * stride];
    // The residual blocks and the transformer together have left latents of about size 2.
    tensors.push(Tensor::weights("downsample.conv.conv.conv.weight", down, 0.5));
    tensors.extend(quantizer("quantizer.rvq_first", shape, 1));
    tensors.extend(quantizer("quantizer.rvq_rest", shape, codebooks - 1));
    let up = &[dimension, 1, 2 * stride];
    tensors.push(Tensor::noise("upsample.convtr.convtr.convtr.weight", up, 0.7));
    tensors.extend(transformer("decoder_transformer.transformer", latents));
    tensors.extend(decoder(shape));
    tensors
}

/// A convolution with bias; `[out, in, kernel]`.
fn conv(prefix: &str, shape: [usize; 3], gain: f32) -> [Tensor; 2] {
    [
        Tensor::weights(format!("{prefix}.conv.conv.weight"), &shape, gain),
        Tensor::bias(format!("{prefix}.conv.conv.bias"), shape[0]),
    ]
}

/// Numbers the modules of a published `model` list: activations count, but hold nothing.
struct Modules {
    prefix: &'static str,
    next: usize,
    tensors: Vec<Tensor>,
}

impl Modules {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, next: 0, tensors: vec![] }
    }

    fn name(&mut self) -> String {
        let name = format!("{}.model.{}", self.prefix, self.next);
        self.next += 1;
        name
    }

    fn activation(&mut self) {
        self.next += 1;
    }

    fn conv(&mut self, shape: [usize; 3], gain: f32) {
        let name = self.name();
        self.tensors.extend(conv(&name, shape, gain));
    }

    /// A transposed convolution with bias; `[in, out, kernel]`, every output made of two taps.
    fn transposed(&mut self, channels: usize, out: usize, ratio: usize, gain: f32) {
        let name = self.name();
        let deviation = gain / (2.0 * channels as f32).sqrt();
        let (shape, weight) = ([channels, out, 2 * ratio], format!("{name}.convtr.convtr.weight"));
        self.tensors.push(Tensor::noise(weight, &shape, deviation));
        self.tensors.push(Tensor::bias(format!("{name}.convtr.convtr.bias"), out));
    }

    fn residual_blocks(&mut self, shape: &CodecShape, channels: usize) {
        let inner = channels / shape.compress;
        for _ in 0..shape.n_residual_layers {
            let name = self.name();
            let first = [inner, channels, shape.residual_kernel_size];
            self.tensors.extend(conv(&format!("{name}.block.1"), first, ELU_GAIN));
            let second = [channels, inner, 1];
            self.tensors.extend(conv(&format!("{name}.block.3"), second, ELU_GAIN * BLOCK_GAIN));
        }
    }
}

fn encoder(shape: &CodecShape) -> Vec<Tensor> {
    let mut modules = Modules::new("encoder");
    let mut channels = shape.n_filters;
    modules.conv([channels, 1, shape.kernel_size], 1.0 / SPEECH_LEVEL);
    for ratio in shape.ratios.iter().rev() {
        modules.residual_blocks(shape, channels);
        modules.activation();
        modules.conv([2 * channels, channels, 2 * ratio], ELU_GAIN);
        channels *= 2;
    }
    modules.activation();
    modules.conv([shape.dimension, channels, shape.last_kernel_size], ELU_GAIN);
    modules.tensors
}

fn decoder(shape: &CodecShape) -> Vec<Tensor> {
    let mut modules = Modules::new("decoder");
    let mut channels = shape.n_filters << shape.ratios.len();
    modules.conv([channels, shape.dimension, shape.kernel_size], 1.0);
    for &ratio in &shape.ratios {
        modules.activation();
        modules.transposed(channels, channels / 2, ratio, ELU_GAIN);
        channels /= 2;
        modules.residual_blocks(shape, channels);
    }
    modules.activation();
    modules.conv([1, channels, shape.last_kernel_size], SPEECH_LEVEL);
    modules.tensors
}

/// A residual vector quantizer for inputs of size 1.
///
/// Of N random directions in D dimensions the best one explains a share of about 2 ln N / D of a
/// vector's energy, and its best length is the square root of that; what remains is quantized by
/// the next level, whose entries shrink accordingly. Longer entries would add more than they
/// explain, and a handful of short ones would win every time.
fn quantizer(prefix: &str, shape: &CodecShape, levels: usize) -> Vec<Tensor> {
    let (bins, dim) = (shape.quantizer_bins, shape.quantizer_dim);
    let input = &[dim, shape.dimension, 1];
    let output = &[shape.dimension, dim, 1];
    let mut tensors = vec![
        Tensor::weights(format!("{prefix}.input_proj.weight"), input, 1.0),
        Tensor::weights(format!("{prefix}.output_proj.weight"), output, 1.0),
    ];
    let explained = (2.0 * (bins as f32).ln() / dim as f32).min(0.5);
    for level in 0..levels {
        let prefix = format!("{prefix}.vq.layers.{level}._codebook");
        let deviation = (explained * (1.0 - explained).powi(level as i32)).sqrt();
        let fill = Fill::Noise { mean: 0.0, deviation, rows: RowGain::ByUsage };
        tensors.push(Tensor::new(format!("{prefix}._initialized"), &[1], Fill::Constant(1.0)));
        tensors.push(Tensor::new(format!("{prefix}.cluster_usage"), &[bins], Fill::Usage));
        tensors.push(Tensor::new(format!("{prefix}.embedding_sum"), &[bins, dim], fill));
    }
    tensors
}
