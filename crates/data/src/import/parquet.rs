//! Rows of a Parquet file, a page at a time. Errors count rows where text files count lines.

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
    let reader = SerializedFileReader::new(file).map_err(|error| broken(path, &error))?;
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
        let columns = match self.read() {
            Ok(columns) => columns?,
            Err(error) => {
                // What follows a damaged page is not to be trusted.
                (self.groups, self.rows) = (0..0, None);
                return Some(Err(broken(&self.path, &error)));
            }
        };
        self.number += 1;
        let fields: Result<Fields, String> = (columns.iter())
            .map(|(name, field)| Ok((name.clone(), value(field)?)))
            .collect();
        Some(match fields {
            Ok(fields) => Ok((self.number, fields)),
            Err(problem) => Err(Error::row(&self.path, self.number, problem)),
        })
    }
}

fn broken(path: &Path, error: &ParquetError) -> Error {
    Error::File {
        path: path.to_owned(),
        problem: format!("can't be read as Parquet: {error}; fetch it or write it again"),
    }
}

fn value(field: &Field) -> Result<Value, String> {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    Ok(match field {
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
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data())
            .map_err(|_| "holds bytes that are no UTF-8: leave the column out".to_owned())?
            .into(),
        Field::Group(row) => Value::Object(
            (row.get_column_iter())
                .map(|(name, field)| Ok((name.clone(), value(field)?)))
                .collect::<Result<_, String>>()?,
        ),
        Field::ListInternal(list) => Value::Array(
            (list.elements().iter())
                .map(value)
                .collect::<Result<_, String>>()?,
        ),
        // Dates, decimals, maps: as they are printed.
        other => other.to_string().into(),
    })
}
