//! The devices models run on.

use candle_core::Device;
use moshi_ctl_core::DeviceName;

use crate::EngineError;
use crate::precision::DeviceKind;

/// What this build can run on besides the CPU. A device of that sort need not exist.
pub fn accelerators() -> Vec<&'static str> {
    let available = [
        ("cuda", candle_core::utils::cuda_is_available()),
        ("metal", candle_core::utils::metal_is_available()),
    ];
    available.into_iter().filter_map(|(name, is_built_in)| is_built_in.then_some(name)).collect()
}

/// The device called `wish`; without a wish the first CUDA device or Metal, where this build has
/// them, else the CPU.
///
/// # Errors
/// When this build has no support for it, or it cannot be used.
pub(crate) fn open(wish: Option<DeviceName>) -> Result<(DeviceName, Device), EngineError> {
    let name = wish.unwrap_or(match accelerators().first() {
        Some(&"cuda") => DeviceName::Cuda(0),
        Some(_) => DeviceName::Metal,
        None => DeviceName::Cpu,
    });
    let needs = match name {
        DeviceName::Cpu => return Ok((name, Device::Cpu)),
        DeviceName::Cuda(_) => "cuda",
        DeviceName::Metal => "metal",
    };
    if !accelerators().contains(&needs) {
        return Err(EngineError::new(format!(
            "the device {name} is asked for, but this build has no support for {needs}"
        ))
        .with_hint(format!("Install a build with {needs}, or run on the CPU with --device cpu.")));
    }
    let device = match name {
        DeviceName::Cuda(number) => Device::new_cuda(number),
        _ => Device::new_metal(0),
    };
    let device = device.map_err(|e| {
        EngineError::new(format!("the device {name} cannot be used: {e}"))
            .with_hint("Check the driver with `moshi-ctl doctor`, or run with --device cpu.")
    })?;
    Ok((name, device))
}

/// What matters of a device for the choice of a precision.
///
/// # Errors
/// When the driver does not answer.
pub(crate) fn kind(device: &Device) -> Result<DeviceKind, EngineError> {
    match device {
        Device::Cpu => Ok(DeviceKind::Cpu),
        Device::Metal(_) => Ok(DeviceKind::Metal),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
            let attribute = |which| {
                device.cuda_stream().context().attribute(which).map_err(|e| {
                    EngineError::new(format!("the CUDA driver does not answer: {e:?}"))
                })
            };
            let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            Ok(DeviceKind::Cuda { compute_capability: (major as u32, minor as u32) })
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(EngineError::new("internal error: a CUDA device without CUDA")),
    }
}
