use clap::Args;
use retort_model::DeviceChoice;

/// `--device`, for every command that computes.
#[derive(Args)]
pub(crate) struct DeviceArguments {
    /// What to compute on: auto, cpu, wgpu or cuda
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

impl DeviceArguments {
    pub(crate) fn choose(&self) -> retort_model::Result<(retort_model::Device, String)> {
        keep_freed_memory();
        retort_model::choose(self.device)
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
