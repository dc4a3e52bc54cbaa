//! Judgements on disk: JSON lines, one judgement each, appended as they come. A file holds one
//! teacher's answers to one prompt; a later judgement of a pair replaces an earlier one, which is
//! how a pair whose text was edited is judged again.
//!
//! ```json
//! {"query_id":"q001","document_id":"p0042","grade":2.31,"probabilities":[0.02,0.11,0.41,0.46],
//!  "mass":0.999,"teacher":"…","prompt":"sha256:…","text":"sha256:…","at":"2026-11-21T04:05:06Z"}
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::collection::{Collection, Document, Query};
use crate::{Error, Result, jsonl};

/// One teacher's answer about one pair under one prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judgement {
    /// The query.
    pub query_id: String,
    /// The document.
    pub document_id: String,
    /// The expected grade, `Σ g·p(g)`: the soft label.
    pub grade: f64,
    /// The probability of each grade 0, 1, …, renormalised over the grades.
    pub probabilities: Vec<f64>,
    /// How much of the teacher's probability fell on a grade at all, before renormalising.
    pub mass: f64,
    /// Who judged.
    pub teacher: String,
    /// Digest of the prompt.
    pub prompt: String,
    /// Digest of the query's and the document's text: a label outlives no edit of what it judged.
    pub text: String,
    /// When, RFC 3339.
    pub at: String,
}

impl Judgement {
    /// The highest grade of the scale.
    pub fn top_grade(&self) -> usize {
        self.probabilities.len().saturating_sub(1)
    }

