//! A causal transformer over many lanes, each at its own position.

use moshi_ctl_core::{Gating, TransformerShape};

use super::attention::SelfAttention;
use super::kernels::{add_scaled, gate, gelu_erf};
use super::linear::{Linear, Operand};
use super::norm::Norm;
use super::pool::Pool;
use crate::EngineError;
use crate::positions::Positions;
use crate::weights::Weights;

/// Layers, and where each lane is.
pub(super) struct Transformer {
    width: usize,
    layers: Vec<Layer>,
    positions: Positions,
    scratch: Scratch,
}

struct Layer {
    norm1: Norm,
    attention: SelfAttention,
    scale1: Option<Vec<f32>>,
    norm2: Norm,
    feed_forward: FeedForward,
    scale2: Option<Vec<f32>>,
}

enum FeedForward {
    Gated { linear_in: Linear, linear_out: Linear, gating: Gating },
    Plain { linear1: Linear, linear2: Linear },
}

/// What every layer uses in turn.
#[derive(Default)]
struct Scratch {
    normed: Vec<f32>,
    branch: Vec<f32>,
    wide: Vec<f32>,
    gated: Vec<f32>,
    operand: Operand,
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
        Ok(Self {
            width: shape.d_model,
            layers,
            positions: Positions::new(shape, lanes),
            scratch: Scratch::default(),
        })
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

    /// Puts `lane` as if it had seen a whole context, for measurements.
    pub(super) fn fill_context(&mut self, lane: usize) {
        self.positions.fill(lane);
        for layer in &mut self.layers {
            layer.attention.fill(lane);
        }
    }

    /// Advances `lanes`; `x` is lanes × count × d_model, `count` at most the context, and becomes
    /// what the layers make of it.
    pub(super) fn forward(&mut self, x: &mut [f32], lanes: &[usize], pool: &mut Pool) {
        self.positions.begin(lanes, x.len() / (lanes.len() * self.width));
        for layer in &mut self.layers {
            layer.forward(x, lanes, &self.positions, &mut self.scratch, pool);
        }
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
            shape.layer_scale.map(|_| weights.at(name).f32_vec("scale", &[d])).transpose()
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
        x: &mut [f32],
        lanes: &[usize],
        positions: &Positions,
        scratch: &mut Scratch,
        pool: &mut Pool,
    ) {
        let rows = lanes.len() * positions.count();
        self.norm1.forward(x, &mut scratch.normed, pool);
        let Scratch { normed, branch, operand, .. } = scratch;
        self.attention.forward(normed, lanes, positions, branch, operand, pool);
        add_branch(x, &scratch.branch, self.scale1.as_deref(), rows, pool);
        self.norm2.forward(x, &mut scratch.normed, pool);
        self.feed_forward.forward(rows, scratch, pool);
        add_branch(x, &scratch.branch, self.scale2.as_deref(), rows, pool);
    }
}

fn add_branch(x: &mut [f32], branch: &[f32], scale: Option<&[f32]>, rows: usize, pool: &mut Pool) {
    let width = x.len() / rows;
    pool.for_each_chunk(x, width, |row, x| {
        add_scaled(x, &branch[row * width..][..width], scale);
    });
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

    /// From `scratch.normed` to `scratch.branch`, rows × d_model.
    fn forward(&self, rows: usize, scratch: &mut Scratch, pool: &mut Pool) {
        let Scratch { normed, branch, wide, gated, operand } = scratch;
        match self {
            Self::Gated { linear_in, linear_out, gating } => {
                linear_in.forward(normed, rows, wide, operand, pool);
                let width = linear_in.outputs() / 2;
                gated.resize(rows * width, 0.0);
                pool.for_each_chunk(gated, width, |row, gated| {
                    gate(*gating, &wide[2 * row * width..][..2 * width], gated);
                });
                linear_out.forward(gated, rows, branch, operand, pool);
            }
            Self::Plain { linear1, linear2 } => {
                linear1.forward(normed, rows, wide, operand, pool);
                pool.for_each_chunk(wide, linear1.outputs(), |_, row| gelu_erf(row));
                linear2.forward(wide, rows, branch, operand, pool);
            }
        }
    }
}
