//! Which device to run on, and why.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
#[cfg(feature = "wgpu")]
use burn::tensor::DeviceKind;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::tensor::DeviceType;

use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::precision::cuts_to_tf32;

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best there is: CUDA, then a GPU through wgpu, then the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU through Vulkan, Metal or DX12; a software adapter if there is no other.
    Wgpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err(Error::UnknownDevice(name.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        })
    }
}

/// The device, and a phrase for the log that says which it is and why.
///
/// # Errors
/// An explicit choice that this build or this machine does not have, with how to get it.
/// [`DeviceChoice::Auto`] always finds a device.
pub fn choose(choice: DeviceChoice) -> Result<(Device, String)> {
    match choice {
        DeviceChoice::Auto => Ok(best()),
        DeviceChoice::Cpu => Ok((Device::flex(), format!("{}, as chosen", cpu_name()))),
        DeviceChoice::Wgpu => wgpu(),
        DeviceChoice::Cuda => cuda(),
    }
}

fn best() -> (Device, String) {
    let mut without = Vec::new();
    for (name, find) in [
        ("CUDA", cuda as fn() -> Result<(Device, String)>),
        ("wgpu", gpu),
    ] {
        match find() {
            Ok(found) => return found,
            Err(Error::DeviceNotFound { .. }) => {
                without.push(format!("no GPU was found through {name}"));
            }
            Err(_) => without.push(format!("this build has no {name} support")),
        }
    }
    (
        Device::flex(),
        format!("{}: {}", cpu_name(), without.join(", ")),
    )
}

fn cpu_name() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("the CPU ({cores} threads)")
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<(Device, String)> {
    if Device::enumerate(DeviceType::Cuda).is_empty() {
        let hint = "it takes an NVIDIA GPU and its driver (nvidia-smi shows both)";
        return Err(Error::DeviceNotFound {
            device: "cuda",
            hint,
        });
    }
    let device = Device::cuda(0);
    let products = if cuts_to_tf32(&device) {
        ", which cuts 32-bit products to TF32"
    } else {
        ""
    };
    let why = format!("{} through CUDA{products}", adapter_name(&device));
    Ok((device, why))
}

#[cfg(feature = "cuda")]
pub(crate) fn is_cuda(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::cuda(0)
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn is_cuda(_: &Device) -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<(Device, String)> {
    Err(Error::DeviceNotBuilt { device: "cuda" })
}

/// A GPU, or else a software adapter.
fn wgpu() -> Result<(Device, String)> {
    gpu().or_else(|without| software_adapter().ok_or(without))
}

#[cfg(feature = "wgpu")]
fn gpu() -> Result<(Device, String)> {
    let found = Device::enumerate(DeviceType::Wgpu);
    let kinds = [
        DeviceKind::DiscreteGpu(0),
        DeviceKind::IntegratedGpu(0),
        DeviceKind::VirtualGpu(0),
    ];
    let Some(device) = kinds
        .map(Device::wgpu)
        .into_iter()
        .find(|device| found.contains(device))
    else {
        let hint = "it takes a driver for Vulkan, Metal or DX12 (vulkaninfo lists Vulkan's)";
        return Err(Error::DeviceNotFound {
            device: "wgpu",
            hint,
        });
    };
    let why = format!("{} through wgpu", adapter_name(&device));
    Ok((device, why))
}

#[cfg(not(feature = "wgpu"))]
fn gpu() -> Result<(Device, String)> {
    Err(Error::DeviceNotBuilt { device: "wgpu" })
}

#[cfg(feature = "wgpu")]
fn software_adapter() -> Option<(Device, String)> {
    let device = Device::wgpu(DeviceKind::Cpu);
    Device::enumerate(DeviceType::Wgpu).contains(&device).then(|| {
        let why = format!(
            "{} through wgpu, a software adapter: slower than the CPU device, good for tests only",
            adapter_name(&device)
        );
        (device, why)
    })
}

#[cfg(not(feature = "wgpu"))]
fn software_adapter() -> Option<(Device, String)> {
    None
}

/// Opens the device: only for one that was found.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn adapter_name(device: &Device) -> String {
    device.identity().map_or_else(
        || "a device without a name".to_owned(),
        |identity| identity.name,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for choice in [
            DeviceChoice::Auto,
            DeviceChoice::Cpu,
            DeviceChoice::Wgpu,
            DeviceChoice::Cuda,
        ] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        let error = "gpu".parse::<DeviceChoice>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"gpu\" is no device: use auto, cpu, wgpu or cuda"
        );
    }

    #[test]
    fn auto_always_finds_a_device() {
        let (_, why) = choose(DeviceChoice::Auto).unwrap();
        assert!(!why.is_empty());
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn what_is_not_built_says_how_to_build_it() {
        let error = choose(DeviceChoice::Cuda).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this build has no cuda support: build again with --features cuda"
        );
    }
}
