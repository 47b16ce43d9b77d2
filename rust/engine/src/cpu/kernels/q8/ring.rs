//! One lane's keys and values in one layer as eight-bit integers, and attention over them.
//!
//! Keys and values lie as the weights of a product do, so attention is two products in integers:
//! what is multiplied with them, a query or the weights of a sum, is in fifteen bits, as two
//! integers of eight.

use super::super::AttentionShape;
use super::super::instructions::{InstructionSet, in_use};
use super::super::simd::{Kernel, Vector, WIDTH, dispatch};
use super::super::zeroed::zeroed;
use super::tile::{Dot, Job, run, store};
use super::{OFFSET, QUAD};
use crate::EngineError;
use crate::quantization::rounded;

/// The largest integer a key or a value becomes.
const LARGEST: f32 = 127.0;
/// A large part of a number counts so many small ones.
const HIGH: i32 = 128;
/// The largest integer a query or a weight becomes.
const LARGEST_SPLIT: f32 = LARGEST * HIGH as f32;
/// Slots after which a sum in integers ends, long before it could overflow.
const MOST_SLOTS: usize = 1 << 14;
/// How many tiles ahead of its use memory is asked for.
const PREFETCH_AHEAD: usize = 64;

/// Sixteen rows of four integers, each plus [`OFFSET`]: a cache line.
type Tile = [[u8; QUAD]; WIDTH];

/// Keys and values with a scale for each head and slot. Slots beyond what the lane holds never
/// count, so a lane forgets a stream by forgetting its position.
pub(in crate::cpu) struct Q8Ring {
    sizes: Sizes,
    /// heads × blocks of sixteen slots × quads of numbers
    keys: Tiles,
    /// heads × slots
    key_scales: Vec<f32>,
    /// heads × quads of slots × blocks of sixteen numbers
    values: Tiles,
    /// heads × slots
    value_scales: Vec<f32>,
    /// A key or value on its way into a tile.
    row: Vec<i8>,
}

/// Of a ring, in whole tiles.
#[derive(Clone, Copy)]
struct Sizes {
    head_dim: usize,
    slots: usize,
    dim: usize,
}

/// What attention of one head works in.
#[derive(Default)]
pub(in crate::cpu) struct Integers(Vec<Split>);

/// Four numbers, each `high · 128 + low`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Split {
    high: [i8; QUAD],
    low: [i8; QUAD],
}

/// Some numbers as integers.
struct Scaled<'a> {
    quads: &'a [Split],
    scale: f32,
    /// What sums of high and of low parts start from to make up for the tiles' offset.
    starts: [i32; 2],
}

impl Q8Ring {
    /// # Errors
    /// When there is no memory for it.
    pub(in crate::cpu) fn new(shape: AttentionShape) -> Result<Self, EngineError> {
        let sizes = Sizes::of(shape);
        let tiles = shape.heads * sizes.tiles();
        Ok(Self {
            sizes,
            keys: Tiles::zeros(tiles)?,
            key_scales: zeroed(shape.heads * sizes.slots)?,
            values: Tiles::zeros(tiles)?,
            value_scales: zeroed(shape.heads * sizes.slots)?,
            row: vec![0; sizes.dim],
        })
    }

    /// Bytes of a ring of this shape.
    pub(in crate::cpu) fn bytes_of(shape: AttentionShape) -> u64 {
        let sizes = Sizes::of(shape);
        let of_head = sizes.tiles() * size_of::<Tile>() + sizes.slots * size_of::<f32>();
        (2 * shape.heads * of_head) as u64
    }

