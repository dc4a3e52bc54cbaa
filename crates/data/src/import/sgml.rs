//! Documents and topics in TREC's SGML: blocks of `<DOC>`, `<top>` or `<topic>` with fields named by
//! tags. A topic's tags need not be closed, and text without one is its `text`; what is nested in a
//! document's field is text.
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

const DOCUMENT: &str = "doc";

/// The kinds of block: a document, and two spellings of a topic.
const KINDS: [&str; 3] = [DOCUMENT, "top", "topic"];

impl Iterator for Blocks {
    type Item = Result<(usize, Fields)>;

    fn next(&mut self) -> Option<Self::Item> {
        let (start, first, kind) = match self.start()? {
            Ok(start) => start,
            Err(error) => return Some(Err(error)),
        };
        let (mut number, mut line) = (start, first);
        let mut text = String::new();
        let mut is_too_long = false;
        let problem = loop {
            let end = end_of(&line, kind);
            let inside = end.map_or(&*line, |(at, _)| &line[..at]);
            is_too_long |= text.len() + inside.len() > MAX_LINE_BYTES;
            if !is_too_long {
                text.push_str(inside);
                text.push('\n');
            }
            if let Some((_, after)) = end {
                let rest = line[after..].to_owned();
                self.next = (!rest.trim().is_empty()).then_some((number, rest));
                if is_too_long {
                    break "is longer than 8 MiB: shorten it".to_owned();
                }
                return Some(Ok((start, fields(&text, kind))));
            }
            (number, line) = match self.lines.next() {
                Some(Ok(next)) => next,
                Some(Err(error)) => return Some(Err(error)),
                None => break format!("never ends: close it with </{kind}>"),
            };
            if kind_of(&line) == Some(kind) {
                self.next = Some((number, line));
                break format!("does not end before the next one begins: close it with </{kind}>");
            }
        };
        let problem = format!("this <{kind}> {problem}");
        Some(Err(Error::row(self.lines.path(), start, problem)))
    }
}

impl Blocks {
    /// The line that begins the next block, from there on.
    fn start(&mut self) -> Option<Result<(usize, String, &'static str)>> {
        loop {
            let (number, line) = match self.next.take() {
                Some(next) => next,
                None => match self.lines.next()? {
                    Ok(line) => line,
                    Err(error) => return Some(Err(error)),
                },
            };
            // Other tags may enclose the blocks, such as <?xml …?> and <topics>.
            let mut rest = line.trim();
            loop {
                if let Some(kind) = kind_of(rest) {
                    return Some(Ok((number, rest.to_owned(), kind)));
                }
                match rest.find('>') {
                    Some(end) if rest.starts_with('<') => rest = rest[end + 1..].trim_start(),
                    _ => break,
                }
            }
            if !rest.is_empty() {
                let problem = "stands outside of <doc>, <top> and <topic>: put it into one, or \
                               drop it";
                let problem = problem.to_owned();
                return Some(Err(Error::row(self.lines.path(), number, problem)));
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
    let mut begins = 0;
    if let Some((at, tag)) = tags.next() {
        begins = at + tag.bytes;
        // <topic number="1">: the attribute is the id.
        let number = tag.attributes.split_once("number=\"");
        if let Some((number, _)) = number.and_then(|(_, rest)| rest.split_once('"')) {
            fields.insert("num".to_owned(), number.into());
        }
    }
    // The open field: its name and where its text begins.
    let mut open = (kind != DOCUMENT).then(|| ("text".to_owned(), begins));
    for (at, tag) in tags {
        let is_nested = |(name, _): &(String, usize)| kind == DOCUMENT && *name != tag.name;
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
        _ if kind == DOCUMENT => "",
        "num" => "Number:",
        "title" => "Topic:",
        "desc" => "Description:",
        "narr" => "Narrative:",
        _ => "",
    };
    let text = text.strip_prefix(lead).unwrap_or(&text).trim_start();
    if text.is_empty() && name == "text" && kind != DOCUMENT {
        return; // What stands before a topic's first tag: mostly a line break.
    }
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
    fn topics_may_be_text_alone_and_all_on_one_line() {
        let text = "<topics><topic number=\"1\">a man</topic> <topic number=\"2\"> a\nb \
                    </topic></topics>";
        let expected = [
            r#"1 {"num":"1","text":"a man"}"#,
            r#"1 {"num":"2","text":"a b"}"#,
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
        let said = read("<doc>\n<docno>1\n<doc><docno>2</doc>\nstray\n<doc>\n<topic>a");
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
        assert_eq!(said.len(), 4);
    }

    #[test]
    fn a_document_that_is_too_long_is_one_bad_row() {
        let line = "word ".repeat(1 << 18);
        let lines = format!("{line}\n").repeat(9);
        let said = read(&format!(
            "<doc>\n<text>{lines}</text>\n</doc>\n<doc><docno>2</doc>"
        ));
        assert!(
            said[0].starts_with("file:1: this <doc> is longer than 8 MiB"),
            "{}",
            said[0]
        );
        assert_eq!(said[1..], [r#"13 {"docno":"2"}"#]);
    }
}
