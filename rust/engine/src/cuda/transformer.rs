//! A causal transformer over many lanes, each at its own position.

use std::sync::Arc;

use moshi_ctl_core::{Gating, Precision, TransformerShape};

use super::attention::{AttentionKernels, SelfAttention, parts_numbers};
use super::driver::{Card, Grid, Kernel};
use super::launch;
use super::linear::{Ending, Linear, Output, halves_bytes};
use super::memory::Memory;
use super::norm::Norm;
use super::rows::{Rows, Which};
use crate::EngineError;
use crate::weights::{Placement, Weights};

/// Layers that advance every lane by `count` positions a step.
pub(super) struct Transformer {
    layers: Vec<Layer>,
    attention: AttentionKernels,
    gate: Kernel,
    count: usize,
    scratch: Scratch,
}

struct Layer {
    norm1: Norm,
    attention: SelfAttention,
    scale1: Option<Memory>,
    norm2: Norm,
    feed_forward: FeedForward,
    scale2: Option<Memory>,
}

enum FeedForward {
    Gated { linear_in: Linear, linear_out: Linear, gating: Gating },
    Plain { linear1: Linear, linear2: Linear },
}

/// What every layer uses in turn, for as many positions as a step can have.
pub(super) struct Scratch {
    /// positions × d_model
    pub(super) normed: Memory,
    /// positions × 3 d_model
    pub(super) projected: Memory,
    /// What blocks of slots make of the values: see `attend` in `transformer.cu`.
    pub(super) parts: Memory,
    /// positions × d_model
    pub(super) mixed: Memory,
    wide: Memory,
    gated: Memory,
    halves: Option<Memory>,
}

impl Scratch {
    fn new(
        card: &Arc<Card>,
        shape: &TransformerShape,
        positions: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let room = |numbers: usize| Memory::zeroed(card, positions * numbers * size_of::<f32>());
        let d = shape.d_model;
        let [wide, gated] = inner_widths(shape);
        Ok(Self {
            normed: room(d)?,
            projected: room(3 * d)?,
            parts: room(parts_numbers(shape))?,
            mixed: room(d)?,
            wide: room(wide)?,
            gated: room(gated)?,
            halves: match halves_bytes(positions * widest_input(shape), precision) {
                0 => None,
                bytes => Some(Memory::zeroed(card, bytes)?),
            },
        })
    }

    /// What [`Linear::forward`] has its halves in; none where everything is in f32.
    pub(super) fn halves(&self) -> Option<&Memory> {
        self.halves.as_ref()
    }
}

/// What a feed-forward block makes of a position, before and after its gate.
fn inner_widths(shape: &TransformerShape) -> [usize; 2] {
    match shape.gating {
        Some(_) => [2 * shape.gated_width(), shape.gated_width()],
        None => [shape.dim_feedforward, 0],
    }
}

/// The most inputs of a product.
fn widest_input(shape: &TransformerShape) -> usize {
    let inner = if shape.gating.is_some() { shape.gated_width() } else { shape.dim_feedforward };
    shape.d_model.max(inner)
}

/// Bytes that the layers work in for each position of a step.
pub(super) fn scratch_bytes(shape: &TransformerShape, precision: Precision) -> usize {
    let inner: usize = inner_widths(shape).iter().sum();
    let numbers = 5 * shape.d_model + parts_numbers(shape) + inner;
    numbers * size_of::<f32>() + halves_bytes(widest_input(shape), precision)
}

impl Transformer {
    /// Loads `layers.{l}` below `weights`, for steps of up to `lanes`.
    pub(super) fn load(
        card: &Arc<Card>,
        shape: &TransformerShape,
        which: Which,
        count: usize,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let layers = (0..shape.num_layers)
            .map(|l| Layer::load(card, shape, lanes, &weights.at("layers").at(l)))
            .collect::<Result<_, _>>()?;
        let Placement { precision, kv_precision, .. } = *weights.placement();
        Ok(Self {
            layers,
            attention: AttentionKernels::new(card, shape, count, which, kv_precision)?,
            gate: card.kernel("gate")?,
            count,
            scratch: Scratch::new(card, shape, lanes * count, precision)?,
        })
    }

    /// Room for the halves of what the layers multiply, which others may use between two steps.
    pub(super) fn halves(&self) -> Option<&Memory> {
        self.scratch.halves()
    }

    /// Advances `rows`; `x`, rows × count × d_model, becomes what the layers make of it.
    pub(super) fn forward(&self, x: &Memory, rows: Rows<'_>) -> Result<(), EngineError> {
        let (positions, scratch) = (rows.count * self.count, &self.scratch);
        for layer in &self.layers {
            layer.norm1.forward(x, positions, &scratch.normed)?;
            let scale = layer.scale1.as_ref();
            layer.attention.forward(&self.attention, rows, x, scale, scratch)?;
            layer.norm2.forward(x, positions, &scratch.normed)?;
            layer.feed_forward.forward(self.gate, positions, x, layer.scale2.as_ref(), scratch)?;
        }
        Ok(())
    }
}

impl Layer {
    fn load(
        card: &Arc<Card>,
        shape: &TransformerShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let d = shape.d_model;
        let scale = |name: &str| {
            let scale = shape.layer_scale.map(|_| weights.at(name).f32_vec("scale", &[d]));
            scale.transpose()?.map(|numbers| Memory::of(card, &numbers)).transpose()
        };
        Ok(Self {
            norm1: Norm::load(card, shape.norm, d, &weights.at("norm1"))?,
            attention: SelfAttention::load(card, shape, lanes, &weights.at("self_attn"))?,
            scale1: scale("layer_scale_1")?,
            norm2: Norm::load(card, shape.norm, d, &weights.at("norm2"))?,
            feed_forward: FeedForward::load(card, shape, weights)?,
            scale2: scale("layer_scale_2")?,
        })
    }
}

impl FeedForward {
    fn load(
        card: &Arc<Card>,
        shape: &TransformerShape,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let (d, bias) = (shape.d_model, shape.bias_ff);
        let load =
            |outputs, inputs, at: Weights<'_>| Linear::load(card, outputs, inputs, bias, &at);
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

    /// From `scratch.normed`, positions × d_model, to `x`, to which it is added.
    fn forward(
        &self,
        gate: Kernel,
        positions: usize,
        x: &Memory,
        scale: Option<&Memory>,
        scratch: &Scratch,
    ) -> Result<(), EngineError> {
        let Scratch { normed, wide, gated, .. } = scratch;
        let halves = scratch.halves();
        let added = Output { y: x.address(), ending: Ending::Add, scale };
        match self {
            Self::Gated { linear_in, linear_out, gating } => {
                linear_in.forward(normed, positions, Output::store(wide.address()), halves)?;
                let width = linear_in.outputs() / 2;
                let gating = match gating {
                    Gating::Silu => 0i32,
                    Gating::Gelu => 1,
                    Gating::Relu => 2,
                    Gating::Sigmoid => 3,
                };
                let grid = Grid { blocks: [width.div_ceil(256), positions, 1], threads: 256 };
                launch!(x.card(), gate, grid; wide.address(), gated.address(), width as i32, gating)?;
                linear_out.forward(gated, positions, added, halves)
            }
            Self::Plain { linear1, linear2 } => {
                let gelu = Output { y: wide.address(), ending: Ending::Gelu, scale: None };
                linear1.forward(normed, positions, gelu, halves)?;
                linear2.forward(wide, positions, added, halves)
            }
        }
    }
}
