//! vLLM's `/generative_scoring`: the probability of one answer against another as the next token,
//! exact and for many documents of a query in one request.
//!
//! The server continues plain text and knows no chat: the prompt file writes the model's own
//! markers around its rubric and its question, and the messages are joined as they are. What comes
//! before the first document is read once for all of them. The reply has one number a document, the
//! first label's share of what the labels have together, so the prompt has two answers, and nothing
//! is known of what lies outside them: a prompt should be tried by the chat dialect first.
//!
//! The labels are token ids; `/tokenize` has them, and the most tokens that the server reads. What
//! is longer it cuts at the end, without a word, and with it the question.

use serde_json::{Map, Value, json};

use super::rerank::{Scale, scores};
use super::{Dialect, Problem, Request, Texts, rounded, shortened};
use crate::ledger::Outcome;
use crate::preflight::script::Known;
use crate::prompt::Prompt;
use crate::{Error, Result};

/// A model behind vLLM.
pub(crate) struct Generative {
    pub(crate) prompt: Prompt,
    pub(crate) model: String,
    /// Documents in one request.
    pub(crate) documents_per_request: usize,
    /// Further fields of the request.
    pub(crate) extra: Map<String, Value>,
    /// Known once the servers were asked.
    pub(crate) server: Option<Server>,
}

/// What a server told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// The tokens of the answers, in the order of the prompt.
    labels: Vec<u64>,
    /// The most tokens of a prompt and its answer.
    most_tokens: u64,
}

/// No document begins with this character.
const MARK: &str = "\u{1}";
/// Tokens that the server may put before a text.
const TOKENS_BEFORE_A_TEXT: u64 = 2;

impl Generative {
    /// What the texts of these questions have in common before their first document, and how each
    /// goes on.
    fn parts(&self, questions: &[&Texts]) -> Result<(String, Vec<String>)> {
        let text = |question: &Texts, documents: &[&str]| -> Result<String> {
            let Texts { query, nonce, .. } = question;
            let messages = self.prompt.messages(query, documents, nonce)?;
            Ok(messages.into_iter().map(|one| one.content).collect())
        };
        let texts: Vec<String> = (questions.iter())
            .map(|question| text(question, &question.shown()))
            .collect::<Result<_>>()?;
        // A document begins where another document would make a difference.
        let marks = vec![MARK; questions[0].documents.len()];
        let marked = text(questions[0], &marks)?;
        let alike = |text: &String| {
            let mut pairs = text.char_indices().zip(marked.chars());
            let differs = pairs.find(|((_, a), b)| a != b);
            differs.map_or(text.len().min(marked.len()), |((at, _), _)| at)
        };
        let before = texts.iter().map(alike).min().unwrap_or_default();
        // A space is one token with the word after it.
        let before = marked[..before].trim_end_matches(' ').len();
        let rest = texts.iter().map(|text| text[before..].to_owned());
        Ok((marked[..before].to_owned(), rest.collect()))
    }

    /// The most tokens that each of the texts can be: a token has at least one byte.
    fn most_read(query: &str, items: &[String]) -> Vec<u64> {
        let of_one = |item: &String| (query.len() + item.len()) as u64 + TOKENS_BEFORE_A_TEXT;
        items.iter().map(of_one).collect()
    }

    /// Whether the server read all that it was sent. It says how many tokens it read in all.
    fn check_whole(&self, reply: &Value, questions: &[&Texts]) -> Result<(), Problem> {
        let read = reply["usage"]["prompt_tokens"].as_u64();
        let (Some(server), Some(read)) = (&self.server, read) else {
            return Ok(());
        };
        if read + 1 < server.most_tokens {
            return Ok(());
        }
        let (query, items) = self.parts(questions).map_err(Problem::Fatal)?;
        let longest = Self::most_read(&query, &items).into_iter().max();
        if longest < Some(server.most_tokens) {
            return Ok(());
        }
        Err(Problem::Final(
            Outcome::Truncated,
            format!(
                "the server read {read} tokens; it cuts a text at {} without saying so",
                server.most_tokens - 1
            ),
        ))
    }
}

impl Dialect for Generative {
    fn top_answer(&self) -> Option<&str> {
        self.prompt.answers.last().map(String::as_str)
    }

