//! How the shop and its shoppers spell things: units, title case and slips of the keyboard.

use rand::{RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::vocabulary::Attribute;

/// How a measure is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Units {
    /// `18 V`
    Spaced,
    /// `18V`
    Tight,
    /// `18 volt`
    Long,
}

impl Units {
    pub(super) fn pick(rng: &mut ChaCha8Rng) -> Self {
        *[Self::Spaced, Self::Tight, Self::Tight, Self::Long]
            .choose(rng)
            .unwrap_or(&Self::Spaced)
    }
}

/// The units of the vocabulary, short and long.
const UNITS: [(&str, &str); 15] = [
    ("V", "volt"),
    ("W", "watt"),
    ("mm", "mm"),
    ("cm", "cm"),
    ("m", "metre"),
    ("l", "litre"),
    ("ml", "ml"),
    ("kg", "kg"),
    ("g", "gram"),
    ("in", "inch"),
    ("lm", "lumen"),
    ("Ah", "Ah"),
    ("A", "amp"),
    ("J", "joule"),
    ("cc", "cc"),
];

/// A value as one speller writes it.
pub(super) fn spell(value: &str, units: Units) -> String {
    let words: Vec<&str> = value.split(' ').collect();
    match (units, words.as_slice()) {
        (Units::Tight, ["pack", "of", count]) => return format!("{count} pack"),
        (Units::Long, ["pack", "of", count]) => return format!("{count}-pack"),
        (Units::Tight, [count, "piece"]) => return format!("{count}-piece"),
        (Units::Long, [length, "mm"]) => {
            // Shops differ on the unit of the longer lengths.
            if let Some(tens) = length.strip_suffix('0').filter(|tens| tens.len() > 1) {
                return format!("{tens} cm");
            }
        }
        _ => {}
    }
    let mut spelt = String::new();
    for (place, word) in words.iter().enumerate() {
        let number = place > 0 && words[place - 1].ends_with(|last: char| last.is_ascii_digit());
        let unit = UNITS.iter().find(|(short, _)| number && short == word);
        let times = *word == "x" || (place > 0 && words[place - 1] == "x");
        if place > 0 && !(matches!(units, Units::Tight) && (unit.is_some() || times)) {
            spelt.push(' ');
        }
        match (units, unit) {
            (Units::Long, Some((_, long))) => spelt.push_str(long),
            _ => spelt.push_str(word),
        }
    }
    spelt
}

/// A value with the attribute's name after it where the value alone would say too little.
pub(super) fn phrase(attribute: &Attribute, value: &str, units: Units) -> String {
    let spelt = spell(value, units);
    if attribute.labelled {
        format!("{spelt} {}", attribute.name)
    } else {
        spelt
    }
}

/// Whether a phrase follows the noun ("for brick") where others precede it ("18 V").
pub(super) fn follows(attribute: &Attribute, value: &str) -> bool {
    attribute.labelled
        || leans(value)
        || [" for ", " per ", " and ", "pack of "]
            .iter()
            .any(|part| value.contains(part))
}

/// Whether a phrase opens with a preposition, and so needs no comma before it.
pub(super) fn leans(phrase: &str) -> bool {
    let first = phrase.split(' ').next().unwrap_or_default();
    ["for", "with", "without", "in", "on", "up", "holds", "per"].contains(&first)
}

/// Capitalises the words of a title; measures, codes and little words stay as they are.
pub(super) fn title_case(text: &str) -> String {
    let cased: Vec<String> = text
        .split(' ')
        .enumerate()
        .map(|(place, word)| {
            let bare = word.trim_end_matches(',');
            let small = [
                "a", "and", "by", "for", "from", "g/m2", "in", "m2", "of", "on", "or", "per",
                "the", "to", "up", "with", "x",
            ]
            .contains(&bare)
                || UNITS.iter().any(|(short, _)| *short == bare);
            if place > 0 && small {
                word.to_owned()
            } else {
                capitalised(word)
            }
        })
        .collect();
    cased.join(" ")
}

/// The text with its first letter in upper case.
pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// Sounds that are written in more than one way.
const SOUNDS: [(&str, &str); 14] = [
    ("ph", "f"),
    ("ck", "k"),
    ("ie", "ei"),
    ("ea", "ee"),
    ("ai", "ay"),
    ("tt", "t"),
    ("ll", "l"),
    ("ss", "s"),
    ("le", "el"),
    ("er", "or"),
    ("ight", "ite"),
    ("tion", "sion"),
    ("sc", "sk"),
    ("y", "i"),
];

/// The text with a typing or spelling mistake in one of its longer words; none where it has no
/// long word.
pub(super) fn misspell(text: &str, rng: &mut ChaCha8Rng) -> Option<String> {
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let long: Vec<usize> = (0..words.len())
        .filter(|&place| {
            words[place].len() > 4 && words[place].bytes().all(|byte| byte.is_ascii_lowercase())
        })
        .collect();
    let &place = long.choose(rng)?;
    words[place] = slip(&words[place], rng);
    let slipped = words.join(" ");
    (slipped != text).then_some(slipped)
}

/// One slip inside a word of lower-case ASCII letters. People get the first letter right.
fn slip(word: &str, rng: &mut ChaCha8Rng) -> String {
    let sounds: Vec<&(&str, &str)> = SOUNDS
        .iter()
        .filter(|(sound, _)| word[1..].contains(sound))
        .collect();
    let mut letters: Vec<char> = word.chars().collect();
    let place = rng.random_range(1..letters.len() - 1);
    match (rng.random_range(0..5), sounds.choose(rng)) {
        (0 | 1, Some((sound, other))) => {
            return format!("{}{}", &word[..1], word[1..].replacen(sound, other, 1));
        }
        (0 | 2, _) => letters.swap(place, place + 1),
        (1 | 3, _) => drop(letters.remove(place)),
        _ => letters.insert(place, letters[place]),
    }
    letters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_spelt_three_ways() {
        assert_eq!(spell("18 V", Units::Tight), "18V");
        assert_eq!(spell("18 V", Units::Long), "18 volt");
        assert_eq!(spell("50 mm", Units::Long), "50 mm");
        assert_eq!(spell("150 mm", Units::Long), "15 cm");
        assert_eq!(spell("4 x 40 mm", Units::Tight), "4x40mm");
        assert_eq!(spell("pack of 10", Units::Long), "10-pack");
    }

    #[test]
    fn titles_keep_their_units() {
        assert_eq!(
            title_case("hartwell 18 V drill with case"),
            "Hartwell 18 V Drill with Case"
        );
        assert_eq!(title_case("hose, 35 mm, grey"), "Hose, 35 mm, Grey");
    }
}
