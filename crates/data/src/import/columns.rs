//! Which columns are the id and the text.

use minijinja::value::{Serde, Value as Shown};
use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::Value;

use super::rows::Fields;
use crate::collection::{Document, Query};
use crate::trec::{self, Judgement, QUERY_ID};
use crate::{Error, Result};

/// What the columns of documents and queries are called, where it is not obvious.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// The documents' ids.
    pub id: Option<String>,
    /// How a document's fields become its text: a column's name, or a minijinja template over the
    /// columns' names, such as `{{ title }} | {{ brand }}`, and `{{ row["Brand name"] }}` where a name is no word.
    /// Without it the title is the title and the text the text.
    pub text: Option<String>,
    /// The queries' ids.
    pub query_id: Option<String>,
    /// The queries' text.
    pub query: Option<String>,
}

const ID: [&str; 8] = [
    "_id",
    "id",
    "pid",
    "docno",
    "docid",
    "doc_id",
    "document_id",
    "corpus-id",
];
const TITLE: [&str; 3] = ["title", "headline", "head"];
const TEXT: [&str; 5] = ["text", "contents", "body", "passage", "content"];
const ID_OF_QUERY: [&str; 7] = ["_id", "query_id", "query-id", "qid", "id", "num", "number"];
const TEXT_OF_QUERY: [&str; 4] = ["query", "text", "title", "question"];
const DOCUMENT_ID: [&str; 7] = [
    "document_id",
    "corpus-id",
    "corpus_id",
    "docid",
    "doc_id",
    "docno",
    "pid",
];
const GRADE: [&str; 5] = ["score", "grade", "relevance", "label", "gain"];

/// What `--text` takes, for messages.
const TEXT_OPTION: &str = "--text, by its name or in a template as '{{ title }} {{ description }}'";

/// [`Columns`] with the template read.
pub(super) struct Texts<'a> {
    columns: &'a Columns,
    /// None where the text is a column's as it is.
    template: Option<Environment<'a>>,
}

impl<'a> Texts<'a> {
    /// Reads the template.
    ///
    /// # Errors
    /// A template that is none.
    pub(super) fn new(columns: &'a Columns) -> Result<Self> {
        let is_template = |text: &&String| text.contains("{{") || text.contains("{%");
        let template = columns.text.as_ref().filter(is_template).map(|text| {
            let mut templates = Environment::new();
            templates.set_undefined_behavior(UndefinedBehavior::Strict);
            // A shell's quotes make a line break hard to write.
            templates
                .add_template_owned("--text", text.replace("\\n", "\n"))
                .map_err(|error| Error::Setting(format!("--text {text:?}: {error:#}")))?;
            Ok::<_, Error>(templates)
        });
        Ok(Self {
            columns,
            template: template.transpose()?,
        })
    }

    /// A row as a document, or what is wrong with it.
    pub(super) fn document(&self, mut fields: Fields) -> Result<Document, String> {
        let id = id_of(pick(&fields, self.columns.id.as_deref(), &ID, "--id")?)?;
        let given = self.columns.text.as_deref();
        let Some(template) = &self.template else {
            if given.is_some() {
                let text = text_of(pick(&fields, given, &TEXT, TEXT_OPTION)?)?;
                let title = String::new();
                return Ok(Document { id, title, text });
            }
            let title = TITLE.iter().find_map(|name| fields.get(*name));
            return Ok(Document {
                id,
                title: title.map_or(Ok(String::new()), text_of)?,
                text: text_of(pick(&fields, None, &TEXT, TEXT_OPTION)?)?,
            });
        };
        for value in fields.values_mut().filter(|value| value.is_null()) {
            *value = Value::String(String::new());
        }
        let row = Shown::from(Serde(&fields));
        let text = template
            .get_template("--text")
            .and_then(|template| template.render(context! { ..row.clone(), ..context! { row } }))
            .map_err(|error| format!("--text: {error}; {}", known(&fields)))?;
        let title = String::new();
        Ok(Document { id, title, text })
    }

    /// A row as a query, or what is wrong with it.
    pub(super) fn query(&self, fields: &Fields) -> Result<Query, String> {
        let Columns {
            query_id, query, ..
        } = self.columns;
        let id = pick(fields, query_id.as_deref(), &ID_OF_QUERY, "--query-id")?;
        let text = pick(fields, query.as_deref(), &TEXT_OF_QUERY, "--query")?;
        Ok(Query {
            id: id_of(id)?,
            text: text_of(text)?,
        })
    }
}

/// A row as a judgement, or what is wrong with it.
pub(super) fn judgement(fields: &Fields) -> Result<Judgement, String> {
    let column = |names: &[&str]| {
        let mend = "rename the columns to query_id, document_id and grade";
        find(fields, names).ok_or_else(|| missing(fields, names, mend))
    };
    Ok(Judgement {
        query: id_of(column(&QUERY_ID)?)?,
        document: id_of(column(&DOCUMENT_ID)?)?,
        grade: trec::whole(&text_of(column(&GRADE)?)?)?,
    })
}

fn pick<'a>(
    fields: &'a Fields,
    given: Option<&str>,
    obvious: &[&str],
    option: &str,
) -> Result<&'a Value, String> {
    let names = given.as_slice();
    let names = if names.is_empty() { obvious } else { names };
    find(fields, names).ok_or_else(|| missing(fields, names, &format!("say which with {option}")))
}

fn find<'a>(fields: &'a Fields, names: &[&str]) -> Option<&'a Value> {
    names.iter().find_map(|name| fields.get(*name))
}

