//! Documents and topics in TREC's SGML: blocks of `<DOC>`, `<top>` or `<topic>`, each starting on a
//! line of its own, with fields named by tags. A topic's tags need not be closed; what is nested in
//! a document's field is text.
//!
//! ```text
//! <DOC>                                    <top>
//! <DOCNO> AP880212-0001 </DOCNO>           <num> Number: 301
//! <HEAD>Reports</HEAD>                     <title> International Organized Crime
//! <TEXT>As of <P>today</P> …</TEXT>        <desc> Description: …
//! </DOC>                                   </top>
//! ```

use super::rows::Fields;
use crate::lines::{Lines, MAX_LINE_BYTES, Rows};
use crate::{Error, Result};

/// Rows with the tags' names, in lower case, as column names.
pub(super) fn rows(lines: Lines) -> Rows<Fields> {
    Box::new(Blocks { lines, next: None })
}

struct Blocks {
    lines: Lines,
    /// A line, or the rest of one, that was read and belongs to no block yet.
    next: Option<(usize, String)>,
}

/// The kinds of block; the first is a document.
const KINDS: [&str; 3] = ["doc", "top", "topic"];

impl Iterator for Blocks {
    type Item = Result<(usize, Fields)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (start, first, kind) = match self.start()? {
            Ok(start) => start,
            Err(error) => return Some(Err(error)),
        };
        let (mut number, mut line) = (start, first);
        let mut text = String::new();
        let problem = loop {
            if let Some((end, after)) = end_of(&line, kind) {
                text.push_str(&line[..end]);
                let rest = line[after..].to_owned();
                self.next = (!rest.trim().is_empty()).then_some((number, rest));
                return Some(Ok((start, fields(&text, kind))));
            }
            text.push_str(&line);
            text.push('\n');
            if text.len() > MAX_LINE_BYTES {
                break "goes on for more than 8 MiB";
            }
            (number, line) = match self.lines.next() {
                Some(Ok(next)) => next,
                Some(Err(error)) => return Some(Err(error)),
                None => break "never ends",
            };
            if kind_of(&line).is_some() {
                self.next = Some((number, line));
                break "does not end before the next one begins";
            }
        };
        let problem = format!("this <{kind}> {problem}: close it with </{kind}>");
        Some(Err(Error::row(self.lines.path(), start, problem)))
    }
}

impl Blocks {
    /// The line that begins the next block.
    fn start(&mut self) -> Option<Result<(usize, String, &'static str)>> {
        loop {
            let (number, line) = match self.next.take() {
                Some(next) => next,
                None => match self.lines.next()? {
                    Ok(line) => line,
                    Err(error) => return Some(Err(error)),
                },
            };
            if let Some(kind) = kind_of(&line) {
                return Some(Ok((number, line, kind)));
            }
            // A tag alone may enclose the blocks, such as <topics> or <?xml …?>.
            let line = line.trim();
            let is_tag = line.starts_with('<') && line.find('>') == line.len().checked_sub(1);
            if !line.is_empty() && !is_tag {
                let problem = "stands outside of <doc>, <top> and <topic>: put it into one, or \
                               drop it";
                return Some(Err(Error::row(
                    self.lines.path(),
                    number,
                    problem.to_owned(),
                )));
            }
        }
    }
}

/// The kind of the block that begins with this line.
fn kind_of(line: &str) -> Option<&'static str> {
    let tag = Tag::at(line.trim_start())?;
    KINDS
        .into_iter()
        .find(|kind| !tag.closes && tag.name == *kind)
}

/// Where the closing tag of a block begins and ends.
fn end_of(line: &str, kind: &str) -> Option<(usize, usize)> {
    tags(line)
        .find(|(_, tag)| tag.closes && tag.name == kind)
        .map(|(at, tag)| (at, at + tag.bytes))
}

/// A tag at the start of a text.
struct Tag<'a> {
    closes: bool,
    name: String,
    /// What stands after the name.
    attributes: &'a str,
    bytes: usize,
}

/// More bytes than this before `>` are no tag.
const MAX_TAG_BYTES: usize = 256;

