//! The language model: one text stream and many audio streams in, text and VAD out.

use candle_core::Tensor;
use moshi_ctl_core::LmShape;

use super::linear::{Embedding, Linear};
use super::norm::Norm;
use super::transformer::Transformer;
use crate::EngineError;
use crate::backend::{LmInputs, LmOutputs};
use crate::conditioner::{Conditioning, condition};
use crate::weights::Weights;

/// A temporal transformer with its embeddings and heads.
pub(super) struct LanguageModel {
    text_embedding: Embedding,
    audio_embeddings: Vec<Embedding>,
    condition: Option<Tensor>,
    transformer: Transformer,
    out_norm: Norm,
    text_head: Linear,
    vad_heads: Vec<Linear>,
}

impl LanguageModel {
    pub(super) fn load(
        shape: &LmShape,
        conditioning: Option<Conditioning>,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let d = shape.transformer.d_model;
        let audio_embedding =
            |k| Embedding::load(shape.audio_vocab_size, d, &weights.at("emb").at(k));
        let heads = shape.extra_heads.map_or(0, |heads| heads.num_heads);
        let classes = shape.extra_heads.map_or(0, |heads| heads.dim);
        let vad_head = |i| Linear::load(classes, d, false, &weights.at("extra_heads").at(i));
        Ok(Self {
            text_embedding: Embedding::load(shape.text_in_vocab_size, d, &weights.at("text_emb"))?,
            audio_embeddings: (0..shape.audio_codebooks)
                .map(audio_embedding)
                .collect::<Result<_, _>>()?,
            condition: condition(shape, conditioning, weights)?
                .map(|vector| Tensor::from_vec(vector, d, &weights.placement().device))
                .transpose()?,
            transformer: Transformer::load(&shape.transformer, lanes, &weights.at("transformer"))?,
            out_norm: Norm::load(shape.transformer.norm, d, &weights.at("out_norm"))?,
            text_head: Linear::load(
                shape.text_out_vocab_size,
                d,
                false,
                &weights.at("text_linear"),
            )?,
            vad_heads: (0..heads).map(vad_head).collect::<Result<_, _>>()?,
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
    ) -> Result<(), EngineError> {
        let x = self.embed(inputs, lanes.len())?.unsqueeze(1)?;
        let x = self.out_norm.forward(&self.transformer.forward(x, lanes)?)?.squeeze(1)?;
        outputs.text_logits = self.text_head.forward(&x)?.flatten_all()?.to_vec1()?;
        let first_classes = (self.vad_heads.iter())
            .map(|head| Ok(candle_nn::ops::softmax_last_dim(&head.forward(&x)?)?.narrow(1, 0, 1)?))
            .collect::<Result<Vec<_>, EngineError>>()?;
        outputs.vad = match first_classes.as_slice() {
            [] => vec![],
            heads => Tensor::cat(heads, 1)?.flatten_all()?.to_vec1()?,
        };
        Ok(())
    }

    /// The sum of all embeddings and the condition, lanes × d_model.
    fn embed(&self, inputs: &LmInputs, lanes: usize) -> Result<Tensor, EngineError> {
        let look_up = |embedding: &Embedding, tokens: Vec<u32>| {
            let tokens = Tensor::from_vec(tokens, lanes, embedding.device())?;
            embedding.forward(&tokens)
        };
        let mut sum = look_up(&self.text_embedding, inputs.text.clone())?;
        for (k, embedding) in self.audio_embeddings.iter().enumerate() {
            let tokens = (0..lanes).map(|lane_index| inputs.audio_of(lane_index)[k]).collect();
            sum = (sum + look_up(embedding, tokens)?)?;
        }
        Ok(match &self.condition {
            Some(condition) => sum.broadcast_add(condition)?,
            None => sum,
        })
    }
}
