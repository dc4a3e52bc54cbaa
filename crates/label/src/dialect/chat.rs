//! OpenAI's `/chat/completions`, as OpenAI, Azure, vLLM, llama.cpp, Ollama, LiteLLM and SGLang
//! speak it.
//!
//! The teacher is asked for one token, and its answer is not that token but the probability of
//! each grade among the alternatives: the expected grade orders pairs far better than the written
//! digit (Zhuang et al., 2023, arXiv 2310.14122). Where a server gives no log-probabilities, the
//! written grades of several samples make the distribution. Orders are written in any case.
//!
//! Where the prompt asks for reasons before the grade, the token is the reply's last.

use serde_json::{Map, Value, json};

use super::rationale::{Place, one_line};
use super::{
    Dialect, Problem, Request, Texts, grade_of, graded, most_read, most_written, place_of, rounded,
    shortened, written_answer,
};
use crate::Result;
use crate::ledger::Outcome;
use crate::preflight::script::Known;
use crate::prompt::Prompt;

/// Alternatives asked for: the most that OpenAI grants.
const TOP_LOGPROBS: usize = 20;

/// A chat model.
pub(crate) struct Chat {
    pub(crate) prompt: Prompt,
    pub(crate) model: String,
    /// Read the probabilities of the grades, or else the grade as it is written.
    pub(crate) log_probabilities: bool,
    pub(crate) temperature: f64,
    /// The field that limits what is written: its name changed over the years.
    pub(crate) limit_field: String,
    /// The least probability that the grades must have together.
    pub(crate) least_mass: f64,
    /// Further fields of the request.
    pub(crate) extra: Map<String, Value>,
}

impl Dialect for Chat {
    fn top_answer(&self) -> Option<&str> {
        self.prompt.answers.last().map(String::as_str)
    }

    fn known(&self) -> Option<Known> {
        self.prompt.known()
    }

    fn request(&self, questions: &[&Texts]) -> Result<Request> {
        let question = questions[0];
        let messages = self
            .prompt
            .messages(&question.query, &question.shown(), &question.nonce)?;
        let most_written = if self.log_probabilities && self.prompt.rationale.is_none() {
            1
        } else {
            most_written(&self.prompt, question)
        };
        let most_tokens = (most_read(&messages), most_written);
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            &*self.limit_field: most_written,
        });
        if self.log_probabilities {
            body["logprobs"] = true.into();
            body["top_logprobs"] = TOP_LOGPROBS.into();
        }
        let request = Request::new("chat/completions", body, &self.extra, most_tokens);
        Ok(request.limited_by_body(&self.limit_field))
    }

    fn read(&self, reply: &Value, questions: &[&Texts]) -> Result<Vec<Value>, Problem> {
        let choice = &reply["choices"][0];
        if let Some(problem) = withheld(choice) {
            return Err(problem);
        }
        let written = choice["message"]["content"].as_str().unwrap_or_default();
        let was_cut = choice["finish_reason"] == "length";
        let answer = if self.log_probabilities {
            self.of_tokens(choice, written, was_cut)?
        } else {
            written_answer(written, was_cut, &self.prompt, questions[0])?
        };
        Ok(vec![answer])
    }
}

impl Chat {
    /// The answer by its token's alternatives, and the reasons that are written beside it.
    fn of_tokens(&self, choice: &Value, written: &str, was_cut: bool) -> Result<Value, Problem> {
        let answers = &self.prompt.answers;
        let (place, reasons) = match self.prompt.rationale {
            None => (0, None),
            Some(rationale) => {
                let (word, reasons) = rationale.split(written, was_cut)?;
                match rationale.place {
                    Place::Before => (last_token(choice, word, answers)?, reasons),
                    // The grade is the first token's, whatever stands beside it.
                    Place::After if place_of(word, answers).is_none() => {
                        (0, one_line(written, was_cut))
                    }
                    Place::After => (0, reasons),
                }
            }
        };
        let (probabilities, mass) = of_probabilities(choice, place, answers, self.least_mass)?;
        Ok(graded(&probabilities, mass, reasons))
    }
}

