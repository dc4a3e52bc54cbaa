//! The preflight: what servers get wrong with status 200, tried on texts whose answers are known
//! before the first question is paid for.
//!
//! | asked about | shows |
//! |---|---|
//! | a relevant and an irrelevant document; of prompts that compare, both in either order | that answers are answers, on the declared scale, and tell the two apart |
//! | the same at the end of a text as long as the job's longest | that nobody cuts it in silence |
//!
//! [`script`] has the texts, and this module judges the answers. They are sent as all requests are,
//! within the limits and the budget, by the collector.

pub(crate) mod script;

use std::fmt;

use retort_data::label_set::expected_grade;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dialect::rerank::Scale;
use crate::ledger::now;
use crate::prompt::Kind;
use script::Script;

/// What the preflight of one endpoint found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// Scheme, host and path.
    pub endpoint: String,
    /// The model, as the replies name it.
    pub model: Option<String>,
    /// What a relevant document got: the expected grade, or a score. Of two documents, how far the
    /// second was preferred, from 0 to 1, where that was the relevant one.
    pub relevant: f64,
    /// What an irrelevant one got.
    pub irrelevant: f64,
    /// The least that the answers had together; none of a reranker.
    pub mass: Option<f64>,
    /// What became of a long text.
    pub reading: Reading,
    /// How many words that had.
    pub words: usize,
    /// When, RFC 3339.
    pub at: String,
}

/// What became of a long text.
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

impl Preflight {
    /// Whether it still says enough: about texts of so many words, with this least mass.
    pub(crate) fn holds(&self, words: usize, least_mass: f64) -> bool {
        self.words >= words && self.mass.is_none_or(|mass| mass >= least_mass)
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            endpoint,
            model,
            relevant,
            irrelevant,
            mass,
            reading,
            words,
            at: _,
        } = self;
        write!(f, "{endpoint}")?;
        if let Some(model) = model {
            write!(f, " answers as {model}")?;
        }
        write!(f, ": relevant {relevant:.2}, irrelevant {irrelevant:.2}")?;
        if let Some(mass) = mass {
            write!(f, ", mass {mass:.2}")?;
        }
        match reading {
            Reading::Whole => write!(f, "; {words} words are read whole"),
            Reading::Refused => write!(f, "; {words} words are refused, not cut"),
            Reading::Unknown => write!(f, "; it does not say whether it cuts {words} words"),
        }
    }
}

/// What an endpoint did wrong, and what to look at.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) problem: String,
    pub(crate) hint: &'static str,
}

/// An answer of the preflight.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) answer: Value,
    /// Tokens of the prompt, as the server counts them.
    pub(crate) tokens: Option<f64>,
    pub(crate) model: Option<String>,
}

impl Script {
    /// What the answers say about an endpoint; `long` are those about the long texts, unless they
    /// were refused as too long.
    pub(crate) fn judge(
        &self,
        endpoint: &str,
        short: &[Heard],
        long: Option<&[Heard]>,
    ) -> Result<Preflight, Fault> {
        let [relevant, irrelevant] = self.compare(short)?;
        let says_why = |one: &Heard| !one.answer["rationale"].is_null();
        if self.asks_why && !short.iter().any(says_why) {
            return Err(Fault {
                problem: "it grades, and says nothing of why: the prompt has `rationale`"
                    .to_owned(),
                hint: "the prompt's words and examples must ask for reasons on a line of their \
                       own, and nothing in `extra` may keep the answer to one word",
            });
        }
        let reading = match long {
            Some(long) => self.read_whole(short, long)?,
            None => Reading::Refused,
        };
        let masses = short.iter().filter_map(|one| one.answer["mass"].as_f64());
        Ok(Preflight {
            endpoint: endpoint.to_owned(),
            model: short.iter().rev().find_map(|one| one.model.clone()),
            relevant,
            irrelevant,
            mass: masses.reduce(f64::min),
            reading,
            words: self.words,
            at: now(),
        })
    }

