//! Lines of a text file, plain, gzip or zstd, with errors that name the line.
//!
//! What a file is packed with is told by its first bytes, not by its name. Byte order marks and CRLF
//! line ends are taken in stride; all else that is no text is an error. Memory holds one line.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use fs_err as fs;

use crate::{Error, Result};

/// What a line may hold; a longer one is an error and costs no more memory than this.
pub const MAX_LINE_BYTES: usize = 8 << 20;

/// What else files are packed with, and what they begin with then.
const UNREAD: [(&[u8], &str); 4] = [
    (b"\x1f\x9d", "compress"),
    (b"BZh91AY&", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"\xfd7zXZ", "xz"),
];

/// Rows of a file, each with the number of the line that it begins on, from 1.
///
/// After an [`Error::Row`] the next row can be read; after any other error there is none.
pub type Rows<T> = Box<dyn Iterator<Item = Result<(usize, T)>>>;

/// The lines of a file with their numbers, from 1, without their ends.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    packed: bool,
    number: usize,
    /// Bytes read.
    read: u64,
    /// Where the last line begins.
    begins: u64,
    ended: bool,
    peeked: Option<Result<(usize, String)>>,
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that can't be opened or read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(path, fs::File::open(path)?)
    }

    /// The lines of what `bytes` yields; `path` is what errors call it.
    ///
    /// # Errors
    /// When the first bytes can't be read, or say that it is packed with something else.
    pub fn new(path: &Path, mut bytes: impl Read + 'static) -> Result<Self> {
        let mut magic = Vec::new();
        bytes.by_ref().take(8).read_to_end(&mut magic)?;
        if let Some((_, packer)) = (UNREAD.iter()).find(|(begins, _)| magic.starts_with(begins)) {
            return Err(Error::File {
                path: path.to_owned(),
                problem: format!(
                    "is packed with {packer}: unpack it, or pack it with gzip or zstd"
                ),
            });
        }
        let gzip = magic.starts_with(b"\x1f\x8b");
        let zstd = magic.starts_with(b"\x28\xb5\x2f\xfd");
        let bytes = Cursor::new(magic).chain(bytes);
        let reader: Box<dyn BufRead> = if gzip {
            Box::new(BufReader::new(MultiGzDecoder::new(bytes)))
        } else if zstd {
            Box::new(BufReader::new(zstd::Decoder::new(bytes)?))
        } else {
            Box::new(BufReader::new(bytes))
        };
        Ok(Self {
            path: path.to_owned(),
            reader,
            packed: gzip || zstd,
            number: 0,
            read: 0,
            begins: 0,
            ended: false,
            peeked: None,
        })
    }

    /// The first line that is not blank, which stays to be read; none where it can't be read.
    pub fn peek(&mut self) -> Option<&str> {
        while self.peeked.is_none() {
            let line = self.next()?;
            let blank = matches!(&line, Ok((_, text)) if text.trim().is_empty());
            self.peeked = (!blank).then_some(line);
        }
        let (_, line) = self.peeked.as_ref()?.as_ref().ok()?;
        Some(line)
    }

    /// One row a line: `parse` returns none for a line that is no row, or what is wrong with it and
    /// how to mend it. Blank lines are skipped.
    pub fn rows<T>(
        self,
        mut parse: impl FnMut(&str) -> Result<Option<T>, String> + 'static,
    ) -> Rows<T> {
        let path = self.path.clone();
        Box::new(self.filter_map(move |line| {
            let (line, text) = match line {
                Ok((_, text)) if text.trim().is_empty() => return None,
                Ok(line) => line,
                Err(error) => return Some(Err(error)),
            };
            match parse(&text) {
                Ok(row) => row.map(|row| Ok((line, row))),
                Err(problem) => Some(Err(Error::row(&path, line, problem))),
            }
        }))
    }

    /// What errors call the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is unpacked as it is read.
    pub(crate) fn is_packed(&self) -> bool {
        self.packed
    }

    /// Where the last line begins, in bytes: in what a packed file unpacks to.
    pub(crate) fn begins(&self) -> u64 {
        self.begins
    }

    /// The next line as it stands, or none at the end.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        // Two more than a line may hold, for its end.
        let limit = MAX_LINE_BYTES as u64 + 2;
        let read = (&mut self.reader)
            .take(limit)
            .read_until(b'\n', &mut line)?;
        self.begins = self.read;
        self.read += read as u64;
        if line.last() == Some(&b'\n') {
            line.pop();
            if line.last() == Some(&b'\r') {
                line.pop();
            }
        } else if line.len() > MAX_LINE_BYTES {
            self.read += self.reader.skip_until(b'\n')? as u64;
        }
        Ok((read > 0).then_some(line))
    }

    fn broken(&self, error: io::Error) -> Error {
        if !self.packed {
            return Error::Io(error);
        }
        Error::File {
            path: self.path.clone(),
            problem: format!(
                "after line {}: {error}; it is packed, and cut short or damaged: fetch it again",
                self.number
            ),
        }
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(line) = self.peeked.take() {
            return Some(line);
        }
        if self.ended {
            return None;
        }
        let line = match self.read() {
            Ok(line) => line,
            Err(error) => {
                self.ended = true;
                return Some(Err(self.broken(error)));
            }
        };
        let Some(line) = line else {
            self.ended = true;
            return None;
        };
        self.number += 1;
        Some(match text(line) {
            Ok(text) => Ok((self.number, text)),
            Err(problem) => Err(Error::row(&self.path, self.number, problem)),
        })
    }
}

