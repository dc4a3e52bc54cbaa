//! Label sets: one teacher's judgements under one prompt, sealed. A folder of Parquet shards and a
//! manifest that says where they came from; nothing in it changes, and every reader checks that.
//!
//! ```text
//! SET/manifest.json        teacher, prompt, scale, cost; name, rows and SHA-256 of each shard
//! SET/part-00000.parquet   query_id, document_id, grade, probabilities, mass, samples, text, at
//! ```

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Float64Builder, ListBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt32Type};
use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use fs_err as fs;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::collection::{Collection, Document, Query};
use crate::{Error, Result};

/// A label set whose labels are read as they are asked for.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// What it is.
    pub manifest: Manifest,
    /// SHA-256 of the manifest, which holds those of the shards: it stands for every label.
    pub digest: String,
    folder: PathBuf,
}

/// A label set, read whole.
#[derive(Clone, Debug)]
pub struct LabelSet {
    /// What it is.
    pub manifest: Manifest,
    /// SHA-256 of the manifest, which holds those of the shards: it stands for every label.
    pub digest: String,
    /// The labels, in the order of queries and documents.
    pub labels: Vec<Label>,
}

/// One teacher's judgement of one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The query.
    pub query_id: String,
    /// The document.
    pub document_id: String,
    /// The expected grade, `Σ g·p(g)`: the soft label. Of comparisons and orders, the sigmoid of a
    /// strength, on the scale 0 to 1.
    pub grade: f64,
    /// The probability of each grade 0, 1, …, renormalised over the grades.
    pub probabilities: Vec<f64>,
    /// How much of the teacher's probability fell on a grade at all, before renormalising.
    pub mass: f64,
    /// How often the document was judged; the probabilities are the mean over that, or fitted to it.
    pub samples: u32,
    /// Digest of the query's and the document's text: a label outlives no edit of what it judged.
    pub text: String,
    /// When it was judged last, RFC 3339.
    pub at: String,
}

/// What a label set is and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The highest grade; the lowest is 0.
    pub top_grade: usize,
    /// What determined the judgements besides the texts: teacher, model, prompt, sampling.
    pub recipe: Value,
    /// The models that answered, as they named themselves.
    pub models: Vec<String>,
    /// What preflights found at the endpoints that were asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preflights: Vec<Value>,
    /// What was made of the judgements after they were sealed first, in order: each names the digest
    /// of the set it was made from, how it was fitted, and to which gold gains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub corrections: Vec<Value>,
    /// Rows in all shards.
    pub rows: usize,
    /// The files that hold them.
    pub shards: Vec<Shard>,
    /// The program that sealed it.
    pub sealed_by: String,
    /// When, RFC 3339.
    pub sealed_at: String,
}

/// One file of a label set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Its name in the folder.
    pub file: String,
    /// Its rows.
    pub rows: usize,
    /// Its SHA-256.
    pub sha256: String,
}

/// What this program writes and reads.
pub const FORMAT: &str = "retort.labels.v1";
/// No scale is finer.
const HIGHEST_TOP_GRADE: usize = 1000;
/// The manifest's name in a label set's folder.
pub const MANIFEST: &str = "manifest.json";
/// Rows that a shard holds at most.
const ROWS_PER_SHARD: usize = 1_000_000;

impl Label {
    /// Why this can't be a label on a scale from 0 to `top_grade`, if it can't.
    pub fn problem(&self, top_grade: usize) -> Option<String> {
        if !(0.0..=top_grade as f64).contains(&self.grade) {
            return Some(format!(
                "the grade {} is outside the scale 0 to {top_grade}",
                self.grade
            ));
        }
        if self.probabilities.len() != top_grade + 1 {
            return Some(format!(
                "has {} probabilities, the scale 0 to {top_grade} has {} grades",
                self.probabilities.len(),
                top_grade + 1
            ));
        }
        let total: f64 = self.probabilities.iter().sum();
        let all_valid = self.probabilities.iter().all(|p| (0.0..=1.0).contains(p));
        if !all_valid || (total - 1.0).abs() > 1e-3 {
            return Some(format!("the probabilities sum to {total}, expected 1"));
        }
        let expected = expected_grade(&self.probabilities);
        ((expected - self.grade).abs() > 1e-3).then(|| {
            format!(
                "the grade {} is not the probabilities' expected grade {expected}",
                self.grade
            )
        })
    }
}

