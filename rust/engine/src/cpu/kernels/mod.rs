//! Hot loops on plain slices.

mod attention;
mod elementwise;
mod instructions;
mod matrix;
mod nearest;
mod q8;
mod ring;
mod rows;
mod simd;
#[cfg(test)]
mod test_numbers;
mod zeroed;

pub(super) use attention::{Attention, AttentionShape, Scratch as AttentionScratch};
pub(super) use elementwise::{add_scaled, elu_into, gate, gelu_erf};
pub(super) use instructions::{InstructionSet, chosen};
pub(super) use matrix::{PackedMatrix, Rows};
pub(super) use nearest::{Codebook, Nearest, SearchScratch};
pub(super) use q8::{Activations, Q8Matrix};
pub(super) use ring::Ring;
pub(super) use rows::{layer_norm, rms_norm, softmax};
pub(super) use zeroed::zeroed;
