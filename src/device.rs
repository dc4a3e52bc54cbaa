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
        retort_model::choose(self.device)
    }
}
