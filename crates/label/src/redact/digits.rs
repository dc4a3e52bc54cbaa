//! Cards and telephones, in runs of digits: "4111 1111 1111 1111 12/27" is one run of six groups.

use std::ops::{Range, RangeInclusive};

use super::find::{ends_free, is_space, starts_free, word_before};

/// Where a text has numbers of cards; they may be over one another.
pub(super) fn cards(text: &str) -> Vec<Range<usize>> {
    runs(text).iter().flat_map(Run::cards).collect()
}

/// Where a text has numbers of telephones.
pub(super) fn phones(text: &str) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for run in runs(text) {
        let before = spans.last().map_or(0, |span| span.end);
        spans.extend(run.phones(before));
    }
    spans
}

/// Words after which digits are a telephone number, whatever they look like.
const CALLS: [&str; 15] = [
    "call",
    "cell",
    "dial",
    "fax",
    "hotline",
    "mobil",
    "mobile",
    "phone",
    "sms",
    "tel",
    "telefon",
    "telefax",
    "telephone",
    "téléphone",
    "whatsapp",
];
/// Words after which they are none.
const NUMBERS: [&str; 25] = [
    "article",
    "artikel",
    "asin",
    "batch",
    "bestellung",
    "ean",
    "gtin",
    "imei",
    "invoice",
    "isbn",
    "issn",
    "item",
    "lot",
    "model",
    "order",
    "part",
    "patent",
    "product",
    "rechnung",
    "reference",
    "serial",
    "sku",
    "tracking",
    "upc",
    "version",
];
/// Of those, the ones that are printed with a check digit like a card's.
const BARCODES: [&str; 6] = ["ean", "gtin", "imei", "isbn", "issn", "upc"];

/// Groups of digits with signs between them.
struct Run<'a> {
    text: &'a str,
    groups: Vec<Range<usize>>,
    /// Where a sign before the first group begins: `+`, `(`.
    start: usize,
}

/// All runs of a text.
fn runs(text: &str) -> Vec<Run<'_>> {
    /// Signs between two groups, at most: ") " or " (0)" without its digit.
    const MOST_SIGNS: usize = 3;
    let is_digit = |c: char| c.is_ascii_digit();
    let is_sign = |c: char| is_space(c) || "-./()‑–".contains(c);
    let mut runs: Vec<Run> = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find(is_digit).map(|place| from + place) {
        let rest = &text[start..];
        let end = start + rest.find(|c| !is_digit(c)).unwrap_or(rest.len());
        let goes_on = runs.last().is_some_and(|run| {
            let signs = &text[run.groups[run.groups.len() - 1].end..start];
            signs.chars().all(is_sign) && signs.chars().count() <= MOST_SIGNS
        });
        match runs.last_mut() {
            Some(run) if goes_on => run.groups.push(start..end),
            _ => {
                let before = text[..start].trim_end_matches('(').trim_end_matches('+');
                runs.push(Run {
                    text,
                    groups: std::iter::once(start..end).collect(),
                    start: before.trim_end_matches('(').len(),
                });
            }
        }
        from = end;
    }
    runs
}

