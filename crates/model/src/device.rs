//! Which device to run on, and why.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
#[cfg(feature = "wgpu")]
use burn::tensor::DeviceKind;
#[cfg(feature = "gpu")]
use burn::tensor::DeviceType;

use crate::error::{Error, Result};
use crate::guard::guard;

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

/// So many more devices of the kind of one that [`choose`] gave.
///
/// # Errors
/// Where there are fewer, or one can't be opened.
pub fn more(device: &Device, count: usize) -> Result<Vec<Device>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let kind = guard(device, || Ok::<_, Error>(siblings(device)))?;
    if kind.len() < count {
        return Err(Error::TooFewDevices {
            wanted: count + 1,
            found: kind.len() + 1,
        });
    }
    let more: Vec<Device> = kind.into_iter().take(count).collect();
    #[cfg(feature = "gpu")]
    for one in &more {
        let interface = if is_cuda(device) { "cuda" } else { "wgpu" };
        opened(interface, interface, one, || Ok(one.clone()))?;
    }
    Ok(more)
}

/// Those of its kind beside it that are there.
#[cfg(feature = "gpu")]
fn siblings(device: &Device) -> Vec<Device> {
    #[cfg(feature = "cuda")]
    if is_cuda(device) {
        let count = Device::enumerate(DeviceType::Cuda).len();
        return (1..count).map(Device::cuda).collect();
    }
    #[cfg(feature = "wgpu")]
    if *device == Device::wgpu(DeviceKind::DiscreteGpu(0)) {
        let found = Device::enumerate(DeviceType::Wgpu);
        let numbered = (1..).map(|number| Device::wgpu(DeviceKind::DiscreteGpu(number)));
        return numbered
            .take_while(|device| found.contains(device))
            .collect();
    }
    Vec::new()
}

#[cfg(not(feature = "gpu"))]
fn siblings(_: &Device) -> Vec<Device> {
    Vec::new()
}

/// Whether a GPU is imitated by the CPU.
#[cfg(feature = "wgpu")]
pub fn is_software(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::wgpu(DeviceKind::Cpu)
}

/// Whether a GPU is imitated by the CPU.
#[cfg(not(feature = "wgpu"))]
pub fn is_software(_: &Device) -> bool {
    false
}

