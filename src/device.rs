use std::path::PathBuf;

use clap::Args;
use retort_model::{Device, DeviceChoice};
use retort_trainer::TrainSettings;

/// `--device`, for every command that computes.
#[derive(Args)]
pub(crate) struct DeviceArguments {
    /// What to compute on: auto, cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

impl DeviceArguments {
    pub(crate) fn choose(&self) -> retort_model::Result<(Device, String)> {
        keep_freed_memory();
        retort_model::choose(self.device)
    }

    /// The device of a training job, and the folder of its base model.
    pub(crate) fn for_training(
        &self,
        settings: &TrainSettings,
    ) -> anyhow::Result<(Device, PathBuf)> {
        let (device, which) = self.choose()?;
        let model = &settings.model;
        tracing::info!(
            "device: {which}, training in {}, attention {}",
            model.precision,
            model.attention
        );
        // Before a base model is fetched.
        settings.check_device(&device)?;
        let base = retort_hub::base_model(&model.init, model.revision.as_deref(), None)?;
        tracing::info!("base model: {}", base.origin);
        Ok((device, base.folder))
    }
}

/// Has the allocator keep what is freed: the CPU device makes and drops tensors of megabytes by the
/// thousand, and with glibc's defaults a fifth of its time goes into mapping their pages anew.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "mallopt sets numbers of the allocator, no more")]
fn keep_freed_memory() {
    use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD, c_int, mallopt};
    // One heap for all threads, which grows by much and never shrinks.
    let options = [
        (M_ARENA_MAX, 1),
        (M_MMAP_THRESHOLD, c_int::MAX),
        (M_TRIM_THRESHOLD, c_int::MAX),
        (M_TOP_PAD, 64 << 20),
    ];
    for (option, value) in options {
        // SAFETY: it takes two integers by value. What it does not know, it leaves as it is.
        unsafe { mallopt(option, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}
