//! Rows of a Parquet file, a page at a time. Errors count rows where text files count lines.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use serde_json::{Number, Value};

use super::rows::Fields;
use crate::lines::Rows;
use crate::{Error, Result};

/// Reads a file; `path` is what errors call it.
///
/// # Errors
/// What is no Parquet file.
pub(super) fn rows(path: &Path, file: impl ChunkReader + 'static) -> Result<Rows<Fields>> {
    let reader =
        caught(|| SerializedFileReader::new(file)).map_err(|error| broken(path, &error))?;
    Ok(Box::new(ParquetRows {
        path: path.to_owned(),
        groups: 0..reader.num_row_groups(),
        reader: Box::new(reader),
        rows: None,
        number: 0,
    }))
}

struct ParquetRows {
    path: PathBuf,
    reader: Box<dyn FileReader>,
    /// The row groups that are still to be read.
    groups: std::ops::Range<usize>,
    rows: Option<ReaderIter>,
    number: usize,
}

impl ParquetRows {
    fn read(&mut self) -> Result<Option<Vec<(String, Field)>>, ParquetError> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                return row.map(|row| Some(row.into_columns()));
            }
            let Some(group) = self.groups.next() else {
                return Ok(None);
            };
            let schema = self.reader.metadata().file_metadata().schema_descr_ptr();
            let group = self.reader.get_row_group(group)?;
            self.rows = Some(TreeBuilder::new().as_iter(schema, &*group)?);
        }
    }
}

impl Iterator for ParquetRows {
    type Item = Result<(usize, Fields)>;

    fn next(&mut self) -> Option<Self::Item> {
        let columns = match caught(|| self.read()) {
            Ok(columns) => columns?,
            Err(error) => {
                // What follows a damaged page is not to be trusted.
                (self.groups, self.rows) = (0..0, None);
                return Some(Err(broken(&self.path, &error)));
            }
        };
        self.number += 1;
        let fields =
            (columns.iter()).filter_map(|(name, field)| Some((name.clone(), value(field)?)));
        Some(Ok((self.number, fields.collect())))
    }
}

/// Runs what reads a file. The crate `parquet` panics at some files that are damaged.
fn caught<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    // Nothing is read any more after an error, so it does not matter what state it leaves behind.
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ParquetError::General("it is damaged".to_owned())))
}

fn broken(path: &Path, error: &ParquetError) -> Error {
    Error::File {
        path: path.to_owned(),
        problem: format!("can't be read as Parquet: {error}; fetch it or write it again"),
    }
}

/// A field as JSON; none of bytes that are no text, such as an image: a row may have them beside
/// what is wanted.
fn value(field: &Field) -> Option<Value> {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    Some(match field {
        Field::Null => Value::Null,
        Field::Bool(yes) => Value::Bool(*yes),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        // By its digits, so that 12.99 does not become 12.989999771118164.
        Field::Float(number) => float(number.to_string().parse().unwrap_or(f64::NAN)),
        Field::Double(number) => float(*number),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).ok()?.into(),
        Field::Group(row) => Value::Object(
            (row.get_column_iter())
                .filter_map(|(name, field)| Some((name.clone(), value(field)?)))
                .collect(),
        ),
        Field::ListInternal(list) => list.elements().iter().filter_map(value).collect(),
        // Dates, decimals, maps: as they are printed.
        other => other.to_string().into(),
    })
}
