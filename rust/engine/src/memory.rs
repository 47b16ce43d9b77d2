//! What a model takes up, computed from its shape and its files' headers: nothing is loaded.

use std::path::Path;

use moshi_ctl_core::units::FRAME_SAMPLES;
use moshi_ctl_core::{CodecShape, LmShape, Norm, Precision, TransformerShape};
use serde::Serialize;

use crate::EngineError;
use crate::candle::CandleLayout;
use crate::checkpoint::{Checkpoint, Format};
use crate::conv_shape::{ConvShape, EncoderShape};
use crate::cpu::CpuLayout;
#[cfg(cuda)]
use crate::cuda::CudaLayout;
use crate::precision::DeviceKind;

/// The published language models are in this format.
const PUBLISHED: Format = Format::Bf16;

/// What tells the format of a language model's matrices, all of which have one.
const FIRST_MATRIX: &str = "transformer.layers.0.self_attn.in_proj_weight";

/// Bytes that a model takes up on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryNeeds {
    /// The language model's weights.
    pub lm_weights_bytes: u64,
    /// The codec's weights.
    pub codec_weights_bytes: u64,
    /// What a step works in whatever the number of lanes.
    pub workspace_bytes: u64,
    /// What the device takes for itself in a process that uses it, however many models it has.
    pub device_bytes: u64,
    /// What each lane holds once it has heard a whole context: keys, values and the ends of what
    /// convolutions have seen.
    pub lane_state_bytes: u64,
    /// What each lane adds to what a step works in.
    pub lane_workspace_bytes: u64,
}

impl MemoryNeeds {
    /// Of a model without lanes, apart from the device's share.
    pub fn fixed_bytes(&self) -> u64 {
        self.lm_weights_bytes + self.codec_weights_bytes + self.workspace_bytes
    }

    /// Of each lane.
    pub fn lane_bytes(&self) -> u64 {
        self.lane_state_bytes + self.lane_workspace_bytes
    }

    /// Of a process with one such model with `lanes`, all of them with a whole context.
    pub fn total_bytes(&self, lanes: usize) -> u64 {
        self.device_bytes + self.fixed_bytes() + lanes as u64 * self.lane_bytes()
    }
}

/// A language model whose needs are asked for.
pub struct MemorySubject<'a> {
    shape: &'a LmShape,
    lm: Option<Checkpoint>,
}

impl<'a> MemorySubject<'a> {
    /// Reads the header of `lm_model_file`; without a file the model is taken to be as published.
    ///
    /// # Errors
    /// When the header cannot be read.
    pub fn new(shape: &'a LmShape, lm_model_file: Option<&Path>) -> Result<Self, EngineError> {
        Ok(Self { shape, lm: lm_model_file.map(Checkpoint::open).transpose()? })
    }

    /// How many parameters the file has, where there is one.
    pub fn parameters_in_file(&self) -> Option<u64> {
        self.lm.as_ref().map(Checkpoint::elements)
    }

    /// What the model takes up on a device of this kind, with weights, keys and values in these
    /// precisions.
    ///
    /// # Errors
    /// When the file holds another model than the shape describes.
    pub fn needs(
        &self,
        device: DeviceKind,
        precision: Precision,
        kv_precision: Precision,
    ) -> Result<MemoryNeeds, EngineError> {
        let layout: &dyn Layout = match device {
            DeviceKind::Cpu => &CpuLayout,
            #[cfg(cuda)]
            DeviceKind::Cuda { .. } => &CudaLayout,
            _ => &CandleLayout,
        };
        let lm = self.language_model(layout, precision, kv_precision)?;
        let codec = codec(layout, &self.shape.codec, self.shape.audio_codebooks);
        Ok(MemoryNeeds {
            lm_weights_bytes: lm.weights,
            codec_weights_bytes: codec.weights,
            workspace_bytes: lm.workspace.max(codec.workspace),
            device_bytes: layout.device_bytes(device),
            lane_state_bytes: lm.lane_state + codec.lane_state,
            lane_workspace_bytes: lm.lane_workspace + codec.lane_workspace,
        })
    }

    fn language_model(
        &self,
        layout: &dyn Layout,
        precision: Precision,
        kv_precision: Precision,
    ) -> Result<Part, EngineError> {
        let shape = self.shape;
        let d = shape.transformer.d_model;
        let embedding = |name: String, rows| {
            let format = match &self.lm {
                Some(file) => file.format(&format!("{name}.weight"), &[rows, d])?,
                None => PUBLISHED,
            };
            Ok::<_, EngineError>(layout.embedding(rows, d, format, precision))
        };
        let format = match &self.lm {
            Some(file) => file.format(FIRST_MATRIX, &[3 * d, d])?,
            None => PUBLISHED,
        };
        let held = Held { format, precision, kv_precision };
        let mut part = transformer(layout, &shape.transformer, 1, held);
        part.weights += embedding("text_emb".into(), shape.text_in_vocab_size)?;
        for k in 0..shape.audio_codebooks {
            part.weights += embedding(format!("emb.{k}"), shape.audio_vocab_size)?;
        }
        part.weights += layout.matrix(shape.text_out_vocab_size, d, format, precision);
        if let Some(heads) = shape.extra_heads {
            part.weights += heads.num_heads as u64 * layout.exact_matrix(heads.dim, d, precision);
        }
        part.weights += norm(shape.transformer.norm, d);
        part.lane_workspace += floats(shape.text_out_vocab_size + 3 * d);
        Ok(part)
    }
}

