//! The language model: one text stream and many audio streams in, text and VAD out.

use moshi_ctl_core::Precision;

use super::kernels::softmax;
use super::linear::{Embedding, Linear, Operand};
use super::norm::Norm;
use super::pool::Pool;
use super::transformer::Transformer;
use crate::EngineError;
use crate::backend::{LmInputs, LmOutputs};
use crate::conditioner::condition;
use crate::weights::{Model, Placement, Weights};

/// A temporal transformer with its embeddings and heads.
pub(super) struct LanguageModel {
    width: usize,
    text_embedding: Embedding,
    audio_embeddings: Vec<Embedding>,
    condition: Option<Vec<f32>>,
    transformer: Transformer,
    out_norm: Norm,
    text_head: Linear,
    vad_heads: Vec<Linear>,
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    /// lanes × d_model
    x: Vec<f32>,
    normed: Vec<f32>,
    row: Vec<f32>,
    classes: Vec<f32>,
    operand: Operand,
}

impl LanguageModel {
    pub(super) fn load(model: &Model<'_>, weights: &Weights<'_>) -> Result<Self, EngineError> {
        let Model { shape, lanes, conditioning } = *model;
        let d = shape.transformer.d_model;
        let audio_embedding =
            |k| Embedding::load(shape.audio_vocab_size, d, &weights.at("emb").at(k));
        // Their few weights decide when a speaker is done: they stay as exact as they are.
        let exact = Placement { precision: Precision::F32, ..weights.placement().clone() };
        let exact = weights.placed(&exact);
        let heads = shape.extra_heads.map_or(0, |heads| heads.num_heads);
        let classes = shape.extra_heads.map_or(0, |heads| heads.dim);
        let vad_head = |i| Linear::load(classes, d, false, &exact.at("extra_heads").at(i));
        Ok(Self {
            width: d,
            text_embedding: Embedding::load(shape.text_in_vocab_size, d, &weights.at("text_emb"))?,
            audio_embeddings: (0..shape.audio_codebooks)
                .map(audio_embedding)
                .collect::<Result<_, _>>()?,
            condition: condition(shape, conditioning, weights)?,
            transformer: Transformer::load(&shape.transformer, lanes, &weights.at("transformer"))?,
            out_norm: Norm::load(shape.transformer.norm, d, &weights.at("out_norm"))?,
            text_head: Linear::load(
                shape.text_out_vocab_size,
                d,
                false,
                &weights.at("text_linear"),
            )?,
            vad_heads: (0..heads).map(vad_head).collect::<Result<_, _>>()?,
            scratch: Scratch::default(),
        })
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.transformer.reset(lane);
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.transformer.keep_lanes(count);
    }

    pub(super) fn fill_context(&mut self, lane: usize) {
        self.transformer.fill_context(lane);
    }

    /// Advances `lanes` by one step with one input each.
    pub(super) fn forward(
        &mut self,
        inputs: &LmInputs,
        lanes: &[usize],
        outputs: &mut LmOutputs,
        pool: &mut Pool,
    ) {
        self.embed(inputs, lanes.len());
        let Scratch { x, normed, classes, operand, .. } = &mut self.scratch;
        self.transformer.forward(x, lanes, pool);
        self.out_norm.forward(x, normed, pool);
        self.text_head.forward(normed, lanes.len(), &mut outputs.text_logits, operand, pool);
        let heads = self.vad_heads.len();
        outputs.vad.resize(lanes.len() * heads, 0.0);
        for (h, head) in self.vad_heads.iter().enumerate() {
            head.forward(normed, lanes.len(), classes, operand, pool);
            for (i, classes) in classes.chunks_exact_mut(head.outputs()).enumerate() {
                softmax(classes);
                outputs.vad[i * heads + h] = classes[0];
            }
        }
    }

    /// Makes `x` the sum of all embeddings and the condition.
    fn embed(&mut self, inputs: &LmInputs, lanes: usize) {
        let Scratch { x, row, .. } = &mut self.scratch;
        x.resize(lanes * self.width, 0.0);
        for (lane_index, sum) in x.chunks_exact_mut(self.width).enumerate() {
            sum.fill(0.0);
            self.text_embedding.add_row(inputs.text[lane_index], sum, row);
            for (embedding, &token) in self.audio_embeddings.iter().zip(inputs.audio_of(lane_index))
            {
                embedding.add_row(token, sum, row);
            }
            for (sum, number) in sum.iter_mut().zip(self.condition.iter().flatten()) {
                *sum += number;
            }
        }
    }
}