    /// Stores one position; `key` and `value` are heads × head_dim.
    pub(in crate::cpu) fn write(&mut self, slot: usize, key: &[f32], value: &[f32]) {
        let Self { sizes, keys, key_scales, values, value_scales, row } = self;
        let Sizes { head_dim, slots, dim } = *sizes;
        let heads = key.chunks_exact(head_dim).zip(value.chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let keys = &mut keys.get_mut()[head * sizes.tiles()..][..sizes.tiles()];
            key_scales[head * slots + slot] = quantize(key, row);
            let block = &mut keys[slot / WIDTH * (dim / QUAD)..][..dim / QUAD];
            for (tile, quad) in block.iter_mut().zip(row.as_chunks::<QUAD>().0) {
                tile[slot % WIDTH] = quad.map(offset);
            }
            let values = &mut values.get_mut()[head * sizes.tiles()..][..sizes.tiles()];
            value_scales[head * slots + slot] = quantize(value, row);
            let block = &mut values[slot / QUAD * (dim / WIDTH)..][..dim / WIDTH];
            for (tile, numbers) in block.iter_mut().zip(row.as_chunks::<WIDTH>().0) {
                for (quad, &number) in tile.iter_mut().zip(numbers) {
                    quad[slot % QUAD] = offset(number);
                }
            }
        }
    }

    /// q·k / √d of `head` for as many slots as there are scores.
    pub(in crate::cpu) fn score(
        &self,
        head: usize,
        query: &[f32],
        scores: &mut [f32],
        integers: &mut Integers,
    ) {
        self.score_with(in_use(), head, query, scores, integers);
    }

    /// Makes `out` the sum of the values of `head`, each times its weight. Changes the weights.
    pub(in crate::cpu) fn mix(
        &self,
        head: usize,
        weights: &mut [f32],
        out: &mut [f32],
        integers: &mut Integers,
    ) {
        self.mix_with(in_use(), head, weights, out, integers);
    }

    fn score_with(
        &self,
        set: InstructionSet,
        head: usize,
        query: &[f32],
        scores: &mut [f32],
        integers: &mut Integers,
    ) {
        let Sizes { head_dim, slots, dim } = self.sizes;
        let mut query = integers.split(query, dim);
        query.scale /= (head_dim as f32).sqrt();
        let blocks = scores.len().div_ceil(WIDTH);
        let keys = &self.keys.get()[head * self.sizes.tiles()..][..blocks * (dim / QUAD)];
        let scales = self.key_scales[head * slots..].as_chunks().0;
        run(set, Score { query, keys, scales, scores });
    }

    fn mix_with(
        &self,
        set: InstructionSet,
        head: usize,
        weights: &mut [f32],
        out: &mut [f32],
        integers: &mut Integers,
    ) {
        let Sizes { slots, dim, .. } = self.sizes;
        let scales = &self.value_scales[head * slots..];
        let values = &self.values.get()[head * self.sizes.tiles()..];
        out.fill(0.0);
        for first in (0..weights.len()).step_by(MOST_SLOTS) {
            let last = weights.len().min(first + MOST_SLOTS);
            let weights = &mut weights[first..last];
            for (weight, scale) in weights.iter_mut().zip(&scales[first..]) {
                *weight *= scale;
            }
            let weights = integers.split(weights, weights.len().next_multiple_of(QUAD));
            let values = &values[first / QUAD * (dim / WIDTH)..];
            run(set, Mix { weights, values, blocks: dim / WIDTH, out });
        }
    }
}

impl Sizes {
    fn of(shape: AttentionShape) -> Self {
        Self {
            head_dim: shape.head_dim,
            slots: shape.context.next_multiple_of(WIDTH),
            dim: shape.head_dim.next_multiple_of(WIDTH),
        }
    }

    /// Of the keys, or of the values, of a head.
    fn tiles(self) -> usize {
        self.slots * self.dim / (QUAD * WIDTH)
    }
}

impl Integers {
    /// Makes room for attention with this shape.
    pub(in crate::cpu) fn reserve(&mut self, shape: AttentionShape) {
        let longest = shape.context.min(MOST_SLOTS).max(shape.head_dim);
        let quads = longest.next_multiple_of(WIDTH) / QUAD;
        if self.0.len() < quads {
            self.0.resize(quads, Split::default());
        }
    }

    /// `numbers` as integers, and zeros up to `len`.
    fn split(&mut self, numbers: &[f32], len: usize) -> Scaled<'_> {
        let quads = &mut self.0[..len / QUAD];
        let (scale, sums) = dispatch(SplitNumbers { numbers, quads });
        let starts = sums.map(|sum| -i32::from(OFFSET) * sum);
        Scaled { quads, scale, starts }
    }
}