    /// Why this can't be a label, if it can't.
    fn problem(&self) -> Option<String> {
        let top = self.top_grade();
        if top == 0 {
            return Some("needs the probabilities of at least two grades".to_owned());
        }
        if !(0.0..=top as f64).contains(&self.grade) {
            return Some(format!(
                "the grade {} is outside the scale 0 to {top}",
                self.grade
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

/// The digest that ties a judgement to the words it judged.
pub fn text_digest(query: &Query, document: &Document) -> String {
    // The lengths keep ("ab", "c") apart from ("a", "bc").
    let (query, document) = (&query.text, document.full_text());
    let joined = format!("{}:{query}{}:{document}", query.len(), document.len());
    short_digest(joined.as_bytes())
}

/// `sha256:` and the digest's first 16 digits: enough to tell texts apart, short in every row.
pub(crate) fn short_digest(bytes: &[u8]) -> String {
    format!("sha256:{}", &retort_files::sha256(bytes)[..16])
}

/// Reads a file of judgements, ordered by query and document.
///
/// # Errors
/// A missing file; a malformed line or a label outside its scale, with file and line; a scale,
/// teacher or prompt that changes within the file.
pub fn read(path: &Path) -> Result<Vec<Judgement>> {
    let rows = jsonl::read_numbered(path, "a judgement as `retort label` writes it")?;
    let mut judgements: BTreeMap<(String, String), Judgement> = BTreeMap::new();
    let mut source: Option<Source> = None;
    for (line, judgement) in rows {
        let judgement: Judgement = judgement;
        let row = |problem: String| Error::Row {
            path: path.into(),
            line,
            problem,
        };
        if let Some(problem) = judgement.problem() {
            return Err(row(problem));
        }
        let this = Source::of(&judgement);
        let source = source.get_or_insert_with(|| this.clone());
        if this != *source {
            return Err(row(format!(
                "is by {this}, but the lines above are by {source}"
            )));
        }
        let pair = (judgement.query_id.clone(), judgement.document_id.clone());
        judgements.insert(pair, judgement);
    }
    if judgements.is_empty() {
        return Err(Error::File {
            path: path.into(),
            problem: "holds no judgements".to_owned(),
        });
    }
    Ok(judgements.into_values().collect())
}

/// What all judgements of a file share.
#[derive(Clone, PartialEq, Eq)]
struct Source {
    teacher: String,
    prompt: String,
    top_grade: usize,
}

impl Source {
    fn of(judgement: &Judgement) -> Self {
        Self {
            teacher: judgement.teacher.clone(),
            prompt: judgement.prompt.clone(),
            top_grade: judgement.top_grade(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            teacher,
            prompt,
            top_grade,
        } = self;
        write!(
            f,
            "the teacher {teacher} with the prompt {prompt} on the scale 0 to {top_grade}"
        )
    }
}

/// The query and the document a judgement is about.
///
/// # Errors
/// When the collection lacks one of them, or their words are not those that were judged; `source`
/// is the judgements' file.
pub fn subject<'a>(
    judgement: &Judgement,
    collection: &'a Collection,
    source: &Path,
) -> Result<(&'a Query, &'a Document)> {
    let query = collection.query(&judgement.query_id, source)?;
    let document = collection.document(&judgement.document_id, source)?;
    if text_digest(query, document) == judgement.text {
        return Ok((query, document));
    }
    Err(Error::File {
        path: source.to_owned(),
        problem: format!(
            "the judgement on {} {} was made on other texts than the collection has now: \
             label the changed pairs again, or use the collection that was judged",
            judgement.query_id, judgement.document_id
        ),
    })
}

/// A file of judgements open for appending.
pub struct Appender {
    file: fs::File,
    unsynced: usize,
}

/// Rows between two syncs: what a power cut may cost, in judgements.
const ROWS_PER_SYNC: usize = 32;

impl Appender {
    /// Opens or creates the file and returns the judgements it holds already. A torn last line
    /// (the process was killed in mid-write) is cut off.
    ///
    /// # Errors
    /// An I/O error, what [`read`] refuses, or judgements by another teacher or prompt.
    pub fn open(path: &Path, teacher: &str, prompt: &str) -> Result<(Self, Vec<Judgement>)> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)?;
        let whole = whole_lines(path)?;
        if whole < file.metadata()?.len() {
            tracing::warn!("{}: cut off a torn last line", path.display());
            file.set_len(whole)?;
        }
        let known = if whole == 0 { Vec::new() } else { read(path)? };
        if let Some(other) = known
            .iter()
            .find(|one| one.teacher != teacher || one.prompt != prompt)
        {
            return Err(Error::File {
                path: path.to_owned(),
                problem: format!(
                    "holds judgements by {}, not by {teacher} with the prompt {prompt}: \
                     name another file in `out`",
                    Source::of(other)
                ),
            });
        }
        Ok((Self { file, unsynced: 0 }, known))
    }

    /// Appends one judgement.
    ///
    /// # Errors
    /// An I/O error; the torn line is cut off when the file is next opened.
    pub fn append(&mut self, judgement: &Judgement) -> Result<()> {
        self.file.write_all(&jsonl::to_bytes([judgement])?)?;
        self.unsynced += 1;
        if self.unsynced >= ROWS_PER_SYNC {
            self.sync()
        } else {
            Ok(())
        }
    }

    /// Makes what was appended survive a power cut.
    ///
    /// # Errors
    /// An I/O error.
    pub fn sync(&mut self) -> Result<()> {
        self.unsynced = 0;
        Ok(self.file.sync_data()?)
    }
}

/// The length in bytes up to and with the last line end.
fn whole_lines(path: &Path) -> Result<u64> {
    let mut reader = BufReader::new(fs::File::open(path)?);
    let (mut position, mut whole) = (0, 0);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        position += line.len() as u64;
        if line.ends_with(b"\n") {
            whole = position;
        }
        line.clear();
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judgement(document: &str) -> Judgement {
        Judgement {
            query_id: "q".into(),
            document_id: document.into(),
            grade: 1.5,
            probabilities: vec![0.25, 0.25, 0.25, 0.25],
            mass: 1.0,
            teacher: "t".into(),
            prompt: "p".into(),
            text: format!("about {document}"),
            at: "2026-11-21T00:00:00Z".into(),
        }
    }

    fn error_of(rows: &[Judgement]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        fs::write(&path, jsonl::to_bytes(rows).unwrap()).unwrap();
        read(&path).unwrap_err().to_string()
    }

    #[test]
    fn a_label_outside_the_scale_is_refused_with_its_line() {
        let outside = Judgement {
            grade: 3.2,
            ..judgement("b")
        };
        let error = error_of(&[judgement("a"), outside]);
        assert!(
            error.contains("labels.jsonl:2: the grade 3.2 is outside the scale 0 to 3"),
            "{error}"
        );
    }

    #[test]
    fn inconsistent_rows_are_refused() {
        let unnormalised = Judgement {
            probabilities: vec![0.5, 0.5, 0.5, 0.5],
            ..judgement("a")
        };
        assert!(error_of(&[unnormalised]).contains("sum to 2"));
        let other_grade = Judgement {
            grade: 2.5,
            ..judgement("a")
        };
        assert!(error_of(&[other_grade]).contains("expected grade 1.5"));
        let binary = Judgement {
            grade: 0.5,
            probabilities: vec![0.5, 0.5],
            ..judgement("b")
        };
        let error = error_of(&[judgement("a"), binary]);
        assert!(
            error.contains("labels.jsonl:2") && error.contains("the scale 0 to 1"),
            "{error}"
        );
        let other_teacher = Judgement {
            teacher: "u".into(),
            ..judgement("b")
        };
        assert!(error_of(&[judgement("a"), other_teacher]).contains("by the teacher u"));
    }

    #[test]
    fn a_later_judgement_replaces_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        let edited = Judgement {
            text: "about a, edited".into(),
            ..judgement("a")
        };
        let rows = [judgement("b"), judgement("a"), edited.clone()];
        fs::write(&path, jsonl::to_bytes(rows).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), [edited, judgement("b")]);
    }

    #[test]
    fn an_appender_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        let open = || Appender::open(&path, "t", "p").unwrap();
        let (mut appender, known) = open();
        assert!(known.is_empty());
        appender.append(&judgement("a")).unwrap();
        drop(appender);
        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"query_id\":\"q\",\"docum");
        fs::write(&path, torn).unwrap();

        let (mut appender, known) = open();
        assert_eq!(known, [judgement("a")]);
        appender.append(&judgement("b")).unwrap();
        assert_eq!(read(&path).unwrap(), [judgement("a"), judgement("b")]);
        let other = Appender::open(&path, "t", "another prompt")
            .err()
            .unwrap()
            .to_string();
        assert!(other.contains("name another file"), "{other}");
    }
}
