//! The preflight: what servers get wrong with status 200, tried on texts whose answers are known
//! before the first question is paid for.
//!
//! | asked about | shows |
//! |---|---|
//! | a relevant and an irrelevant document | that answers are answers, on the declared scale, and tell the two apart |
//! | the same two at the end of a document as long as the job's longest | that nobody cuts it in silence |
//!
//! This module has the texts and judges the answers. They are sent as all requests are, within the
//! limits and the budget, by the collector.

use std::fmt;

use retort_data::label_set::expected_grade;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dialect::Texts;
use crate::dialect::rerank::Scale;
use crate::ledger::now;

/// What the probes of one endpoint found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Scheme, host and path.
    pub endpoint: String,
    /// The model, as the replies name it.
    pub model: Option<String>,
    /// What a relevant document got: the expected grade, or a score.
    pub relevant: f64,
    /// What an irrelevant one got.
    pub irrelevant: f64,
    /// The least that the grades had together; none of a reranker.
    pub mass: Option<f64>,
    /// What became of a long document.
    pub reading: Reading,
    /// How long that was.
    pub document_bytes: usize,
    /// When, RFC 3339.
    pub at: String,
}

/// What became of a long document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reading {
    /// It was read to its end.
    Whole,
    /// The server said that it is too long.
    Refused,
    /// The server does not say how much it read.
    Unknown,
}

impl Finding {
    /// Whether it still says enough: about documents of this length, with this least mass.
    pub(crate) fn holds(&self, document_bytes: usize, least_mass: f64) -> bool {
        self.document_bytes >= document_bytes && self.mass.is_none_or(|mass| mass >= least_mass)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bytes = self.document_bytes;
        write!(f, "{}", self.endpoint)?;
        if let Some(model) = &self.model {
            write!(f, " answers as {model}")?;
        }
        let (relevant, irrelevant) = (self.relevant, self.irrelevant);
        write!(f, ": relevant {relevant:.2}, irrelevant {irrelevant:.2}")?;
        if let Some(mass) = self.mass {
            write!(f, ", mass {mass:.2}")?;
        }
        match self.reading {
            Reading::Whole => write!(f, "; a document of {bytes} bytes is read whole"),
            Reading::Refused => write!(f, "; a document of {bytes} bytes is refused, not cut"),
            Reading::Unknown => f.write_str("; it does not say whether it cuts long documents"),
        }
    }
}

/// What an endpoint did wrong, and what to look at.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) problem: String,
    pub(crate) hint: &'static str,
}

/// An answer to a probe.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) answer: Value,
    /// Tokens of the prompt, as the server counts them.
    pub(crate) tokens: Option<f64>,
    pub(crate) model: Option<String>,
}

/// The texts to ask about.
pub(crate) struct Script {
    /// A relevant document and an irrelevant one.
    pub(crate) short: [Texts; 2],
    /// Of them, those that are asked about at the end of a long document.
    pub(crate) long: Vec<Texts>,
    scale: Option<Scale>,
}

const QUERY: &str = "stainless steel dog bowl";
const RELEVANT: &str =
    "Stainless steel dog bowl. A bowl of stainless steel for dogs to eat and drink from.";
const IRRELEVANT: &str = "The treaty was signed in autumn and ended a war of thirty years.";
/// What long documents begin with. Every word is a token or more to any tokenizer.
const FILLER: [&str; 4] = [
    "The meeting began at noon and the minutes of the last one were read aloud.",
    "It had rained all week and the road to the north was closed for the night.",
    "She took the early train home and wrote two letters on the way to the coast.",
    "The choir sang three songs and then they all went out for some air and a walk.",
];
/// The least that a long document is longer by: fewer words would not show in a count of tokens.
const LEAST_FILLER: usize = 150;

impl Script {
    /// Texts for a job whose longest document has so many bytes. `known` are questions that the
    /// settings have the answers to; rerankers, which have a `scale`, get made-up ones.
    pub(crate) fn new(known: Option<[Texts; 2]>, longest: usize, scale: Option<Scale>) -> Self {
        let made_up = |document: &str| Texts {
            query: QUERY.to_owned(),
            documents: vec![document.to_owned()],
        };
        let short = known.unwrap_or_else(|| [made_up(RELEVANT), made_up(IRRELEVANT)]);
        let filler = filler(longest.saturating_sub(short[0].documents[0].len()));
        let lengthened = |texts: &Texts| Texts {
            query: texts.query.clone(),
            documents: vec![format!("{filler} {}", texts.documents[0])],
        };
        // What a language model makes of so odd a document is its own affair: its tokens tell.
        let asked = if scale.is_some() { 2 } else { 1 };
        let long = short.iter().take(asked).map(lengthened).collect();
        Self { short, long, scale }
    }

