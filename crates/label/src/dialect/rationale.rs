//! Reasons beside a grade: a sentence or two in which the teacher says why it grades so.
//!
//! | `rationale =` | a reply | its label |
//! |---|---|---|
//! | `"after"` | the grade alone on the first line, then why | the grade as if there were no reasons |
//! | `"before"` | why, then the grade alone on the last line | the grade given the reasons before it |
//!
//! Reasons are kept with the judgement for people to read; nothing else depends on them, so that a
//! reply with a grade and no reasons is an answer.

use serde::{Deserialize, Serialize};

use super::{Problem, shortened};
use crate::prompt::Kind;

/// Unless the prompt says otherwise: two sentences.
const TOKENS: u32 = 60;
/// More is no sentence or two.
const MOST_TOKENS: u32 = 1000;

/// Where reasons stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// Before the grade.
    Before,
    /// After the grade.
    After,
}

/// The reasons that a prompt asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rationale {
    pub(crate) place: Place,
    /// The most tokens that they may be.
    pub(crate) tokens: u32,
}

impl Rationale {
    /// What a prompt file asks for; what is wrong with that, if anything is.
    pub(crate) fn asked(
        place: Option<Place>,
        tokens: Option<u32>,
        kind: Kind,
    ) -> Result<Option<Self>, String> {
        let Some(place) = place else {
            return match tokens {
                None => Ok(None),
                Some(_) => Err(
                    "`rationale_tokens` needs `rationale`: \"before\" or \"after\" the grade"
                        .to_owned(),
                ),
            };
        };
        let other = match kind {
            Kind::Graded => None,
            Kind::Pairwise => Some("pairwise"),
            Kind::Listwise => Some("listwise"),
        };
        if let Some(kind) = other {
            return Err(format!(
                "`rationale` says why one document got its grade, and a {kind} prompt has none: \
                 remove it, or ask for grades or yes and no"
            ));
        }
        let tokens = tokens.unwrap_or(TOKENS);
        if !(1..=MOST_TOKENS).contains(&tokens) {
            return Err(format!(
                "`rationale_tokens` must be from 1 to {MOST_TOKENS}"
            ));
        }
        Ok(Some(Self { place, tokens }))
    }

    /// A reply as the teacher should write it.
    pub(crate) fn shown(self, answer: &str, reasons: &str) -> String {
        match self.place {
            Place::Before => format!("{reasons}\n{answer}"),
            Place::After => format!("{answer}\n{reasons}"),
        }
    }

    /// Takes a reply apart: the line where the grade should be, and the reasons, if there are any.
    /// One that `was_cut` at the limit has no end.
    pub(super) fn split(
        self,
        written: &str,
        was_cut: bool,
    ) -> Result<(&str, Option<String>), Problem> {
        let written = written.trim();
        match self.place {
            // Its last line is what came last, and not the grade.
            Place::Before if was_cut => Err(Problem::Unreadable(format!(
                "the reply was cut before it came to a grade: raise the prompt's \
                 `rationale_tokens`, {} now, or have it ask for fewer words: {:?}",
                self.tokens,
                shortened(written)
            ))),
            Place::Before => {
                let (reasons, grade) = written.rsplit_once('\n').unwrap_or(("", written));
                Ok((grade, one_line(reasons, false)))
            }
            Place::After => {
                let (grade, reasons) = written.split_once('\n').unwrap_or((written, ""));
                Ok((grade, one_line(reasons, was_cut)))
            }
        }
    }
}

/// Reasons on one line, without control characters; `…` stands where they were cut.
pub(super) fn one_line(reasons: &str, were_cut: bool) -> Option<String> {
    let is_between = |one: char| one.is_whitespace() || one.is_control();
    let words = reasons.split(is_between).filter(|word| !word.is_empty());
    let mut line = words.collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        return None;
    }
    if were_cut {
        line.push('…');
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rationale(place: Place) -> Rationale {
        Rationale { place, tokens: 60 }
    }

    #[test]
    fn replies_are_taken_apart_as_they_are_shown() {
        for place in [Place::Before, Place::After] {
            let shown = rationale(place).shown("2", "It has 3 of them.");
            let (grade, reasons) = rationale(place).split(&shown, false).unwrap();
            assert_eq!((grade, &*reasons.unwrap()), ("2", "It has 3 of them."));
            // No reasons: the grade alone.
            assert_eq!(rationale(place).split(" 2\n", false).unwrap(), ("2", None));
        }
        let split = |place, written| rationale(place).split(written, false).unwrap();
        let (grade, reasons) = split(Place::After, "2\n\nOne.\n\u{1b}[2J Two.\n");
        assert_eq!((grade, &*reasons.unwrap()), ("2", "One. [2J Two."));
        let (grade, reasons) = split(Place::Before, "One.\r\nTwo.\r\n\r\n2");
        assert_eq!((grade, &*reasons.unwrap()), ("2", "One. Two."));
    }

    #[test]
    fn what_was_cut_is_no_grade_before_and_still_one_after() {
        let cut = |place, written| rationale(place).split(written, true);
        // A list that was cut at its second number.
        let problem = cut(Place::Before, "1. It fits.\n2").unwrap_err();
        assert!(problem.to_string().contains("`rationale_tokens`, 60"));
        let (grade, reasons) = cut(Place::After, "2\nIt has").unwrap();
        assert_eq!((grade, &*reasons.unwrap()), ("2", "It has…"));
        assert_eq!(cut(Place::After, "2").unwrap(), ("2", None));
    }

    #[test]
    fn settings_out_of_place_or_range_are_named() {
        let asked = Rationale::asked;
        assert_eq!(asked(None, None, Kind::Pairwise), Ok(None));
        let after = asked(Some(Place::After), None, Kind::Graded)
            .unwrap()
            .unwrap();
        assert_eq!(after.tokens, TOKENS);
        for (place, tokens, kind, said) in [
            (None, Some(60), Kind::Graded, "needs `rationale`"),
            (Some(Place::After), Some(0), Kind::Graded, "from 1 to 1000"),
            (
                Some(Place::Before),
                None,
                Kind::Pairwise,
                "a pairwise prompt",
            ),
            (
                Some(Place::After),
                None,
                Kind::Listwise,
                "a listwise prompt",
            ),
        ] {
            let problem = asked(place, tokens, kind).unwrap_err();
            assert!(problem.contains(said), "{problem}");
        }
    }
}