/// Where the token of the grade is that a reply ends with, which is this word.
fn last_token(choice: &Value, word: &str, answers: &[String]) -> Result<usize, Problem> {
    let grade = grade_of(word, answers)?;
    let tokens = choice["logprobs"]["content"].as_array();
    let tokens = tokens.map_or(&[][..], Vec::as_slice);
    let text = |place: usize| tokens[place]["token"].as_str().unwrap_or_default().trim();
    // Some servers list the token that ends the turn: "", or a marker such as <|im_end|>.
    let is_mark = |text: &str| text.is_empty() || text.starts_with('<') && text.ends_with('>');
    match (0..tokens.len()).rfind(|place| !is_mark(text(*place))) {
        Some(last) if place_of(text(last), answers) != Some(grade) => {
            Err(Problem::Unreadable(format!(
                "the reply ends with the grade {:?} and its tokens with {:?}: each of `answers` \
                 must be one token, and log-probabilities those of what is written",
                shortened(word),
                text(last)
            )))
        }
        last => Ok(last.unwrap_or(0)),
    }
}

/// A refusal or a filter inside a reply with status 200.
fn withheld(choice: &Value) -> Option<Problem> {
    if choice["finish_reason"] == "content_filter" {
        let problem = "the reply was filtered".to_owned();
        return Some(Problem::Final(Outcome::Filtered, problem));
    }
    // Some servers always have the field: "" refuses nothing.
    let refusal = choice["message"]["refusal"].as_str()?;
    if refusal.trim().is_empty() {
        return None;
    }
    let problem = format!("the teacher refused: {}", shortened(refusal));
    Some(Problem::Final(Outcome::Refused, problem))
}