fn missing(fields: &Fields, names: &[&str], mend: &str) -> String {
    format!(
        "has no field {}; {}: {mend}",
        names.join(" or "),
        known(fields)
    )
}

fn known(fields: &Fields) -> String {
    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
    match &names[..] {
        [one] if one.contains([',', ';', '\t', '|']) => {
            format!("the only field is {one:?} (is the delimiter another one?)")
        }
        names => format!("the fields are {}", names.join(", ")),
    }
}

/// A value as an id.
pub(super) fn id_of(value: &Value) -> Result<String, String> {
    match value {
        Value::Number(number) if number.is_f64() => Err(format!(
            "the id {number} is not a whole number of at most 64 bits: write ids as strings"
        )),
        value => text_of(value),
    }
}

/// A value as text; a number by its digits, null as nothing.
fn text_of(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Null => Ok(String::new()),
        other => Err(format!("{other} is no text: write a string")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(template: Option<&str>, row: Value) -> Result<Document, String> {
        let columns = Columns {
            text: template.map(str::to_owned),
            ..Columns::default()
        };
        let Value::Object(fields) = row else {
            return Err("no object".to_owned());
        };
        Texts::new(&columns).unwrap().document(fields)
    }

    #[test]
    fn a_template_makes_text_of_fields() {
        let row =
            json!({"id": 7, "title": "<Drill>", "brand": null, "price": 12.5, "tags": ["a", "b"]});
        let template = r"{{ title }} | {{ brand }}{{ price }}\n{{ tags | join(', ') }}";
        let made = document(Some(template), row.clone()).unwrap();
        assert_eq!((&*made.id, &*made.text), ("7", "<Drill> | 12.5\na, b"));

        let unknown = document(Some("{{ titel }}"), row.clone()).unwrap_err();
        assert!(
            unknown.contains("the fields are brand, id, price, tags, title"),
            "{unknown}"
        );
        let optional = "{{ titel | default('none') }}";
        assert_eq!(document(Some(optional), row).unwrap().text, "none");
        let columns = Columns {
            text: Some("{{ title".to_owned()),
            ..Columns::default()
        };
        assert!(matches!(Texts::new(&columns), Err(Error::Setting(_))));
    }

    #[test]
    fn a_column_is_named_without_a_template() {
        let row =
            json!({"id": 7, "title": "Drill", "description": "18 V, {{ cordless }}", "no": null});
        let made = document(Some("description"), row.clone()).unwrap();
        assert_eq!((&*made.title, &*made.text), ("", "18 V, {{ cordless }}"));
        assert_eq!(document(Some("no"), row.clone()).unwrap().text, "");
        let unknown = document(Some("descripton"), row).unwrap_err();
        assert!(
            unknown.contains(
                "has no field descripton; the fields are description, id, no, title: say"
            ) && unknown.contains("'{{ title }} {{ description }}'"),
            "{unknown}"
        );
    }

    /// As docs/data.md says it: what comes after a long field is there all the same.
    #[test]
    fn a_template_gives_a_field_a_budget_of_words() {
        let template = r"{{ title }}\n{{ (description | split)[:4] | join(' ') }}\n{{ brand }}";
        let text = |description: &str| {
            let row = json!({"id": 7, "title": "Drill", "description": description, "brand": "Bo"});
            document(Some(template), row).unwrap().text
        };
        assert_eq!(
            text("one two  three\nfour five six"),
            "Drill\none two three four\nBo"
        );
        assert_eq!(text("a\u{a0}b \u{e4}"), "Drill\na b \u{e4}\nBo");
        assert_eq!(text(""), "Drill\n\nBo");
    }

    #[test]
    fn a_column_whose_name_is_no_word_is_reached_through_the_row() {
        let row = json!({"id": 7, "Brand name": "Vantrix", "a": null});
        let made = document(Some("{{ row['Brand name'] }}{{ row.a }}{{ a }}"), row).unwrap();
        assert_eq!(made.text, "Vantrix");
        let row = json!({"id": 7, "row": "a column"});
        assert_eq!(document(Some("{{ row }}"), row).unwrap().text, "a column");
    }

    #[test]
    fn a_number_is_an_id_by_its_digits() {
        let id = |id: Value| Ok::<_, String>(document(None, json!({"id": id, "text": "b"}))?.id);
        assert_eq!(id(json!(u64::MAX)).unwrap(), "18446744073709551615");
        assert_eq!(id(json!(-7)).unwrap(), "-7");
        // One that lost digits may be another document's.
        for odd in ["1.0", "18446744073709551617"] {
            let error = id(serde_json::from_str(odd).unwrap()).unwrap_err();
            assert!(error.contains("write ids as strings"), "{error}");
        }
    }

    #[test]
    fn obvious_names_are_found_and_others_asked_for() {
        let found = document(None, json!({"pid": "d", "docid": "x", "passage": "b"})).unwrap();
        assert_eq!((&*found.id, &*found.title, &*found.text), ("d", "", "b"));
        let missing = document(None, json!({"id": "d", "name": "b"})).unwrap_err();
        assert!(
            missing.contains("the fields are id, name: say which with --text"),
            "{missing}"
        );
        let missing = document(None, json!({"id;text": "d;b"})).unwrap_err();
        assert!(
            missing.contains("the only field is \"id;text\" (is"),
            "{missing}"
        );
        let odd = document(None, json!({"id": ["d"], "text": "b"})).unwrap_err();
        assert!(odd.contains("[\"d\"] is no text"), "{odd}");
    }
}
