//! The tensors of a language model.

use moshi_ctl_core::units::{TEXT_TOKEN_END_OF_PADDING, TEXT_TOKEN_PADDING};
use moshi_ctl_core::{Conditioner, LmShape, Norm, TransformerShape};

use super::{Fill, RowGain, Tensor};

/// Share of an input's energy that comes from the audio; text and conditioners have the rest.
/// Text feeds back, so with much more of it the model would talk to itself.
const AUDIO_SHARE: f32 = 0.8;

/// Standard deviation of a text logit. The runner-up is then typically 0.5 behind.
const LOGIT_DEVIATION: f32 = 2.0;

/// Standard deviation of the logits of the VAD heads.
const HEAD_DEVIATION: f32 = 1.5;

/// Gain of queries and keys: attention weights are then uneven enough that positions matter.
const ATTENTION_GAIN: f32 = 1.5;

/// A gated or plain feed-forward block's inner values are smaller than its input by this much.
const ACTIVATION_GAIN: f32 = 1.6;

pub(super) fn plan(shape: &LmShape) -> Vec<Tensor> {
    let d_model = shape.transformer.d_model;
    let mut tensors = transformer("transformer", &shape.transformer);
    tensors.extend(norm("out_norm", d_model, shape.transformer.norm));

    let text = &[shape.text_in_vocab_size, d_model];
    tensors.push(Tensor::noise("text_emb.weight", text, (1.0 - AUDIO_SHARE).sqrt()));
    let audio = (AUDIO_SHARE / shape.audio_codebooks as f32).sqrt();
    tensors.extend((0..shape.audio_codebooks).map(|k| {
        Tensor::noise(format!("emb.{k}.weight"), &[shape.audio_vocab_size, d_model], audio)
    }));

    tensors.push(text_linear(shape.text_out_vocab_size, d_model));
    for i in 0..shape.extra_heads.map_or(0, |heads| heads.num_heads) {
        let dim = shape.extra_heads.map_or(0, |heads| heads.dim);
        let name = format!("extra_heads.{i}.weight");
        tensors.push(Tensor::weights(name, &[dim, d_model], HEAD_DEVIATION));
    }
    for (name, conditioner) in shape.conditioners.iter().flatten() {
        let prefix = format!("condition_provider.conditioners.{name}");
        let dim = match conditioner {
            Conditioner::Lut(lut) => {
                let rows = &[lut.n_bins + 1, lut.dim];
                tensors.push(Tensor::noise(format!("{prefix}.embed.weight"), rows, 1.0));
                lut.dim
            }
            Conditioner::ContinuousAttribute(attribute) => attribute.dim,
        };
        let projection = format!("{prefix}.output_proj.weight");
        tensors.push(Tensor::weights(projection, &[d_model, dim], 0.2));
        tensors.push(Tensor::noise(format!("{prefix}.learnt_padding"), &[1, 1, d_model], 0.2));
    }
    tensors
}

/// The text head. The likeliest of V ordinary tokens lies about √(2 ln V) deviations up; the two
/// padding tokens get deviations so large that they pass it in about a third and a fifth of the
/// steps.
fn text_linear(vocab: usize, d_model: usize) -> Tensor {
    let best = (2.0 * (vocab as f32).ln()).sqrt().max(1.0);
    let rows = RowGain::Two([
        (TEXT_TOKEN_PADDING as usize, best / 0.3),
        (TEXT_TOKEN_END_OF_PADDING as usize, best / 0.8),
    ]);
    let deviation = LOGIT_DEVIATION / (d_model as f32).sqrt();
    let fill = Fill::Noise { mean: 0.0, deviation, rows };
    Tensor::new("text_linear.weight", &[vocab, d_model], fill)
}

/// The layers below `prefix`. Residual branches are damped so that together they add as much as
/// came in.
pub(super) fn transformer(prefix: &str, shape: &TransformerShape) -> Vec<Tensor> {
    let d_model = shape.d_model;
    let damping = 1.0 / (2.0 * shape.num_layers as f32).sqrt();
    // Where a layer scale exists, the damping is its job.
    let branch = if shape.layer_scale.is_some() { 1.0 } else { damping };
    let mut tensors = vec![];
    for layer in 0..shape.num_layers {
        let prefix = format!("{prefix}.layers.{layer}");
        tensors.extend(norm(&format!("{prefix}.norm1"), d_model, shape.norm));
        tensors.extend(norm(&format!("{prefix}.norm2"), d_model, shape.norm));

        let attention = format!("{prefix}.self_attn");
        let deviation = 1.0 / (d_model as f32).sqrt();
        let rows = RowGain::Below { rows: 2 * d_model, gain: ATTENTION_GAIN };
        let fill = Fill::Noise { mean: 0.0, deviation, rows };
        let in_proj = format!("{attention}.in_proj_weight");
        tensors.push(Tensor::new(in_proj, &[3 * d_model, d_model], fill));
        // Attention averages; what it averages shrinks.
        let out_proj = format!("{attention}.out_proj.weight");
        tensors.push(Tensor::weights(out_proj, &[d_model, d_model], 1.25 * branch));
        if shape.bias_attn {
            tensors.push(Tensor::bias(format!("{attention}.in_proj_bias"), 3 * d_model));
            tensors.push(Tensor::bias(format!("{attention}.out_proj.bias"), d_model));
        }

        let (up, down, up_width, width) = if shape.gating.is_some() {
            let width = shape.gated_width();
            ("gating.linear_in", "gating.linear_out", 2 * width, width)
        } else {
            ("linear1", "linear2", shape.dim_feedforward, shape.dim_feedforward)
        };
        tensors.push(Tensor::weights(format!("{prefix}.{up}.weight"), &[up_width, d_model], 1.0));
        let gain = ACTIVATION_GAIN * branch;
        tensors.push(Tensor::weights(format!("{prefix}.{down}.weight"), &[d_model, width], gain));
        if shape.bias_ff {
            tensors.push(Tensor::bias(format!("{prefix}.{up}.bias"), up_width));
            tensors.push(Tensor::bias(format!("{prefix}.{down}.bias"), d_model));
        }
        if shape.layer_scale.is_some() {
            for scale in ["layer_scale_1", "layer_scale_2"] {
                tensors.push(Tensor::scale(format!("{prefix}.{scale}.scale"), &[d_model], damping));
            }
        }
    }
    tensors
}

fn norm(prefix: &str, d_model: usize, norm: Norm) -> Vec<Tensor> {
    match norm {
        Norm::RmsNorm => vec![Tensor::scale(format!("{prefix}.alpha"), &[1, 1, d_model], 1.0)],
        Norm::LayerNorm => vec![
            Tensor::scale(format!("{prefix}.weight"), &[d_model], 1.0),
            Tensor::bias(format!("{prefix}.bias"), d_model),
        ],
    }
}
