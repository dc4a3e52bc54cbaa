//! Files that are whole or absent.
//!
//! Every file Retort writes goes through here: bytes go to a sibling temporary file, are synced,
//! and take the target's name by rename, so a reader (or a process killed at any instant) sees the
//! old content or the new and never a mixture. A directory is written under a `.partial` name and
//! renamed when complete. What a killed process left of either goes when the target is next written.

use std::io::{self, BufWriter, IntoInnerError, Read, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest, Sha256};

/// Writes `bytes` to `path`, replacing what is there, so that no crash leaves half a file.
///
/// The file gets mode 0644 on Unix (a temporary file's default of 0600 would keep a serving
/// process of another user from reading it).
///
/// # Errors
/// Any I/O error, with the path. The target is then unchanged.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for what does not fit in memory: `fill` writes it.
///
/// # Errors
/// `fill`'s error, or any I/O error with the path. The target is then unchanged.
pub fn write_atomic_with<T, E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<T, E> {
    fs::create_dir_all(parent(path))?;
    let temporary = sibling(path, "tmp")?;
    let written = write_synced(&temporary, fill).and_then(|written| {
        rename(&temporary, path)?;
        Ok(written)
    });
    if written.is_err() {
        // Best effort: the first error is the one worth reporting.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes the directory `path` by letting `fill` write into a `.partial` sibling that is renamed
/// once it is complete: `path` is absent or whole.
///
/// # Errors
/// `AlreadyExists` when `path` is there (nothing is touched), else `fill`'s error or an I/O error;
/// the partial directory is removed.
pub fn write_new_directory<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    refuse_existing(path)?;
    fs::create_dir_all(parent(path))?;
    let partial = sibling(path, "partial")?;
    if partial.exists() {
        // A run killed while it wrote: nobody else owns this name.
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir(&partial)?;
    let filled = fill(&partial).and_then(|()| {
        sync_contents(&partial)?;
        Ok(rename(&partial, path)?)
    });
    if filled.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    filled
}

/// A file without a name that is being written, which is gone when it is closed, however the process
/// ends: for what memory need not hold. It is made in `TMPDIR`, else in `/var/tmp`, because `/tmp` is
/// memory on many machines. Its errors name the folder.
pub struct Scratch {
    file: BufWriter<std::fs::File>,
    folder: PathBuf,
}

impl Scratch {
    /// An empty one.
    ///
    /// # Errors
    /// An I/O error that names the folder.
    pub fn new() -> io::Result<Self> {
        in_scratch(|folder| {
            Ok(Self {
                file: BufWriter::new(tempfile::tempfile_in(&folder)?),
                folder,
            })
        })
    }

    /// All that was written, to be read.
    ///
    /// # Errors
    /// A disk that is full.
    pub fn finish(self) -> io::Result<std::fs::File> {
        let Self { file, folder } = self;
        let file = file.into_inner().map_err(IntoInnerError::into_error);
        file.map_err(|error| of_scratch(&folder, &error))
    }
}

impl Write for Scratch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        written.map_err(|error| of_scratch(&self.folder, &error))
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.file.flush();
        flushed.map_err(|error| of_scratch(&self.folder, &error))
    }
}

/// As [`Scratch`], a folder; a process that is killed leaves it behind.
///
/// # Errors
/// An I/O error that names the folder.
pub fn scratch_folder() -> io::Result<tempfile::TempDir> {
    in_scratch(|folder| {
        tempfile::Builder::new()
            .prefix("retort-")
            .tempdir_in(folder)
    })
}

fn in_scratch<T>(make: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let large = Path::new("/var/tmp");
    let folder = match std::env::var_os("TMPDIR") {
        None if large.is_dir() => large.to_owned(),
        _ => std::env::temp_dir(),
    };
    make(folder.clone()).map_err(|error| of_scratch(&folder, &error))
}

fn of_scratch(folder: &Path, error: &io::Error) -> io::Error {
    let folder = folder.display();
    io::Error::new(
        error.kind(),
        format!("no temporary file in {folder}: {error}; set TMPDIR to a folder with room"),
    )
}

/// Gives `from` the name `to`, replacing what has it, and makes that durable.
///
/// # Errors
/// Any I/O error, with both paths.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(parent(to))
}