    /// The length of the long document.
    pub(crate) fn document_bytes(&self) -> usize {
        self.long[0].documents[0].len()
    }

    /// What the answers say about an endpoint; `long` are those about the long documents, unless
    /// they were refused as too long.
    pub(crate) fn judge(
        &self,
        endpoint: &str,
        short: &[Heard],
        long: Option<&[Heard]>,
    ) -> Result<Finding, Fault> {
        self.compare(short)?;
        let reading = match long {
            Some(long) => self.read_whole(short, long)?,
            None => Reading::Refused,
        };
        let masses = short.iter().filter_map(|one| one.answer["mass"].as_f64());
        Ok(Finding {
            endpoint: endpoint.to_owned(),
            model: short.iter().rev().find_map(|one| one.model.clone()),
            relevant: value(&short[0].answer),
            irrelevant: value(&short[1].answer),
            mass: masses.reduce(f64::min),
            reading,
            document_bytes: self.document_bytes(),
            at: now(),
        })
    }

    /// Whether the short documents are told apart, by scores that are what they are declared to
    /// be. Those of a declared probability were checked when they were read.
    fn compare(&self, short: &[Heard]) -> Result<(), Fault> {
        let values = [0, 1].map(|place: usize| value(&short[place].answer));
        let [relevant, irrelevant] = values;
        if relevant <= irrelevant {
            return Err(Fault {
                problem: format!(
                    "a relevant document got {relevant} and an irrelevant one {irrelevant}"
                ),
                hint: match self.scale {
                    None => {
                        "is it the model you mean, and does the prompt reach it whole? An example \
                         with the best answer and one with the worst in the prompt are asked \
                         instead of made-up ones"
                    }
                    Some(_) => "is it a reranker, with its own head? (llama.cpp: --pooling rank)",
                },
            });
        }
        let look_like_probabilities = values.iter().all(|score| (0.0..=1.0).contains(score));
        if self.scale == Some(Scale::Logit) && look_like_probabilities {
            return Err(Fault {
                problem: format!("its scores {values:?} are all from 0 to 1, expected logits"),
                hint: "`scale = \"probability\"` in [teacher], if the server gives those; scores \
                       near 0 alone are those of a model without a reranker's head",
            });
        }
        Ok(())
    }

    /// Whether the long documents were read to their end.
    fn read_whole(&self, short: &[Heard], long: &[Heard]) -> Result<Reading, Fault> {
        let cut = |problem: String| Fault {
            problem: format!(
                "a document of {} bytes, as long as the job's longest, was cut in silence: \
                 {problem}",
                self.document_bytes()
            ),
            hint: "give the model a longer context (Ollama: num_ctx, llama.cpp: --ctx-size, vLLM: \
                   --max-model-len), or keep such documents out of the candidates",
        };
        let words = |texts: &Texts| texts.documents[0].split_whitespace().count() as f64;
        let more_words = words(&self.long[0]) - words(&self.short[0]);
        let more_tokens = match (short[0].tokens, long[0].tokens) {
            // Some servers say 0 where they do not know.
            (Some(short), Some(long)) if long > 0.0 => Some(long - short),
            _ => None,
        };
        if let Some(more_tokens) = more_tokens
            && more_tokens < 0.8 * more_words
        {
            return Err(cut(format!(
                "{more_words} words more made {more_tokens} tokens more"
            )));
        }
        if let Some(scale) = self.scale {
            let gap = |heard: &[Heard]| {
                logit(value(&heard[0].answer), scale) - logit(value(&heard[1].answer), scale)
            };
            let values: Vec<f64> = long.iter().map(|one| value(&one.answer)).collect();
            // Texts that differ at their end only: whoever cuts it sees the same text twice.
            if gap(long).abs() < 0.01 * gap(short) {
                return Err(cut(format!(
                    "two that differ at their end got {} and {}",
                    values[0], values[1]
                )));
            }
            return Ok(Reading::Whole);
        }
        Ok(more_tokens.map_or(Reading::Unknown, |_| Reading::Whole))
    }
}

/// What to look at when a probe has no answer.
pub(crate) fn hint(scale: Option<Scale>) -> &'static str {
    match scale {
        None => {
            "the server may ignore what should constrain the answer (vLLM no longer reads \
             `guided_*` but `structured_outputs`), drop the log-probabilities (LiteLLM: \
             drop_params), think first (`extra` can switch that off), or cut the prompt (Ollama: \
             num_ctx)"
        }
        Some(_) => "do `dialect` and `scale` in [teacher] fit the server?",
    }
}

