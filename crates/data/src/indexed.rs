//! Files of one JSON object a line whose rows are found by their ids and read when they are asked
//! for: memory holds sixteen bytes a row, however long the rows are.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use retort_files::Scratch;
use serde::de::DeserializeOwned;

use crate::lines::Lines;
use crate::{Error, Result, jsonl};

/// What a line of an [`Indexed`] file is.
pub(crate) trait Row: DeserializeOwned {
    /// What a line should look like, for errors.
    const EXPECTED: &'static str;

    /// Unique in the file.
    fn id(&self) -> &str;
}

/// A file's rows.
#[derive(Debug)]
pub(crate) struct Indexed<T> {
    path: PathBuf,
    /// The file itself, or what a packed one unpacks to.
    bytes: Mutex<File>,
    /// Where rows begin, in the order of the file.
    offsets: Vec<u64>,
    /// Their numbers in that order, by the hashes of their ids.
    by_hash: Vec<(u32, u32)>,
    rows: PhantomData<fn() -> T>,
}

impl<T: Row> Indexed<T> {
    /// Reads a file once, and keeps where its rows are.
    ///
    /// # Errors
    /// A missing file or one without rows, a malformed line (file and line), an id given twice.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let mut unpacked = if lines.is_packed() {
            Some(Scratch::new()?)
        } else {
            None
        };
        let mut index = Index::default();
        let mut written = 0;
        while let Some(line) = lines.next() {
            let (number, text) = line?;
            let begins = if let Some(unpacked) = &mut unpacked {
                writeln!(unpacked, "{text}")?;
                let begins = written;
                written += text.len() as u64 + 1;
                begins
            } else {
                lines.begins()
            };
            if !text.trim().is_empty() {
                let row: T = jsonl::parse(&text, T::EXPECTED)
                    .map_err(|problem| Error::row(path, number, problem))?;
                index.add(row.id(), begins);
            }
        }
        let bytes = match unpacked {
            Some(unpacked) => unpacked.finish()?,
            None => fs_err::File::open(path)?.into_parts().0,
        };
        Self::of(path, bytes, index)
    }

    /// Rows that are in no file yet; `path` is what errors call them. Of two with one id it refuses
    /// the later.
    pub(crate) fn of_rows(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<Self>
    where
        T: serde::Serialize,
    {
        let mut bytes = Scratch::new()?;
        let mut index = Index::default();
        let mut written = 0;
        for row in rows {
            let line = jsonl::to_bytes([&row])?;
            bytes.write_all(&line)?;
            index.add(row.id(), written);
            written += line.len() as u64;
        }
        let bytes = bytes.finish()?;
        Self::of(path, bytes, index)
    }

    fn of(path: &Path, bytes: File, index: Index) -> Result<Self> {
        let Index {
            offsets,
            mut by_hash,
        } = index;
        let problem = match u32::try_from(offsets.len()) {
            Ok(0) => "holds no rows",
            Ok(_) => "",
            Err(_) => "has more than four billion rows: split it",
        };
        if !problem.is_empty() {
            return Err(Error::File {
                path: path.to_owned(),
                problem: problem.to_owned(),
            });
        }
        by_hash.sort_unstable();
        let indexed = Self {
            path: path.to_owned(),
            bytes: Mutex::new(bytes),
            offsets,
            by_hash,
            rows: PhantomData,
        };
        indexed.refuse_twins()?;
        Ok(indexed)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Bytes of all but the last.
    pub(crate) fn bytes(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// The row of that id.
    pub(crate) fn get(&self, id: &str) -> Result<Option<T>> {
        let hash = hash(id);
        let first = self.by_hash.partition_point(|place| place.0 < hash);
        for &(_, number) in self.by_hash[first..].iter().take_while(|it| it.0 == hash) {
            let row = self.at(number as usize)?;
            if row.id() == id {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// All of them, in the order of the file.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Result<T>> {
        (0..self.len()).map(|number| self.at(number))
    }

    fn at(&self, number: usize) -> Result<T> {
        let mut line = String::new();
        {
            let mut bytes = self.locked();
            bytes.seek(SeekFrom::Start(self.offsets[number]))?;
            BufReader::with_capacity(2048, &mut *bytes).read_line(&mut line)?;
        }
        let line = line.trim_start_matches('\u{feff}');
        jsonl::parse(line, T::EXPECTED).map_err(|_| Error::File {
            path: self.path.clone(),
            problem: "was changed while it was being read: start again".to_owned(),
        })
    }

    /// Refuses two rows with one id.
    fn refuse_twins(&self) -> Result<()> {
        for run in self.by_hash.chunk_by(|a, b| a.0 == b.0) {
            let mut ids = Vec::new();
            for &(_, number) in run.iter().filter(|_| run.len() > 1) {
                let id = self.at(number as usize)?.id().to_owned();
                if ids.contains(&id) {
                    let problem =
                        format!("the id {id:?} was given before: ids must be unique, rename one");
                    let line = self.line(number as usize)?;
                    return Err(Error::row(&self.path, line, problem));
                }
                ids.push(id);
            }
        }
        Ok(())
    }

    /// The line that a row is on, from 1.
    fn line(&self, number: usize) -> Result<usize> {
        let mut bytes = self.locked();
        bytes.seek(SeekFrom::Start(0))?;
        let mut before = BufReader::new((&mut *bytes).take(self.offsets[number]));
        let mut line = 1;
        while before.skip_until(b'\n')? > 0 {
            line += 1;
        }
        Ok(line)
    }

    fn locked(&self) -> MutexGuard<'_, File> {
        // What a thread that panicked leaves behind is a position, which is set anew each time.
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where rows are, as it is found out.
#[derive(Default)]
struct Index {
    offsets: Vec<u64>,
    by_hash: Vec<(u32, u32)>,
}

impl Index {
    fn add(&mut self, id: &str, begins: u64) {
        // More rows than numbers are refused in the end.
        let number = u32::try_from(self.offsets.len()).unwrap_or(u32::MAX);
        self.by_hash.push((hash(id), number));
        self.offsets.push(begins);
    }
}

/// Two ids may share it: whoever looks one up reads the row.
fn hash(id: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    struct Word {
        id: String,
        text: String,
    }

    impl Row for Word {
        const EXPECTED: &'static str = r#"{"id", "text"}"#;

        fn id(&self) -> &str {
            &self.id
        }
    }

    fn word(number: usize) -> Word {
        Word {
            id: format!("word {number}"),
            text: "long ".repeat(number % 700),
        }
    }

    /// With a byte order mark, CRLF and blank lines.
    fn text(count: usize) -> String {
        let line = |number| format!("{}\r\n\n", serde_json::to_string(&word(number)).unwrap());
        format!("\u{feff}{}", (0..count).map(line).collect::<String>())
    }

    #[test]
    fn every_row_is_found_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.jsonl");
        let text = text(2000);
        let zstd = zstd::encode_all(text.as_bytes(), 3).unwrap();
        for bytes in [text.into_bytes(), zstd] {
            fs_err::write(&path, bytes).unwrap();
            let words = Indexed::<Word>::open(&path).unwrap();
            assert_eq!(words.len(), 2000);
            for number in [0, 1, 699, 1234, 1999] {
                let found = words.get(&word(number).id).unwrap();
                assert_eq!(found, Some(word(number)));
            }
            assert_eq!(words.get("word 2000").unwrap(), None);
            let all: Vec<Word> = words.iter().collect::<Result<_>>().unwrap();
            assert!(all == (0..2000).map(word).collect::<Vec<_>>());
        }
    }

    #[test]
    fn ids_with_one_hash_are_told_apart() {
        // The birthday of 32 bits: among 200,000 ids some four pairs share a hash.
        let words = (0..200_000).map(|number| Word {
            text: String::new(),
            ..word(number)
        });
        let words = Indexed::of_rows(Path::new("words"), words).unwrap();
        let twins = words.by_hash.windows(2).find(|two| two[0].0 == two[1].0);
        let twins = twins.expect("ids with one hash");
        for (_, number) in twins {
            let id = word(*number as usize).id;
            assert_eq!(words.get(&id).unwrap().unwrap().id, id);
        }
    }

    #[test]
    fn an_id_given_twice_is_refused_on_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.jsonl");
        let again = serde_json::to_string(&word(3)).unwrap();
        fs_err::write(&path, format!("{}{again}", text(5))).unwrap();
        let error = Indexed::<Word>::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("words.jsonl:11: the id \"word 3\" was given before"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("words.jsonl");
        fs_err::write(&path, text(5)).unwrap();
        let words = Indexed::<Word>::open(&path).unwrap();
        fs_err::write(&path, "no words at all").unwrap();
        let error = words.get("word 4").unwrap_err().to_string();
        assert!(
            error.contains("was changed while it was being read"),
            "{error}"
        );
    }
}
