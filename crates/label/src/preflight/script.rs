//! The preflight's texts: two questions whose answers are known, and the first of them at the end of
//! a long text.

use crate::dialect::Texts;
use crate::dialect::rerank::Scale;
use crate::ledger::Key;
use crate::prompt::Kind;

/// A query with a relevant document and an irrelevant one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) query: String,
    pub(crate) relevant: String,
    pub(crate) irrelevant: String,
}

/// What to ask an endpoint.
pub(crate) struct Script {
    /// A question whose answer should have a high value, and one whose answer should have a low one:
    /// about the relevant document and the irrelevant, or about both, the relevant one last and
    /// first.
    pub(crate) short: [Texts; 2],
    /// Of them, those that are asked about long texts too.
    pub(crate) long: Vec<Texts>,
    /// Words of a long question's documents.
    pub(crate) words: usize,
    /// How many more these are than those of the short question.
    pub(super) more_words: usize,
    pub(super) kind: Kind,
    pub(super) scale: Option<Scale>,
    /// The prompt asks for reasons.
    pub(super) asks_why: bool,
}

const QUERY: &str = "stainless steel dog bowl";
const RELEVANT: &str =
    "Stainless steel dog bowl. A bowl of stainless steel for dogs to eat and drink from.";
const IRRELEVANT: &str = "The treaty was signed in autumn and ended a war of thirty years.";
/// What long texts begin with. Every word is a token or more to any tokenizer.
const FILLER: &str = "The meeting began at noon and the minutes of the last one were read aloud. \
                      It had rained all week and the road to the north was closed for the night. \
                      She took the early train home and wrote two letters on the way to the coast. \
                      The choir sang three songs and then they all went out for air and a walk.";
/// Of a long text; fewer would not show in a count of tokens.
const LEAST_WORDS: usize = 50;

impl Script {
    /// Texts for a job whose longest question has about so many tokens of documents. `known` is what
    /// the prompt has the answers to; rerankers, which have a `scale`, get made-up texts.
    pub(crate) fn new(
        kind: Kind,
        scale: Option<Scale>,
        known: Option<Known>,
        longest: usize,
    ) -> Self {
        let known = known.unwrap_or_else(|| Known {
            query: QUERY.to_owned(),
            relevant: RELEVANT.to_owned(),
            irrelevant: IRRELEVANT.to_owned(),
        });
        let shown = match kind {
            Kind::Graded => [vec![&known.relevant], vec![&known.irrelevant]],
            Kind::Pairwise | Kind::Listwise => {
                let (relevant, irrelevant) = (&known.relevant, &known.irrelevant);
                [vec![irrelevant, relevant], vec![relevant, irrelevant]]
            }
        };
        let question = |documents: Vec<String>| {
            let shown: Vec<&str> = documents.iter().map(String::as_str).collect();
            Texts {
                // These texts are always the same, so that theirs may be.
                nonce: Key::new(&[0; 32], 0, &known.query, &shown).nonce(),
                query: known.query.clone(),
                documents,
            }
        };
        let longest = longest.max(LEAST_WORDS);
        let long = |documents: &Vec<&String>| {
            let share = longest.div_ceil(documents.len());
            let long = documents.iter().map(|document| lengthened(document, share));
            question(long.collect())
        };
        // What a language model makes of so odd a text is its own affair: its tokens tell.
        let asked = if scale.is_some() { 2 } else { 1 };
        let long: Vec<Texts> = shown.iter().take(asked).map(long).collect();
        let short = shown.map(|documents| question(documents.into_iter().cloned().collect()));
        let words = |texts: &Texts| texts.documents.iter().map(|one| words(one)).sum::<usize>();
        Self {
            words: words(&long[0]),
            more_words: words(&long[0]) - words(&short[0]),
            short,
            long,
            kind,
            scale,
            asks_why: false,
        }
    }

    /// The same texts for a prompt that may ask for reasons.
    pub(crate) fn asking_why(self, asks_why: bool) -> Self {
        Self { asks_why, ..self }
    }
}

/// About how many tokens a text is: one for four letters of English, and one for any other
/// character.
pub(crate) fn about_tokens(text: &str) -> usize {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    let others = text.chars().filter(|one| !one.is_ascii()).count();
    ascii.div_ceil(4) + others
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// A document at the end of a text of at least so many words, of which it takes the last fifth, over
/// and over: an ending that weighs too little could be read and not be noticed.
fn lengthened(document: &str, least: usize) -> String {
    let of_document = words(document).max(1);
    let times = (least / 5).div_ceil(of_document).max(1);
    let filler = least.saturating_sub(times * of_document);
    let filler = FILLER.split_whitespace().cycle().take(filler);
    let ending = std::iter::repeat_n(document, times);
    filler.chain(ending).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_end_like_the_short_ones_and_are_as_long_as_asked_for() {
        for kind in [Kind::Graded, Kind::Pairwise, Kind::Listwise] {
            for longest in [0, 300, 5000] {
                let Script {
                    short, long, words, ..
                } = Script::new(kind, None, None, longest);
                assert!(words >= longest.max(LEAST_WORDS), "{words}");
                assert!(words < longest.max(LEAST_WORDS) + 50, "{words}");
                assert_eq!(long.len(), 1);
                assert_eq!(short[0].documents.len(), long[0].documents.len());
                for (short, long) in short[0].documents.iter().zip(&long[0].documents) {
                    assert!(long.ends_with(short.as_str()));
                }
            }
        }
        let both = Script::new(Kind::Graded, Some(Scale::Logit), None, 2000).long;
        let [relevant, irrelevant] = [0, 1].map(|place: usize| &both[place].documents[0]);
        let alike = relevant.bytes().zip(irrelevant.bytes());
        let alike = alike.take_while(|(a, b)| a == b).count();
        assert!(alike * 10 > relevant.len() * 7 && alike * 10 < relevant.len() * 9);
    }

    #[test]
    fn of_two_documents_the_relevant_one_is_shown_last_and_first() {
        let known = Known {
            query: "q".into(),
            relevant: "r".into(),
            irrelevant: "i".into(),
        };
        let shown = |kind| {
            let script = Script::new(kind, None, Some(known.clone()), 0);
            script.short.map(|texts| texts.documents.join(" "))
        };
        assert_eq!(shown(Kind::Graded), ["r", "i"]);
        assert_eq!(shown(Kind::Pairwise), ["i r", "r i"]);
        assert_eq!(shown(Kind::Listwise), ["i r", "r i"]);
    }

    #[test]
    fn tokens_are_estimated_in_any_script() {
        assert_eq!(about_tokens("cordless drill"), 4);
        assert_eq!(about_tokens("充电式电钻"), 5);
        assert_eq!(about_tokens(""), 0);
    }
}
