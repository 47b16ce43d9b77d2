//! Which precision a model is held in: by policy, not by accident.

use moshi_ctl_core::Precision;

use crate::EngineError;
use crate::weights::Kernels;

/// The first compute capability with bf16 arithmetic: Ampere.
const BF16_FROM: (u32, u32) = (8, 0);

/// What matters of a device for the choice of a precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA card.
    Cuda {
        /// Major and minor.
        compute_capability: (u32, u32),
    },
    /// Apple's graphics processor.
    Metal,
}

/// How a language model and its key/value rings are held, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrecisionChoice {
    /// Of the weights.
    pub precision: Precision,
    /// Of keys and values.
    pub kv_precision: Precision,
    /// Why, in a few words.
    pub reason: String,
}

/// Chooses for a language model on a device of this kind. Without a wish, weights are q8 on the
/// CPU, f32 on cards below compute capability 8.0, which have no bf16, and bf16 elsewhere; keys and
/// values are as the weights, except beside q8 weights on Metal, where they are f16.
///
/// # Errors
/// When the device cannot do what is wished for.
pub fn choose_precision(
    device: DeviceKind,
    wish: Option<Precision>,
    kv_wish: Option<Precision>,
) -> Result<PrecisionChoice, EngineError> {
    choose(device, Kernels::default(), wish, kv_wish)
}

/// [`choose_precision`], where candle may compute on the CPU.
pub(crate) fn choose(
    device: DeviceKind,
    kernels: Kernels,
    wish: Option<Precision>,
    kv_wish: Option<Precision>,
) -> Result<PrecisionChoice, EngineError> {
    let own_kernels = device != DeviceKind::Metal && kernels == Kernels::Own;
    if let DeviceKind::Cuda { compute_capability: (major, minor) } = device
        && (major, minor) < BF16_FROM
        && [wish, kv_wish].contains(&Some(Precision::Bf16))
    {
        return Err(EngineError::new(format!(
            "precision bf16 is asked for, but this card has compute capability {major}.{minor} \
             and bf16 needs 8.0"
        ))
        .with_hint("Use f16, f32 or q8, or leave the choice to the program."));
    }
    if kv_wish == Some(Precision::Q8) && !own_kernels {
        return Err(EngineError::new("q8 key/value rings are for our own kernels").with_hint(
            "Set kv_precision to f16, bf16 or f32, or run on the CPU or an NVIDIA card.",
        ));
    }
    let (default, why) = match device {
        DeviceKind::Cpu => (Precision::Q8, "a CPU is bound by reading weights".to_owned()),
        DeviceKind::Cuda { compute_capability: (major, minor) } if (major, minor) < BF16_FROM => {
            (Precision::F32, format!("compute capability {major}.{minor} has no bf16"))
        }
        DeviceKind::Cuda { compute_capability: (major, minor) } => {
            (Precision::Bf16, format!("compute capability {major}.{minor} has bf16"))
        }
        DeviceKind::Metal => (Precision::Bf16, "Metal has bf16".to_owned()),
    };
    let precision = wish.unwrap_or(default);
    let reason = if wish.is_some() { "asked for".to_owned() } else { why };
    let kv_precision = kv_wish.unwrap_or(match precision {
        Precision::Q8 if !own_kernels => Precision::F16,
        precision => precision,
    });
    Ok(PrecisionChoice { precision, kv_precision, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURING: DeviceKind = DeviceKind::Cuda { compute_capability: (7, 5) };
    const AMPERE: DeviceKind = DeviceKind::Cuda { compute_capability: (8, 0) };

    #[test]
    fn each_device_has_its_default() {
        for (device, precision, kv_precision, why) in [
            (DeviceKind::Cpu, Precision::Q8, Precision::Q8, "CPU"),
            (TURING, Precision::F32, Precision::F32, "7.5"),
            (AMPERE, Precision::Bf16, Precision::Bf16, "8.0"),
            (DeviceKind::Metal, Precision::Bf16, Precision::Bf16, "Metal"),
        ] {
            let choice = choose_precision(device, None, None).unwrap();
            assert_eq!((choice.precision, choice.kv_precision), (precision, kv_precision));
            assert!(choice.reason.contains(why), "{choice:?}");
        }
    }

    #[test]
    fn a_wish_is_granted_where_the_device_can() {
        for device in [DeviceKind::Cpu, TURING, AMPERE, DeviceKind::Metal] {
            for wish in Precision::ALL {
                let choice = choose_precision(device, Some(wish), None);
                if (device, wish) == (TURING, Precision::Bf16) {
                    let error = choice.unwrap_err();
                    assert!(error.to_string().contains("7.5"), "{error}");
                    continue;
                }
                let choice = choice.unwrap();
                assert_eq!((choice.precision, choice.reason.as_str()), (wish, "asked for"));
                let q8_rings = wish == Precision::Q8 && device != DeviceKind::Metal;
                assert_eq!(choice.kv_precision == Precision::Q8, q8_rings);
            }
        }
    }

    #[test]
    fn rings_have_a_wish_of_their_own() {
        let kv = Some(Precision::F16);
        let choice = choose_precision(DeviceKind::Cpu, None, kv).unwrap();
        assert_eq!((choice.precision, choice.kv_precision), (Precision::Q8, Precision::F16));
        assert!(choose_precision(TURING, None, Some(Precision::Bf16)).is_err());
        assert!(choose_precision(AMPERE, None, Some(Precision::Q8)).is_ok());
        assert!(choose_precision(DeviceKind::Metal, None, Some(Precision::Q8)).is_err());
        assert!(choose(DeviceKind::Cpu, Kernels::Candle, None, Some(Precision::Q8)).is_err());
    }
}
