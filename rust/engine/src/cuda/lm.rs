//! The language model: one text stream and many audio streams in, text and VAD out.

use std::sync::Arc;

use moshi_ctl_core::{LmShape, Precision};

use super::driver::{Card, Grid, Kernel};
use super::launch;
use super::linear::{Linear, Matrix, Output, address};
use super::memory::Memory;
use super::norm::Norm;
use super::rows::{Rows, Which};
use super::transformer::Transformer;
use crate::EngineError;
use crate::conditioner::condition;
use crate::weights::{Model, Placement, Weights};

/// A temporal transformer with its embeddings and heads.
pub(super) struct LanguageModel {
    embeddings: Embeddings,
    transformer: Transformer,
    out_norm: Norm,
    text_head: Linear,
    vad_heads: Option<VadHeads>,
    /// lanes × d_model
    x: Memory,
    normed: Memory,
}

/// All heads as one product.
struct VadHeads {
    linear: Linear,
    /// Classes of each head.
    classes: usize,
}

impl LanguageModel {
    pub(super) fn load(
        card: &Arc<Card>,
        model: &Model<'_>,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let Model { shape, lanes, .. } = *model;
        let d = shape.transformer.d_model;
        let room = || Memory::zeroed(card, lanes * d * size_of::<f32>());
        Ok(Self {
            embeddings: Embeddings::load(card, model, weights)?,
            transformer: Transformer::load(
                card,
                &shape.transformer,
                Which::LanguageModel,
                1,
                lanes,
                &weights.at("transformer"),
            )?,
            out_norm: Norm::load(card, shape.transformer.norm, d, &weights.at("out_norm"))?,
            text_head: Linear::load(
                card,
                shape.text_out_vocab_size,
                d,
                false,
                &weights.at("text_linear"),
            )?,
            vad_heads: VadHeads::load(card, shape, weights)?,
            x: room()?,
            normed: room()?,
        })
    }

    /// Advances `rows`. `tokens`: rows × streams. Fills `logits`, rows × vocabulary, and `classes`,
    /// rows × all classes of the VAD heads.
    pub(super) fn forward(
        &self,
        tokens: u64,
        rows: Rows<'_>,
        logits: u64,
        classes: u64,
    ) -> Result<(), EngineError> {
        let lanes = rows.count;
        self.embeddings.sum(tokens, lanes, &self.x)?;
        self.transformer.forward(&self.x, rows)?;
        self.out_norm.forward(&self.x, lanes, &self.normed)?;
        let halves = self.transformer.halves();
        self.text_head.forward(&self.normed, lanes, Output::store(logits), halves)?;
        match &self.vad_heads {
            Some(heads) => {
                heads.linear.forward(&self.normed, lanes, Output::store(classes), halves)
            }
            None => Ok(()),
        }
    }

    /// Puts the probability of each head's first class into `vad`. `classes`: lanes × heads × classes, as
    /// `forward` left them.
    pub(super) fn first_classes(&self, classes: &[f32], vad: &mut Vec<f32>) {
        let Some(heads) = &self.vad_heads else { return };
        vad.extend(classes.chunks_exact(heads.classes).map(|scores| {
            let most = scores.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
            let sum: f32 = scores.iter().map(|x| (x - most).exp()).sum();
            (scores[0] - most).exp() / sum
        }));
    }
}

impl VadHeads {
    fn load(
        card: &Arc<Card>,
        shape: &LmShape,
        weights: &Weights<'_>,
    ) -> Result<Option<Self>, EngineError> {
        let Some(heads) = shape.extra_heads else { return Ok(None) };
        let (d, classes) = (shape.transformer.d_model, heads.dim);
        // Their few weights decide when a speaker is done: they stay as exact as they are.
        let exact = Placement { precision: Precision::F32, ..weights.placement().clone() };
        let exact = weights.placed(&exact);
        let of_heads = (0..heads.num_heads)
            .map(|i| exact.at("extra_heads").at(i).f32_vec("weight", &[classes, d]))
            .collect::<Result<Vec<_>, _>>()?;
        let number = |row: usize, i: usize| of_heads[row / classes][row % classes * d + i];
        let matrix = Matrix::of(card, heads.num_heads * classes, d, number)?;
        Ok(Some(Self { linear: Linear::new(card, matrix, None)?, classes }))
    }
}

/// Tables of all streams, one below the other.
struct Embeddings {
    tables: Matrix,
    /// Where each stream's table begins among the rows.
    firsts: Memory,
    condition: Option<Memory>,
    streams: usize,
    width: usize,
    kernel: Kernel,
}

impl Embeddings {
    fn load(
        card: &Arc<Card>,
        model: &Model<'_>,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let Model { shape, conditioning, .. } = *model;
        let width = shape.transformer.d_model;
        let mut tables = vec![(weights.at("text_emb"), shape.text_in_vocab_size)];
        for k in 0..shape.audio_codebooks {
            tables.push((weights.at("emb").at(k), shape.audio_vocab_size));
        }
        let firsts: Vec<u32> = tables
            .iter()
            .scan(0, |first, (_, rows)| Some(std::mem::replace(first, *first + *rows as u32)))
            .collect();
        let precision = weights.placement().precision;
        let condition = condition(shape, conditioning, weights)?;
        let tables = Matrix::load_tables(card, &tables, width, precision)?;
        Ok(Self {
            kernel: card.kernel(&format!("embed_{}", tables.held().name()))?,
            tables,
            streams: firsts.len(),
            firsts: Memory::of(card, &firsts)?,
            condition: condition.map(|vector| Memory::of(card, &vector)).transpose()?,
            width,
        })
    }

    /// Makes `x`, lanes × width, the sum of all streams' rows and of the condition.
    fn sum(&self, tokens: u64, lanes: usize, x: &Memory) -> Result<(), EngineError> {
        let blocks = [self.width.div_ceil(4 * 256), lanes, 1];
        launch!(x.card(), self.kernel, Grid { blocks, threads: 256 };
            tokens, self.firsts.address(), self.tables.address(), self.tables.outputs() as u64,
            address(self.condition.as_ref()), x.address(), self.streams as i32, self.width as i32)
    }
}
