//! The loop over a tile, once for all instruction sets.

use std::ops::Range;

use super::super::instructions::InstructionSet;
use super::super::simd::WIDTH;
use super::activations::{Activations, BlockOfRows};
use super::portable::Portable;
use super::{GROUP, GROUP_BLOCKS, Group, Q8Matrix, QUAD};
use crate::cpu::pool::Disjoint;
use crate::quantization::BLOCK;

/// Sixteen outputs in registers.
///
/// # Safety
/// Implementations use instructions the processor must have: call them only from a function that
/// was reached through the matching [`InstructionSet`].
pub(super) trait Dot {
    /// The most rows whose sums fit into registers beside each other; at most 12.
    const ROWS: usize;
    /// Sixteen outputs by four inputs.
    type Weights: Copy;
    /// An integer for each output.
    type Sums: Copy;
    /// A number for each output.
    type Numbers: Copy;

    unsafe fn load_weights(from: &[[u8; QUAD]; WIDTH]) -> Self::Weights;
    /// Sums that begin with `start` where weights count from their offset, else with zero.
    unsafe fn start(start: i32) -> Self::Sums;
    /// Adds the products of four inputs.
    unsafe fn add_dot(sums: Self::Sums, weights: Self::Weights, x: *const i8) -> Self::Sums;
    /// f16 that are not negative.
    unsafe fn load_scales(from: &[u16; WIDTH]) -> Self::Numbers;
    unsafe fn load(from: &[f32; WIDTH]) -> Self::Numbers;
    /// numbers + sums · (scales · x_scale), each operation rounded.
    unsafe fn add_scaled(
        numbers: Self::Numbers,
        sums: Self::Sums,
        scales: Self::Numbers,
        x_scale: f32,
    ) -> Self::Numbers;
    unsafe fn store(numbers: Self::Numbers, to: &mut [f32; WIDTH]);
    /// Asks for memory that is needed soon; it need not exist.
    unsafe fn prefetch(from: *const u8);
}

/// A loop over tiles, compiled for every instruction set.
pub(super) trait Job {
    /// # Safety
    /// The processor must have the instructions of `D`.
    unsafe fn run<D: Dot>(self);
}

/// The part of a product that one thread does at a time.
pub(super) struct Piece<'a> {
    pub(super) matrix: &'a Q8Matrix,
    pub(super) x: &'a Activations,
    /// rows × outputs
    pub(super) y: &'a Disjoint<'a, f32>,
    pub(super) panels: Range<usize>,
}

/// Runs `job` with the instructions of `set`, which this machine must have.
pub(super) fn run(set: InstructionSet, job: impl Job) {
    // SAFETY: a set is taken from those this machine has.
    unsafe {
        match set {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => super::x86::run_avx512_vnni(job),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::AvxVnni => super::x86::run_avx_vnni(job),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 | InstructionSet::Avx2 => super::x86::run_avx2(job),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::NeonDotprod => super::neon::run_neon_dot(job),
            _ => job.run::<Portable>(),
        }
    }
}

impl Job for Piece<'_> {
    #[inline(always)]
    unsafe fn run<D: Dot>(self) {
        let rows = self.x.rows();
        // Tiles of even height: thirteen rows are seven and six, not twelve and one.
        let height = rows.div_ceil(rows.div_ceil(D::ROWS));
        for panel in self.panels.clone() {
            for first in (0..rows).step_by(height) {
                // SAFETY: the caller vouches for D; the rows and the panel are the product's.
                unsafe {
                    match height.min(rows - first) {
                        1 => self.tile::<D, 1>(panel, first),
                        2 => self.tile::<D, 2>(panel, first),
                        3 => self.tile::<D, 3>(panel, first),
                        4 => self.tile::<D, 4>(panel, first),
                        5 => self.tile::<D, 5>(panel, first),
                        6 => self.tile::<D, 6>(panel, first),
                        7 => self.tile::<D, 7>(panel, first),
                        8 => self.tile::<D, 8>(panel, first),
                        9 => self.tile::<D, 9>(panel, first),
                        10 => self.tile::<D, 10>(panel, first),
                        11 => self.tile::<D, 11>(panel, first),
                        _ => self.tile::<D, 12>(panel, first),
                    }
                }
            }
        }
    }
}

impl Piece<'_> {
    /// `ROWS` rows of sixteen outputs.
    #[inline(always)]
    unsafe fn tile<D: Dot, const ROWS: usize>(&self, panel: usize, first_row: usize) {
        let Self { matrix, x, y, .. } = *self;
        let count = matrix.groups_per_panel();
        let groups = &matrix.groups[panel * count..][..count];
        let bias = matrix.bias[panel * WIDTH..].first_chunk().expect("bias is padded");
        // SAFETY: the caller vouches for D. A row of activations has as many groups as a panel.
        unsafe {
            let mut numbers = [D::load(bias); ROWS];
            for (g, group) in groups.iter().enumerate() {
                let ahead = std::ptr::from_ref(group).wrapping_add(PREFETCH_AHEAD).cast::<u8>();
                D::prefetch(ahead);
                for b in 0..GROUP_BLOCKS {
                    let BlockOfRows { values, scales: x_scales, starts } =
                        x.block(g * GROUP_BLOCKS + b, first_row, ROWS);
                    let mut sums: [D::Sums; ROWS] =
                        std::array::from_fn(|r| D::start(*starts.add(r)));
                    for q in 0..BLOCK / QUAD {
                        // One line at a time: all at once, they would keep loads waiting.
                        let line = 1 + b * (BLOCK / QUAD) + q;
                        D::prefetch(ahead.wrapping_add(line * CACHE_LINE));
                        let weights = D::load_weights(&group.weights[b * (BLOCK / QUAD) + q]);
                        let values = values.add(q * x.rows() * QUAD);
                        for (r, sums) in sums.iter_mut().enumerate() {
                            *sums = D::add_dot(*sums, weights, values.add(r * QUAD));
                        }
                    }
                    let scales = D::load_scales(&group.scales[b]);
                    for (r, sums) in sums.into_iter().enumerate() {
                        numbers[r] = D::add_scaled(numbers[r], sums, scales, *x_scales.add(r));
                    }
                }
            }
            let column = panel * WIDTH;
            let width = WIDTH.min(matrix.outputs - column);
            for (r, numbers) in numbers.into_iter().enumerate() {
                let start = (first_row + r) * matrix.outputs + column;
                store::<D>(numbers, y.range(start..start + width));
            }
        }
    }
}

/// Stores as many numbers as there is room for, at most sixteen.
#[inline(always)]
pub(super) unsafe fn store<D: Dot>(numbers: D::Numbers, to: &mut [f32]) {
    // SAFETY: the caller vouches for D.
    unsafe {
        if let Some(to) = to.first_chunk_mut() {
            D::store(numbers, to);
        } else {
            let mut found = [0f32; WIDTH];
            D::store(numbers, &mut found);
            to.copy_from_slice(&found[..to.len()]);
        }
    }
}

/// How many groups ahead of its use memory is asked for.
const PREFETCH_AHEAD: usize = 4;
const CACHE_LINE: usize = 64;
const _: () = assert!(size_of::<Group>() == (1 + GROUP / QUAD) * CACHE_LINE);
