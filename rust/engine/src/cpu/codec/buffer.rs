//! Memory that is used again.

use std::ops::{Deref, DerefMut};

/// A number of numbers in memory that grows when more are wanted than ever before.
#[derive(Default)]
pub(super) struct Buffer {
    numbers: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// Makes it `len` numbers long; what they are is left to chance.
    pub(super) fn room(&mut self, len: usize) -> &mut [f32] {
        if self.numbers.len() < len {
            self.numbers.resize(len, 0.0);
        }
        self.len = len;
        self
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers[..self.len]
    }
}
