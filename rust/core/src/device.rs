use std::str::FromStr;

/// Where a model runs, as configurations and commands name it: `cpu`, `cuda:0`, `metal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// The CUDA device with this number among those the process may use.
    Cuda(usize),
    /// Apple's graphics processor.
    Metal,
}

/// Of the number of a device; no machine has so many.
const MOST_DIGITS: usize = 3;

/// What names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device: use cpu, cuda, cuda:N or metal")]
pub struct UnknownDevice(String);

impl FromStr for DeviceName {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            None if name == "metal" => Ok(Self::Metal),
            // No sign, no blank: what `cuda:` is followed by is a number as people write it.
            Some(("cuda", number))
                if number.len() <= MOST_DIGITS && number.bytes().all(|b| b.is_ascii_digit()) =>
            {
                number.parse().map(Self::Cuda).map_err(|_| UnknownDevice(name.into()))
            }
            _ => Err(UnknownDevice(name.into())),
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (name, device, written) in [
            ("cpu", DeviceName::Cpu, "cpu"),
            ("cuda", DeviceName::Cuda(0), "cuda:0"),
            ("cuda:3", DeviceName::Cuda(3), "cuda:3"),
            ("metal", DeviceName::Metal, "metal"),
        ] {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string(), written);
        }
    }

    #[test]
    fn other_names_are_refused_with_those_there_are() {
        for name in [
            "",
            "CPU",
            "gpu",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cpu:0",
            "cuda:0:1",
            "cuda:1000",
        ] {
            let error = name.parse::<DeviceName>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains("cuda:N"), "{error}");
        }
    }
}
