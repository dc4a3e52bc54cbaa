use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Args;
use retort_model::{Device, DeviceChoice, Precision};
use retort_trainer::TrainSettings;

use crate::exit;

/// `--device`, for every command that computes.
#[derive(Args)]
pub(crate) struct DeviceArguments {
    /// What to compute on: auto, cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

impl DeviceArguments {
    /// The device, set up to compute in that.
    pub(crate) fn choose(&self, precision: Precision) -> retort_model::Result<(Device, String)> {
        set_up(precision);
        let found = retort_model::choose(self.device)?;
        if found.0 == Device::flex() {
            keep_freed_memory();
        }
        watch(&found.0);
        Ok(found)
    }
}

/// The same for training.
#[derive(Args)]
pub(crate) struct TrainingDeviceArguments {
    #[command(flatten)]
    device: DeviceArguments,

    /// GPUs that share each step's queries
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    gpus: u16,
}

/// What a training job computes on and begins with.
pub(crate) struct Ground {
    pub(crate) device: Device,
    pub(crate) others: Vec<Device>,
    /// The base model's folder.
    pub(crate) base: PathBuf,
}

impl TrainingDeviceArguments {
    pub(crate) fn prepare(&self, settings: &TrainSettings) -> anyhow::Result<Ground> {
        let model = &settings.model;
        let (device, which) = self.device.choose(model.precision)?;
        let others = retort_model::more(&device, usize::from(self.gpus) - 1)?;
        let beside = match others.len() {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        tracing::info!(
            "device: {which}{beside}, training in {}, attention {}",
            model.precision,
            model.attention
        );
        // Before a base model is fetched.
        settings.check_device(&device)?;
        let base = retort_hub::base_model(&model.init, model.revision.as_deref(), None)?;
        tracing::info!("base model: {}", base.origin);
        Ok(Ground {
            device,
            others,
            base: base.folder,
        })
    }
}

/// How long a device that something died of may go without an answer.
const PATIENCE: Duration = Duration::from_mins(10);

/// Ends the process where a thread that serves the device has died and those who wait for it are not
/// told: they would wait for ever.
pub(crate) fn watch(device: &Device) {
    if *device == Device::flex() {
        return;
    }
    thread::spawn(|| {
        loop {
            thread::sleep(PATIENCE / 20);
            if let Some((said, since)) = retort_model::unanswered()
                && since > PATIENCE
            {
                end(&said);
            }
        }
    });
}

#[expect(
    clippy::exit,
    reason = "the thread that should end the process waits for ever"
)]
fn end(said: &str) -> ! {
    let minutes = PATIENCE.as_secs() / 60;
    let said = format!(
        "{said}; since then it has not answered for {minutes} minutes. A training run goes on from \
         its last checkpoint with --resume"
    );
    let code = exit::report(&retort_model::Error::Device { said }.into());
    std::process::exit(code.into())
}

/// Before anything is computed: kernels for GPUs are kept in the user's cache.
pub(crate) fn set_up(precision: Precision) {
    let kernels = retort_hub::cache_folder().map(|cache| cache.join("kernels"));
    retort_model::configure(kernels.as_deref(), precision);
}

/// Has the allocator keep what is freed: the CPU device makes and drops tensors of megabytes by the
/// thousand, and with glibc's defaults a fifth of its time goes into mapping their pages anew.
#[cfg(all(target_os = "linux", target_env = "gnu", not(feature = "cuda")))]
#[expect(unsafe_code, reason = "mallopt sets numbers of the allocator, no more")]
fn keep_freed_memory() {
    use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD, c_int, mallopt};
    // One heap for all threads, which grows by much and never shrinks. Threads that serve a GPU free what
    // others made, and would wait for it.
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

#[cfg(not(all(target_os = "linux", target_env = "gnu", not(feature = "cuda"))))]
fn keep_freed_memory() {}
