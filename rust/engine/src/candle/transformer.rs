//! A causal transformer over many lanes, each at its own position.

use candle_core::{D, Tensor};
use moshi_ctl_core::{Gating, TransformerShape};

use super::attention::SelfAttention;
use super::linear::Linear;
use super::norm::Norm;
use crate::EngineError;
use crate::positions::Positions;
use crate::weights::Weights;

/// Layers, and where each lane is.
pub(super) struct Transformer {
    layers: Vec<Layer>,
    positions: Positions,
}

struct Layer {
    norm1: Norm,
    attention: SelfAttention,
    scale1: Option<Tensor>,
    norm2: Norm,
    feed_forward: FeedForward,
    scale2: Option<Tensor>,
}

enum FeedForward {
    Gated { linear_in: Linear, linear_out: Linear, gating: Gating },
    Plain { linear1: Linear, linear2: Linear },
}

impl Transformer {
    /// Loads `layers.{l}` below `weights`.
    pub(super) fn load(
        shape: &TransformerShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let layers = (0..shape.num_layers)
            .map(|l| Layer::load(shape, lanes, &weights.at("layers").at(l)))
            .collect::<Result<_, _>>()?;
        Ok(Self { layers, positions: Positions::new(shape, lanes) })
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.positions.reset(lane);
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.positions.keep_lanes(count);
        for layer in &mut self.layers {
            layer.attention.keep_lanes(count);
        }
    }

    pub(super) fn fill_context(&mut self, lane: usize) {
        self.positions.fill(lane);
    }

    /// Advances `lanes`; `x` is lanes × count × d_model, f32, `count` at most the context.
    /// Returns the same shape.
    pub(super) fn forward(&mut self, x: Tensor, lanes: &[usize]) -> Result<Tensor, EngineError> {
        self.positions.begin(lanes, x.dim(1)?);
        self.layers.iter_mut().try_fold(x, |x, layer| layer.forward(&x, lanes, &self.positions))
    }
}

impl Layer {
    fn load(
        shape: &TransformerShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let d = shape.d_model;
        let scale = |name: &str| {
            shape.layer_scale.map(|_| weights.at(name).tensor("scale", &[d])).transpose()
        };
        Ok(Self {
            norm1: Norm::load(shape.norm, d, &weights.at("norm1"))?,
            attention: SelfAttention::load(shape, lanes, &weights.at("self_attn"))?,
            scale1: scale("layer_scale_1")?,
            norm2: Norm::load(shape.norm, d, &weights.at("norm2"))?,
            feed_forward: FeedForward::load(shape, weights)?,
            scale2: scale("layer_scale_2")?,
        })
    }

    fn forward(
        &mut self,
        x: &Tensor,
        lanes: &[usize],
        positions: &Positions,
    ) -> Result<Tensor, EngineError> {
        let branch = self.attention.forward(&self.norm1.forward(x)?, lanes, positions)?;
        let x = add_scaled(x, branch, self.scale1.as_ref())?;
        let branch = self.feed_forward.forward(&self.norm2.forward(&x)?)?;
        add_scaled(&x, branch, self.scale2.as_ref())
    }
}

fn add_scaled(x: &Tensor, branch: Tensor, scale: Option<&Tensor>) -> Result<Tensor, EngineError> {
    let branch = match scale {
        Some(scale) => branch.broadcast_mul(scale)?,
        None => branch,
    };
    Ok((x + branch)?)
}

impl FeedForward {
    fn load(shape: &TransformerShape, weights: &Weights<'_>) -> Result<Self, EngineError> {
        let (d, bias) = (shape.d_model, shape.bias_ff);
        let load = |outputs, inputs, at: Weights<'_>| Linear::load(outputs, inputs, bias, &at);
        Ok(match shape.gating {
            Some(gating) => {
                let (width, weights) = (shape.gated_width(), weights.at("gating"));
                Self::Gated {
                    linear_in: load(2 * width, d, weights.at("linear_in"))?,
                    linear_out: load(d, width, weights.at("linear_out"))?,
                    gating,
                }
            }
            None => Self::Plain {
                linear1: load(shape.dim_feedforward, d, weights.at("linear1"))?,
                linear2: load(d, shape.dim_feedforward, weights.at("linear2"))?,
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        match self {
            Self::Gated { linear_in, linear_out, gating } => {
                let x = linear_in.forward(x)?;
                let width = x.dim(D::Minus1)? / 2;
                let gate = x.narrow(D::Minus1, 0, width)?;
                let gate = match gating {
                    Gating::Silu => gate.silu()?,
                    Gating::Gelu => gate.gelu_erf()?,
                    Gating::Relu => gate.relu()?,
                    Gating::Sigmoid => candle_nn::ops::sigmoid(&gate)?,
                };
                linear_out.forward(&(gate * x.narrow(D::Minus1, width, width)?)?)
            }
            Self::Plain { linear1, linear2 } => linear2.forward(&linear1.forward(x)?.gelu_erf()?),
        }
    }
}
