//! The encoder half of a Mimi codec: audio in, audio tokens out, frame by frame.

use std::sync::Arc;

use moshi_ctl_core::CodecShape;
use moshi_ctl_core::units::FRAME_SAMPLES;

use super::conv::{Conv, Input};
use super::driver::{Card, Grid, Kernel};
use super::launch;
use super::linear::{Ending, Linear, Output};
use super::memory::Memory;
use super::rows::{Rows, Which};
use super::transformer::Transformer;
use crate::EngineError;
use crate::codebook::{codebook_entries, half_norms};
use crate::conv_shape::{Activation, ConvShape, EncoderShape, NamedConv};
use crate::weights::Weights;

/// Entries that a block of `search` looks at, and rows that it does so for: see `codec.cu`.
const SEARCH_ENTRIES: usize = 64;
const SEARCH_ROWS: usize = 4;

/// The widest entry that a block has room for.
const MOST_CODE_DIM: usize = 256;

/// Mimi's encoder for many lanes (arXiv:2410.00037, section 3.3).
pub(super) struct Codec {
    first: Conv,
    stages: Vec<Stage>,
    last: Conv,
    transformer: Transformer,
    downsample: Conv,
    quantizer: SplitQuantizer,
    buffers: Buffers,
}

struct Stage {
    /// x + narrow(elu(wide(elu(x))))
    residuals: Vec<[Conv; 2]>,
    downsample: Conv,
}

/// What the convolutions use in turn, for all lanes.
struct Buffers {
    x: Memory,
    inner: Memory,
    y: Memory,
    extended: Memory,
}

/// Numbers of each buffer for one lane.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BufferNumbers {
    /// What goes from module to module; there are two.
    pub(super) outer: usize,
    pub(super) inner: usize,
    pub(super) extended: usize,
}

impl BufferNumbers {
    pub(super) fn of(shape: &CodecShape) -> Self {
        let EncoderShape { first, stages, last } = EncoderShape::new(shape);
        let (mut numbers, mut time) = (Self::default(), FRAME_SAMPLES);
        let extended = |conv: ConvShape, time: usize| (conv.memory() + time) * conv.inputs;
        numbers.extended = extended(first.shape, time);
        numbers.outer = time * first.shape.outputs;
        for stage in &stages {
            for [wide, narrow] in &stage.residuals {
                numbers.inner = numbers.inner.max(time * wide.shape.outputs);
                for conv in [wide.shape, narrow.shape] {
                    numbers.extended = numbers.extended.max(extended(conv, time));
                }
            }
            let strided = stage.downsample.shape;
            numbers.extended = numbers.extended.max(extended(strided, time));
            time /= strided.stride;
            numbers.outer = numbers.outer.max(time * strided.outputs);
        }
        for (conv, time) in [(last.shape, time), (ConvShape::downsample(shape), time)] {
            numbers.extended = numbers.extended.max(extended(conv, time));
            numbers.outer = numbers.outer.max(time * conv.outputs);
        }
        numbers
    }
}

impl Codec {
    pub(super) fn load(
        card: &Arc<Card>,
        shape: &CodecShape,
        codebooks: usize,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let encoder = weights.at("encoder").at("model");
        let conv = |conv: &NamedConv| Conv::load(card, conv.shape, lanes, &encoder.at(&conv.name));
        let EncoderShape { first, stages, last } = EncoderShape::new(shape);
        let stages = stages.iter().map(|stage| {
            let residuals = stage.residuals.iter();
            let residuals =
                residuals.map(|[wide, narrow]| Ok::<_, EngineError>([conv(wide)?, conv(narrow)?]));
            Ok(Stage {
                residuals: residuals.collect::<Result<_, _>>()?,
                downsample: conv(&stage.downsample)?,
            })
        });
        let numbers = BufferNumbers::of(shape);
        let room = |numbers: usize| Memory::zeroed(card, lanes * numbers * size_of::<f32>());
        let transformer = weights.at("encoder_transformer").at("transformer");
        let downsample = weights.at("downsample").at("conv");
        Ok(Self {
            first: conv(&first)?,
            stages: stages.collect::<Result<_, EngineError>>()?,
            last: conv(&last)?,
            transformer: Transformer::load(
                card,
                &shape.transformer(),
                Which::Codec,
                shape.latents_per_frame(),
                lanes,
                &transformer,
            )?,
            downsample: Conv::load(card, ConvShape::downsample(shape), lanes, &downsample)?,
            quantizer: SplitQuantizer::load(card, shape, codebooks, lanes, weights)?,
            buffers: Buffers {
                x: room(numbers.outer)?,
                inner: room(numbers.inner)?,
                y: room(numbers.outer)?,
                extended: room(numbers.extended)?,
            },
        })
    }