/// The expected grade or the score.
fn value(answer: &Value) -> f64 {
    let score = answer["score"].as_f64();
    score.unwrap_or_else(|| {
        let probabilities = answer["probabilities"].as_array().into_iter().flatten();
        let probabilities: Vec<f64> = probabilities.filter_map(Value::as_f64).collect();
        expected_grade(&probabilities)
    })
}

fn logit(score: f64, scale: Scale) -> f64 {
    match scale {
        Scale::Logit => score,
        Scale::Probability => {
            let p = score.clamp(1e-9, 1.0 - 1e-9);
            (p / (1.0 - p)).ln()
        }
    }
}

fn filler(bytes: usize) -> String {
    let mut filler = FILLER[0].to_owned();
    for sentence in FILLER.iter().cycle().skip(1) {
        if filler.len() >= bytes.max(LEAST_FILLER) {
            break;
        }
        filler.push(' ');
        filler.push_str(sentence);
    }
    filler
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scored(scores: [f64; 2]) -> Vec<Heard> {
        let heard = |score: f64| Heard {
            answer: json!({"score": score}),
            tokens: None,
            model: None,
        };
        scores.map(heard).to_vec()
    }

    fn graded(p: f64, tokens: Option<f64>) -> Heard {
        Heard {
            answer: json!({"probabilities": [1.0 - p, p], "mass": 0.95}),
            tokens,
            model: None,
        }
    }

    fn script(longest: usize, scale: Option<Scale>) -> Script {
        Script::new(None, longest, scale)
    }

    #[test]
    fn scores_must_tell_documents_apart_and_be_on_the_declared_scale() {
        let problem = |scale: Scale, scores: [f64; 2]| {
            let compared = script(500, Some(scale)).compare(&scored(scores));
            compared.err().map(|fault| fault.problem)
        };
        assert_eq!(problem(Scale::Logit, [4.0, -9.0]), None);
        assert_eq!(problem(Scale::Logit, [9.0, 0.4]), None);
        assert_eq!(problem(Scale::Probability, [0.9, 0.1]), None);
        let sigmoid = problem(Scale::Logit, [0.99, 0.01]).unwrap();
        assert!(sigmoid.contains("expected logits"), "{sigmoid}");
        // What a causal model without a reranker's head gives.
        let noise = problem(Scale::Logit, [2e-20, 1e-20]).unwrap();
        assert!(noise.contains("expected logits"), "{noise}");
        for reversed in [[-9.0, 4.0], [1.0, 1.0]] {
            let problem = problem(Scale::Logit, reversed).unwrap();
            assert!(problem.contains("irrelevant"), "{problem}");
        }
    }

    #[test]
    fn whoever_scores_two_endings_alike_has_not_read_them() {
        for (scale, short, whole, cut) in [
            (Scale::Logit, [4.0, -9.0], [-3.0, -8.0], [-7.0, -7.0001]),
            (
                Scale::Probability,
                [0.99, 0.001],
                [0.004, 0.0008],
                [0.002, 0.002],
            ),
        ] {
            let script = script(5000, Some(scale));
            let reading = script.read_whole(&scored(short), &scored(whole)).unwrap();
            assert_eq!(reading, Reading::Whole);
            let fault = script.read_whole(&scored(short), &scored(cut)).unwrap_err();
            assert!(fault.problem.contains("cut in silence"), "{fault:?}");
        }
    }

    #[test]
    fn a_long_document_takes_the_tokens_of_its_words() {
        let script = script(4000, None);
        let words = script.long[0].documents[0].split_whitespace().count() as f64;
        let reading = |long: Option<f64>| {
            let short = [graded(0.9, Some(500.0)), graded(0.1, Some(500.0))];
            script.read_whole(&short, &[graded(0.5, long)])
        };
        assert_eq!(reading(Some(500.0 + words)).unwrap(), Reading::Whole);
        // Cut to the context of a server, however long the rubric before it is.
        assert!(reading(Some(500.0 + 0.5 * words)).is_err());
        assert!(reading(Some(500.0)).is_err());
        assert_eq!(reading(None).unwrap(), Reading::Unknown);
        assert_eq!(reading(Some(0.0)).unwrap(), Reading::Unknown);
    }

    #[test]
    fn a_finding_holds_for_documents_as_long_as_the_probed_one() {
        let script = script(3000, None);
        assert!(script.document_bytes() >= 3000);
        let short = [graded(0.9, None), graded(0.1, None)];
        let found = script.judge("http://t/v1/", &short, None).unwrap();
        assert_eq!(found.reading, Reading::Refused);
        assert!(found.holds(3000, 0.9) && !found.holds(4000, 0.9) && !found.holds(3000, 0.97));
        let read: Finding = serde_json::from_value(json!(found)).unwrap();
        assert_eq!(read, found);
    }
}