    fn known(&self) -> Option<Known> {
        self.prompt.known()
    }

    fn questions_per_request(&self) -> usize {
        self.documents_per_request
    }

    fn shares_prefix(&self) -> bool {
        true
    }

    fn request(&self, questions: &[&Texts]) -> Result<Request> {
        let (query, items) = self.parts(questions)?;
        // The score is the first label's: the better answer's, or the second document's.
        let labels = match &self.server {
            Some(server) => json!([server.labels[1], server.labels[0]]),
            None => json!([self.prompt.answers[1], self.prompt.answers[0]]),
        };
        let most_read = Self::most_read(&query, &items).iter().sum();
        let most_written = items.len() as u64;
        let body = json!({
            "model": self.model,
            "query": query,
            "items": items,
            "label_token_ids": labels,
            "apply_softmax": true,
        });
        Ok(Request::new(
            "generative_scoring",
            body,
            &self.extra,
            (most_read, most_written),
        ))
    }

    fn read(&self, reply: &Value, questions: &[&Texts]) -> Result<Vec<Value>, Problem> {
        let of_second = scores(
            reply,
            Some("data"),
            "score",
            Scale::Probability,
            questions.len(),
        )?;
        self.check_whole(reply, questions)?;
        let answer = |p: f64| json!({"probabilities": [rounded(1.0 - p), rounded(p)], "mass": 1.0});
        Ok(of_second.into_iter().map(answer).collect())
    }

    fn preliminaries(&self) -> Vec<(&'static str, Value)> {
        let tokens = |answer: &String| json!({"model": self.model, "prompt": answer, "add_special_tokens": false});
        (self.prompt.answers.iter())
            .map(|answer| ("tokenize", tokens(answer)))
            .collect()
    }

