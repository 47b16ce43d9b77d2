//! The devices models run on.

#[cfg(cuda)]
use std::sync::Arc;

use candle_core::Device;
use moshi_ctl_core::DeviceName;

use crate::EngineError;
#[cfg(cuda)]
use crate::cuda::Card;
use crate::precision::DeviceKind;

/// Where a model is put.
pub(crate) enum Opened {
    /// A device of candle's: the CPU, or Metal.
    Candle(Device),
    #[cfg(cuda)]
    Cuda(Arc<Card>),
}

/// What this build can run on besides the CPU. A device of that sort need not exist.
pub fn accelerators() -> Vec<&'static str> {
    let available = [("cuda", cfg!(cuda)), ("metal", candle_core::utils::metal_is_available())];
    available.into_iter().filter_map(|(name, is_built_in)| is_built_in.then_some(name)).collect()
}

/// The device called `wish`; without a wish Metal, where this build has it, else the CPU.
///
/// # Errors
/// When this build has no support for it, or it cannot be used.
pub(crate) fn open(wish: Option<DeviceName>) -> Result<(DeviceName, Opened), EngineError> {
    let has = |name| accelerators().contains(&name);
    let name = wish.unwrap_or(if has("metal") { DeviceName::Metal } else { DeviceName::Cpu });
    let refused = |needs: &str| {
        Err(EngineError::new(format!(
            "the device {name} is asked for, but this build has no support for {needs}"
        ))
        .with_hint(format!("Install a build with {needs}, or run on the CPU with --device cpu.")))
    };
    let opened = match name {
        DeviceName::Cpu => Opened::Candle(Device::Cpu),
        DeviceName::Metal if !has("metal") => return refused("metal"),
        DeviceName::Metal => {
            let device = Device::new_metal(0);
            Opened::Candle(device.map_err(|e| unusable(name, EngineError::new(e.to_string())))?)
        }
        #[cfg(cuda)]
        DeviceName::Cuda(number) => {
            let card = Card::open(number);
            Opened::Cuda(card.map_err(|e| unusable(name, e))?)
        }
        #[cfg(not(cuda))]
        DeviceName::Cuda(_) => return refused("cuda"),
    };
    Ok((name, opened))
}

/// Why this build can use no NVIDIA card on this machine, apart from what the card is: its driver is
/// not there, or does not start. Builds without CUDA have no such reason.
pub fn cuda_obstacle() -> Option<EngineError> {
    #[cfg(cuda)]
    return crate::cuda::start().err();
    #[cfg(not(cuda))]
    None
}

/// Bytes that the card `cuda:ordinal` reads and writes in a second while it copies, of several
/// copies: the limit of whatever is bound by memory.
///
/// # Errors
/// When this build or the machine has no such card.
pub fn card_bandwidth(ordinal: usize) -> Result<Vec<f64>, EngineError> {
    #[cfg(cuda)]
    return crate::cuda::bandwidth(ordinal);
    #[cfg(not(cuda))]
    Err(EngineError::new(format!("no cuda:{ordinal}: this build has no support for cuda")))
}

fn unusable(name: DeviceName, why: EngineError) -> EngineError {
    let hint = why.hint().unwrap_or("Check the driver with `moshi-ctl doctor`.").to_owned();
    EngineError::new(format!("the device {name} cannot be used: {why}"))
        .with_hint(format!("{hint} Or run with --device cpu."))
}

impl Opened {
    /// What matters for the choice of a precision.
    pub(crate) fn kind(&self) -> DeviceKind {
        match self {
            Self::Candle(Device::Metal(_)) => DeviceKind::Metal,
            Self::Candle(_) => DeviceKind::Cpu,
            #[cfg(cuda)]
            Self::Cuda(card) => DeviceKind::Cuda { compute_capability: card.compute_capability() },
        }
    }

    /// Where candle's tensors are made.
    pub(crate) fn of_tensors(&self) -> Device {
        match self {
            Self::Candle(device) => device.clone(),
            #[cfg(cuda)]
            Self::Cuda(_) => Device::Cpu,
        }
    }
}
