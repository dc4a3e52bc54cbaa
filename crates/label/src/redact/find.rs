//! The finders: by shape, and by check digits where there are any.
//!
//! Where a shape alone is not enough, the word before it decides: an IPv4 address may be a version.
//! What is glued to a letter or a digit is a part of something else.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::{Sensitive, digits};

/// Where a text has something of a kind: spans in order, none over another.
pub(super) fn find(kind: Sensitive, text: &str) -> Vec<Range<usize>> {
    let mut spans = match kind {
        Sensitive::Key => keys(text),
        Sensitive::Email => emails(text),
        Sensitive::Iban => ibans(text),
        Sensitive::Card => digits::cards(text),
        Sensitive::Ip => addresses(text),
        Sensitive::Phone => digits::phones(text),
    };
    spans.sort_unstable_by_key(|span| span.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start < last.end => last.end = last.end.max(span.end),
            _ => merged.push(span),
        }
    }
    merged
}

/// A token that begins in a way nothing else does.
struct Shape {
    prefix: &'static str,
    /// Characters after the prefix, at least.
    least: usize,
    /// What may be among them besides letters and digits.
    besides: &'static str,
    /// Whether words could look like it, so that it takes a digit to tell.
    has_digit: bool,
}

const fn shape(prefix: &'static str, least: usize) -> Shape {
    Shape {
        prefix,
        least,
        besides: "",
        has_digit: false,
    }
}

const SHAPES: [Shape; 22] = [
    // OpenAI, Anthropic, OpenRouter and others.
    Shape {
        besides: "-_",
        has_digit: true,
        ..shape("sk-", 16)
    },
    // Stripe.
    shape("sk_live_", 16),
    shape("sk_test_", 16),
    shape("rk_live_", 16),
    shape("rk_test_", 16),
    // GitHub, GitLab.
    shape("ghp_", 20),
    shape("gho_", 20),
    shape("ghu_", 20),
    shape("ghs_", 20),
    shape("ghr_", 20),
    Shape {
        besides: "_",
        ..shape("github_pat_", 20)
    },
    Shape {
        besides: "-_",
        ..shape("glpat-", 20)
    },
    // AWS.
    shape("AKIA", 16),
    shape("ASIA", 16),
    // Google.
    Shape {
        besides: "-_",
        ..shape("AIza", 35)
    },
    // Slack.
    SLACK,
    Shape {
        prefix: "xoxp-",
        ..SLACK
    },
    Shape {
        prefix: "xoxa-",
        ..SLACK
    },
    Shape {
        prefix: "xoxr-",
        ..SLACK
    },
    Shape {
        prefix: "xoxs-",
        ..SLACK
    },
    // Hugging Face, npm.
    shape("hf_", 20),
    shape("npm_", 30),
];

const SLACK: Shape = Shape {
    besides: "-",
    ..shape("xoxb-", 10)
};

fn keys(text: &str) -> Vec<Range<usize>> {
    let mut spans = private_keys(text);
    for shape in &SHAPES {
        let is_of = |c: char| c.is_ascii_alphanumeric() || shape.besides.contains(c);
        spans.extend(tokens(text, shape.prefix, is_of, |token| {
            let after = &token[shape.prefix.len()..];
            let has_digit = after.bytes().any(|byte| byte.is_ascii_digit());
            after.len() >= shape.least && (has_digit || !shape.has_digit)
        }));
    }
    // JSON web tokens: three or five parts in base64url, of which the first is an object.
    let is_of = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    spans.extend(tokens(text, "eyJ", is_of, |token| {
        let mut parts = token.split('.');
        let mut is_long = || parts.next().is_some_and(|part| part.len() >= 10);
        is_long() && is_long()
    }));
    spans
}

/// Where something begins with a prefix, goes on in characters of its own, and is what is looked
/// for. A full stop at its end is the sentence's.
fn tokens(
    text: &str,
    prefix: &str,
    is_of: impl Fn(char) -> bool,
    is_one: impl Fn(&str) -> bool,
) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find(prefix).map(|place| from + place) {
        from = start + prefix.len();
        // As the value of a name, too: "TOKEN_ghp_…".
        if starts_free(text, start) || text[..start].ends_with('_') {
            let rest = &text[from..];
            // What begins inside of it is a part of it: nothing is looked at twice.
            from += rest.find(|c| !is_of(c)).unwrap_or(rest.len());
            let token = text[start..from].trim_end_matches('.');
            if is_one(token) {
                spans.push(start..start + token.len());
            }
        }
    }
    spans
}

