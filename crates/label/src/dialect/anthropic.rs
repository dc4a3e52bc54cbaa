//! Anthropic's `/messages`. It gives no log-probabilities: the written grades of several samples
//! make the distribution.

use serde_json::{Map, Value, json};

use super::{
    Dialect, Problem, Request, Texts, Tokens, most_read, most_written, shortened, tokens,
    written_answer,
};
use crate::Result;
use crate::ledger::Outcome;
use crate::preflight::script::Known;
use crate::prompt::Prompt;

/// The version of the interface, which every request names.
pub(crate) const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// A model behind the messages interface.
pub(crate) struct Anthropic {
    pub(crate) prompt: Prompt,
    pub(crate) model: String,
    pub(crate) temperature: f64,
    /// Further fields of the request.
    pub(crate) extra: Map<String, Value>,
}

impl Dialect for Anthropic {
    fn top_answer(&self) -> Option<&str> {
        self.prompt.answers.last().map(String::as_str)
    }

    fn known(&self) -> Option<Known> {
        self.prompt.known()
    }

    fn request(&self, questions: &[&Texts]) -> Result<Request> {
        let question = questions[0];
        let mut messages =
            self.prompt
                .messages(&question.query, &question.shown(), &question.nonce)?;
        let most_written = most_written(&self.prompt, question);
        let most_tokens = (most_read(&messages), most_written);
        let system = messages.remove(0).content;
        let body = json!({
            "model": self.model,
            "system": system,
            "messages": messages,
            "max_tokens": most_written,
            "temperature": self.temperature,
        });
        let request = Request::new("messages", body, &self.extra, most_tokens);
        Ok(request.limited_by_body("max_tokens"))
    }

    fn read(&self, reply: &Value, questions: &[&Texts]) -> Result<Vec<Value>, Problem> {
        match reply["stop_reason"].as_str() {
            Some("refusal") => {
                let problem = "the teacher refused".to_owned();
                return Err(Problem::Final(Outcome::Refused, problem));
            }
            Some("model_context_window_exceeded") => {
                let problem = "the texts are longer than the teacher reads".to_owned();
                return Err(Problem::Final(Outcome::Truncated, problem));
            }
            _ => {}
        }
        let content = reply["content"].as_array().ok_or_else(|| {
            let shown = shortened(&reply.to_string());
            Problem::Unreadable(format!("the reply has no content: {shown}"))
        })?;
        // Thoughts are blocks of another type.
        let written: String = content
            .iter()
            .filter_map(|block| block["text"].as_str())
            .collect();
        let was_cut = reply["stop_reason"] == "max_tokens";
        let answer = written_answer(&written, was_cut, &self.prompt, questions[0])?;
        Ok(vec![answer])
    }

    fn usage(&self, reply: &Value) -> Option<Tokens> {
        let usage = &reply["usage"];
        let count = |name: &str| tokens(&usage[name]).unwrap_or(0);
        let fresh = tokens(&usage["input_tokens"])?;
        let cached = count("cache_read_input_tokens");
        // Writing the cache is input, too; what it costs beyond that is the price table's to say.
        let read = fresh + cached + count("cache_creation_input_tokens");
        Some((read, cached, count("output_tokens")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anthropic() -> Anthropic {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.toml");
        let text = "answers = ['0', '1']\nsystem = 'Grade.'\nuser = '{{ query }} {{ document }}'";
        fs_err::write(&path, text).unwrap();
        Anthropic {
            prompt: Prompt::read(&path).unwrap(),
            model: "m".into(),
            temperature: 1.0,
            extra: Map::new(),
        }
    }

    fn texts() -> Texts {
        Texts {
            query: "q".into(),
            documents: vec!["d".into()],
            nonce: "0".into(),
        }
    }

    #[test]
    fn the_rubric_is_the_system_prompt() {
        let body = anthropic().request(&[&texts()]).unwrap().body;
        assert_eq!(body["system"], "Grade.");
        assert_eq!(
            body["messages"],
            json!([{"role": "user", "content": "q d"}])
        );
    }

    #[test]
    fn replies_are_read_or_told_apart() {
        let dialect = anthropic();
        let graded = json!({
            "content": [{"type": "thinking", "thinking": "0"}, {"type": "text", "text": "1"}],
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1},
        });
        let answers = dialect.read(&graded, &[&texts()]).unwrap();
        assert_eq!(answers[0]["probabilities"], json!([0.0, 1.0]));
        assert_eq!(dialect.usage(&graded), Some((25, 20, 1)));
        let stopped = |reason: &str| {
            let reply = json!({"stop_reason": reason, "content": []});
            dialect.read(&reply, &[&texts()])
        };
        let refused = stopped("refusal");
        assert!(matches!(refused, Err(Problem::Final(Outcome::Refused, _))));
        let cut = stopped("model_context_window_exceeded");
        assert!(matches!(cut, Err(Problem::Final(Outcome::Truncated, _))));
        for reply in [
            json!({}),
            json!({"content": [{"type": "text", "text": "I think 1"}]}),
        ] {
            assert!(matches!(
                dialect.read(&reply, &[&texts()]),
                Err(Problem::Unreadable(_))
            ));
        }
    }
}