impl Run<'_> {
    fn group(&self, place: usize) -> &str {
        &self.text[self.groups[place].clone()]
    }

    /// What is between a group and the one before it.
    fn signs(&self, place: usize) -> &str {
        match place {
            0 => &self.text[self.start..self.groups[0].start],
            _ => &self.text[self.groups[place - 1].end..self.groups[place].start],
        }
    }

    fn digits(&self, groups: RangeInclusive<usize>) -> String {
        groups.map(|place| self.group(place)).collect()
    }

    /// The last group of those from one on that have this many digits together, and more if it
    /// can be.
    fn last(&self, first: usize, digits: Range<usize>) -> Option<usize> {
        let mut total = 0;
        let mut last = None;
        for place in first..self.groups.len() {
            total += self.groups[place].len();
            if total >= digits.end {
                break;
            }
            if digits.contains(&total) {
                last = Some(place);
            }
        }
        last
    }

    /// Whether a group is no part of a word.
    fn is_free(&self, place: usize) -> bool {
        let starts = place > 0 || starts_free(self.text, self.start);
        let ends = place + 1 < self.groups.len() || ends_free(self.text, self.groups[place].end);
        starts && ends
    }

    /// Every stretch of groups that is a card's number: 13 to 19 digits in blocks of four or more
    /// but the last, with a hyphen, a full stop or up to two spaces between two, the beginning of a
    /// network and a digit that checks.
    fn cards(&self) -> Vec<Range<usize>> {
        if BARCODES.contains(&&*word_before(self.text, self.start)) {
            return Vec::new();
        }
        let mut spans = Vec::new();
        for first in 0..self.groups.len() {
            for last in first..self.groups.len() {
                let is_spaced = last == first || {
                    let signs = self.signs(last);
                    let are_spaces = signs.chars().all(is_space) && signs.chars().count() <= 2;
                    let is_between = are_spaces || signs == "-" || signs == ".";
                    is_between && self.groups[last - 1].len() >= 4
                };
                let digits = self.digits(first..=last);
                if !is_spaced || !self.is_free(last) || digits.len() > 19 {
                    break;
                }
                if self.is_free(first) && is_card(&digits) {
                    spans.push(self.groups[first].start..self.groups[last].end);
                }
            }
        }
        spans
    }

    /// Telephone numbers, of which the one before ends at `before`.
    fn phones(&self, before: usize) -> Vec<Range<usize>> {
        let word = word_before(self.text, self.start);
        let follows_digit = self.text[..self.start].ends_with(|c: char| c.is_ascii_digit());
        let is_sum = follows_digit && before != self.start;
        let mut spans = Vec::new();
        let mut first = 0;
        while first < self.groups.len() {
            let last = match first {
                0 if self.signs(0).contains('+') && !is_sum => self.last(0, 8..16),
                0 if CALLS.contains(&&*word) => self.last(0, 6..16),
                0 if NUMBERS.contains(&&*word) => return spans,
                _ => self.phone(first),
            };
            first = match last {
                None => first + 1,
                Some(last) => {
                    let start = match first {
                        0 => self.start,
                        _ => self.groups[first].start,
                    };
                    spans.push(start..self.groups[last].end);
                    last + 1
                }
            };
        }
        spans
    }

    /// The last group of a number that begins at a group and looks like a telephone's.
    fn phone(&self, first: usize) -> Option<usize> {
        let is_start = first == 0 || self.signs(first).contains(is_space);
        if !is_start || !self.is_free(first) {
            return None;
        }
        self.international(first)
            .or_else(|| self.national(first))
            .or_else(|| self.north_american(first))
    }

    /// 00, a country and the rest, in groups.
    fn international(&self, first: usize) -> Option<usize> {
        let begins = self.group(first).as_bytes();
        let has_country =
            begins.starts_with(b"00") && begins.get(2).is_some_and(|digit| *digit != b'0');
        let last = self.last(first, 11..18)?;
        (has_country && last > first).then_some(last)
    }

    /// 0 and an area or network, then the rest, in groups of two or more.
    fn national(&self, first: usize) -> Option<usize> {
        let begins = self.group(first).as_bytes();
        let has_area = begins.len() >= 2 && begins[0] == b'0' && begins[1] != b'0';
        let last = self.last(first, 9..13)?;
        let groups = &self.groups[first..=last];
        let lengths: Vec<usize> = groups.iter().map(ExactSizeIterator::len).collect();
        // 01.02.2024 10:30
        let is_date = lengths.starts_with(&[2, 2, 4]);
        let is_whole = lengths.iter().all(|length| *length >= 2) && self.is_free(last);
        (has_area && is_whole && !is_date && last > first).then_some(last)
    }

    /// Three, three and four digits, maybe after a 1, and not by spaces alone.
    fn north_american(&self, first: usize) -> Option<usize> {
        let area = first + usize::from(self.group(first) == "1");
        let last = area + 2;
        let lengths: Vec<usize> = (self.groups.get(area..=last)?.iter())
            .map(ExactSizeIterator::len)
            .collect();
        let signs: String = (first..=last).map(|place| self.signs(place)).collect();
        let ends = last + 1 == self.groups.len() || self.signs(last + 1).contains(is_space);
        let has_area = self.group(area).as_bytes()[0] >= b'2';
        let is_one = lengths == [3, 3, 4] && signs.contains(['-', '.', '(']) && has_area && ends;
        is_one.then_some(last)
    }
}

/// Whether digits have the length and beginning of a network's cards, and check by Luhn.
fn is_card(digits: &str) -> bool {
    let begins = |range: RangeInclusive<u32>, length: usize| {
        digits[..length]
            .parse()
            .is_ok_and(|value| range.contains(&value))
    };
    let is_of_network = match digits.len() {
        13 | 19 if begins(4..=4, 1) => true,
        14 => begins(300..=305, 3) || begins(36..=36, 2) || begins(38..=39, 2),
        15 => begins(34..=34, 2) || begins(37..=37, 2),
        16 => {
            begins(4..=4, 1)
                || begins(51..=55, 2)
                || begins(2200..=2204, 4)
                || begins(2221..=2720, 4)
                || begins(3528..=3589, 4)
                || begins(6..=6, 1)
        }
        17..=19 => begins(6..=6, 1),
        _ => false,
    };
    is_of_network && has_luhn_check(digits)
}

/// ISO/IEC 7812-1: every second digit from the right counts twice, with its digits added up.
fn has_luhn_check(digits: &str) -> bool {
    let doubled = |(place, byte): (usize, u8)| {
        let digit = u32::from(byte - b'0');
        match place % 2 {
            0 => digit,
            _ => digit * 2 / 10 + digit * 2 % 10,
        }
    };
    let sum: u32 = digits.bytes().rev().enumerate().map(doubled).sum();
    sum.is_multiple_of(10)
}
