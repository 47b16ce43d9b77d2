//! A causal convolution that remembers, per lane, the end of what it has seen.

use moshi_ctl_core::Precision;

use super::buffer::Buffer;
use crate::EngineError;
use crate::conv_shape::{Activation, ConvShape, Padding};
use crate::cpu::kernels::{PackedMatrix, Rows, elu_into};
use crate::cpu::pool::{Disjoint, Pool, Work};
use crate::weights::Weights;

/// Numbers a thread activates at a time.
const ACTIVATION_CHUNK: usize = 1 << 13;

/// Activations are lanes × time × channels. Weights are f32 whatever the rest of a codec is held
/// in: in half precision the large ones alone change every sixtieth audio token.
pub(super) struct Conv {
    shape: ConvShape,
    /// outputs × (kernel · inputs): a window is one row where time is the outer dimension.
    matrix: PackedMatrix,
    /// lanes × memory × inputs, activated.
    memories: Vec<f32>,
    /// Lanes that have seen nothing yet.
    fresh: Vec<bool>,
}

/// What convolutions use in turn.
#[derive(Default)]
pub(super) struct Scratch {
    /// What each lane remembers, then its input: lanes × (memory + time) × inputs.
    extended: Buffer,
    /// Windows with gaps, one after another.
    windows: Buffer,
}

impl Conv {
    /// Loads `conv.conv.{weight,bias}` below `weights`.
    pub(super) fn load(
        shape: ConvShape,
        lanes: usize,
        weights: &Weights<'_>,
    ) -> Result<Self, EngineError> {
        let ConvShape { inputs, outputs, kernel, .. } = shape;
        let weights = weights.at("conv").at("conv");
        let bias = shape.bias.then(|| weights.f32_vec("bias", &[outputs])).transpose()?;
        let raw = weights.raw("weight", &[outputs, inputs, kernel])?;
        Self::new(shape, lanes, |index| raw.get(index), bias)
    }

    /// `weight` is asked for elements of outputs × inputs × kernel.
    fn new(
        shape: ConvShape,
        lanes: usize,
        weight: impl Fn(usize) -> f32 + Sync,
        bias: Option<Vec<f32>>,
    ) -> Result<Self, EngineError> {
        let ConvShape { inputs, outputs, kernel, .. } = shape;
        let (width, precision) = (kernel * inputs, Precision::F32);
        let matrix = PackedMatrix::pack_with(outputs, width, precision, |output, i| {
            weight((output * inputs + i % inputs) * kernel + i / inputs)
        })?;
        Ok(Self {
            shape,
            matrix: matrix.with_bias(bias),
            memories: vec![0.0; lanes * shape.memory() * inputs],
            fresh: vec![true; lanes],
        })
    }

    pub(super) fn reset(&mut self, lane: usize) {
        self.fresh[lane] = true;
    }

    pub(super) fn keep_lanes(&mut self, count: usize) {
        self.memories.truncate(count * self.shape.memory() * self.shape.inputs);
        self.fresh.truncate(count);
    }

    /// `x`: lanes × time × inputs, time a multiple of the stride. `y` becomes
    /// lanes × time / stride × outputs.
    pub(super) fn forward(
        &mut self,
        x: &[f32],
        activation: Activation,
        lanes: &[usize],
        y: &mut Buffer,
        scratch: &mut Scratch,
        pool: &mut Pool,
    ) {
        let ConvShape { inputs, outputs, stride, .. } = self.shape;
        let Scratch { extended, windows: gathered } = scratch;
        let time = x.len() / (lanes.len() * inputs);
        self.extend(x, activation, lanes, extended, pool);
        let windows = time / stride;
        let rows = Rows {
            count: lanes.len() * windows,
            group_rows: windows,
            group_stride: (self.shape.memory() + time) * inputs,
            row_stride: stride * inputs,
        };
        let y = y.room(rows.count * outputs);
        if self.shape.dilation == 1 {
            self.matrix.multiply(extended, rows, y, pool);
        } else {
            let rows = self.gather(extended, rows, gathered, pool);
            self.matrix.multiply(gathered, rows, y, pool);
        }
    }