impl<'a> Tag<'a> {
    fn at(text: &'a str) -> Option<Self> {
        let end = text
            .bytes()
            .take(MAX_TAG_BYTES)
            .position(|byte| byte == b'>')?;
        let inside = text[..end].strip_prefix('<')?;
        let (closes, named) = match inside.strip_prefix('/') {
            Some(named) => (true, named),
            None => (false, inside),
        };
        if !named.starts_with(|c: char| c.is_ascii_alphabetic()) || named.contains('<') {
            return None;
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let (name, attributes) = named.split_at(named.find(|c| !is_part(c)).unwrap_or(named.len()));
        Some(Self {
            closes,
            name: name.to_ascii_lowercase(),
            attributes,
            bytes: end + 1,
        })
    }
}

/// The tags in a text and where they begin.
fn tags(text: &str) -> impl Iterator<Item = (usize, Tag<'_>)> {
    text.match_indices('<')
        .filter_map(|(at, _)| Some((at, Tag::at(&text[at..])?)))
}

/// The fields of a block, of which `block` holds all but its closing tag.
fn fields(block: &str, kind: &str) -> Fields {
    let mut fields = Fields::new();
    let mut tags = tags(block);
    if let Some((_, tag)) = tags.next() {
        // <topic number="1">: the attribute is the id.
        let number = tag.attributes.split_once("number=\"");
        if let Some((number, _)) = number.and_then(|(_, rest)| rest.split_once('"')) {
            fields.insert("num".to_owned(), number.into());
        }
    }
    // The open field: its name and where its text begins.
    let mut open: Option<(String, usize)> = None;
    for (at, tag) in tags {
        let is_nested = |(name, _): &(String, usize)| kind == KINDS[0] && *name != tag.name;
        if open.as_ref().is_some_and(is_nested) {
            continue;
        }
        if let Some((name, from)) = open.take() {
            add(&mut fields, &name, &block[from..at], kind);
        }
        if !tag.closes {
            open = Some((tag.name, at + tag.bytes));
        }
    }
    if let Some((name, from)) = open {
        add(&mut fields, &name, &block[from..], kind);
    }
    fields
}

/// Adds a field's text; fields of the same name are joined.
fn add(fields: &mut Fields, name: &str, text: &str, kind: &str) {
    let text = plain(text);
    let lead = match name {
        _ if kind == KINDS[0] => "",
        "num" => "Number:",
        "title" => "Topic:",
        "desc" => "Description:",
        "narr" => "Narrative:",
        _ => "",
    };
    let text = text.strip_prefix(lead).unwrap_or(&text).trim_start();
    let before = fields.get(name).and_then(|before| before.as_str());
    let joined = match before {
        Some(before) => format!("{before} {text}").trim().to_owned(),
        None => text.to_owned(),
    };
    fields.insert(name.to_owned(), joined.into());
}

/// Text without tags, entities and line breaks.
fn plain(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut from = 0;
    for (at, tag) in tags(text) {
        bare.push_str(&text[from..at]);
        bare.push(' ');
        from = at + tag.bytes;
    }
    bare.push_str(&text[from..]);
    // &amp; comes last, so that &amp;lt; becomes &lt; and no more.
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    for (entity, c) in entities {
        bare = bare.replace(entity, c);
    }
    let words: Vec<&str> = bare.split_whitespace().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Rows as JSON with their lines, or messages.
    fn read(text: &str) -> Vec<String> {
        let lines = Lines::new(Path::new("file"), std::io::Cursor::new(text.to_owned())).unwrap();
        rows(lines)
            .map(|row| match row {
                Ok((line, fields)) => format!("{line} {}", serde_json::to_string(&fields).unwrap()),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    #[test]
    fn classic_topics_need_no_closing_tags_and_lose_their_leads() {
        let text = "\n<top>\n<num> Number: 301\n<title> International\nOrganized Crime\n\n\
                    <desc> Description:\nIdentify.\n</top>\n\n<top><num>2<title>x</top>\n";
        let expected = [
            r#"2 {"desc":"Identify.","num":"301","title":"International Organized Crime"}"#,
            r#"11 {"num":"2","title":"x"}"#,
        ];
        assert_eq!(read(text), expected);
    }

    #[test]
    fn xml_topics_carry_their_number_as_an_attribute() {
        let text = "<?xml version=\"1.0\"?>\n<topics>\n<topic number=\"1\">\n\
                    <query>a &amp;lt; b</query>\n</topic><topic number=\"2\"><query>c</query>\
                    </topic>\n</topics>\n";
        let expected = [
            r#"3 {"num":"1","query":"a &lt; b"}"#,
            r#"5 {"num":"2","query":"c"}"#,
        ];
        assert_eq!(read(text), expected);
    }

    #[test]
    fn documents_keep_what_is_nested_and_what_only_looks_like_a_tag() {
        let text = "<DOC>\n<DOCNO> A-1 </DOCNO>\n<TEXT>\n<P>5 < 6 and</P> <F P=1>x</F>\n</TEXT>\n\
                    <TEXT>AT&amp;T</TEXT>\n</DOC>\n";
        let expected = [r#"1 {"docno":"A-1","text":"5 < 6 and x AT&T"}"#];
        assert_eq!(read(text), expected);
    }

    #[test]
    fn blocks_that_do_not_end_and_text_between_them_are_named() {
        let said = read("<doc>\n<docno>1\n<doc><docno>2</doc>\nstray\n<doc>");
        assert!(
            said[0].starts_with("file:1: this <doc> does not end before"),
            "{}",
            said[0]
        );
        assert_eq!(said[1], r#"3 {"docno":"2"}"#);
        assert!(said[2].starts_with("file:4: stands outside"), "{}", said[2]);
        assert!(
            said[3].starts_with("file:5: this <doc> never ends"),
            "{}",
            said[3]
        );
    }
}