/// The grades' probabilities among the alternatives of a token, and what they were together.
///
/// A grade may appear as several tokens (`"3"`, `" 3"`; `"Yes"`, `" yes"`): their probabilities add
/// up. Grades below the listed alternatives count as 0; the mass says how much that can matter.
fn of_probabilities(
    choice: &Value,
    place: usize,
    answers: &[String],
    least_mass: f64,
) -> Result<(Vec<f64>, f64), Problem> {
    let alternatives = choice["logprobs"]["content"][place]["top_logprobs"]
        .as_array()
        .ok_or_else(|| {
            Problem::Unreadable(format!(
                "the reply has no log-probabilities (does the server give them? \
                 `log_probabilities = false` goes without): {}",
                shortened(&choice.to_string())
            ))
        })?;
    let mut probabilities = vec![0.0; answers.len()];
    for alternative in alternatives {
        let (Some(token), Some(logprob)) = (
            alternative["token"].as_str(),
            alternative["logprob"].as_f64(),
        ) else {
            continue;
        };
        // −9999 is OpenAI's "not among the alternatives"; no probability is above 1.
        if !(-1000.0..=1e-3).contains(&logprob) {
            continue;
        }
        if let Some(grade) = place_of(token, answers) {
            probabilities[grade] += logprob.exp();
        }
    }
    let mass: f64 = probabilities.iter().sum();
    if !(least_mass..=1.001).contains(&mass) {
        let seen: Vec<&str> = alternatives
            .iter()
            .take(5)
            .filter_map(|one| one["token"].as_str())
            .collect();
        return Err(Problem::Unreadable(format!(
            "the grades {answers:?} have a probability of {mass:.3} together, expected \
             {least_mass} to 1; the likeliest tokens were {seen:?}"
        )));
    }
    let probabilities = probabilities.iter().map(|p| rounded(p / mass)).collect();
    Ok((probabilities, rounded(mass)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grades() -> Vec<String> {
        ["0", "1", "2", "3"].map(String::from).to_vec()
    }

    fn choice(alternatives: &[(&str, f64)]) -> Value {
        let list: Vec<Value> = alternatives
            .iter()
            .map(|(token, logprob)| json!({"token": token, "logprob": logprob}))
            .collect();
        json!({"logprobs": {"content": [{"top_logprobs": list}]}})
    }

    #[test]
    fn the_expected_grade_is_the_worked_one() {
        let logprobs = [("0", -3.1), ("1", -1.1), ("2", -0.8), ("3", -2.3)];
        let (probabilities, mass) =
            of_probabilities(&choice(&logprobs), 0, &grades(), 0.9).unwrap();
        let expected: f64 = (0..4)
            .map(|grade| grade as f64 * probabilities[grade])
            .sum();
        assert!((expected - 1.652_067).abs() < 4e-6, "{expected}");
        assert_eq!(json!(mass), 0.927_508);
    }

    #[test]
    fn spellings_of_one_grade_add_up_and_sentinels_are_dropped() {
        let half = 0.5_f64.ln();
        let spelt = [("3", half), (" 3", half), ("0", -9999.0), ("x", f64::NAN)];
        let (probabilities, _) = of_probabilities(&choice(&spelt), 0, &grades(), 0.9).unwrap();
        assert_eq!(json!(probabilities), json!([0.0, 0.0, 0.0, 1.0]));
    }

    #[test]
    fn what_is_no_grade_is_no_label() {
        let low_mass = [
            ("0", -3.2),
            ("1", -1.2),
            ("2", -0.9),
            ("3", -2.4),
            ("Sure", -2.0),
        ];
        let double = [("3", 0.0), (" 3", 0.0)];
        for (choice, said) in [
            (choice(&low_mass), "Sure"),
            (choice(&double), "2.000"),
            (json!({"message": {"content": "3"}}), "no log-probabilities"),
            (json!({"logprobs": null}), "no log-probabilities"),
            (Value::Null, "no log-probabilities"),
        ] {
            let problem = of_probabilities(&choice, 0, &grades(), 0.9).unwrap_err();
            assert!(
                matches!(&problem, Problem::Unreadable(problem) if problem.contains(said)),
                "{problem:?}"
            );
        }
    }

    #[test]
    fn spellings_of_a_word_add_up() {
        let spelt = [
            ("Yes", 0.4),
            (" yes", 0.25),
            ("YES", 0.05),
            ("No", 0.2),
            (" no", 0.1),
        ];
        let answers = ["no", "yes"].map(String::from);
        let spelt = spelt.map(|(token, p): (&str, f64)| (token, p.ln()));
        let answer = of_probabilities(&choice(&spelt), 0, &answers, 0.9).unwrap();
        assert_eq!(json!(answer), json!([[0.3, 0.7], 1.0]));
    }

    #[test]
    fn a_written_grade_stands_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.toml");
        let text =
            "answers = ['0', '1', '2', '3']\nsystem = ''\nuser = '{{ query }} {{ document }}'";
        fs_err::write(&path, text).unwrap();
        let prompt = Prompt::read(&path).unwrap();
        let texts = Texts {
            query: "q".into(),
            documents: vec!["d".into()],
            nonce: "0".into(),
        };
        let answer = written_answer(" 2\n", false, &prompt, &texts).unwrap();
        assert_eq!(answer["probabilities"], json!([0.0, 0.0, 1.0, 0.0]));
        for content in ["7", "2 or 3", "I rate it 2", "", "```2```"] {
            assert!(
                written_answer(content, false, &prompt, &texts).is_err(),
                "{content}"
            );
        }
    }

    #[test]
    fn refusals_and_filters_are_no_labels() {
        let refused = json!({"message": {"refusal": "I can't help with that"}});
        let filtered = json!({"finish_reason": "content_filter"});
        assert!(matches!(
            withheld(&refused),
            Some(Problem::Final(Outcome::Refused, _))
        ));
        assert!(matches!(
            withheld(&filtered),
            Some(Problem::Final(Outcome::Filtered, _))
        ));
        for none in [json!(null), json!(""), json!(" ")] {
            assert!(withheld(&json!({"message": {"refusal": none}})).is_none());
        }
    }
}