/// `Σ g·p(g)` over grades 0, 1, ….
pub fn expected_grade(probabilities: &[f64]) -> f64 {
    probabilities
        .iter()
        .enumerate()
        .map(|(grade, p)| grade as f64 * p)
        .sum()
}

/// The digest that ties a label to the words it judged.
pub fn text_digest(query: &Query, document: &Document) -> String {
    // The lengths keep ("ab", "c") apart from ("a", "bc").
    let (query, document) = (&query.text, document.full_text());
    let joined = format!("{}:{query}{}:{document}", query.len(), document.len());
    // Sixteen digits: enough to tell texts apart, short in every row.
    format!("sha256:{}", &retort_files::sha256(joined.as_bytes())[..16])
}

/// The query and the document a label is about.
///
/// # Errors
/// When the collection lacks one of them, or their words are not those that were judged; `source`
/// is the label set's folder.
pub fn subject(label: &Label, collection: &Collection, source: &Path) -> Result<(Query, Document)> {
    let query = collection.query(&label.query_id, source)?;
    let document = collection.document(&label.document_id, source)?;
    if text_digest(&query, &document) == label.text {
        return Ok((query, document));
    }
    Err(problem(
        source,
        format!(
            "the judgement on {} {} was made on other texts than the collection has now: \
             label the changed pairs again, or use the collection that was judged",
            label.query_id, label.document_id
        ),
    ))
}

/// Opens a label set.
///
/// # Errors
/// A folder that is no label set, or one without labels.
pub fn open(folder: &Path) -> Result<Sealed> {
    let path = folder.join(MANIFEST);
    if !path.exists() {
        return Err(problem(
            folder,
            format!("is no label set: it has no {MANIFEST}; `retort labels seal` writes one"),
        ));
    }
    let bytes = fs::read(&path)?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| problem(&path, error.to_string()))?;
    if manifest.format != FORMAT {
        let format = &manifest.format;
        return Err(problem(
            &path,
            format!("has the format {format}, expected {FORMAT}"),
        ));
    }
    if !(1..=HIGHEST_TOP_GRADE).contains(&manifest.top_grade) {
        let top_grade = manifest.top_grade;
        return Err(problem(
            &path,
            format!("has the top grade {top_grade}, expected 1 to {HIGHEST_TOP_GRADE}"),
        ));
    }
    if manifest.shards.iter().all(|shard| shard.rows == 0) {
        return Err(problem(folder, "holds no labels".to_owned()));
    }
    Ok(Sealed {
        manifest,
        digest: retort_files::sha256(&bytes),
        folder: folder.to_owned(),
    })
}

/// Reads a label set whole.
///
/// # Errors
/// As [`open`] and [`Sealed::labels`].
pub fn read(folder: &Path) -> Result<LabelSet> {
    let sealed = open(folder)?;
    let labels = sealed.labels().collect::<Result<_>>()?;
    let Sealed {
        manifest, digest, ..
    } = sealed;
    Ok(LabelSet {
        manifest,
        digest,
        labels,
    })
}

