//! The model on NVIDIA's cards, in kernels of our own.
//!
//! Everything a step needs lies on the card: weights, rings, what convolutions remember, and memory
//! for as many lanes as there are. A step of so many lanes is recorded once as a graph and then only
//! started: the machine sends tokens and samples, and waits once for tokens and logits. Which lanes
//! a step has is a table that the kernels read, so lanes need not be neighbours.

mod attention;
mod bandwidth;
mod codec;
mod conv;
mod driver;
mod layout;
mod linear;
mod lm;
mod memory;
mod norm;
mod rows;
mod transformer;

use std::collections::HashMap;
use std::sync::Arc;

use moshi_ctl_core::LmShape;
use moshi_ctl_core::units::FRAME_SAMPLES;

pub(crate) use self::bandwidth::bandwidth;
use self::codec::Codec;
pub(crate) use self::driver::{Card, start};
use self::driver::{Graph, Moment};
pub(crate) use self::layout::CudaLayout;
use self::lm::LanguageModel;
use self::memory::{Memory, Pinned};
use self::rows::{Lanes, ROW_WORDS, Rows};
use crate::EngineError;
use crate::backend::{Backend, Codes, LmInputs, LmOutputs, StepTiming};
use crate::weights::{Model, Weights};

/// Has a kernel run, with arguments that are given by value.
macro_rules! launch {
    ($card:expr, $kernel:expr, $grid:expr; $($argument:expr),+ $(,)?) => {
        // SAFETY: kernels are loaded by the modules that launch them and stay within the sizes they
        // are given, which are those of the memory; tests run them where going beyond is found out.
        unsafe {
            $card.launch($kernel, $grid, &mut [$($crate::cuda::pointer(&$argument)),+])
        }
    };
}
use launch;

/// Where an argument is, for the driver to copy.
fn pointer<T: driver::ByValue>(argument: &T) -> *mut std::ffi::c_void {
    std::ptr::from_ref(argument).cast_mut().cast()
}

// SAFETY: `repr(C)`, and declared with the same members in the kernels.
unsafe impl driver::ByValue for linear::Windows {}
// SAFETY: as above.
unsafe impl driver::ByValue for attention::Sizes {}

/// Bytes of a number, whole or not, on its way between machine and card.
const WORD: usize = 4;

/// A model on a card.
pub(crate) struct CudaBackend {
    codec: Codec,
    lm: LanguageModel,
    lanes: Lanes,
    exchange: Exchange,
    /// By their number of lanes: the codec's and the language model's half of a step.
    steps: HashMap<usize, [Graph; 2]>,
    /// Before, between and after the halves of the last step.
    moments: [Moment; 3],
    // Last, because the others are on it.
    card: Arc<Card>,
}

/// What a step sends to the card and gets from it.
struct Exchange {
    sizes: Sizes,
    inputs: Memory,
    outputs: Memory,
    to_send: Pinned,
    received: Pinned,
}

/// Words of each lane.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    codebooks: usize,
    vocabulary: usize,
    /// Classes of all VAD heads.
    classes: usize,
}

/// Where, in bytes, what a step of some lanes sends and gets begins.
#[derive(Debug, Clone, Copy)]
struct Places {
    tokens: usize,
    pcm: usize,
    inputs_end: usize,
    is_finite: usize,
    logits: usize,
    classes: usize,
    outputs_end: usize,
}

impl Sizes {
    fn of(shape: &LmShape) -> Self {
        let classes = shape.extra_heads.map_or(0, |heads| heads.num_heads * heads.dim);
        let vocabulary = shape.text_out_vocab_size;
        Self { codebooks: shape.audio_codebooks, vocabulary, classes }
    }

    fn places(self, lanes: usize) -> Places {
        let Self { codebooks, vocabulary, classes } = self;
        let after = |before: usize, words: usize| before + lanes * words * WORD;
        let tokens = after(0, ROW_WORDS);
        let pcm = after(tokens, 1 + codebooks);
        let is_finite = after(0, codebooks);
        let logits = after(is_finite, 1);
        let of_classes = after(logits, vocabulary);
        Places {
            tokens,
            pcm,
            inputs_end: after(pcm, FRAME_SAMPLES),
            is_finite,
            logits,
            classes: of_classes,
            outputs_end: after(of_classes, classes),
        }
    }
}

