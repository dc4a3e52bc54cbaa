//! Files of one JSON object a line, with errors that name the line.

use std::io::{BufRead, BufReader};
use std::path::Path;

use fs_err as fs;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Reads one JSON object a line; `expected` says in the error what a line should look like.
///
/// Blank lines are skipped, a byte order mark and CRLF line ends are taken in stride.
///
/// # Errors
/// A missing file, or a line that is no such object (file and line).
pub fn read<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<Vec<T>> {
    Ok(read_numbered(path, expected)?
        .into_iter()
        .map(|(_, row)| row)
        .collect())
}

/// [`read`], each row with the number of its line, from 1.
///
/// # Errors
/// As [`read`].
pub fn read_numbered<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<Vec<(usize, T)>> {
    let mut rows = Vec::new();
    let reader = BufReader::new(fs::File::open(path)?);
    for (index, line) in reader.split(b'\n').enumerate() {
        let line = line?;
        let row = |problem: String| Error::Row {
            path: path.into(),
            line: index + 1,
            problem,
        };
        let text = std::str::from_utf8(&line)
            .map_err(|_| row("not UTF-8: convert the file to UTF-8".to_owned()))?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            continue;
        }
        let parsed = serde_json::from_str(text)
            .map_err(|error| row(format!("{error}; expected {expected}")))?;
        rows.push((index + 1, parsed));
    }
    Ok(rows)
}

/// One JSON object a line, as bytes.
///
/// # Errors
/// A row that is no JSON, such as a map with keys that are not strings.
pub fn to_bytes<T: serde::Serialize>(rows: impl IntoIterator<Item = T>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut bytes, &row).map_err(std::io::Error::from)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}