/// PEM blocks with a private key; one without an end reaches to the end of the text.
fn private_keys(text: &str) -> Vec<Range<usize>> {
    const BEGIN: &str = "-----BEGIN ";
    let mut spans = Vec::new();
    let mut from = 0;
    while let Some(start) = text[from..].find(BEGIN).map(|place| from + place) {
        from = start + BEGIN.len();
        let label = text[from..].split("-----").next().unwrap_or_default();
        if label.contains("PRIVATE KEY") && label.len() <= 40 {
            let end = format!("-----END {label}-----");
            let length = text[start..].find(&end).map(|place| place + end.len());
            from = length.map_or(text.len(), |length| start + length);
            spans.push(start..from);
        }
    }
    spans
}

fn emails(text: &str) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut from = 0;
    for (at, _) in text.match_indices('@') {
        let local = local_part(&text[from..at]);
        if let (false, Some(domain)) = (local.is_empty(), domain(&text[at + 1..])) {
            from = at + 1 + domain;
            spans.push(at - local.len()..from);
        }
    }
    spans
}

/// The part of an address before its @ that a text ends with; it may be empty.
fn local_part(text: &str) -> &str {
    let ending = |is_of: &dyn Fn(char) -> bool| {
        let before = text.char_indices().rev().find(|(_, c)| !is_of(*c));
        &text[before.map_or(0, |(place, c)| place + c.len_utf8())..]
    };
    let is_of_most = |c| is_of_address(c) || ".!#$%&'*+?^_`{|}~-".contains(c);
    let whole = ending(&|c| is_of_most(c) || c == '/' || c == '=');
    // "https://jo@example.org", "?mail=jo@example.org"
    let is_url = whole.starts_with("//") || whole.contains(['?', '&']);
    // "MAIL=jo@example.org", and not "bounce+jo=example.org@lists.example.org".
    let is_setting = whole.split_once('=').is_some_and(|(name, value)| {
        name.chars().all(|c| c.is_alphabetic() || c == '_') && !value.contains('=')
    });
    let local = match whole {
        _ if is_url => ending(&is_of_most),
        _ if is_setting => &whole[whole.find('=').map_or(0, |place| place + 1)..],
        whole => whole,
    };
    local.trim_start_matches(['\'', '.', '`', '/', '='])
}

/// Letters of alphabets that are written with spaces between words, and digits.
fn is_of_address(c: char) -> bool {
    c.is_ascii_alphanumeric() || (c.is_alphabetic() && ('\u{c0}'..'\u{590}').contains(&c))
}

/// The length of the domain that a text begins with, if it does.
fn domain(text: &str) -> Option<usize> {
    /// RFC 1035 has names of 255 bytes: no more labels fit in.
    const MOST_LABELS: usize = 127;
    let end = text.find(|c| !is_of_address(c) && c != '-' && c != '.');
    let labels: Vec<&str> = text[..end.unwrap_or(text.len())]
        .split('.')
        .take_while(|label| !label.is_empty())
        .take(MOST_LABELS)
        .collect();
    // "logo@2x.png" is a picture.
    if labels
        .first()
        .is_some_and(|first| matches!(*first, "2x" | "3x"))
    {
        return None;
    }
    // The last label that could be a top-level domain; what follows it is a sentence's.
    (1..labels.len()).rev().find_map(|last| {
        let label = labels[last];
        let letters = label.find(|c: char| !c.is_alphabetic());
        let length = match letters {
            _ if label.starts_with("xn--") => label.len(),
            Some(length) => length,
            None => label.len(),
        };
        let before: usize = labels[..last].iter().map(|label| label.len() + 1).sum();
        (length >= 2).then_some(before + length)
    })
}

/// The length of each country's IBAN.
const IBANS: &str = "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28\
                     EE20EG29ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23\
                     IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31\
                     MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24\
                     SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20YE30";

fn ibans(text: &str) -> Vec<Range<usize>> {
    let iban = |start: usize| {
        let country = text[start..start + 2].to_ascii_uppercase();
        let place = (0..IBANS.len())
            .step_by(4)
            .find(|at| IBANS[*at..at + 2] == country)?;
        let length: usize = IBANS[place + 2..place + 4].parse().ok()?;
        if !starts_free(text, start) {
            return None;
        }
        let mut compact = String::new();
        let mut chars = text[start..].char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            if c.is_ascii_alphanumeric() {
                compact.push(c.to_ascii_uppercase());
            } else if !is_space(c) && c != '-'
                || !chars
                    .peek()
                    .is_some_and(|(_, next)| next.is_ascii_alphanumeric())
            {
                return None;
            }
            if compact.len() == length {
                let end = start + at + 1;
                return (ends_free(text, end) && has_iban_check(&compact)).then_some(start..end);
            }
        }
        None
    };
    let begins_one = |window: &[u8]| {
        let (country, check) = window.split_at(2);
        country.iter().all(u8::is_ascii_alphabetic) && check.iter().all(u8::is_ascii_digit)
    };
    let windows = text.as_bytes().windows(4).enumerate();
    windows
        .filter(|(_, window)| begins_one(window))
        .filter_map(|(start, _)| iban(start))
        .collect()
}