    /// Whether the two documents are told apart, by scores that are what they are declared to be.
    fn compare(&self, short: &[Heard]) -> Result<[f64; 2], Fault> {
        let values = [0, 1].map(|place: usize| value(&short[place].answer));
        let [relevant, irrelevant] = values;
        if relevant <= irrelevant {
            let problem = match self.kind {
                Kind::Graded => {
                    format!("a relevant document got {relevant} and an irrelevant one {irrelevant}")
                }
                Kind::Pairwise | Kind::Listwise => format!(
                    "of two documents it preferred the second by {relevant} where that was the \
                     relevant one and by {irrelevant} where it was not, 1 being all"
                ),
            };
            let hint = match self.scale {
                None => {
                    "is it the model you mean, and does the prompt reach it whole? Worked examples \
                     in the prompt are asked instead of made-up ones"
                }
                Some(_) => "is it a reranker, with its own head? (llama.cpp: --pooling rank)",
            };
            return Err(Fault { problem, hint });
        }
        if let Some(scale) = self.scale {
            of_scale(values, scale)?;
        }
        Ok(values)
    }

    /// Whether the long texts were read to their end.
    fn read_whole(&self, short: &[Heard], long: &[Heard]) -> Result<Reading, Fault> {
        let cut = |problem: String| Fault {
            problem: format!(
                "a text of {} words, as long as the job's longest, was cut in silence: {problem}",
                self.words
            ),
            hint: "give the model a longer context (Ollama: num_ctx, llama.cpp: --ctx-size, vLLM: \
                   --max-model-len), or keep such documents out of the candidates",
        };
        let more_tokens = match (short[0].tokens, long[0].tokens) {
            // Some servers say 0 where they do not know.
            (Some(short), Some(long)) if long > 0.0 => Some(long - short),
            _ => None,
        };
        let more_words = self.more_words as f64;
        if let Some(more_tokens) = more_tokens
            && more_tokens < 0.8 * more_words
        {
            return Err(cut(format!(
                "{more_words} words more made {more_tokens} tokens more"
            )));
        }
        let Some(scale) = self.scale else {
            return Ok(more_tokens.map_or(Reading::Unknown, |_| Reading::Whole));
        };
        let gap = |heard: &[Heard]| {
            logit(value(&heard[0].answer), scale) - logit(value(&heard[1].answer), scale)
        };
        // Texts that differ in their last fifth: whoever cuts it off sees the same text twice.
        if gap(long).abs() < 0.01 * gap(short) {
            return Err(cut(format!(
                "two that differ at their end got {} and {}",
                value(&long[0].answer),
                value(&long[1].answer)
            )));
        }
        Ok(Reading::Whole)
    }
}

/// Whether the scores of a relevant and an irrelevant document are on the scale that is declared.
/// That probabilities are from 0 to 1 was checked when they were read.
fn of_scale([relevant, irrelevant]: [f64; 2], scale: Scale) -> Result<(), Fault> {
    /// The sigmoid of 1: what a probability comes to that is taken for a logit.
    const TWICE: f64 = 0.7311;
    let scores = format!("its scores are {relevant} and {irrelevant}");
    match scale {
        Scale::Logit if irrelevant >= 0.0 && relevant <= 1.0 => Err(Fault {
            problem: format!("{scores}, both from 0 to 1, expected logits"),
            hint: "`scale = \"probability\"` in [teacher], if the server gives those; scores near 0 \
                   alone are those of a model without a reranker's head",
        }),
        Scale::Probability if relevant < 1e-3 => Err(Fault {
            problem: format!("{scores}, both next to 0"),
            hint: "is it a reranker, with its own head? (llama.cpp: --pooling rank)",
        }),
        Scale::Probability if irrelevant >= 0.5 && relevant <= TWICE => Err(Fault {
            problem: format!("{scores}, as if a sigmoid had been taken twice"),
            hint: "have the server give logits, or probabilities, but not one for the other",
        }),
        _ => Ok(()),
    }
}

/// What to look at when there is no answer.
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

