//! Judgements on disk: JSON lines, one judgement each, appended as they come.
//!
//! ```json
//! {"query_id":"q001","document_id":"p0042","grade":2.31,"probabilities":[0.02,0.11,0.41,0.46],
//!  "mass":0.999,"teacher":"…","prompt":"sha256:…","text":"sha256:…","at":"2026-11-21T04:05:06Z"}
//! ```

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::collection::{Document, Query};
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

    /// What this judgement is about and who gave it: asked once, it is not asked again.
    pub fn key(&self) -> Key {
        Key {
            text: self.text.clone(),
            teacher: self.teacher.clone(),
            prompt: self.prompt.clone(),
        }
    }

    /// Why this can't be a label, if it can't.
    fn problem(&self) -> Option<String> {
        let top = self.top_grade();
        if top == 0 {
            return Some("needs the probabilities of at least two grades".to_owned());
        }
        if !(0.0..=top as f64).contains(&self.grade) {
            return Some(format!("the grade {} is outside the scale 0 to {top}", self.grade));
        }
        let total: f64 = self.probabilities.iter().sum();
        let all_valid = self.probabilities.iter().all(|p| (0.0..=1.0).contains(p));
        if !all_valid || (total - 1.0).abs() > 1e-3 {
            return Some(format!("the probabilities sum to {total}, expected 1"));
        }
        let expected = expected_grade(&self.probabilities);
        ((expected - self.grade).abs() > 1e-3).then(|| {
            format!("the grade {} is not the probabilities' expected grade {expected}", self.grade)
        })
    }
}

/// See [`Judgement::key`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Digest of both texts.
    pub text: String,
    /// Who judges.
    pub teacher: String,
    /// Digest of the prompt.
    pub prompt: String,
}

/// `Σ g·p(g)` over grades 0, 1, ….
pub fn expected_grade(probabilities: &[f64]) -> f64 {
    probabilities.iter().enumerate().map(|(grade, p)| grade as f64 * p).sum()
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

/// Reads a file of judgements.
///
/// # Errors
/// A missing file; a malformed line or a label outside its scale, with file and line; a scale that
/// changes within the file; a pair judged twice.
pub fn read(path: &Path) -> Result<Vec<Judgement>> {
    let rows: Vec<Judgement> = jsonl::read(path, "a judgement as `retort label` writes it")?;
    let mut pairs = BTreeSet::new();
    for (index, judgement) in rows.iter().enumerate() {
        let problem = judgement.problem().or_else(|| {
            let scale = rows[0].top_grade();
            (judgement.top_grade() != scale)
                .then(|| format!("the scale is 0 to {}, but 0 to {scale} above", judgement.top_grade()))
        });
        let problem = problem.or_else(|| {
            let twice = !pairs.insert((&judgement.query_id, &judgement.document_id));
            twice.then(|| {
                format!("the pair {} {} is judged twice", judgement.query_id, judgement.document_id)
            })
        });
        if let Some(problem) = problem {
            return Err(Error::Row { path: path.into(), line: index + 1, problem });
        }
    }
    if rows.is_empty() {
        return Err(Error::File { path: path.into(), problem: "holds no judgements".to_owned() });
    }
    Ok(rows)
}

/// A file of judgements open for appending.
pub struct Appender {
    file: fs::File,
    unsynced: usize,
}

/// Rows between two syncs: what a power cut may cost, in judgements.
const ROWS_PER_SYNC: usize = 32;

impl Appender {
    /// Opens or creates the file and returns the keys it holds already. A torn last line (the
    /// process was killed in mid-write) is cut off.
    ///
    /// # Errors
    /// An I/O error, or a whole line that is not a judgement.
    pub fn open(path: &Path) -> Result<(Self, BTreeSet<Key>)> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = fs::OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let whole = whole_lines(path)?;
        if whole < file.metadata()?.len() {
            tracing::warn!("{}: cut off a torn last line", path.display());
            file.set_len(whole)?;
        }
        let keys = if whole == 0 {
            BTreeSet::new()
        } else {
            read(path)?.iter().map(Judgement::key).collect()
        };
        Ok((Self { file, unsynced: 0 }, keys))
    }

    /// Appends one judgement.
    ///
    /// # Errors
    /// An I/O error; the torn line is cut off when the file is next opened.
    pub fn append(&mut self, judgement: &Judgement) -> Result<()> {
        self.file.write_all(&jsonl::to_bytes([judgement])?)?;
        self.unsynced += 1;
        if self.unsynced >= ROWS_PER_SYNC { self.sync() } else { Ok(()) }
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

/// The judgements' path beside a message, for errors about their content.
pub fn stale(path: PathBuf, judgement: &Judgement) -> Error {
    Error::File {
        path,
        problem: format!(
            "the judgement on {} {} was made on other texts than the collection has now: \
             label the changed pairs again, or use the collection that was judged",
            judgement.query_id, judgement.document_id
        ),
    }
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
        let outside = Judgement { grade: 3.2, ..judgement("b") };
        let error = error_of(&[judgement("a"), outside]);
        assert!(error.contains("labels.jsonl:2: the grade 3.2 is outside the scale 0 to 3"), "{error}");
    }

    #[test]
    fn inconsistent_rows_are_refused() {
        let unnormalised = Judgement { probabilities: vec![0.5, 0.5, 0.5, 0.5], ..judgement("a") };
        assert!(error_of(&[unnormalised]).contains("sum to 2"));
        let other_grade = Judgement { grade: 2.5, ..judgement("a") };
        assert!(error_of(&[other_grade]).contains("expected grade 1.5"));
        let binary = Judgement { grade: 0.5, probabilities: vec![0.5, 0.5], ..judgement("b") };
        assert!(error_of(&[judgement("a"), binary]).contains("the scale is 0 to 1, but 0 to 3"));
        assert!(error_of(&[judgement("a"), judgement("a")]).contains("judged twice"));
    }

    #[test]
    fn an_appender_goes_on_after_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        let (mut appender, keys) = Appender::open(&path).unwrap();
        assert!(keys.is_empty());
        appender.append(&judgement("a")).unwrap();
        drop(appender);
        let mut torn = fs::read(&path).unwrap();
        torn.extend_from_slice(b"{\"query_id\":\"q\",\"docum");
        fs::write(&path, torn).unwrap();

        let (mut appender, keys) = Appender::open(&path).unwrap();
        assert_eq!(keys.len(), 1);
        appender.append(&judgement("b")).unwrap();
        assert_eq!(read(&path).unwrap(), [judgement("a"), judgement("b")]);
    }
}
