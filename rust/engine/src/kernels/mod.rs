//! Hot loops on plain slices, for the CPU.
//!
//! Every output element is a fixed sequence of operations that depends neither on how many rows
//! a call has nor on how many threads run it. That is what makes a lane's result independent of
//! its neighbours, bit for bit.

mod attention;
mod matrix;
mod nearest;
mod ring;
mod simd;

pub(crate) use attention::{AttentionShape, LaneAttention, attend};
pub(crate) use matrix::{PackedMatrix, Rows};
pub(crate) use nearest::{Codebook, Nearest};
pub(crate) use ring::Ring;
