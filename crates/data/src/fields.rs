//! Fields of BEIR's lines that others write otherwise.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A text that may be null, which is an empty one.
pub(crate) fn text<'de, D: Deserializer<'de>>(field: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(field)?.unwrap_or_default())
}

/// An id; of a number the error says how to mend it.
pub(crate) fn id<'de, D: Deserializer<'de>>(field: D) -> Result<String, D::Error> {
    field.deserialize_any(Id)
}

struct Id;

impl Visitor<'_> for Id {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, id: &str) -> Result<String, E> {
        Ok(id.to_owned())
    }

    fn visit_string<E: Error>(self, id: String) -> Result<String, E> {
        Ok(id)
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<String, E> {
        Err(number(id))
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<String, E> {
        Err(number(id))
    }
}

fn number<E: Error>(id: impl fmt::Display) -> E {
    E::custom(format!(
        "the _id {id} is a number, and ids are strings: `retort import beir DIR --out MENDED` makes \
         them so"
    ))
}

#[cfg(test)]
mod tests {
    use crate::collection::{Document, Query};

    #[test]
    fn a_title_may_be_null_and_an_id_that_is_a_number_says_how_to_mend_it() {
        let read = serde_json::from_str::<Document>;
        let document = read(r#"{"_id": "d", "title": null, "text": "a"}"#).unwrap();
        assert_eq!((&*document.id, &*document.title), ("d", ""));
        let of_query = serde_json::from_str::<Query>(r#"{"_id": -7, "text": "a"}"#).unwrap_err();
        for (error, id) in [
            (read(r#"{"_id": 7, "text": "a"}"#).unwrap_err(), "7"),
            (of_query, "-7"),
        ] {
            let said = format!("the _id {id} is a number");
            assert!(error.to_string().contains(&said), "{error}");
            assert!(error.to_string().contains("retort import beir"), "{error}");
        }
        let error = read(r#"{"_id": null, "text": "a"}"#).unwrap_err();
        assert!(error.to_string().contains("expected a string"), "{error}");
    }
}
