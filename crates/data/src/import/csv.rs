//! Comma-separated values as RFC 4180 has them: a quoted field may hold delimiters, doubled quotes
//! and line breaks.

use std::collections::VecDeque;

use super::rows::{Fields, under_names};
use crate::lines::{Lines, MAX_LINE_BYTES, Rows};
use crate::{Error, Result};

/// Rows under the column names of the first record.
pub(super) fn rows(lines: Lines, delimiter: char) -> Rows<Fields> {
    let path = lines.path().to_owned();
    let records = Records {
        lines,
        delimiter,
        again: VecDeque::new(),
        credit: 0,
    };
    under_names(path, records)
}

/// Records with the lines that they begin on.
struct Records {
    lines: Lines,
    delimiter: char,
    /// Lines to be read once more: a quote that nothing closes takes in the rows after its own.
    again: VecDeque<(usize, String)>,
    /// How many bytes may be read once more: as many as were read, so that no file takes forever.
    credit: usize,
}

impl Records {
    fn line(&mut self) -> Option<Result<(usize, String)>> {
        if let Some(line) = self.again.pop_front() {
            return Some(Ok(line));
        }
        let line = self.lines.next()?;
        if let Ok((_, text)) = &line {
            self.credit += text.len() + 1;
        }
        Some(line)
    }

    /// Takes back the lines that a record took in beyond its first one.
    fn take_back(&mut self, lines: Vec<(usize, String)>) {
        let bytes: usize = lines.iter().map(|(_, line)| line.len() + 1).sum();
        if let Some(credit) = self.credit.checked_sub(bytes) {
            self.credit = credit;
            for line in lines.into_iter().rev() {
                self.again.push_front(line);
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<(usize, Vec<String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (start, mut line) = loop {
            match self.line()? {
                Ok((_, line)) if line.trim().is_empty() => {}
                Ok(line) => break line,
                Err(error) => return Some(Err(error)),
            }
        };
        let mut record = Record::default();
        let (mut bytes, mut further) = (0, Vec::new());
        let problem = loop {
            bytes += line.len();
            match record.add(&line, self.delimiter) {
                Ok(true) => return Some(Ok((start, record.fields))),
                Ok(false) if bytes <= MAX_LINE_BYTES => {}
                Ok(false) => break "its quoted field goes on for more than 8 MiB".to_owned(),
                Err(problem) => break problem,
            }
            let number;
            (number, line) = match self.line() {
                Some(Ok(line)) => line,
                Some(Err(error)) => return Some(Err(error)),
                None => break "its quoted field is never closed".to_owned(),
            };
            further.push((number, line.clone()));
        };
        let until = further
            .last()
            .map(|(number, _)| format!(" (read to line {number})"));
        let problem = format!(
            "{problem}{}: quote the whole field, and double the quotes inside it",
            until.unwrap_or_default()
        );
        self.take_back(further);
        Some(Err(Error::row(self.lines.path(), start, problem)))
    }
}

/// Where in a record the reader is.
#[derive(Default)]
struct Record {
    fields: Vec<String>,
    field: String,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// At the start of a field.
    #[default]
    Start,
    /// In a field without quotes.
    Bare,
    /// Between quotes.
    Quoted,
    /// After a quote that closes the field, or is the first of two.
    Closed,
}

impl Record {
    /// Takes in a line; whether the record ends with it.
    fn add(&mut self, line: &str, delimiter: char) -> Result<bool, String> {
        for c in line.chars() {
            self.state = match self.state {
                State::Start if c == '"' => State::Quoted,
                State::Quoted if c == '"' => State::Closed,
                State::Quoted => self.push(c, State::Quoted),
                State::Closed if c == '"' => self.push(c, State::Quoted),
                _ if c == delimiter => self.end_field(),
                State::Closed => {
                    return Err(format!("{c:?} stands after a closing quote"));
                }
                State::Start | State::Bare => self.push(c, State::Bare),
            };
        }
        if self.state == State::Quoted {
            self.field.push('\n');
            return Ok(false);
        }
        self.end_field();
        Ok(true)
    }

    fn push(&mut self, c: char, state: State) -> State {
        self.field.push(c);
        state
    }

    fn end_field(&mut self) -> State {
        self.fields.push(std::mem::take(&mut self.field));
        State::Start
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Rows as JSON with their lines, or messages.
    fn read(text: &str) -> Vec<String> {
        let lines = Lines::new(Path::new("file"), std::io::Cursor::new(text.to_owned())).unwrap();
        rows(lines, ',')
            .map(|row| match row {
                Ok((line, fields)) => format!("{line} {}", serde_json::to_string(&fields).unwrap()),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    #[test]
    fn quoted_fields_hold_delimiters_quotes_and_line_breaks() {
        let text = "id,text\r\n1,\"a, \"\"b\"\"\r\n\r\nc\"\r\n\r\n2,5\" pipe\n\"\",\n";
        let expected = [
            r#"2 {"id":"1","text":"a, \"b\"\n\nc"}"#,
            r#"6 {"id":"2","text":"5\" pipe"}"#,
            r#"7 {"id":"","text":""}"#,
        ];
        assert_eq!(read(text), expected);
    }

    #[test]
    fn what_is_no_record_is_named_where_it_begins_and_the_next_line_is_read() {
        let said = read("id,text\n1\n2,\"a\"b\n3,c\n4,\"d\n5,e\n6,\"f\"\n7,\"g\n8,h\n");
        let expected = [
            "file:2: 1 field, and there are 2 column names",
            "file:3: 'b' stands after a closing quote:",
            r#"4 {"id":"3","text":"c"}"#,
            "file:5: 'f' stands after a closing quote (read to line 7):",
            r#"6 {"id":"5","text":"e"}"#,
            r#"7 {"id":"6","text":"f"}"#,
            "file:8: its quoted field is never closed (read to line 9):",
            r#"9 {"id":"8","text":"h"}"#,
        ];
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.starts_with(expected), "{said} is not {expected}");
        }
    }

    #[test]
    fn without_column_names_there_are_no_rows() {
        assert_eq!(read(" id , text\n1,a\n"), [r#"2 {"id":"1","text":"a"}"#]);
        for text in ["a,a\n1,2\n", "id,\0\n1,2\n", "id,\"a\"b\n1,2\n"] {
            let said = read(text);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(
                said[0].starts_with("file: has no column names on top:"),
                "{said:?}"
            );
        }
        assert!(read("").is_empty());
    }

    #[test]
    fn an_open_quote_costs_no_more_memory_than_a_line_and_no_row_but_its_own() {
        let line = "x".repeat(1 << 20);
        let said = read(&format!("id\n\"a\n{}", format!("{line}\n").repeat(9)));
        assert!(
            said[0].starts_with("file:2: its quoted field goes on for more than 8 MiB"),
            "{}",
            said[0]
        );
        assert_eq!(said.len(), 1 + 9);
    }

    #[test]
    fn no_line_is_read_more_than_about_twice() {
        // Each line closes a quote and opens another, whether it is read as a first one or not.
        let said = read(&format!("id\n{}", "x\",\"y\n".repeat(20_000)));
        assert!(
            said.iter().all(|said| said.starts_with("file:")),
            "{said:?}"
        );
        assert!((1..10).contains(&said.len()), "{}", said.len());
    }
}
