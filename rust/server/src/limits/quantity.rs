//! Numbers with a unit, as a configuration has them.

use std::time::Duration;

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};

/// What a limit can be: a number of something, or a switch.
pub(super) trait LimitValue {
    /// What it counts.
    const UNIT: &'static str;
}

impl LimitValue for bool {
    const UNIT: &'static str = "true or false";
}

macro_rules! quantities {
    ($($(#[doc = $doc:literal])+ $name:ident($unit:literal, $least:literal to $most:literal);)+) => {$(
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name(f64);

        impl LimitValue for $name {
            const UNIT: &'static str = $unit;
        }

        impl From<f64> for $name {
            fn from(number: f64) -> Self {
                Self(number)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let number = f64::deserialize(from)?;
                if ($least..=$most).contains(&number) {
                    return Ok(Self(number));
                }
                let expected = concat!("a number of ", $unit, " from ", $least, " to ", $most);
                Err(D::Error::invalid_value(Unexpected::Float(number), &expected))
            }
        }
    )+};
}

quantities! {
    /// Time.
    Seconds("seconds", 0.05 to 86400.0);
    /// 2²⁰ bytes each.
    Mebibytes("MiB", 0.001 to 65536.0);
    /// 2¹⁰ bytes each; the least is what the HTTP library needs.
    Kibibytes("KiB", 8.0 to 1024.0);
}

impl Seconds {
    /// The time.
    pub fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0)
    }

    /// How many of something that there are so many of in a second.
    pub(crate) fn times(self, per_second: f64) -> usize {
        (self.0 * per_second) as usize
    }
}

impl Mebibytes {
    /// The size.
    pub fn bytes(self) -> usize {
        (self.0 * f64::from(1 << 20)) as usize
    }
}

impl Kibibytes {
    /// The size.
    pub fn bytes(self) -> usize {
        (self.0 * f64::from(1 << 10)) as usize
    }
}

/// How many of something; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Count(usize);

impl LimitValue for Count {
    const UNIT: &'static str = "count";
}

impl From<usize> for Count {
    fn from(number: usize) -> Self {
        Self(number)
    }
}

impl Count {
    /// The number.
    pub fn get(self) -> usize {
        self.0
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match usize::deserialize(from)? {
            0 => {
                let expected = "a whole number, at least 1";
                Err(D::Error::invalid_value(Unexpected::Unsigned(0), &expected))
            }
            number => Ok(Self(number)),
        }
    }
}
