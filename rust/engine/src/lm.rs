//! The language model: one text stream and many audio streams in, text and VAD out.

use candle_core::Tensor;
use moshi_ctl_core::LmShape;

use crate::EngineError;
use crate::conditioner::{Conditioning, condition};
use crate::linear::{Embedding, Linear};
use crate::norm::Norm;
use crate::transformer::Transformer;
use crate::weights::Weights;

/// A temporal transformer with its embeddings and heads.
pub(crate) struct LanguageModel {
    text_embedding: Embedding,
    audio_embeddings: Vec<Embedding>,
    condition: Option<Tensor>,
    transformer: Transformer,
    out_norm: Norm,
    text_head: Linear,
    vad_heads: Vec<Linear>,
}

/// The tokens one lane puts in.
#[derive(Debug, Clone)]
pub(crate) struct LmInput {
    pub(crate) text: u32,
    /// One per codebook.
    pub(crate) audio: Vec<u32>,
}

/// What comes out for one lane.
#[derive(Debug, Clone)]
pub(crate) struct LmOutput {
    /// One per text token.
    pub(crate) text_logits: Vec<f32>,
    /// Probability of each VAD head's first class.
    pub(crate) vad: Vec<f32>,
}

impl LanguageModel {
    pub(crate) fn load(
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
        })
    }

    pub(crate) fn reset(&mut self, lane: usize) {
        self.transformer.reset(lane);
    }

    /// Advances `lanes` by one step with one input each.
    pub(crate) fn forward(
        &mut self,
        inputs: &[LmInput],
        lanes: &[usize],
    ) -> Result<Vec<LmOutput>, EngineError> {
        let x = self.embed(inputs)?.unsqueeze(1)?;
        let x = self.out_norm.forward(&self.transformer.forward(x, lanes)?)?.squeeze(1)?;
        let logits = self.text_head.forward(&x)?.to_vec2::<f32>()?;
        let mut outputs: Vec<LmOutput> =
            logits.into_iter().map(|text_logits| LmOutput { text_logits, vad: vec![] }).collect();
        for head in &self.vad_heads {
            let classes = candle_nn::ops::softmax_last_dim(&head.forward(&x)?)?;
            let first = classes.narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f32>()?;
            for (output, probability) in outputs.iter_mut().zip(first) {
                output.vad.push(probability);
            }
        }
        Ok(outputs)
    }

    /// The sum of all embeddings and the condition, lanes × d_model.
    fn embed(&self, inputs: &[LmInput]) -> Result<Tensor, EngineError> {
        let look_up = |embedding: &Embedding, tokens: Vec<u32>| {
            let tokens = Tensor::from_vec(tokens, inputs.len(), embedding.device())?;
            embedding.forward(&tokens)
        };
        let mut sum =
            look_up(&self.text_embedding, inputs.iter().map(|input| input.text).collect())?;
        for (k, embedding) in self.audio_embeddings.iter().enumerate() {
            let tokens = inputs.iter().map(|input| input.audio[k]).collect();
            sum = (sum + look_up(embedding, tokens)?)?;
        }
        Ok(match &self.condition {
            Some(condition) => sum.broadcast_add(condition)?,
            None => sum,
        })
    }
}