fn offset(value: i8) -> u8 {
    value.cast_unsigned() ^ OFFSET
}

/// Turns a row into integers, zeros after it, and returns their scale, which is not finite where a
/// number is not.
fn quantize(from: &[f32], to: &mut [i8]) -> f32 {
    to[from.len()..].fill(0);
    dispatch(Quantize { from, to })
}

struct Quantize<'a> {
    from: &'a [f32],
    to: &'a mut [i8],
}

impl Kernel for Quantize<'_> {
    type Output = f32;

    // Plain code, which is vectorised for each instruction set.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        let (scale, inverse) = scale(self.from, LARGEST);
        for (to, x) in self.to.iter_mut().zip(self.from) {
            *to = rounded(x * inverse) as i8;
        }
        scale
    }
}

struct SplitNumbers<'a> {
    numbers: &'a [f32],
    quads: &'a mut [Split],
}

impl Kernel for SplitNumbers<'_> {
    type Output = (f32, [i32; 2]);

    // Plain code, as above.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> Self::Output {
        let Self { numbers, quads } = self;
        let (scale, inverse) = scale(numbers, LARGEST_SPLIT);
        let (whole, rest) = numbers.as_chunks::<QUAD>();
        let mut padded = [0.0; QUAD];
        padded[..rest.len()].copy_from_slice(rest);
        let mut sums = [[0; QUAD]; 2];
        let (first, after) = quads.split_at_mut(whole.len());
        for (quad, numbers) in first.iter_mut().zip(whole) {
            *quad = split(numbers, inverse, &mut sums);
        }
        after.fill(Split::default());
        if let Some(quad) = after.first_mut() {
            *quad = split(&padded, inverse, &mut sums);
        }
        (scale, sums.map(|sums| sums.iter().sum()))
    }
}

#[inline(always)]
fn split(numbers: &[f32; QUAD], inverse: f32, sums: &mut [[i32; QUAD]; 2]) -> Split {
    let mut quad = Split::default();
    for i in 0..QUAD {
        let integer = rounded(numbers[i] * inverse);
        quad.high[i] = (integer.wrapping_add(HIGH / 2) >> HIGH.ilog2()) as i8;
        quad.low[i] = integer.wrapping_sub(i32::from(quad.high[i]) * HIGH) as i8;
        sums[0][i] += i32::from(quad.high[i]);
        sums[1][i] += i32::from(quad.low[i]);
    }
    quad
}

/// What numbers are multiples of when the largest is to be `most`, and its inverse.
#[inline(always)]
fn scale(numbers: &[f32], most: f32) -> (f32, f32) {
    // The bits of positive numbers are ordered as they are, with NaN at the top.
    let largest = numbers.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
    let largest = f32::from_bits(largest);
    (largest / most, if largest > 0.0 { most / largest } else { 0.0 })
}

struct Score<'a> {
    query: Scaled<'a>,
    /// blocks × quads
    keys: &'a [Tile],
    /// One block each.
    scales: &'a [[f32; WIDTH]],
    scores: &'a mut [f32],
}

impl Job for Score<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot>(self) {
        let Self { query: Scaled { quads, scale, starts }, keys, scales, scores } = self;
        let blocks = keys.chunks_exact(quads.len()).zip(scales);
        for ((tiles, scales), scores) in blocks.zip(scores.chunks_mut(WIDTH)) {
            // SAFETY: the caller vouches for D; a quad is two times four integers.
            unsafe {
                let mut sums = starts.map(|start| D::start(start));
                for (tile, quad) in tiles.iter().zip(quads) {
                    let tile = load::<D>(tile);
                    sums[0] = D::add_dot(sums[0], tile, quad.high.as_ptr());
                    sums[1] = D::add_dot(sums[1], tile, quad.low.as_ptr());
                }
                let found = combine::<D>(&[0.0; WIDTH], sums, scales, scale);
                store::<D>(found, scores);
            }
        }
    }
}

