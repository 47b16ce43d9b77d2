use serde::{Deserialize, Serialize};

/// How a language model's matrices, or its key/value rings, are held. Sums are f32; those of `q8`
/// are exact integers within a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16; on CUDA it needs compute capability 8.0.
    Bf16,
    /// Eight-bit integers that share a scale in small blocks.
    Q8,
}

impl Precision {
    /// Every precision, in the order of the configuration's documentation.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8];

    /// The name used in configurations and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
        }
    }

    /// Bytes of a number that stands alone.
    pub const fn number_bytes(self) -> usize {
        match self.or_f32() {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 | Self::Q8 => 4,
        }
    }

    /// The format of numbers that stand alone, which q8 has none for.
    pub const fn or_f32(self) -> Self {
        match self {
            Self::Q8 => Self::F32,
            other => other,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
