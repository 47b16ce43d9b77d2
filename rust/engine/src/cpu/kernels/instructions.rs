//! The instruction sets the kernels are written for, and the one this process uses.

use std::sync::LazyLock;

use crate::EngineError;

/// Limits the kernels to the set it names.
const VARIABLE: &str = "MOSHI_INSTRUCTIONS";

/// A set of instructions that hot loops are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstructionSet {
    /// AVX-512 with its integer dot product.
    Avx512Vnni,
    /// AVX2 with an integer dot product.
    AvxVnni,
    /// AVX-512 for f32; integers as with AVX2.
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// The integer dot product of 64-bit Arm; f32 as in portable code, which has NEON there.
    NeonDotprod,
    /// Whatever the compiler makes for any processor of the architecture.
    Portable,
}

impl InstructionSet {
    /// Best first.
    const ALL: [Self; 6] = [
        Self::Avx512Vnni,
        Self::AvxVnni,
        Self::Avx512,
        Self::Avx2,
        Self::NeonDotprod,
        Self::Portable,
    ];

    /// The name in messages and in [`VARIABLE`].
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Avx512Vnni => "avx512-vnni",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::NeonDotprod => "neon-dotprod",
            Self::Portable => "portable",
        }
    }

    /// Those this machine has, best first.
    pub(crate) fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|set| set.is_available()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = avx2 && is_x86_feature_detected!("avx512f");
        match self {
            Self::Avx512Vnni => {
                avx512
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::AvxVnni => avx2 && is_x86_feature_detected!("avxvnni"),
            Self::Avx512 => avx512,
            Self::Avx2 => avx2,
            Self::NeonDotprod => false,
            Self::Portable => true,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_available(self) -> bool {
        match self {
            Self::NeonDotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            other => other == Self::Portable,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// The best one this machine has.
    fn best() -> Self {
        Self::available().first().copied().unwrap_or(Self::Portable)
    }

    /// The one that is wished for; the best one without a wish.
    fn choose(wish: Option<&str>) -> Result<Self, EngineError> {
        let Some(name) = wish.map(str::trim).filter(|name| !name.is_empty()) else {
            return Ok(Self::best());
        };
        let available = Self::available();
        let named = |set: &&Self| set.name().eq_ignore_ascii_case(name);
        if let Some(set) = available.iter().find(named) {
            return Ok(*set);
        }
        let message = match Self::ALL.iter().find(named) {
            Some(set) => {
                format!("{VARIABLE} is {}, which this processor does not have", set.name())
            }
            None => format!("{VARIABLE} is `{name}`, which is no instruction set we know"),
        };
        let names: Vec<_> = available.iter().map(|set| set.name()).collect();
        Err(EngineError::new(message).with_hint(format!(
            "Remove it to use the best one; this machine has {}.",
            names.join(", ")
        )))
    }
}

/// The environment's wish is read once, so that all kernels use one set as long as they run.
static CHOICE: LazyLock<Result<InstructionSet, EngineError>> = LazyLock::new(|| {
    let wish = std::env::var_os(VARIABLE);
    InstructionSet::choose(wish.map(|wish| wish.to_string_lossy().into_owned()).as_deref())
});

/// The instruction set of this process.
///
/// # Errors
/// When the environment names one that this machine does not have. Every model asks before it is
/// loaded.
pub(crate) fn chosen() -> Result<InstructionSet, EngineError> {
    CHOICE.clone()
}

/// [`chosen`], for kernels, which run only where that was no error.
#[inline]
pub(super) fn in_use() -> InstructionSet {
    match *CHOICE {
        Ok(set) => set,
        Err(_) => InstructionSet::Portable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_set_can_be_wished_for() {
        let available = InstructionSet::available();
        assert_eq!(available.last(), Some(&InstructionSet::Portable));
        for set in &available {
            assert_eq!(InstructionSet::choose(Some(set.name())).unwrap(), *set);
            let shouted = format!(" {} ", set.name().to_uppercase());
            assert_eq!(InstructionSet::choose(Some(&shouted)).unwrap(), *set);
        }
        for nothing in [None, Some(""), Some("  ")] {
            assert_eq!(InstructionSet::choose(nothing).unwrap(), available[0]);
        }
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let elsewhere = InstructionSet::ALL.into_iter().find(|set| !set.is_available()).unwrap();
        for (name, says) in [(elsewhere.name(), "this processor does not have"), ("sse9", "`sse9`")]
        {
            let error = InstructionSet::choose(Some(name)).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(error.to_string().contains(VARIABLE), "{error}");
            for set in InstructionSet::available() {
                assert!(error.hint().unwrap().contains(set.name()), "{:?}", error.hint());
            }
        }
    }
}