    /// Puts what each lane remembers before its activated input, and remembers the end of that.
    fn extend(
        &mut self,
        x: &[f32],
        activation: Activation,
        lanes: &[usize],
        extended: &mut Buffer,
        pool: &mut Pool,
    ) {
        let inputs = self.shape.inputs;
        let past_len = self.shape.memory() * inputs;
        let present_len = x.len() / lanes.len();
        let length = past_len + present_len;
        let parts = Disjoint::new(extended.room(lanes.len() * length));
        // Whole positions, so that the first chunk has what is to be replicated.
        let chunk = ACTIVATION_CHUNK.next_multiple_of(inputs);
        let chunks = present_len.div_ceil(chunk);
        let this = &*self;
        pool.run(Work::Rest, lanes.len() * chunks, &|piece, _| {
            let (lane_index, start) = (piece / chunks, piece % chunks * chunk);
            let end = present_len.min(start + chunk);
            let x = &x[lane_index * present_len..][start..end];
            let to = lane_index * length + past_len;
            // SAFETY: pieces write chunks of their own, the first of a lane also its past.
            let present = unsafe { parts.range(to + start..to + end) };
            match activation {
                Activation::None => present.copy_from_slice(x),
                Activation::Elu => elu_into(x, present),
            }
            if start == 0 {
                // SAFETY: as above.
                let past = unsafe { parts.range(to - past_len..to) };
                this.recall(lanes[lane_index], &present[..inputs], past);
            }
        });
        if past_len == 0 {
            return;
        }
        for (&lane, extended) in lanes.iter().zip(extended.chunks_exact(length)) {
            self.memories[lane * past_len..][..past_len].copy_from_slice(&extended[present_len..]);
            self.fresh[lane] = false;
        }
    }

    /// What `lane` has before `first`, the first of its present inputs.
    fn recall(&self, lane: usize, first: &[f32], past: &mut [f32]) {
        match (self.fresh[lane], self.shape.padding) {
            (false, _) => past.copy_from_slice(&self.memories[lane * past.len()..][..past.len()]),
            (true, Padding::Zero) => past.fill(0.0),
            (true, Padding::Replicate) => {
                past.chunks_exact_mut(first.len()).for_each(|past| past.copy_from_slice(first));
            }
        }
    }

