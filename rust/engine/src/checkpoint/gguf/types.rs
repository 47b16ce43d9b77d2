//! ggml's numbers for the types of tensors.

use crate::checkpoint::Format;

const F32: u32 = 0;
const F16: u32 = 1;
const Q8_0: u32 = 8;
const BF16: u32 = 30;

/// Types that are not read, by number. Some were withdrawn; old files have them.
const OTHERS: [(u32, &str); 38] = [
    (2, "Q4_0"),
    (3, "Q4_1"),
    (4, "Q4_2"),
    (5, "Q4_3"),
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (12, "Q4_K"),
    (13, "Q5_K"),
    (14, "Q6_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

/// The format with this number, or the name of one that is not read.
pub(super) fn format(number: u32) -> Result<Format, String> {
    match number {
        F32 => Ok(Format::F32),
        F16 => Ok(Format::F16),
        Q8_0 => Ok(Format::Q8_0),
        BF16 => Ok(Format::Bf16),
        _ => Err(OTHERS
            .iter()
            .find(|(listed, _)| *listed == number)
            .map_or_else(|| format!("of type {number}"), |(_, name)| (*name).to_owned())),
    }
}

pub(super) fn number(format: Format) -> u32 {
    match format {
        Format::F32 => F32,
        Format::F16 => F16,
        Format::Q8_0 => Q8_0,
        Format::Bf16 => BF16,
    }
}