/// How much memory a backend takes for the parts of a model. All results are bytes.
pub(crate) trait Layout {
    /// Of a matrix that the file has in `format`, in this precision.
    fn matrix(&self, outputs: usize, inputs: usize, format: Format, precision: Precision) -> u64;

    /// Of a small matrix that decides much.
    fn exact_matrix(&self, outputs: usize, inputs: usize, precision: Precision) -> u64;

    /// Of a table of tokens that the file has in `format`.
    fn embedding(&self, rows: usize, dim: usize, format: Format, precision: Precision) -> u64;

    /// Of one codebook.
    fn codebook(&self, bins: usize, dim: usize) -> u64;

    /// Of one lane's keys and values in one layer.
    fn ring(&self, shape: &TransformerShape, precision: Precision) -> u64;

    /// What the layers of a transformer work in, for each of the rows that a lane has in a step.
    fn transformer_row(&self, shape: &TransformerShape, precision: Precision) -> u64;

    /// What the layers of a transformer work in once, however many lanes there are.
    fn transformer_workspace(&self, shape: &TransformerShape, precision: Precision) -> u64;

    /// What one lane's pass through the convolutions works in.
    fn encoder_lane(&self, shape: &CodecShape, convolutions: &[(ConvShape, usize)]) -> u64;

    /// What the device takes for itself as soon as a process uses it.
    fn device_bytes(&self, device: DeviceKind) -> u64;
}

/// Bytes of a part of a model.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    weights: u64,
    workspace: u64,
    lane_state: u64,
    lane_workspace: u64,
}

/// Bytes of so many f32.
pub(crate) fn floats(count: usize) -> u64 {
    (count * size_of::<f32>()) as u64
}

/// Outputs and inputs of the matrices of a layer.
pub(crate) fn matrices_of_layer(shape: &TransformerShape) -> Vec<(usize, usize)> {
    let d = shape.d_model;
    let (up, down) = match shape.gating {
        Some(_) => (2 * shape.gated_width(), shape.gated_width()),
        None => (shape.dim_feedforward, shape.dim_feedforward),
    };
    vec![(3 * d, d), (d, d), (up, d), (d, down)]
}

fn norm(kind: Norm, width: usize) -> u64 {
    match kind {
        Norm::RmsNorm => floats(width),
        Norm::LayerNorm => floats(2 * width),
    }
}

/// How matrices are in the file, and how they and the rings are to be held.
#[derive(Clone, Copy)]
struct Held {
    format: Format,
    precision: Precision,
    kv_precision: Precision,
}

/// How a codec is.
const EXACT: Held =
    Held { format: Format::F32, precision: Precision::F32, kv_precision: Precision::F32 };

/// A transformer that advances each lane by `rows` positions in a step.
fn transformer(layout: &dyn Layout, shape: &TransformerShape, rows: usize, held: Held) -> Part {
    let Held { format, precision, kv_precision } = held;
    let d = shape.d_model;
    let matrices = matrices_of_layer(shape);
    let matrices =
        matrices.iter().map(|&(outputs, inputs)| layout.matrix(outputs, inputs, format, precision));
    let scales = shape.layer_scale.map_or(0, |_| 2 * floats(d));
    let layer = matrices.sum::<u64>() + 2 * norm(shape.norm, d) + scales;
    let layers = shape.num_layers as u64;
    Part {
        weights: layers * layer,
        workspace: layout.transformer_workspace(shape, precision),
        lane_state: layers * layout.ring(shape, kv_precision),
        lane_workspace: rows as u64 * layout.transformer_row(shape, precision),
    }
}

/// The encoder half of a codec, in f32.
fn codec(layout: &dyn Layout, shape: &CodecShape, codebooks: usize) -> Part {
    let convolutions = convolutions(shape);
    let rows = shape.latents_per_frame();
    let mut part = transformer(layout, &shape.transformer(), rows, EXACT);
    let matrix = |outputs, inputs| layout.matrix(outputs, inputs, EXACT.format, EXACT.precision);
    let downsample = ConvShape::downsample(shape);
    for ConvShape { inputs, outputs, kernel, bias, .. } in
        convolutions.iter().map(|(shape, _)| *shape).chain([downsample])
    {
        part.weights += matrix(outputs, inputs * kernel);
        part.weights += if bias { floats(outputs) } else { 0 };
    }
    let memory = |shape: &ConvShape| floats(shape.memory() * shape.inputs);
    part.lane_state += convolutions.iter().map(|(shape, _)| memory(shape)).sum::<u64>();
    part.lane_state += memory(&downsample);
    part.lane_workspace += layout.encoder_lane(shape, &convolutions);
    // The semantic codebook is projected for itself, the others together.
    let projections = codebooks.min(2) as u64;
    let (bins, dim) = (shape.quantizer_bins, shape.quantizer_dim);
    part.weights += projections * matrix(dim, shape.dimension);
    part.weights += codebooks as u64 * layout.codebook(bins, dim);
    part.lane_workspace += floats(bins + dim);
    part
}

/// The encoder's convolutions in their order, each with how many positions a frame is to it.
fn convolutions(shape: &CodecShape) -> Vec<(ConvShape, usize)> {
    let EncoderShape { first, stages, last } = EncoderShape::new(shape);
    let mut time = FRAME_SAMPLES;
    let mut all = vec![(first.shape, time)];
    for stage in stages {
        all.extend(stage.residuals.iter().flatten().map(|conv| (conv.shape, time)));
        all.push((stage.downsample.shape, time));
        time /= stage.downsample.shape.stride;
    }
    all.push((last.shape, time));
    all
}