    /// Closes the gaps between the inputs of each of `rows`.
    fn gather(&self, x: &[f32], rows: Rows, gathered: &mut Buffer, pool: &mut Pool) -> Rows {
        let ConvShape { inputs, kernel, dilation, .. } = self.shape;
        let width = kernel * inputs;
        pool.for_each_chunk(gathered.room(rows.count * width), width, |row, window| {
            for (tap, to) in window.chunks_exact_mut(inputs).enumerate() {
                let from = rows.offset(row) + tap * dilation * inputs;
                to.copy_from_slice(&x[from..][..inputs]);
            }
        });
        Rows::contiguous(rows.count, width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that vary enough for a wrong index to show.
    fn number(i: usize) -> f32 {
        (i * 7919 % 1009) as f32 / 504.5 - 1.0
    }

    fn conv(shape: ConvShape, lanes: usize) -> Conv {
        let bias = shape.bias.then(|| (0..shape.outputs).map(number).collect());
        Conv::new(shape, lanes, |i| number(i + 5), bias).unwrap()
    }

    fn shapes() -> [ConvShape; 5] {
        let plain = ConvShape::plain(3, 5, 3);
        [
            plain,
            ConvShape { dilation: 2, ..plain },
            ConvShape { stride: 2, kernel: 4, ..plain },
            ConvShape { stride: 2, kernel: 4, bias: false, padding: Padding::Replicate, ..plain },
            ConvShape::plain(40, 17, 1),
        ]
    }

    /// The result for `x` (lanes × time × inputs), `step` inputs at a time.
    fn stream(conv: &mut Conv, x: &[Vec<f32>], lanes: &[usize], step: usize) -> Vec<Vec<f32>> {
        let (mut y, mut scratch) = (Buffer::default(), Scratch::default());
        let pool = &mut Pool::new(2).unwrap();
        let mut results = vec![vec![]; lanes.len()];
        let steps = x[0].len().div_ceil(step * conv.shape.inputs);
        for k in 0..steps {
            let parts = x.iter().map(|x| x.chunks(step * conv.shape.inputs).nth(k).unwrap());
            let part = parts.collect::<Vec<_>>().concat();
            conv.forward(&part, Activation::Elu, lanes, &mut y, &mut scratch, pool);
            for (result, y) in results.iter_mut().zip(y.chunks_exact(y.len() / lanes.len())) {
                result.extend_from_slice(y);
            }
        }
        results
    }

    fn definition(shape: ConvShape, x: &[f32]) -> Vec<f64> {
        let ConvShape { inputs, outputs, kernel, stride, dilation, .. } = shape;
        let elu = |x: f32| if x > 0.0 { f64::from(x) } else { f64::from(x).exp_m1() };
        let at = |time: isize, input: usize| match (usize::try_from(time), shape.padding) {
            (Ok(time), _) => elu(x[time * inputs + input]),
            (Err(_), Padding::Zero) => 0.0,
            (Err(_), Padding::Replicate) => elu(x[input]),
        };
        let mut y = vec![];
        for window in 0..x.len() / inputs / stride {
            for output in 0..outputs {
                let mut sum = if shape.bias { f64::from(number(output)) } else { 0.0 };
                for (input, tap) in (0..inputs).flat_map(|i| (0..kernel).map(move |k| (i, k))) {
                    let time = (window * stride + tap * dilation) as isize;
                    let weight = number((output * inputs + input) * kernel + tap + 5);
                    sum += f64::from(weight) * at(time - shape.memory() as isize, input);
                }
                y.push(sum);
            }
        }
        y
    }

    #[test]
    fn streaming_equals_the_definition_over_every_chunking() {
        for shape in shapes() {
            let x: Vec<f32> = (0..24 * shape.inputs).map(number).collect();
            let expected = definition(shape, &x);
            let offline = stream(&mut conv(shape, 1), std::slice::from_ref(&x), &[0], 24);
            for (found, expected) in offline[0].iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{shape:?}");
            }
            assert_eq!(offline[0].len(), expected.len());
            for step in (1..24).filter(|step| step % shape.stride == 0) {
                let streamed = stream(&mut conv(shape, 1), std::slice::from_ref(&x), &[0], step);
                assert_eq!(streamed, offline, "{shape:?} by {step}");
            }
        }
    }

    #[test]
    fn a_lane_after_a_reset_is_like_a_new_one() {
        for shape in shapes() {
            let x: Vec<f32> = (0..6 * shape.inputs).map(|i| number(i + 50)).collect();
            let x = std::slice::from_ref(&x);
            let mut used = conv(shape, 2);
            let nan = vec![f32::NAN; 4 * shape.inputs];
            stream(&mut used, &[nan], &[1], 2);
            used.reset(1);
            assert_eq!(stream(&mut used, x, &[1], 2), stream(&mut conv(shape, 2), x, &[1], 2));
        }
    }

    #[test]
    fn lanes_together_are_like_lanes_alone() {
        // Large enough for the work to be divided.
        let wide = ConvShape { stride: 2, kernel: 4, ..ConvShape::plain(64, 48, 3) };
        for shape in shapes().into_iter().chain([wide]) {
            let x: Vec<Vec<f32>> = (0..3)
                .map(|lane| (0..12 * shape.inputs).map(|i| number(i + 100 * lane)).collect())
                .collect();
            let together = stream(&mut conv(shape, 4), &x, &[2, 0, 3], 4);
            for (x, together) in x.iter().zip(&together) {
                let alone = stream(&mut conv(shape, 1), std::slice::from_ref(x), &[0], 4);
                assert_eq!(alone[0], *together, "{shape:?}");
            }
        }
    }
}