    fn prepare(&mut self, url: &str, replies: &[Value]) -> Result<()> {
        let mut server = Server {
            labels: Vec::new(),
            most_tokens: 0,
        };
        for (answer, reply) in self.prompt.answers.iter().zip(replies) {
            let tokens = reply["tokens"].as_array();
            let (Some(tokens), Some(most)) = (tokens, reply["max_model_len"].as_u64()) else {
                let shown = shortened(&reply.to_string());
                return Err(Error::Teacher {
                    url: url.to_owned(),
                    problem: format!("expected the tokens of {answer:?} from /tokenize: {shown}"),
                });
            };
            let label = match &tokens[..] {
                [one] => one.as_u64(),
                _ => None,
            };
            let Some(label) = label.filter(|label| !server.labels.contains(label)) else {
                return Err(Error::Setting(format!(
                    "the prompt's answer {answer:?} has the tokens {} in the model at {url}: each \
                     answer must be one token, another for each, such as \"no\" and \"yes\"",
                    reply["tokens"]
                )));
            };
            server.labels.push(label);
            server.most_tokens = most;
        }
        match &self.server {
            Some(first) if first.labels != server.labels => Err(Error::Setting(format!(
                "[teacher] endpoints: {url} has other tokens for the answers than the first one: \
                 all must serve the same model"
            ))),
            Some(first) if first.most_tokens <= server.most_tokens => Ok(()),
            _ => {
                self.server = Some(server);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:8000/";

    fn generative(user: &str) -> Generative {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.toml");
        let text = format!("answers = ['no', 'yes']\nsystem = '<s>Grade.'\nuser = '''{user}'''");
        fs_err::write(&path, text).unwrap();
        Generative {
            prompt: Prompt::read(&path).unwrap(),
            model: "m".into(),
            documents_per_request: 3,
            extra: Map::new(),
            server: None,
        }
    }

    fn question(document: &str) -> Texts {
        Texts {
            query: "drill".into(),
            documents: vec![document.into()],
            nonce: "0".into(),
        }
    }

    fn tokens(tokens: &[u64]) -> Value {
        json!({"tokens": tokens, "count": tokens.len(), "max_model_len": 100})
    }

    fn prepared(user: &str) -> Generative {
        let mut dialect = generative(user);
        dialect.prepare(URL, &[tokens(&[7]), tokens(&[9])]).unwrap();
        dialect
    }

    #[test]
    fn what_comes_before_the_documents_is_sent_once() {
        let dialect = prepared(" Search: {{ query }}\nProduct: {{ document }}\nRelevant?");
        // They begin alike: what is shared ends where a document begins all the same.
        let questions = [question("drill bit"), question("drill"), question("")];
        let asked: Vec<&Texts> = questions.iter().collect();
        let body = dialect.request(&asked).unwrap().body;
        assert_eq!(body["query"], "<s>Grade. Search: drill\nProduct:");
        assert_eq!(
            body["items"],
            json!([" drill bit\nRelevant?", " drill\nRelevant?", " \nRelevant?"])
        );
        assert_eq!(body["label_token_ids"], json!([9, 7]));

        let dialect = prepared("{{ document | trim }} for {{ query }}?");
        let body = dialect.request(&[&questions[0]]).unwrap().body;
        assert_eq!(body["query"], "<s>Grade.");
        assert_eq!(body["items"], json!(["drill bit for drill?"]));
    }

    #[test]
    fn the_score_is_the_better_answers_probability() {
        let dialect = prepared("{{ query }} {{ document }}");
        let asked = [question("a"), question("b")];
        let reply = |data: Value| json!({"data": data, "usage": {"prompt_tokens": 20}});
        let two = reply(json!([{"index": 1, "score": 0.2}, {"index": 0, "score": 0.9}]));
        let answers = dialect.read(&two, &[&asked[0], &asked[1]]).unwrap();
        assert_eq!(answers[0]["probabilities"], json!([0.1, 0.9]));
        assert_eq!(answers[1]["probabilities"], json!([0.8, 0.2]));
        for data in [
            json!([{"index": 0, "score": 0.9}]),
            json!([{"index": 0, "score": 0.9}, {"index": 0, "score": 0.9}]),
            json!([{"index": 0, "score": 0.9}, {"index": 2, "score": 0.9}]),
            json!([{"index": 0, "score": 0.9}, {"index": 1, "score": 1.2}]),
            json!([{"index": 0, "score": 0.9}, {"index": 1, "score": null}]),
            Value::Null,
        ] {
            let refused = dialect.read(&reply(data.clone()), &[&asked[0], &asked[1]]);
            assert!(matches!(refused, Err(Problem::Unreadable(_))), "{data}");
        }
    }

    #[test]
    fn a_text_that_was_cut_is_no_answer() {
        let dialect = prepared("{{ query }} {{ document }}");
        let read = |document: &str, tokens: u64| {
            let reply = json!({
                "data": [{"index": 0, "score": 0.9}],
                "usage": {"prompt_tokens": tokens},
            });
            dialect.read(&reply, &[&question(document)])
        };
        let long = "word ".repeat(100);
        let cut = read(&long, 99);
        assert!(matches!(cut, Err(Problem::Final(Outcome::Truncated, _))));
        assert!(read(&long, 98).is_ok());
        // Of a short text, no count of tokens is the limit's doing.
        assert!(read("word", 99).is_ok());
    }

    #[test]
    fn each_answer_is_one_token_and_the_same_everywhere() {
        let mut dialect = generative("{{ query }} {{ document }}");
        let asked = dialect.preliminaries();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[1].0, "tokenize");
        assert_eq!(asked[1].1["prompt"], "yes");
        for (replies, said) in [
            ([tokens(&[7]), tokens(&[9, 4])], "one token"),
            ([tokens(&[7]), tokens(&[])], "one token"),
            ([tokens(&[7]), tokens(&[7])], "another for each"),
            ([tokens(&[7]), json!({"detail": "x"})], "/tokenize"),
        ] {
            let error = dialect.prepare(URL, &replies).unwrap_err().to_string();
            assert!(error.contains(said), "{error} lacks {said}");
        }
        dialect.prepare(URL, &[tokens(&[7]), tokens(&[9])]).unwrap();
        dialect.prepare(URL, &[tokens(&[7]), tokens(&[9])]).unwrap();
        let other = dialect.prepare("http://other/", &[tokens(&[9]), tokens(&[7])]);
        assert!(other.unwrap_err().to_string().contains("http://other/"));
    }
}
