//! One lane's keys and values in one layer as eight-bit integers, and attention over them.
//!
//! Keys and values lie as the weights of a product do, so attention is two products in integers:
//! what is multiplied with them, a query or the weights of a sum, is in fifteen bits, as two
//! integers of eight.

use super::super::AttentionShape;
use super::super::instructions::{InstructionSet, in_use};
use super::super::simd::{Kernel, Vector, WIDTH, dispatch};
use super::tile::{Dot, Job, run, store};
use super::{OFFSET, QUAD};

/// The largest integer a key or a value becomes.
const LARGEST: f32 = 127.0;
/// A large part of a number counts so many small ones.
const HIGH: i32 = 128;
/// The largest integer a query or a weight becomes.
const LARGEST_SPLIT: f32 = LARGEST * HIGH as f32;
/// 1.5 · 2²³: adding it rounds to an integer, half to even, which is then in the low bits.
const ROUND: f32 = 12_582_912.0;
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
    pub(in crate::cpu) fn new(shape: AttentionShape) -> Self {
        let sizes = Sizes {
            head_dim: shape.head_dim,
            slots: shape.context.next_multiple_of(WIDTH),
            dim: shape.head_dim.next_multiple_of(WIDTH),
        };
        let tiles = shape.heads * sizes.tiles();
        Self {
            sizes,
            keys: Tiles::zeros(tiles),
            key_scales: vec![0.0; shape.heads * sizes.slots],
            values: Tiles::zeros(tiles),
            value_scales: vec![0.0; shape.heads * sizes.slots],
            row: vec![0; sizes.dim],
        }
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

#[inline(always)]
fn rounded(x: f32) -> i32 {
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed()
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
            let count = most.min(blocks - first);
            // SAFETY: the caller vouches for D.
            unsafe {
                match count {
                    8 => mix_blocks::<D, 8>(&weights, values, blocks, first, out),
                    4.. => mix_blocks::<D, 4>(&weights, values, blocks, first, out),
                    2.. => mix_blocks::<D, 2>(&weights, values, blocks, first, out),
                    _ => mix_blocks::<D, 1>(&weights, values, blocks, first, out),
                }
            }
            first += if count == 8 { 8 } else { 1 << count.ilog2() };
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
    fn zeros(count: usize) -> Self {
        let len = count * size_of::<Tile>();
        let memory = vec![0; len + size_of::<Tile>()];
        let start = memory.as_ptr().align_offset(size_of::<Tile>()).min(size_of::<Tile>());
        Self { memory, start, len }
    }

    fn get(&self) -> &[Tile] {
        self.memory[self.start..][..self.len].as_chunks().0.as_chunks().0
    }

    fn get_mut(&mut self) -> &mut [Tile] {
        self.memory[self.start..][..self.len].as_chunks_mut().0.as_chunks_mut().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that vary enough for a wrong index to show.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        (0..count as u32)
            .map(|i| {
                let x = (i ^ seed).wrapping_mul(2_654_435_761);
                (x >> 8) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect()
    }

    /// A ring with every slot written, its keys and its values.
    fn ring(shape: AttentionShape) -> (Q8Ring, Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let mut ring = Q8Ring::new(shape);
        let width = shape.width() as u32;
        let rows = |seed| -> Vec<_> {
            let seeds = (0..shape.context as u32).map(|slot| seed + slot * width);
            seeds.map(|seed| numbers(shape.width(), seed)).collect()
        };
        let (keys, values) = (rows(1), rows(1 << 20));
        // Twice, as in a ring that is written over.
        for slot in (0..shape.context).chain(0..shape.context) {
            ring.write(slot, &keys[slot], &values[slot]);
        }
        (ring, keys, values)
    }

    fn shapes() -> impl Iterator<Item = AttentionShape> {
        [(1, 4, 1), (3, 16, 17), (2, 128, 50), (2, 210, 33), (1, 64, MOST_SLOTS + 9)]
            .into_iter()
            .map(|(heads, head_dim, context)| AttentionShape { heads, head_dim, context })
    }

    #[test]
    fn scores_and_sums_are_near_the_definition() {
        for shape in shapes() {
            let AttentionShape { heads, head_dim, context } = shape;
            let (ring, keys, values) = ring(shape);
            let mut integers = Integers::default();
            integers.reserve(shape);
            for head in 0..heads {
                let columns = head * head_dim..(head + 1) * head_dim;
                for held in [1, context / 2 + 1, context] {
                    let query = numbers(head_dim, 7);
                    let mut scores = vec![f32::NAN; held];
                    ring.score(head, &query, &mut scores, &mut integers);
                    for (score, key) in scores.iter().zip(&keys) {
                        let key = &key[columns.clone()];
                        let product: f64 =
                            key.iter().zip(&query).map(|(&a, &b)| f64::from(a * b)).sum();
                        let off = f64::from(*score) - product / (head_dim as f64).sqrt();
                        assert!(off.abs() < 2e-3, "{shape:?}: off by {off}");
                    }
                    let mut weights: Vec<f32> =
                        numbers(held, 9).iter().map(|x| (x + 0.5) / held as f32).collect();
                    let expected: Vec<f64> = columns
                        .clone()
                        .map(|i| {
                            weights.iter().zip(&values).map(|(&w, v)| f64::from(w * v[i])).sum()
                        })
                        .collect();
                    let mut out = vec![f32::NAN; head_dim];
                    ring.mix(head, &mut weights, &mut out, &mut integers);
                    for (found, expected) in out.iter().zip(expected) {
                        let off = f64::from(*found) - expected;
                        assert!(off.abs() < 2e-3, "{shape:?}: off by {off}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for shape in shapes() {
            let (ring, ..) = ring(shape);
            let mut integers = Integers::default();
            integers.reserve(shape);
            let head = shape.heads - 1;
            let found = InstructionSet::available().into_iter().map(|set| {
                let mut scores = vec![f32::NAN; shape.context];
                let query = numbers(shape.head_dim, 3);
                ring.score_with(set, head, &query, &mut scores, &mut integers);
                let mut out = vec![f32::NAN; shape.head_dim];
                let mut weights = numbers(shape.context, 5);
                ring.mix_with(set, head, &mut weights, &mut out, &mut integers);
                (bits(&scores), bits(&out))
            });
            let found: Vec<_> = found.collect();
            assert!(found.windows(2).all(|two| two[0] == two[1]), "{shape:?}");
        }
    }

    #[test]
    fn what_is_not_finite_shows_and_stays_in_its_slot() {
        let shape = AttentionShape { heads: 1, head_dim: 32, context: 20 };
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut ring, keys, values) = ring(shape);
            let mut key = keys[5].clone();
            key[3] = wrong;
            ring.write(5, &key, &values[5]);
            let mut integers = Integers::default();
            integers.reserve(shape);
            let mut scores = vec![0.0; 20];
            ring.score(0, &numbers(32, 3), &mut scores, &mut integers);
            let others = scores.iter().enumerate().filter(|(slot, _)| *slot != 5);
            assert!(others.clone().count() == 19 && others.into_iter().all(|(_, x)| x.is_finite()));
            assert!(!scores[5].is_finite());
            let mut value = values[5].clone();
            value[30] = wrong;
            ring.write(5, &keys[5], &value);
            let mut out = vec![0.0; 32];
            ring.mix(0, &mut [0.25; 20], &mut out, &mut integers);
            assert!(out.iter().all(|x| !x.is_finite()));
            // A slot that is not held does not count.
            ring.mix(0, &mut [0.25; 5], &mut out, &mut integers);
            assert!(out.iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn splitting_loses_less_than_a_part_in_thirty_thousand() {
        for count in [1, 4, 30, 128] {
            let x = numbers(count, 2);
            let mut quads = vec![Split::default(); count.div_ceil(QUAD) + 1];
            let (scale, sums) = dispatch(SplitNumbers { numbers: &x, quads: &mut quads });
            let parts = |part: fn(&Split) -> [i8; QUAD]| {
                quads.iter().flat_map(part).map(i32::from).collect::<Vec<_>>()
            };
            let (high, low) = (parts(|quad| quad.high), parts(|quad| quad.low));
            assert_eq!(sums, [high.iter().sum::<i32>(), low.iter().sum()]);
            let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            for (i, (high, low)) in high.into_iter().zip(low).enumerate() {
                let found = (high * HIGH + low) as f32 * scale;
                let expected = x.get(i).copied().unwrap_or(0.0);
                assert!((found - expected).abs() <= most / 30_000.0, "{found} for {expected}");
            }
        }
    }
}
