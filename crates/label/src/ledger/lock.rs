//! One writer at a time.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::{Error, Result};

/// The process that writes a ledger now, if one does.
///
/// # Errors
/// An I/O error.
pub fn writer_of(path: &Path) -> Result<Option<String>> {
    let path_of_lock = path_of_lock(path);
    if !path_of_lock.exists() {
        return Ok(None);
    }
    let file = fs::File::open(&path_of_lock)?.into_parts().0;
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(fs::read_to_string(&path_of_lock)?)),
        Err(TryLockError::Error(error)) => Err(Error::Io(error)),
    }
}

fn path_of_lock(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// One writer at a time: the second learns who is first.
pub(super) fn lock(path: &Path) -> Result<File> {
    let path_of_lock = path_of_lock(path);
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path_of_lock)?
        .into_parts()
        .0;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            std::io::Write::write_all(&mut &file, std::process::id().to_string().as_bytes())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(Error::Locked {
            path: path.to_owned(),
            by: fs::read_to_string(&path_of_lock).unwrap_or_default(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::Io(error)),
    }
}
