//! Comma-separated values as RFC 4180 has them: a quoted field may hold delimiters, doubled quotes
//! and line breaks.

use super::rows::{Fields, named, named_once};
use crate::lines::{Lines, MAX_LINE_BYTES, Rows};
use crate::{Error, Result};

/// Rows under the column names of the first record.
pub(super) fn rows(lines: Lines, delimiter: char) -> Rows<Fields> {
    let path = lines.path().to_owned();
    let mut records = Records { lines, delimiter };
    let mut header: Option<Vec<String>> = None;
    Box::new(std::iter::from_fn(move || {
        loop {
            let (line, values) = match records.next()? {
                Ok(record) => record,
                Err(error) => return Some(Err(error)),
            };
            let row = match &header {
                Some(header) => named(header, values).map(Some),
                None => named_once(values).map(|names| {
                    header = Some(names);
                    None
                }),
            };
            match row {
                Ok(None) => {}
                Ok(Some(row)) => return Some(Ok((line, row))),
                Err(problem) => return Some(Err(Error::row(&path, line, problem))),
            }
        }
    }))
}

struct Records {
    lines: Lines,
    delimiter: char,
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
                    return Err(format!(
                        "{c:?} stands after a closing quote: double the quotes inside a quoted \
                         field"
                    ));
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

impl Iterator for Records {
    type Item = Result<(usize, Vec<String>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut record = Record::default();
        let (mut start, mut bytes) = (None, 0);
        let problem = loop {
            let (number, line) = match self.lines.next() {
                Some(Ok(line)) => line,
                Some(Err(error)) => return Some(Err(error)),
                None => break "its quoted field is never closed".to_owned(),
            };
            if start.is_none() && line.trim().is_empty() {
                continue;
            }
            start.get_or_insert(number);
            bytes += line.len();
            match record.add(&line, self.delimiter) {
                Ok(true) => return Some(Ok((start?, record.fields))),
                Ok(false) if bytes <= MAX_LINE_BYTES => {}
                Ok(false) => break format!("its quoted field is still open on line {number}"),
                Err(problem) => return Some(Err(Error::row(self.lines.path(), number, problem))),
            }
        };
        let problem = format!("{problem}: close it, and double the quotes inside it");
        Some(Err(Error::row(self.lines.path(), start?, problem)))
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
    fn what_is_no_record_is_named_where_it_begins() {
        let said = read("id,text\n1\n2,\"a\"b\n3,c\n4,\"d\ne\n");
        assert!(
            said[0].starts_with("file:2: 1 fields, the header has 2"),
            "{}",
            said[0]
        );
        assert!(
            said[1].starts_with("file:3: 'b' stands after"),
            "{}",
            said[1]
        );
        assert_eq!(said[2], r#"4 {"id":"3","text":"c"}"#);
        assert!(
            said[3].starts_with("file:5: its quoted field is never closed"),
            "{}",
            said[3]
        );
        assert!(read("a,a\n1,2\n")[0].contains("\"a\" is there twice"));
    }

    #[test]
    fn an_open_quote_costs_no_more_memory_than_a_line() {
        let line = "x".repeat(1 << 20);
        let text = format!("id\n\"a\n{}", format!("{line}\n").repeat(9));
        let said = read(&text);
        assert!(
            said[0].starts_with("file:2: its quoted field is still open on line"),
            "{}",
            said[0]
        );
    }
}