impl Sealed {
    /// The labels in the order of query ids, each shard checked against the manifest before it is read;
    /// nothing comes after an error.
    ///
    /// # Errors
    /// A shard that is missing or was changed, a label outside the scale, labels out of order.
    pub fn labels(&self) -> impl Iterator<Item = Result<Label>> + '_ {
        let shards = self.manifest.shards.iter();
        let labels = shards.flat_map(|shard| match self.shard(shard) {
            Ok(labels) => Either::Labels(labels),
            Err(error) => Either::Error(Some(error)),
        });
        let mut checked = Checked::new(self.manifest.top_grade);
        let mut failed = false;
        labels.map_while(move |label| {
            let label = label.and_then(|label| match checked.problem(&label) {
                None => Ok(label),
                Some(wrong) => Err(problem(&self.folder, wrong)),
            });
            (!std::mem::replace(&mut failed, label.is_err())).then_some(label)
        })
    }

    fn shard(&self, shard: &Shard) -> Result<ShardLabels> {
        // A name, not a path: nothing outside the folder is opened.
        if Path::new(&shard.file).file_name() != Some(shard.file.as_ref()) {
            let manifest = self.folder.join(MANIFEST);
            let wrong = format!("{:?} is no file name", shard.file);
            return Err(problem(&manifest, wrong));
        }
        let path = self.folder.join(&shard.file);
        let digest = retort_files::sha256_file(&path)?;
        if digest != shard.sha256 {
            return Err(problem(
                &path,
                format!(
                    "is not what was sealed: its SHA-256 is {digest}, the manifest has {}",
                    shard.sha256
                ),
            ));
        }
        let file = fs::File::open(&path)?.into_parts().0;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file);
        let builder = builder.map_err(|error| problem(&path, error.to_string()))?;
        let rows = builder.metadata().file_metadata().num_rows();
        if usize::try_from(rows) != Ok(shard.rows) {
            let wrong = format!("has {rows} rows, the manifest has {}", shard.rows);
            return Err(problem(&path, wrong));
        }
        let batches = builder.build();
        Ok(ShardLabels {
            batches: batches.map_err(|error| problem(&path, error.to_string()))?,
            path,
            rows: Vec::new().into_iter(),
        })
    }
}

/// The labels of a shard, or why there are none.
enum Either {
    Labels(ShardLabels),
    Error(Option<Error>),
}

impl Iterator for Either {
    type Item = Result<Label>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Labels(labels) => labels.next(),
            Self::Error(error) => error.take().map(Err),
        }
    }
}

struct ShardLabels {
    path: PathBuf,
    batches: ParquetRecordBatchReader,
    rows: std::vec::IntoIter<Label>,
}

impl Iterator for ShardLabels {
    type Item = Result<Label>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(label) = self.rows.next() {
                return Some(Ok(label));
            }
            let rows = match self.batches.next()? {
                Ok(batch) => rows(&batch)
                    .ok_or("lacks a column of a label set, or has one of another type".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match rows {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(wrong) => return Some(Err(problem(&self.path, wrong))),
            }
        }
    }
}

/// Whether labels that come one after the other may be a set's.
struct Checked {
    top_grade: usize,
    /// The query of the last.
    query: String,
}

impl Checked {
    fn new(top_grade: usize) -> Self {
        Self {
            top_grade,
            query: String::new(),
        }
    }

    /// Why the next can't be the next, if it can't.
    fn problem(&mut self, label: &Label) -> Option<String> {
        let (query, document) = (&label.query_id, &label.document_id);
        if let Some(wrong) = label.problem(self.top_grade) {
            return Some(format!("{query} {document}: {wrong}"));
        }
        match query.cmp(&self.query) {
            Ordering::Equal => None,
            Ordering::Greater => {
                self.query.clone_from(query);
                None
            }
            Ordering::Less => Some(format!(
                "{query} comes after {}: labels are in the order of query ids",
                self.query
            )),
        }
    }
}