/// The expected grade, the score, or how far the second of two documents is preferred.
fn value(answer: &Value) -> f64 {
    if let Some(score) = answer["score"].as_f64() {
        return score;
    }
    if let Some(best) = answer["ranking"][0].as_u64() {
        return if best == 1 { 1.0 } else { 0.0 };
    }
    let probabilities = answer["probabilities"].as_array().into_iter().flatten();
    let probabilities: Vec<f64> = probabilities.filter_map(Value::as_f64).collect();
    expected_grade(&probabilities)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn heard(answer: Value, tokens: Option<f64>) -> Heard {
        Heard {
            answer,
            tokens,
            model: None,
        }
    }

    fn scored(scores: [f64; 2]) -> Vec<Heard> {
        scores
            .map(|score| heard(json!({"score": score}), None))
            .to_vec()
    }

    fn graded(p: f64, tokens: Option<f64>) -> Heard {
        heard(json!({"probabilities": [1.0 - p, p], "mass": 0.95}), tokens)
    }

    fn ranked(ranking: [usize; 2]) -> Heard {
        heard(json!({"ranking": ranking, "placed": 2}), None)
    }

    fn script(scale: Option<Scale>) -> Script {
        Script::new(Kind::Graded, scale, None, 1000)
    }

    #[test]
    fn scores_must_tell_documents_apart_and_be_on_the_declared_scale() {
        let problem = |scale: Scale, scores: [f64; 2]| {
            let compared = script(Some(scale)).compare(&scored(scores));
            compared
                .err()
                .map(|fault| fault.problem)
                .unwrap_or_default()
        };
        for (scale, scores) in [
            (Scale::Logit, [4.0, -9.0]),
            (Scale::Logit, [9.0, 0.4]),
            (Scale::Logit, [0.9, -0.1]),
            (Scale::Probability, [0.9, 0.1]),
            (Scale::Probability, [0.99, 0.6]),
            (Scale::Probability, [0.02, 0.001]),
        ] {
            assert_eq!(problem(scale, scores), "", "{scores:?}");
        }
        for (scale, scores, said) in [
            // A sigmoid, and what a causal model without a reranker's head gives.
            (Scale::Logit, [0.99, 0.01], "expected logits"),
            (Scale::Logit, [2e-20, 1e-20], "expected logits"),
            (Scale::Probability, [2e-20, 1e-20], "next to 0"),
            (Scale::Probability, [0.729, 0.502], "twice"),
            (Scale::Logit, [-9.0, 4.0], "an irrelevant one 4"),
            (Scale::Probability, [0.5, 0.5], "an irrelevant one 0.5"),
        ] {
            let problem = problem(scale, scores);
            assert!(problem.contains(said), "{scores:?}: {problem}");
        }
    }

    #[test]
    fn of_two_documents_the_relevant_one_must_win_more_in_either_place() {
        let compared = |kind: Kind, heard: [Heard; 2]| {
            Script::new(kind, None, None, 100).compare(&heard).is_ok()
        };
        let pairwise = |p, q| compared(Kind::Pairwise, [graded(p, None), graded(q, None)]);
        // A teacher that prefers a place still tells them apart.
        assert!(pairwise(0.9, 0.1) && pairwise(0.3, 0.1));
        assert!(!pairwise(0.4, 0.4) && !pairwise(0.1, 0.9));
        let listwise = |a, b| compared(Kind::Listwise, [ranked(a), ranked(b)]);
        assert!(listwise([1, 0], [0, 1]));
        assert!(!listwise([0, 1], [0, 1]) && !listwise([0, 1], [1, 0]));
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
            let script = script(Some(scale));
            let reading = script.read_whole(&scored(short), &scored(whole)).unwrap();
            assert_eq!(reading, Reading::Whole);
            let fault = script.read_whole(&scored(short), &scored(cut)).unwrap_err();
            assert!(fault.problem.contains("cut in silence"), "{fault:?}");
        }
    }

    #[test]
    fn a_long_text_takes_the_tokens_of_its_words() {
        let script = script(None);
        let words = script.more_words as f64;
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
    fn what_was_found_holds_for_texts_as_long_as_the_one_that_was_tried() {
        let script = script(None);
        let short = [graded(0.9, None), graded(0.1, None)];
        let found = script.judge("http://t/v1/", &short, None).unwrap();
        assert_eq!(found.reading, Reading::Refused);
        let words = script.words;
        assert!(words >= 1000 && found.holds(words, 0.9) && found.holds(10, 0.9));
        assert!(!found.holds(words + 1, 0.9) && !found.holds(words, 0.97));
        let read: Preflight = serde_json::from_value(json!(found)).unwrap();
        assert_eq!(read, found);
    }
}
