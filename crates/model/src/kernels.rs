//! How Burn makes its kernels on GPUs: they are compiled, and the fastest of each kind is looked for,
//! on the machine that runs them.

use std::path::Path;

use crate::precision::Precision;

/// Settles what holds for all kernels of this process: `cache` is a folder in which compiled kernels
/// and what tuning found are kept for the next one, and in 32 bits products have all of them where
/// `precision` is [`Precision::F32`]; else CUDA may cut their operands to TF32.
///
/// To be called before anything is computed on a GPU; later calls change nothing. What `cubecl.toml`
/// and the variables that begin with `CUBECL_` say of kernels goes on to count; a folder that they name
/// goes before `cache`.
#[cfg(feature = "gpu")]
pub fn configure(cache: Option<&Path>, precision: Precision) {
    use burn::cubecl::config::cache::CacheConfig;
    use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    use cubek::std::config::{CubekConfig, MatmulConfig};

    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    if let (CacheConfig::Target, Some(cache)) = (&config.environment.path, cache) {
        config.environment.path = CacheConfig::Directory(cache.to_owned());
    }
    config.compilation.cache = true;
    CubeClRuntimeConfig::try_set(config);
    CubekConfig::try_set(CubekConfig {
        matmul: MatmulConfig {
            allow_tf32: precision != Precision::F32,
        },
    });
}

/// Without GPUs there is nothing to settle.
#[cfg(not(feature = "gpu"))]
pub fn configure(_: Option<&Path>, _: Precision) {}
