//! Which device a model runs on, and what it can do there.

use candle_core::{Device, DeviceLocation};
use moshi_ctl_core::Precision;

use crate::EngineError;
use crate::weights::{Kernels, Placement};

/// The first compute capability with bf16 arithmetic.
const BF16_FROM: (u32, u32) = (8, 0);

/// The first CUDA device or Metal, where this build has them; else the CPU.
///
/// # Errors
/// When there is a device but it cannot be used.
pub(crate) fn choose_device(cpu: bool) -> Result<Device, EngineError> {
    // "Available" means that this build has the support, not that the machine has the device.
    let device = if cpu {
        Ok(Device::Cpu)
    } else if candle_core::utils::cuda_is_available() {
        Device::new_cuda(0)
    } else if candle_core::utils::metal_is_available() {
        Device::new_metal(0)
    } else {
        Ok(Device::Cpu)
    };
    device.map_err(|e| {
        EngineError::new(format!("the accelerator cannot be used: {e}"))
            .with_hint("Check the driver, or run on the CPU with --cpu.")
    })
}

/// As people write it in commands and logs.
pub(crate) fn device_name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// Where the language model goes. Without a wish its precision is Q8 on the CPU, F32 on CUDA
/// devices below compute capability 8.0 (Turing has no bf16) and BF16 elsewhere; its rings are Q8
/// beside Q8 weights on the CPU and else as the weights.
pub(crate) fn place(
    device: &Device,
    kernels: Kernels,
    wish: Option<Precision>,
    kv_wish: Option<Precision>,
) -> Result<Placement, EngineError> {
    let kernels = if device.is_cpu() { kernels } else { Kernels::Candle };
    let capability = compute_capability(device)?;
    if let Some((major, minor)) = capability.filter(|&capability| capability < BF16_FROM)
        && [wish, kv_wish].contains(&Some(Precision::Bf16))
    {
        return Err(EngineError::new(format!(
            "precision bf16 is asked for, but this card has compute capability {major}.{minor} \
             and bf16 needs 8.0"
        ))
        .with_hint("Use f16 or f32, or leave the choice to the program."));
    }
    let precision = wish.unwrap_or(match (device, capability) {
        (Device::Cpu, _) => Precision::Q8,
        (_, Some(capability)) if capability < BF16_FROM => Precision::F32,
        _ => Precision::Bf16,
    });
    let kv_precision = kv_wish.unwrap_or(match (kernels, precision) {
        (Kernels::Candle, Precision::Q8) => Precision::F16,
        (_, precision) => precision,
    });
    Ok(Placement { device: device.clone(), kernels, precision, kv_precision })
}

/// Major and minor compute capability of a CUDA device; none elsewhere.
#[cfg(feature = "cuda")]
fn compute_capability(device: &Device) -> Result<Option<(u32, u32)>, EngineError> {
    use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute as Attribute;
    let Device::Cuda(device) = device else { return Ok(None) };
    let attribute = |which| {
        device
            .cuda_stream()
            .context()
            .attribute(which)
            .map_err(|e| EngineError::new(format!("the CUDA driver does not answer: {e:?}")))
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Some((major as u32, minor as u32)))
}

#[cfg(not(feature = "cuda"))]
fn compute_capability(_device: &Device) -> Result<Option<(u32, u32)>, EngineError> {
    Ok(None)
}
