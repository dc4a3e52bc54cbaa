//! Files of one JSON object a line, with errors that name the line.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Result;
use crate::lines::{Lines, Rows};

/// Reads one JSON object a line; `expected` says in the error what a line should look like.
///
/// # Errors
/// A missing file, or a line that is no such object (file and line).
pub fn read<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<Vec<T>> {
    rows(Lines::open(path)?, expected)
        .map(|row| row.map(|(_, row)| row))
        .collect()
}

/// [`read`], each row with the number of its line, from 1.
///
/// # Errors
/// As [`read`].
pub fn read_numbered<T: DeserializeOwned>(path: &Path, expected: &str) -> Result<Vec<(usize, T)>> {
    rows(Lines::open(path)?, expected).collect()
}

/// [`read_numbered`], row by row.
pub fn rows<T: DeserializeOwned>(lines: Lines, expected: &str) -> Rows<T> {
    let expected = expected.to_owned();
    lines.rows(move |text| parse(text, &expected).map(Some))
}

/// One line; the error says what is wrong with it.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, expected: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("{}; expected {expected}", told(&error)))
}

/// An error without the number of the line, which is of the one line that was read.
fn told(error: &serde_json::Error) -> String {
    let (told, column) = (error.to_string(), error.column());
    match told.strip_suffix(&format!(" at line {} column {column}", error.line())) {
        Some(what) if column > 0 => format!("{what} at column {column}"),
        what => what.unwrap_or(&told).to_owned(),
    }
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