/// ISO 7064: the rest by 97 is 1.
fn has_iban_check(compact: &str) -> bool {
    let (head, tail) = compact.split_at(4);
    let rest = tail.chars().chain(head.chars()).try_fold(0, |rest, c| {
        let value = c.to_digit(36)?;
        let places = if value < 10 { 10 } else { 100 };
        Some((rest * places + value) % 97)
    });
    rest == Some(1)
}

fn addresses(text: &str) -> Vec<Range<usize>> {
    let of_v6 = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
    let of_v4 = |c: char| c.is_ascii_digit() || c == '.';
    // IPv6 addresses that end in an IPv4 one are found as both, and merged.
    let v6 = runs(text, of_v6).filter_map(|run| ipv6(text, run));
    let v4 = runs(text, of_v4).flat_map(|run| ipv4(text, run));
    v6.chain(v4).collect()
}

/// The longest stretches of such characters.
fn runs(text: &str, is_of: impl Fn(char) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + text[from..].find(&is_of)?;
        let rest = &text[start..];
        from = start + rest.find(|c| !is_of(c)).unwrap_or(rest.len());
        Some(start..from)
    })
}

/// The address in a run of hexadecimal digits, colons and dots.
fn ipv6(text: &str, run: Range<usize>) -> Option<Range<usize>> {
    let (mut start, mut end) = (run.start, run.end);
    // The colon of "host:2001:db8::1" belongs to the sentence, as does a full stop.
    let is_single = |text: &str| text.starts_with(':') && !text.starts_with("::");
    while is_single(&text[start..end]) || text[start..end].starts_with('.') {
        start += 1;
    }
    let is_one = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    while text[start..end].ends_with(['.', ':']) && !is_one(&text[start..end]) {
        end -= 1;
    }
    let found = &text[start..end];
    let has_digit = found.contains(|c: char| c.is_ascii_digit());
    let is_free = starts_free(text, start) && ends_free(text, end);
    (is_free && has_digit && is_one(found)).then_some(start..end)
}

/// The addresses in a run of digits and full stops, whatever is around it: a port, a label, a word
/// that the sentence goes on with. Five numbers are none.
fn ipv4(text: &str, run: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut from = run.start;
    // "10.0.0.1..10.0.0.9" is two.
    text[run].split("..").filter_map(move |part| {
        let start = from + part.len() - part.trim_start_matches('.').len();
        from += part.len() + "..".len();
        let found = part.trim_matches('.');
        let span = start..start + found.len();
        (found.parse::<Ipv4Addr>().is_ok() && is_ipv4(text, &span)).then_some(span)
    })
}

/// Whether four numbers are an address.
fn is_ipv4(text: &str, span: &Range<usize>) -> bool {
    // A network, or a browser that tells no more than its major version.
    let is_person = !text[span.start..span.end].ends_with(".0.0.0");
    let is_free = starts_free(text, span.start) && ends_free(text, span.end);
    let is_version = VERSIONS.contains(&&*word_before(text, span.start)) || {
        let mut after = text[span.end..].chars();
        matches!(after.next(), Some('-' | '+')) && after.next().is_some_and(char::is_alphabetic)
    };
    is_person && is_free && !is_version
}

/// Words after which four numbers are no address.
const VERSIONS: [&str; 13] = [
    "v", "ver", "version", "versions", "release", "firmware", "build", "driver", "update", "rev",
    "revision", "section", "chapter",
];
/// Words between such a word and its number.
const BETWEEN: [&str; 10] = [
    "at", "id", "is", "me", "no", "nr", "number", "num", "on", "us",
];

/// The word before a place, in small letters, unless something else than a space or a sign of its
/// sort is between; two words that say nothing are passed over.
pub(super) fn word_before(text: &str, place: usize) -> String {
    let between = |text: &str| {
        let is_sign = |c: char| is_space(c) || ":.#(=-".contains(c);
        text.trim_end_matches(is_sign).len()
    };
    let mut end = between(&text[..place]);
    // ISBN-13: …
    for suffix in ["-13", "-10"] {
        if text[..end].ends_with(suffix) {
            end -= suffix.len();
        }
    }
    for _ in 0..3 {
        let word = text[..end]
            .rfind(|c: char| !c.is_alphabetic())
            .map_or(0, |place| {
                place + text[place..].chars().next().map_or(1, char::len_utf8)
            });
        let found = text[word..end].to_lowercase();
        if !BETWEEN.contains(&&*found) {
            return found;
        }
        end = between(&text[..word]);
    }
    String::new()
}

/// A space that does not end the line.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{a0}' | '\u{202f}' | '\u{2009}')
}

/// Whether no word reaches up to a place.
pub(super) fn starts_free(text: &str, place: usize) -> bool {
    let before = text[..place].chars().next_back();
    !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether no word goes on at a place.
pub(super) fn ends_free(text: &str, place: usize) -> bool {
    let after = text[place..].chars().next();
    !after.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
}