/// Writes a label set into a new folder; returns its digest. `manifest`'s rows and shards are
/// filled in.
///
/// # Errors
/// A folder that exists already, a label outside the scale, an I/O error; nothing is left then.
pub fn write(
    folder: &Path,
    mut manifest: Manifest,
    labels: impl IntoIterator<Item = Result<Label>>,
) -> Result<String> {
    let mut digest = String::new();
    let mut labels = labels.into_iter().peekable();
    let mut checked = Checked::new(manifest.top_grade);
    retort_files::write_new_directory::<Error>(folder, |partial| {
        (manifest.rows, manifest.shards) = (0, Vec::new());
        while labels.peek().is_some() {
            let file = format!("part-{:05}.parquet", manifest.shards.len());
            let path = partial.join(&file);
            let rows = write_shard(&path, &mut checked, labels.by_ref().take(ROWS_PER_SHARD))?;
            manifest.rows += rows;
            manifest.shards.push(Shard {
                sha256: retort_files::sha256_file(&path)?,
                file,
                rows,
            });
        }
        let mut bytes = serde_json::to_vec_pretty(&manifest).map_err(std::io::Error::from)?;
        bytes.push(b'\n');
        fs::write(partial.join(MANIFEST), &bytes)?;
        digest = retort_files::sha256(&bytes);
        Ok(())
    })?;
    Ok(digest)
}

/// Rows that go through memory at a time.
const ROWS_PER_BATCH: usize = 8192;

fn write_shard(
    path: &Path,
    checked: &mut Checked,
    mut labels: impl Iterator<Item = Result<Label>>,
) -> Result<usize> {
    let item = Arc::new(Field::new("item", DataType::Float64, true));
    let schema = Arc::new(Schema::new(vec![
        Field::new("query_id", DataType::Utf8, false),
        Field::new("document_id", DataType::Utf8, false),
        Field::new("grade", DataType::Float64, false),
        Field::new("probabilities", DataType::List(item), false),
        Field::new("mass", DataType::Float64, false),
        Field::new("samples", DataType::UInt32, false),
        Field::new("text", DataType::Utf8, false),
        Field::new("at", DataType::Utf8, false),
    ]));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let broken = |error: ParquetError| problem(path, error.to_string());
    let file = fs::File::create(path)?;
    let mut writer =
        ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(broken)?;
    let mut rows = 0;
    loop {
        let batch: Vec<Label> = labels
            .by_ref()
            .take(ROWS_PER_BATCH)
            .collect::<Result<_>>()?;
        if batch.is_empty() {
            break;
        }
        for label in &batch {
            if let Some(wrong) = checked.problem(label) {
                return Err(problem(path, wrong));
            }
        }
        rows += batch.len();
        let columns = columns(&batch);
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)
            .map_err(|error| problem(path, error.to_string()))?;
        writer.write(&batch).map_err(broken)?;
    }
    writer.close().map_err(broken)?;
    Ok(rows)
}

fn columns(labels: &[Label]) -> Vec<ArrayRef> {
    let text = |of: fn(&Label) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(labels.iter().map(of)))
    };
    let number = |of: fn(&Label) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(labels.iter().map(of)))
    };
    let mut probabilities = ListBuilder::new(Float64Builder::new());
    for label in labels {
        probabilities.values().append_slice(&label.probabilities);
        probabilities.append(true);
    }
    let samples = labels.iter().map(|label| label.samples);
    vec![
        text(|label| &label.query_id),
        text(|label| &label.document_id),
        number(|label| label.grade),
        Arc::new(probabilities.finish()),
        number(|label| label.mass),
        Arc::new(UInt32Array::from_iter_values(samples)),
        text(|label| &label.text),
        text(|label| &label.at),
    ]
}

/// The labels of a batch; `None` when a column is missing, of another type, or has a gap.
fn rows(batch: &RecordBatch) -> Option<Vec<Label>> {
    let column = |name: &str| {
        let column = batch.column_by_name(name)?;
        (column.null_count() == 0).then_some(column)
    };
    let text = |name: &str| column(name)?.as_string_opt::<i32>();
    let number = |name: &str| column(name)?.as_primitive_opt::<Float64Type>();
    let (query_id, document_id) = (text("query_id")?, text("document_id")?);
    let (digest, at) = (text("text")?, text("at")?);
    let (grade, mass) = (number("grade")?, number("mass")?);
    let samples = column("samples")?.as_primitive_opt::<UInt32Type>()?;
    let probabilities = column("probabilities")?.as_list_opt::<i32>()?;
    (0..batch.num_rows())
        .map(|row| {
            let probabilities = probabilities.value(row);
            let probabilities = probabilities.as_primitive_opt::<Float64Type>()?;
            Some(Label {
                query_id: query_id.value(row).to_owned(),
                document_id: document_id.value(row).to_owned(),
                grade: grade.value(row),
                probabilities: probabilities.values().to_vec(),
                mass: mass.value(row),
                samples: samples.value(row),
                text: digest.value(row).to_owned(),
                at: at.value(row).to_owned(),
            })
        })
        .collect()
}