/// So many things, for a message.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn text(line: Vec<u8>) -> Result<String, String> {
    if line.len() > MAX_LINE_BYTES {
        return Err(format!(
            "longer than {} MiB: shorten the line, or break the file into lines",
            MAX_LINE_BYTES >> 20
        ));
    }
    let mut text = String::from_utf8(line)
        .map_err(|_| "not UTF-8: convert the file, as with iconv".to_owned())?;
    if text.contains('\0') {
        return Err("holds a NUL byte: unpack an archive, convert UTF-16 to UTF-8".to_owned());
    }
    // On later lines they are left by files that were joined.
    if let Some(rest) = text.strip_prefix('\u{feff}') {
        text = rest.to_owned();
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(bytes: impl Into<Vec<u8>>) -> Lines {
        Lines::new(Path::new("file"), Cursor::new(bytes.into())).unwrap()
    }

    /// Texts and messages, line by line.
    fn read(bytes: impl Into<Vec<u8>>) -> Vec<String> {
        lines(bytes)
            .map(|line| match line {
                Ok((number, text)) => format!("{number} {text}"),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    const TEXT: &str = "\u{feff}a\r\n\nb";

    #[test]
    fn gzip_and_zstd_are_told_by_their_bytes_and_may_come_in_parts() {
        let expected = ["1 a", "2 ", "3 b"];
        assert_eq!(read(TEXT), expected);
        let (first, last) = TEXT.split_at(5);
        let gzip = |text: &str| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 3).unwrap();
        assert_eq!(read([gzip(first), gzip(last)].concat()), expected);
        assert_eq!(read([zstd(first), zstd(last)].concat()), expected);

        let mut cut = gzip(&"word\n".repeat(1000));
        cut.truncate(cut.len() - 9);
        let read = read(cut);
        let last = read.last().unwrap();
        assert!(last.starts_with("file: after line"), "{last}");
        assert!(last.ends_with("fetch it again"), "{last}");
    }

    #[test]
    fn other_packers_are_named() {
        for (begins, packer) in UNREAD {
            let bytes = Cursor::new([begins, b"0123"].concat());
            let error = Lines::new(Path::new("file"), bytes).err().unwrap();
            let expected = format!("file: is packed with {packer}: unpack it");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn a_line_that_is_no_text_is_named_and_the_next_one_is_read() {
        let said = read(b"a\n\xff\xfe\nb\0c\nd".as_slice());
        assert_eq!(
            said[1],
            "file:2: not UTF-8: convert the file, as with iconv"
        );
        assert!(
            said[2].starts_with("file:3: holds a NUL byte"),
            "{}",
            said[2]
        );
        assert_eq!(said[3], "4 d");
    }

    #[test]
    fn a_line_has_a_cap() {
        for ends in ["\n", "\r\n"] {
            let longest = "x".repeat(MAX_LINE_BYTES);
            let said = read(format!(
                "{longest}{ends}{longest}x{ends}{longest}xyz{ends}b"
            ));
            assert_eq!(said[0].len(), 2 + MAX_LINE_BYTES);
            for (line, said) in [(2, &said[1]), (3, &said[2])] {
                assert!(said.starts_with(&format!("file:{line}: longer than 8 MiB")));
            }
            assert_eq!(said[3], "4 b");
        }
    }

    #[test]
    fn peeking_takes_nothing_away() {
        let mut lines = lines(" \n{}\nb");
        assert_eq!(lines.peek(), Some("{}"));
        assert_eq!(lines.peek(), Some("{}"));
        assert_eq!(lines.next().unwrap().unwrap(), (2, "{}".to_owned()));
        assert_eq!(lines.next().unwrap().unwrap(), (3, "b".to_owned()));
    }
}
