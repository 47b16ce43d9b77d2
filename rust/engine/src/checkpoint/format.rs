use crate::quantization::{BLOCK, BLOCK_BYTES};

/// How numbers are laid out in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// [`crate::quantization`]'s blocks.
    Q8_0,
}

impl Format {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Numbers that cannot be told apart without each other.
    pub(crate) const fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 => BLOCK,
        }
    }

    /// Bytes of `elements` numbers in whole blocks.
    pub(crate) const fn bytes(self, elements: usize) -> usize {
        let block_bytes = match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => BLOCK_BYTES,
        };
        elements / self.block() * block_bytes
    }
}