fn problem(path: &Path, problem: String) -> Error {
    Error::File {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(document: &str) -> Label {
        Label {
            query_id: "q".into(),
            document_id: document.into(),
            grade: 1.5,
            probabilities: vec![0.25, 0.25, 0.25, 0.25],
            mass: 1.0,
            samples: 1,
            text: format!("about {document}"),
            at: "2026-11-21T00:00:00Z".into(),
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT.into(),
            top_grade: 3,
            recipe: serde_json::json!({"teacher": "t"}),
            models: vec!["m".into()],
            preflights: Vec::new(),
            corrections: Vec::new(),
            rows: 0,
            shards: Vec::new(),
            sealed_by: "test".into(),
            sealed_at: "2026-11-21T00:00:00Z".into(),
        }
    }

    fn write_to(folder: &Path, labels: &[Label]) -> Result<String> {
        write(folder, manifest(), labels.iter().cloned().map(Ok))
    }

    #[test]
    fn what_is_sealed_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        let labels: Vec<Label> = (0..10_000).map(|n| label(&format!("d{n}"))).collect();
        let digest = write_to(&path, &labels).unwrap();
        let set = read(&path).unwrap();
        assert_eq!(set.labels, labels);
        assert_eq!((set.manifest.rows, set.digest), (10_000, digest));
        let error = write_to(&path, &labels).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
    }

    #[test]
    fn a_set_that_was_changed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        write_to(&path, &[label("a")]).unwrap();
        let shard = path.join("part-00000.parquet");
        let mut bytes = fs::read(&shard).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&shard, &bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("not what was sealed"), "{error}");
        fs::remove_file(&shard).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("part-00000"));

        let sealed = fs::read_to_string(path.join(MANIFEST)).unwrap();
        let endless = sealed.replace(
            "\"top_grade\": 3",
            &format!("\"top_grade\": {}", usize::MAX),
        );
        fs::write(path.join(MANIFEST), endless).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("expected 1 to 1000"), "{error}");

        let outside = sealed.replace("part-00000.parquet", "../part-00000.parquet");
        fs::write(path.join(MANIFEST), outside).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("is no file name"), "{error}");
        let error = read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("labels seal"), "{error}");
    }

    #[test]
    fn labels_outside_the_scale_are_not_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        let error_of = |label: Label| {
            let error = write_to(&path, &[label]).unwrap_err().to_string();
            assert!(!path.exists());
            error
        };
        let outside = Label {
            grade: 3.2,
            ..label("b")
        };
        let error = error_of(outside);
        assert!(
            error.contains("q b: the grade 3.2 is outside the scale 0 to 3"),
            "{error}"
        );
        let unnormalised = Label {
            probabilities: vec![0.5, 0.5, 0.5, 0.5],
            ..label("a")
        };
        assert!(error_of(unnormalised).contains("sum to 2"));
        let other_grade = Label {
            grade: 2.5,
            ..label("a")
        };
        assert!(error_of(other_grade).contains("expected grade 1.5"));
        let binary = Label {
            grade: 0.5,
            probabilities: vec![0.5, 0.5],
            ..label("b")
        };
        assert!(error_of(binary).contains("has 2 probabilities"));
    }

    #[test]
    fn a_querys_labels_are_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        let of = |query: &str| Label {
            query_id: query.into(),
            ..label("d")
        };
        let error = write_to(&path, &[of("a"), of("b"), of("a")]).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("a comes after b"), "{error}");
        assert!(!path.exists());
    }
}
