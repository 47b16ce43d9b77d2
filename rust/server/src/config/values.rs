//! Values that are more than what TOML has types for.

use std::fmt;

use moshi_ctl_core::{DeviceName, Precision};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What leaves a choice to the program.
const AUTO: &str = "auto";

/// How many streams a module serves at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    /// So many, or fewer where they do not fit.
    Lanes(usize),
    /// As many as fit.
    Auto,
}

impl Serialize for BatchSize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Lanes(lanes) => to.serialize_u64(*lanes as u64),
            Self::Auto => to.serialize_str(AUTO),
        }
    }
}

impl<'de> Deserialize<'de> for BatchSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Lanes;

        impl Visitor<'_> for Lanes {
            type Value = BatchSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number, at least 1, or \"{AUTO}\"")
            }

            fn visit_i64<E: Error>(self, lanes: i64) -> Result<BatchSize, E> {
                let number = usize::try_from(lanes);
                let wrong = |_| E::invalid_value(Unexpected::Signed(lanes), &self);
                number.map(BatchSize::Lanes).map_err(wrong)
            }

            fn visit_u64<E: Error>(self, lanes: u64) -> Result<BatchSize, E> {
                let number = usize::try_from(lanes);
                let wrong = |_| E::invalid_value(Unexpected::Unsigned(lanes), &self);
                number.map(BatchSize::Lanes).map_err(wrong)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<BatchSize, E> {
                match text {
                    AUTO => Ok(BatchSize::Auto),
                    other => Err(E::invalid_type(Unexpected::Str(other), &self)),
                }
            }
        }

        from.deserialize_any(Lanes)
    }
}

/// `auto` leaves the choice to the engine, as an absent key does.
pub(super) fn auto_or_precision<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Precision>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Wish {
        Auto,
        F32,
        F16,
        Bf16,
        Q8,
    }
    Ok(match Wish::deserialize(from)? {
        Wish::Auto => None,
        Wish::F32 => Some(Precision::F32),
        Wish::F16 => Some(Precision::F16),
        Wish::Bf16 => Some(Precision::Bf16),
        Wish::Q8 => Some(Precision::Q8),
    })
}

/// `auto` leaves the choice to the controller, as an absent key does.
pub(super) fn auto_or_device<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<DeviceName>, D::Error> {
    let name = String::deserialize(from)?;
    if name == AUTO {
        return Ok(None);
    }
    name.parse().map(Some).map_err(D::Error::custom)
}

/// As [`auto_or_device`] reads it.
pub(super) fn device_name<S: Serializer>(
    device: &Option<DeviceName>,
    to: S,
) -> Result<S::Ok, S::Error> {
    device.map(|device| device.to_string()).serialize(to)
}
