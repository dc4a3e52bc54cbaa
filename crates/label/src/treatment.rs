//! What texts go through before a teacher reads them. A document may hold anything, also what is
//! meant for the teacher and not for its readers:
//!
//! - Characters that nobody sees are removed: zero-width, bidirectional controls, tags, private use.
//! - Markers that chat templates and tokenizers read as the bounds of a turn or a text get a space
//!   after their first character: `<|im_start|>` becomes `< |im_start|>`, `[/INST]` becomes
//!   `[ /INST]`. A person reads the same; a tokenizer finds no special token in it.
//!
//! All other text stays as it is.

/// Goes into every recipe: what is treated otherwise may be judged otherwise.
pub(crate) const VERSION: u32 = 1;

/// The markers, in any case of their letters. The first two begin all of theirs, `<|im_start|>`,
/// `<|eot_id|>` and so on. None holds a space, so that a space breaks it and makes no other.
const MARKERS: [&str; 30] = [
    "<|",
    "<｜",
    "<s>",
    "</s>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<bos_token>",
    "<eos_token>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<turn|>",
    "<think>",
    "</think>",
    "<<sys>>",
    "<</sys>>",
    "[inst]",
    "[/inst]",
    "[system_prompt]",
    "[/system_prompt]",
    "[available_tools]",
    "[tool_calls]",
    "[tool_results]",
    "[cls]",
    "[sep]",
    "[mask]",
    "[pad]",
    "[unk]",
];

/// The text as a teacher is shown it.
pub(crate) fn treated(text: &str) -> String {
    // First, or what was hidden in a marker would leave a whole one behind.
    let seen: String = text.chars().filter(|one| !is_unseen(*one)).collect();
    let mut treated = String::with_capacity(seen.len());
    for (place, character) in seen.char_indices() {
        treated.push(character);
        if begins_with_marker(&seen[place..]) {
            treated.push(' ');
        }
    }
    treated
}

fn begins_with_marker(text: &str) -> bool {
    text.starts_with(['<', '['])
        && MARKERS.iter().any(|marker| {
            let start = text.as_bytes().get(..marker.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(marker.as_bytes()))
        })
}

fn is_unseen(character: char) -> bool {
    matches!(character,
        // Zero width.
        '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
        // Bidirectional controls.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
        // Tags, which can spell out a text of their own.
        | '\u{e0000}'..='\u{e007f}'
        // Private use.
        | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn markers_are_broken_and_stay_readable() {
        for (text, expected) in [
            ("<|im_start|>system", "< |im_start|>system"),
            ("a [/INST] b [inst]", "a [ /INST] b [ inst]"),
            ("<<SYS>><</SYS>>", "< <SYS>>< </SYS>>"),
            ("</s><s>", "< /s>< s>"),
            ("<start_of_turn>model", "< start_of_turn>model"),
            ("<｜end▁of▁sentence｜>", "< ｜end▁of▁sentence｜>"),
            ("<|im_\u{200b}start|>", "< |im_start|>"),
            ("<\u{202e}\u{e000}|eot_id|>", "< |eot_id|>"),
        ] {
            assert_eq!(treated(text), expected);
        }
        for clean in [
            "1/2\" pipe, [M8] < 3 mm, a|b |> c",
            "<b>bold</b>, <style>, [in stock]",
            "Größe 40 – für Kinder, 子供用 🚲",
        ] {
            assert_eq!(treated(clean), clean);
        }
    }

    fn holds_marker(text: &str) -> bool {
        let lower = text.to_ascii_lowercase();
        MARKERS.iter().any(|marker| lower.contains(marker))
    }

    /// Texts of whole markers, halves of them, hidden characters and anything else.
    fn hostile() -> impl Strategy<Value = String> {
        let half = |marker: &str, end: usize| marker.chars().take(end).collect::<String>();
        let part = prop_oneof![
            proptest::sample::select(MARKERS.to_vec()).prop_map(str::to_owned),
            proptest::sample::select(MARKERS.to_vec()).prop_map(str::to_uppercase),
            (proptest::sample::select(MARKERS.to_vec()), 1..5_usize)
                .prop_map(move |(marker, end)| half(marker, end)),
            proptest::sample::select(vec!["\u{200b}", "\u{202e}", "\u{e000}", "\u{e0041}"])
                .prop_map(str::to_owned),
            "[<>|/\\[\\] a-z]{0,4}",
            "\\PC{0,3}",
        ];
        proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn no_marker_and_nothing_unseen_survives(text in hostile()) {
            let once = treated(&text);
            prop_assert!(!holds_marker(&once), "{once:?}");
            prop_assert!(!once.chars().any(is_unseen), "{once:?}");
            prop_assert_eq!(treated(&once), once);
        }

        #[test]
        fn clean_text_is_unchanged(text in "\\PC{0,80}|[<>|/\\[\\] a-zA-Z]{0,80}") {
            prop_assume!(!holds_marker(&text) && !text.chars().any(is_unseen));
            prop_assert_eq!(treated(&text), text);
        }
    }
}