struct Mix<'a> {
    /// Of slots, times the scales of their values.
    weights: Scaled<'a>,
    /// quads × blocks
    values: &'a [Tile],
    blocks: usize,
    out: &'a mut [f32],
}

impl Job for Mix<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot>(self) {
        let Self { weights, values, blocks, out } = self;
        // As many sums at a time as fit into registers, two for each block.
        let most = match D::ROWS {
            12.. => 8,
            3.. => 2,
            _ => 1,
        };
        let mut first = 0;
        while first < blocks {
            let count = 1 << usize::ilog2(most.min(blocks - first));
            // SAFETY: the caller vouches for D.
            unsafe {
                match count {
                    8 => mix_blocks::<D, 8>(&weights, values, blocks, first, out),
                    4 => mix_blocks::<D, 4>(&weights, values, blocks, first, out),
                    2 => mix_blocks::<D, 2>(&weights, values, blocks, first, out),
                    _ => mix_blocks::<D, 1>(&weights, values, blocks, first, out),
                }
            }
            first += count;
        }
    }
}

/// Adds to `N` blocks of sixteen numbers from `first` on.
#[inline(always)]
unsafe fn mix_blocks<D: Dot, const N: usize>(
    weights: &Scaled<'_>,
    values: &[Tile],
    blocks: usize,
    first: usize,
    out: &mut [f32],
) {
    // SAFETY: the caller vouches for D; a quad is two times four integers.
    unsafe {
        let mut sums = [weights.starts.map(|start| D::start(start)); N];
        for (quad, tiles) in weights.quads.iter().zip(values.chunks_exact(blocks)) {
            let tiles = &tiles[first..first + N];
            for (sums, tile) in sums.iter_mut().zip(tiles) {
                let tile = load::<D>(tile);
                sums[0] = D::add_dot(sums[0], tile, quad.high.as_ptr());
                sums[1] = D::add_dot(sums[1], tile, quad.low.as_ptr());
            }
        }
        for (sums, out) in sums.into_iter().zip(out[first * WIDTH..].chunks_mut(WIDTH)) {
            let mut start = [0.0; WIDTH];
            start[..out.len()].copy_from_slice(out);
            store::<D>(combine::<D>(&start, sums, &[1.0; WIDTH], weights.scale), out);
        }
    }
}

/// Loads a tile and asks for a later one.
#[inline(always)]
unsafe fn load<D: Dot>(tile: &Tile) -> D::Weights {
    // SAFETY: the caller vouches for D; what is asked for need not exist.
    unsafe {
        D::prefetch(std::ptr::from_ref(tile).wrapping_add(PREFETCH_AHEAD).cast());
        D::load_weights(tile)
    }
}

/// start + (high · 128 + low) · scales · scale
#[inline(always)]
unsafe fn combine<D: Dot>(
    start: &[f32; WIDTH],
    [high, low]: [D::Sums; 2],
    scales: &[f32; WIDTH],
    scale: f32,
) -> D::Numbers {
    // SAFETY: the caller vouches for D.
    unsafe {
        let scales = D::load(scales);
        let numbers = D::add_scaled(D::load(start), high, scales, HIGH as f32 * scale);
        D::add_scaled(numbers, low, scales, scale)
    }
}

/// Tiles on whole cache lines, zeros at first, in memory that is not touched before it is
/// written: a lane that was never used takes none.
struct Tiles {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Tiles {
    fn zeros(count: usize) -> Result<Self, EngineError> {
        let len = count * size_of::<Tile>();
        let memory: Vec<u8> = zeroed(len + size_of::<Tile>())?;
        let start = memory.as_ptr().align_offset(size_of::<Tile>()).min(size_of::<Tile>());
        Ok(Self { memory, start, len })
    }

    fn get(&self) -> &[Tile] {
        self.memory[self.start..][..self.len].as_chunks().0.as_chunks().0
    }

    fn get_mut(&mut self) -> &mut [Tile] {
        self.memory[self.start..][..self.len].as_chunks_mut().0.as_chunks_mut().0
    }
}

#[cfg(test)]
mod tests;