/// An `AlreadyExists` error that says how to go on when something stands at `path`.
///
/// # Errors
/// When `path` exists, be it a file, a directory or a dangling link.
pub fn refuse_existing(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "{} exists already: name another path, or remove it first",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// The SHA-256 of a file as 64 lower-case hexadecimal digits.
///
/// # Errors
/// Any I/O error, with the path.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// The SHA-256 of bytes as 64 lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(digest: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * digest.len());
    for byte in digest {
        for nibble in [byte >> 4, byte & 15] {
            digits.push(char::from_digit(nibble.into(), 16).unwrap_or_default());
        }
    }
    digits
}

fn write_synced<T, E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<T, E> {
    let mut buffer = io::BufWriter::new(fs::File::create(path)?);
    let written = fill(&mut buffer)?;
    let target = buffer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        target.set_permissions(PermissionsExt::from_mode(0o644))?;
    }
    target.sync_all()?;
    Ok(written)
}

/// Makes all that is in a directory durable.
fn sync_contents(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_contents(&entry.path())?;
        } else if kind.is_file() {
            fs::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(path)
}

/// Makes a rename durable: until its directory is synced, a power cut may undo it.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        fs::File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A hidden name beside `path`, with the process id so that two processes never share one. What killed
/// processes left under such names is removed.
fn sibling(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} does not name a file", path.display()),
        )
    })?;
    let begins = format!(".{}.", name.to_string_lossy());
    let ends = format!("{}.{suffix}", machine());
    // Best effort: what can't be removed is in nobody's way.
    for entry in fs::read_dir(parent(path))?.flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(&begins));
        let process = rest.and_then(|rest| rest.strip_suffix(&ends)?.parse().ok());
        if process.is_some_and(is_gone) {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
    Ok(parent(path).join(format!("{begins}{}{ends}", std::process::id())))
}

/// Whose process ids are meant, on a disk that several machines or containers share: some digits of
/// this one's name.
fn machine() -> String {
    match fs::read("/proc/sys/kernel/hostname") {
        Ok(name) => format!("-{}", &sha256(&name)[..8]),
        Err(_) => String::new(),
    }
}

/// Whether no process of this machine has that id; false where nobody can tell.
fn is_gone(process: u32) -> bool {
    Path::new("/proc/self").exists() && !Path::new(&format!("/proc/{process}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_atomic_write_replaces_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_fails_half_way_does_not_appear() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let failed = write_new_directory(&path, |partial| {
            fs::write(partial.join("half"), "x")?;
            Err(io::Error::other("planted"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "planted");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let beside = |name: String| folder.path().join(name);
        let (gone, here) = (i32::MAX, machine());
        let dead = [
            beside(format!(".out.{gone}{here}.partial")),
            beside(format!(".a.json.{gone}{here}.tmp")),
        ];
        let others = [
            // The first process is always there.
            beside(format!(".out.1{here}.partial")),
            beside(format!(".out.{gone}-01234567.partial")),
            beside(format!(".out.more.{gone}{here}.partial")),
            beside(format!(".a.json.1{here}.tmp")),
        ];
        for path in dead.iter().chain(&others) {
            if path.extension().unwrap() == "tmp" {
                fs::write(path, "half").unwrap();
            } else {
                fs::create_dir(path).unwrap();
                fs::write(path.join("half"), "x").unwrap();
            }
        }
        write_new_directory(&beside("out".into()), |_| Ok::<_, io::Error>(())).unwrap();
        write_atomic(&beside("a.json".into()), b"one").unwrap();
        assert!(dead.iter().all(|path| !path.exists()));
        assert!(others.iter().all(|path| path.exists()));
    }

    #[test]
    fn an_existing_directory_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kept"), "x").unwrap();
        let refused = write_new_directory(folder.path(), |_| Ok::<_, io::Error>(()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(folder.path().join("kept").exists());
    }

    #[test]
    fn a_scratch_file_takes_and_gives_back() {
        use std::io::Seek;

        let mut scratch = Scratch::new().unwrap();
        scratch.write_all(b"kept for a while").unwrap();
        let mut file = scratch.finish().unwrap();
        file.rewind().unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "kept for a while");
    }

    #[test]
    fn sha256_of_abc_is_the_published_one() {
        let published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), published);
    }
}
