//! What the environment says.

use std::env;
use std::path::{Path, PathBuf};

/// The environment's settings, read once at the rim. No `Debug`: it holds a secret.
pub(crate) struct Settings {
    /// The Hub or a mirror, without a final slash.
    pub(crate) endpoint: String,
    /// Sent to the endpoint alone.
    pub(crate) token: Option<String>,
    /// Whether the Hub must not be asked.
    pub(crate) offline: bool,
    /// Retort's cache folder, where one is known.
    pub(crate) cache: Option<PathBuf>,
}

impl Settings {
    /// The settings of this process, with `cache` before what the environment says of it.
    pub(crate) fn from_environment(cache: Option<&Path>) -> Self {
        Self::from_variables(cache, |name| env::var(name).ok(), env::home_dir())
    }

    /// Pure: `variable` looks a variable up.
    fn from_variables(
        cache: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
        home: Option<PathBuf>,
    ) -> Self {
        // Everywhere below a variable set to nothing counts as unset.
        let variable = |name| variable(name).filter(|value| !value.trim().is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_owned());
        let offline = variable("HF_HUB_OFFLINE")
            .unwrap_or_default()
            .to_uppercase();
        let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache
            .map(Path::to_owned)
            .or_else(|| variable("RETORT_CACHE").map(PathBuf::from))
            // The XDG specification has relative paths ignored.
            .or_else(|| {
                xdg.filter(|path| path.is_absolute())
                    .map(|path| path.join("retort"))
            })
            .or_else(|| home.map(|home| home.join(".cache").join("retort")));
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN").map(|token| token.trim().to_owned()),
            // The values that huggingface_hub takes for yes.
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.trim()),
            cache,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cache: Option<&str>, variables: &[(&str, &str)]) -> Settings {
        let look_up = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Settings::from_variables(cache.map(Path::new), look_up, Some("/home/me".into()))
    }

    #[test]
    fn an_empty_environment_means_the_hub_and_the_home_directory() {
        let settings = settings(None, &[("HF_TOKEN", ""), ("HF_ENDPOINT", " ")]);
        assert_eq!(settings.endpoint, "https://huggingface.co");
        assert!(settings.token.is_none() && !settings.offline);
        assert_eq!(settings.cache.unwrap(), Path::new("/home/me/.cache/retort"));
    }

    #[test]
    fn what_is_set_is_honoured() {
        let set = [
            ("HF_ENDPOINT", "http://mirror.invalid/hf/"),
            ("HF_TOKEN", "secret\n"),
            ("HF_HUB_OFFLINE", "true"),
        ];
        let settings = settings(None, &set);
        assert_eq!(settings.endpoint, "http://mirror.invalid/hf");
        assert_eq!(settings.token.as_deref(), Some("secret"));
        assert!(settings.offline);
    }

    #[test]
    #[cfg(unix)]
    fn the_cache_is_found_in_the_documented_order() {
        let all = [("RETORT_CACHE", "/r"), ("XDG_CACHE_HOME", "/x")];
        let cache = |given, variables: &[(&str, &str)]| settings(given, variables).cache.unwrap();
        assert_eq!(cache(Some("/given"), &all), Path::new("/given"));
        assert_eq!(cache(None, &all), Path::new("/r"));
        assert_eq!(cache(None, &all[1..]), Path::new("/x/retort"));
        let relative = [("XDG_CACHE_HOME", "x")];
        assert_eq!(cache(None, &relative), Path::new("/home/me/.cache/retort"));
    }
}