impl CudaBackend {
    pub(crate) fn load(
        card: &Arc<Card>,
        model: &Model<'_>,
        codec: &Weights<'_>,
        lm: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let Model { shape, lanes, .. } = *model;
        card.bind()?;
        let sizes = Sizes::of(shape);
        let places = sizes.places(lanes);
        let contexts = [shape.transformer.context, shape.codec.transformer().context];
        let moment = || Moment::new(card);
        let backend = Self {
            lm: LanguageModel::load(card, model, lm)?,
            codec: Codec::load(card, &shape.codec, shape.audio_codebooks, lanes, codec)?,
            lanes: Lanes::new(lanes, contexts, shape.codec.latents_per_frame()),
            exchange: Exchange {
                sizes,
                inputs: Memory::zeroed(card, places.inputs_end)?,
                outputs: Memory::zeroed(card, places.outputs_end)?,
                to_send: Pinned::new(card, places.inputs_end)?,
                received: Pinned::new(card, places.outputs_end)?,
            },
            steps: HashMap::new(),
            moments: [moment()?, moment()?, moment()?],
            card: card.clone(),
        };
        card.settle()?;
        Ok(backend)
    }

    /// Records both halves of a step of so many lanes.
    fn record(&self, lanes: usize) -> Result<[Graph; 2], EngineError> {
        let Exchange { sizes, inputs, outputs, to_send, received } = &self.exchange;
        let places = sizes.places(lanes);
        let rows = Rows { table: inputs, count: lanes };
        let codec = self.card.capture(|| {
            // SAFETY: the graphs are dropped with the memory, and steps wait for the card.
            unsafe { inputs.receive(to_send, places.inputs_end)? };
            let pcm = inputs.address() + places.pcm as u64;
            let is_finite = outputs.address() + places.is_finite as u64;
            self.codec.encode(pcm, rows, outputs.address(), is_finite)
        })?;
        let lm = self.card.capture(|| {
            let tokens = inputs.address() + places.tokens as u64;
            let logits = outputs.address() + places.logits as u64;
            let classes = outputs.address() + places.classes as u64;
            self.lm.forward(tokens, rows, logits, classes)?;
            // SAFETY: as above.
            unsafe { outputs.send(received, places.outputs_end) }
        })?;
        Ok([codec, lm])
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // What is still running uses memory that is about to be given back. A card that has failed
        // runs nothing.
        let _ = self.card.bind().and_then(|()| self.card.synchronize());
    }
}

impl Backend for CudaBackend {
    fn reset(&mut self, lane: usize) {
        self.lanes.reset(lane);
    }

    fn keep_lanes(&mut self, count: usize) {
        self.lanes.keep(count);
    }

    fn card_bytes(&self) -> Option<u64> {
        Some(self.card.taken())
    }

    fn fill_context(&mut self, lane: usize) -> Result<(), EngineError> {
        self.lanes.fill(lane);
        Ok(())
    }

    fn step(
        &mut self,
        pcm: &[f32],
        lanes: &[usize],
        inputs: &LmInputs,
        codes: &mut Codes,
        outputs: &mut LmOutputs,
    ) -> Result<StepTiming, EngineError> {
        self.card.bind()?;
        let count = lanes.len();
        if !self.steps.contains_key(&count) {
            let recorded = self.record(count)?;
            self.steps.insert(count, recorded);
        }
        let Exchange { sizes, to_send, received, .. } = &mut self.exchange;
        let places = sizes.places(count);
        self.lanes.begin(lanes, to_send.numbers_mut(0, count * ROW_WORDS));
        let streams = 1 + sizes.codebooks;
        let tokens = to_send.numbers_mut(places.tokens, count * streams);
        for (i, tokens) in tokens.chunks_exact_mut(streams).enumerate() {
            tokens[0] = inputs.text[i];
            tokens[1..].copy_from_slice(inputs.audio_of(i));
        }
        to_send.numbers_mut(places.pcm, count * FRAME_SAMPLES).copy_from_slice(pcm);
        let [codec, lm] = &self.steps[&count];
        let [before, between, after] = &self.moments;
        before.mark()?;
        codec.launch()?;
        between.mark()?;
        lm.launch()?;
        after.mark()?;
        self.card.synchronize()?;
        codes.begin(count);
        codes.tokens.copy_from_slice(received.numbers(0, count * sizes.codebooks));
        for (margin, is_finite) in
            codes.margins.iter_mut().zip(received.numbers::<u32>(places.is_finite, count))
        {
            if *is_finite == 0 {
                *margin = None;
            }
        }
        outputs.clear();
        let logits = received.numbers(places.logits, count * sizes.vocabulary);
        outputs.text_logits.extend_from_slice(logits);
        let classes = received.numbers(places.classes, count * sizes.classes);
        self.lm.first_classes(classes, &mut outputs.vad);
        Ok(StepTiming { codec: between.since(before)?, lm: after.since(between)?, threads: None })
    }
}
