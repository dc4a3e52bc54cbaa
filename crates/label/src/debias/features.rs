//! What can be counted of a query and a document without understanding them: what a judge must not
//! be swayed by beyond what it says about relevance.

use std::collections::BTreeSet;

/// The names of what [`of`] counts, in its order.
pub(super) const NAMES: [&str; 6] = [
    "length",
    "overlap",
    "density",
    "stuffing",
    "first match",
    "repetition",
];

/// Counted over words, of texts as the collection has them:
///
/// - `length`: ln(1 + the document's words);
/// - `overlap`: the share of the query's distinct words that the document has;
/// - `density`: the share of the document's words that are the query's;
/// - `stuffing`: ln(1 + how often it says one of them again);
/// - `first match`: where the first of them stands, as a share of the document; 1 without one;
/// - `repetition`: the share of the document's words that stood in it before, whatever the query.
pub(super) fn of(query: &str, document: &str) -> [f64; NAMES.len()] {
    let asked: BTreeSet<String> = words(query).into_iter().collect();
    let said = words(document);
    let count = said.len().max(1) as f64;
    let (mut seen, mut distinct, mut matches) = (BTreeSet::new(), 0.0, 0.0);
    let mut first = None;
    for (place, word) in said.iter().enumerate() {
        let is_new = seen.insert(word);
        if asked.contains(word) {
            matches += 1.0;
            distinct += f64::from(u8::from(is_new));
            first.get_or_insert(place);
        }
    }
    [
        (said.len() as f64).ln_1p(),
        distinct / asked.len().max(1) as f64,
        matches / count,
        (matches - distinct).ln_1p(),
        first.map_or(1.0, |place| place as f64 / count),
        (said.len() - seen.len()) as f64 / count,
    ]
}

/// Runs of letters and digits, in lower case; of scripts that set no spaces, each character.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for character in text.chars() {
        let alone = stands_alone(character);
        if alone || !character.is_alphanumeric() {
            words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        if alone {
            words.push(character.to_string());
        } else if character.is_alphanumeric() {
            word.extend(character.to_lowercase());
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// Kana and Han characters.
fn stands_alone(character: char) -> bool {
    matches!(character, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_features(query: &str, document: &str, expected: [f64; 6]) {
        for ((name, found), expected) in NAMES.iter().zip(of(query, document)).zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{name}: {found}");
        }
    }

    #[test]
    fn words_are_counted_as_said() {
        let document = "The drill: a Drill for drill bits";
        let expected = [
            8.0_f64.ln(),
            1.0 / 2.0,
            3.0 / 7.0,
            3.0_f64.ln(),
            1.0 / 7.0,
            2.0 / 7.0,
        ];
        assert_features("cordless DRILL, cordless", document, expected);
    }

    #[test]
    fn texts_without_words_have_features() {
        assert_features("?!", "a b", [3.0_f64.ln(), 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert_features("a", "", [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn scripts_without_spaces_have_words() {
        assert_eq!(
            words("電動ドリル 18V"),
            ["電", "動", "ド", "リ", "ル", "18v"]
        );
    }
}