    /// Encodes one frame of each of `rows`. `pcm`: rows × `FRAME_SAMPLES`. Fills `codes`, rows ×
    /// codebooks, and `is_finite`, one for each row.
    pub(super) fn encode(
        &self,
        pcm: u64,
        rows: Rows<'_>,
        codes: u64,
        is_finite: u64,
    ) -> Result<(), EngineError> {
        let Buffers { x, inner, y, extended } = &self.buffers;
        let (mut x, mut y, mut time) = (x, y, FRAME_SAMPLES);
        let elu = |x: &Memory, time| Input { x: x.address(), activation: Activation::Elu, time };
        let plain = |x, time| Input { x, activation: Activation::None, time };
        let store = Ending::Store;
        self.first.forward(plain(pcm, time), rows, extended, x, store)?;
        for stage in &self.stages {
            for [wide, narrow] in &stage.residuals {
                wide.forward(elu(x, time), rows, extended, inner, store)?;
                narrow.forward(elu(inner, time), rows, extended, x, Ending::Add)?;
            }
            stage.downsample.forward(elu(x, time), rows, extended, y, store)?;
            time /= stage.downsample.stride();
            std::mem::swap(&mut x, &mut y);
        }
        self.last.forward(elu(x, time), rows, extended, y, store)?;
        self.transformer.forward(y, rows)?;
        self.downsample.forward(plain(y.address(), time), rows, extended, x, store)?;
        self.quantizer.encode(x, rows.count, codes, is_finite)
    }
}

/// Split residual vector quantization: one semantic codebook beside a residual stack of acoustic
/// ones, both over the same latents (arXiv:2410.00037, section 3.3.2).
struct SplitQuantizer {
    semantic: ResidualQuantizer,
    acoustic: Option<ResidualQuantizer>,
    codebooks: usize,
    dimension: usize,
    scratch: SearchScratch,
    search: Kernel,
    conclude: Kernel,
}

struct ResidualQuantizer {
    input_proj: Linear,
    levels: Vec<Level>,
    dim: usize,
    bins: usize,
}

struct Level {
    /// bins × dim
    entries: Memory,
    half_norms: Memory,
}

/// What levels use in turn; the one before and this one have theirs.
struct SearchScratch {
    /// What the levels so far leave of the latents, lanes × dim.
    residuals: [Memory; 2],
    /// The nearest entry that each block has found, lanes × blocks.
    bests: [Memory; 2],
}