fn best() -> (Device, String) {
    let (mut without, mut unusable) = (Vec::new(), Vec::new());
    for (name, find) in [
        ("CUDA", cuda as fn() -> Result<(Device, String)>),
        ("wgpu", gpu),
    ] {
        match find() {
            Ok((device, which)) => {
                unusable.insert(0, which);
                return (device, unusable.join("; "));
            }
            Err(Error::DeviceNotBuilt { .. }) => {
                without.push(format!("this build has no {name} support"));
            }
            Err(Error::DeviceNotFound { .. }) => {
                without.push(format!("no GPU was found through {name}"));
            }
            // One that is there and can't be used is worth the reason, whatever is taken in its place.
            Err(error) => {
                without.push(error.to_string());
                unusable.push(error.to_string());
            }
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
    let device = Device::cuda(0);
    opened("cuda", "CUDA", &device, || {
        if Device::enumerate(DeviceType::Cuda).is_empty() {
            return Err(without_cuda(&device));
        }
        let about = burn::cubecl::Device::cuda(0).ok();
        let about = about.and_then(|device| device.description());
        let about = about.and_then(|about| Some((about.architecture?, about.driver_version?)));
        if let Some((architecture, driver)) = about
            && let Some(least) = is_too_old(&architecture, &driver)
        {
            return Err(Error::OldDriver {
                architecture,
                driver,
                least,
            });
        }
        Ok(device.clone())
    })
}

/// Why there is no GPU: none, or a driver that does not begin.
#[cfg(feature = "cuda")]
fn without_cuda(device: &Device) -> Error {
    match guard(device, || Ok::<_, Error>(device.identity())) {
        Err(Error::Device { said })
            if !said.contains("CUDA_ERROR_NO_DEVICE") && !said.contains("dynamically load") =>
        {
            Error::Device { said }
        }
        _ => Error::DeviceNotFound {
            device: "cuda",
            hint: "it takes an NVIDIA GPU and a driver of CUDA 11.4 or newer (nvidia-smi shows both)",
        },
    }
}

/// The first CUDA whose driver loads what is compiled for an architecture, `sm_90`, where this one's is
/// older. LLVM ends the process where it is told to write for both.
#[cfg(any(feature = "cuda", test))]
fn is_too_old(architecture: &str, driver: &str) -> Option<&'static str> {
    let digits = |text: &str| {
        text.chars()
            .filter(char::is_ascii_digit)
            .collect::<String>()
    };
    let sm: u32 = digits(architecture).parse().ok()?;
    let (least, major, minor) = match sm {
        ..88 => ("11.4", 11, 4),
        89 => ("11.8", 11, 8),
        90..100 => ("12.0", 12, 0),
        100..103 | 120 => ("12.8", 12, 8),
        88 | 110..120 => ("13.0", 13, 0),
        _ => ("12.9", 12, 9),
    };
    let (has, rest) = driver.split_once('.')?;
    let has: (u32, u32) = (has.parse().ok()?, rest.parse().ok()?);
    (has < (major, minor)).then_some(least)
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
    match gpu() {
        Err(without @ Error::DeviceNotFound { .. }) => match software_adapter() {
            Err(Error::DeviceNotFound { .. }) => Err(without),
            found => found,
        },
        found => found,
    }
}

#[cfg(feature = "wgpu")]
fn gpu() -> Result<(Device, String)> {
    through_wgpu(&[
        DeviceKind::DiscreteGpu(0),
        DeviceKind::IntegratedGpu(0),
        DeviceKind::VirtualGpu(0),
    ])
}

#[cfg(not(feature = "wgpu"))]
fn gpu() -> Result<(Device, String)> {
    Err(Error::DeviceNotBuilt { device: "wgpu" })
}

#[cfg(feature = "wgpu")]
fn software_adapter() -> Result<(Device, String)> {
    let (device, which) = through_wgpu(&[DeviceKind::Cpu])?;
    let why =
        format!("{which}, a software adapter: slower than the CPU device, good for tests only");
    Ok((device, why))
}

#[cfg(not(feature = "wgpu"))]
fn software_adapter() -> Result<(Device, String)> {
    gpu()
}

/// The first of these kinds that is there.
#[cfg(feature = "wgpu")]
fn through_wgpu(kinds: &[DeviceKind]) -> Result<(Device, String)> {
    let devices: Vec<Device> = kinds.iter().cloned().map(Device::wgpu).collect();
    opened("wgpu", "wgpu", &devices[0], || {
        let found = Device::enumerate(DeviceType::Wgpu);
        let device = devices.iter().find(|device| found.contains(device));
        device.cloned().ok_or(Error::DeviceNotFound {
            device: "wgpu",
            hint: "it takes a driver for Vulkan, Metal or DX12 (vulkaninfo lists Vulkan's)",
        })
    })
}

/// Opens the device that is found, and says its name and how it is reached. `first` is one of those that
/// are looked for.
#[cfg(feature = "gpu")]
fn opened(
    device: &'static str,
    interface: &str,
    first: &Device,
    find: impl FnOnce() -> Result<Device>,
) -> Result<(Device, String)> {
    let opened = guard(first, || {
        let found = find()?;
        let name = found.identity().map(|identity| identity.name);
        let name = name.unwrap_or_else(|| "a device without a name".to_owned());
        Ok((found, format!("{name} through {interface}")))
    });
    opened.map_err(|error| match error {
        Error::Device { said } | Error::OutOfMemory { said } => {
            Error::DeviceNotOpened { device, said }
        }
        other => other,
    })
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
    fn an_architecture_takes_a_driver_that_knows_it() {
        for (architecture, driver, least) in [
            ("sm_75", "11.4", None),
            ("sm_80", "10.2", Some("11.4")),
            ("sm_89", "11.7", Some("11.8")),
            ("sm_90", "11.8", Some("12.0")),
            ("sm_90a", "12.0", None),
            ("sm_120", "12.8", None),
            ("sm_121", "12.8", Some("12.9")),
            // What is not known is not refused.
            ("gfx90a", "", None),
        ] {
            assert_eq!(
                is_too_old(architecture, driver),
                least,
                "{architecture} {driver}"
            );
        }
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