impl SplitQuantizer {
    fn load(
        card: &Arc<Card>,
        shape: &CodecShape,
        codebooks: usize,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        if shape.quantizer_dim > MOST_CODE_DIM {
            return Err(EngineError::new(format!(
                "codebook entries of {} numbers cannot be searched on a card: {MOST_CODE_DIM} is \
                 the most",
                shape.quantizer_dim
            ))
            .with_hint("Run this model on the CPU with --device cpu."));
        }
        let weights = weights.at("quantizer");
        let load =
            |levels, name: &str| ResidualQuantizer::load(card, shape, levels, &weights.at(name));
        let residual = || Memory::zeroed(card, lanes * shape.quantizer_dim * size_of::<f32>());
        let bests = || Memory::zeroed(card, lanes * best_bytes(shape.quantizer_bins));
        Ok(Self {
            semantic: load(1, "rvq_first")?,
            acoustic: (codebooks > 1).then(|| load(codebooks - 1, "rvq_rest")).transpose()?,
            codebooks,
            dimension: shape.dimension,
            scratch: SearchScratch {
                residuals: [residual()?, residual()?],
                bests: [bests()?, bests()?],
            },
            search: card.kernel("search")?,
            conclude: card.kernel("conclude")?,
        })
    }

    /// `latents`: lanes × dimension.
    fn encode(
        &self,
        latents: &Memory,
        lanes: usize,
        codes: u64,
        is_finite: u64,
    ) -> Result<(), EngineError> {
        self.choose(&self.semantic, latents, lanes, codes, is_finite)?;
        match &self.acoustic {
            Some(acoustic) => {
                self.choose(acoustic, latents, lanes, codes + size_of::<u32>() as u64, is_finite)
            }
            None => Ok(()),
        }
    }

    /// The choice of each level; `codes` is where that of the first is to be.
    fn choose(
        &self,
        quantizer: &ResidualQuantizer,
        latents: &Memory,
        lanes: usize,
        codes: u64,
        is_finite: u64,
    ) -> Result<(), EngineError> {
        let ResidualQuantizer { input_proj, levels, dim, bins } = quantizer;
        let SearchScratch { residuals, bests } = &self.scratch;
        let (card, stride) = (latents.card(), self.codebooks as i32);
        let blocks = bins.div_ceil(SEARCH_ENTRIES);
        input_proj.forward(latents, lanes, Output::store(residuals[0].address()), None)?;
        let code = |level: usize| codes + (level * size_of::<u32>()) as u64;
        for (k, level) in levels.iter().enumerate() {
            let (this, other) = (k % 2, (k + 1) % 2);
            let before = k.checked_sub(1);
            let grid = Grid { blocks: [blocks, lanes.div_ceil(SEARCH_ROWS), 1], threads: 256 };
            launch!(card, self.search, grid;
                residuals[this].address(), residuals[other].address(),
                before.map_or(0, |before| levels[before].entries.address()),
                bests[other].address(), code(before.unwrap_or(0)),
                level.entries.address(), level.half_norms.address(), bests[this].address(),
                lanes as i32, *dim as i32, *bins as i32, stride)?;
        }
        let last = levels.len() - 1;
        launch!(card, self.conclude, Grid { blocks: [lanes, 1, 1], threads: 128 };
            bests[last % 2].address(), blocks as i32, code(last), stride,
            latents.address(), self.dimension as i32, is_finite)
    }
}

/// Bytes of what the blocks of `search` have found for one lane.
pub(super) fn best_bytes(bins: usize) -> usize {
    bins.div_ceil(SEARCH_ENTRIES) * (size_of::<f32>() + size_of::<u32>())
}

impl ResidualQuantizer {
    fn load(
        card: &Arc<Card>,
        shape: &CodecShape,
        levels: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let (dimension, dim, bins) = (shape.dimension, shape.quantizer_dim, shape.quantizer_bins);
        let proj = weights.at("input_proj");
        let levels = (0..levels).map(|k| {
            let weights = weights.at("vq.layers").at(k).at("_codebook");
            let entries = codebook_entries(shape, &weights)?;
            let half_norms = Memory::of(card, &half_norms(&entries, dim))?;
            Ok(Level { entries: Memory::of(card, &entries)?, half_norms })
        });
        Ok(Self {
            input_proj: Linear::load_named(card, "weight", &[dim, dimension, 1], None, &proj)?,
            levels: levels.collect::<Result<_, EngineError>>()?,
            dim,
            bins,
        })
    }
}
