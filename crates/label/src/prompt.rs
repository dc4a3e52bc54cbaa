//! Prompts in files: a TOML file with the scale's answers and two minijinja templates.
//!
//! ```toml
//! answers = ["0", "1", "2", "3"]     # what the teacher may answer, worst first
//! system = """…the rubric…"""
//! user = """Document: {{ document }}
//! Query: {{ query }}"""
//!
//! [[examples]]                       # optional: answered turns shown before the question
//! query = "dog bowl"
//! document = "Steel dog bowl, 1.5 L"
//! answer = "3"
//! ```
//!
//! Rubric and examples come first and are the same for every pair, so that servers that keep a
//! prompt's prefix read them once. Whether query or document comes last is the prompt's to say: a
//! 1.5 B teacher orders pairs far better when it reads the query last.

use std::path::Path;

use fs_err as fs;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};

use crate::dialect::Texts;
use crate::{Error, Result};

/// A prompt, ready to be rendered.
pub(crate) struct Prompt {
    /// What the teacher may answer; an answer's position is its grade.
    pub(crate) answers: Vec<String>,
    /// Digest of what the file says: comments and white space between values leave it alone.
    pub(crate) digest: String,
    examples: Vec<Example>,
    templates: Environment<'static>,
}

/// One message of a chat.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    /// `system`, `user` or `assistant`.
    pub(crate) role: &'static str,
    /// What is said.
    pub(crate) content: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PromptFile {
    answers: Vec<String>,
    system: String,
    user: String,
    #[serde(default)]
    examples: Vec<Example>,
}

/// A pair with the answer it should get.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Example {
    query: String,
    document: String,
    answer: String,
}

impl Prompt {
    /// Reads a prompt file and tries it on a made-up pair.
    ///
    /// # Errors
    /// A missing file, a malformed one, fewer than two answers, a template that names anything but
    /// `query` and `document` or leaves one of them out.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let source = fs::read_to_string(path)?;
        let problem = |problem: String| Error::File {
            path: path.to_owned(),
            problem,
        };
        let file: PromptFile =
            toml::from_str(&source).map_err(|error| problem(error.to_string()))?;
        if file.answers.len() < 2 {
            return Err(problem(
                "`answers` needs at least two answers, worst first".to_owned(),
            ));
        }
        if let Some(example) = file
            .examples
            .iter()
            .find(|one| !file.answers.contains(&one.answer))
        {
            return Err(problem(format!(
                "the example for {:?} answers {:?}, which `answers` does not have",
                example.query, example.answer
            )));
        }
        let digest = digest(&file);
        let mut templates = Environment::new();
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, template) in [("system", file.system), ("user", file.user)] {
            templates
                .add_template_owned(name, template)
                .map_err(|error| problem(format!("{error:#}")))?;
        }
        let prompt = Self {
            answers: file.answers,
            digest,
            examples: file.examples,
            templates,
        };

        let tried = prompt.messages("a query", "a document")?;
        let question = tried
            .last()
            .map(|message| &*message.content)
            .unwrap_or_default();
        for word in ["a query", "a document"] {
            if !question.contains(word) {
                return Err(problem(format!(
                    "`user` never shows the teacher {}",
                    &word[2..]
                )));
            }
        }
        Ok(prompt)
    }

    /// The chat that asks about one pair: rubric, examples, question.
    ///
    /// # Errors
    /// A template that names an unknown variable.
    pub(crate) fn messages(&self, query: &str, document: &str) -> Result<Vec<Message>> {
        let mut messages = vec![Message {
            role: "system",
            content: self.render("system", query, document)?,
        }];
        for example in &self.examples {
            let content = self.render("user", &example.query, &example.document)?;
            messages.push(Message {
                role: "user",
                content,
            });
            messages.push(Message {
                role: "assistant",
                content: example.answer.clone(),
            });
        }
        messages.push(Message {
            role: "user",
            content: self.render("user", query, document)?,
        });
        Ok(messages)
    }

    /// The examples with the best and the worst answer, if there are both.
    pub(crate) fn known(&self) -> Option<[Texts; 2]> {
        let with = |answer: &String| {
            let example = self.examples.iter().find(|one| one.answer == *answer)?;
            Some(Texts {
                query: example.query.clone(),
                documents: vec![example.document.clone()],
            })
        };
        Some([with(self.answers.last()?)?, with(self.answers.first()?)?])
    }

    fn render(&self, template: &str, query: &str, document: &str) -> Result<String> {
        self.templates
            .get_template(template)
            .and_then(|template| template.render(context! { query, document }))
            .map_err(|error| {
                Error::Setting(format!(
                    "the prompt's `{template}` template: {error}; \
                     the variables are `query` and `document`"
                ))
            })
    }
}

fn digest(file: &PromptFile) -> String {
    // A struct of strings has no way to fail.
    let json = serde_json::to_vec(file).unwrap_or_default();
    format!("sha256:{}", retort_files::sha256(&json))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Prompt> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.toml");
        fs::write(&path, text).unwrap();
        Prompt::read(&path)
    }

    #[test]
    fn renders_without_escaping_and_shows_the_examples_first() {
        let text = "answers = ['0', '1']\nsystem = 'Grade.'\nuser = 'Q: {{ query }} D: {{ document }}'\n\
                    [[examples]]\nquery = 'x'\ndocument = 'y'\nanswer = '1'";
        let messages = read(text).unwrap().messages("a < b", "\"c\" & d").unwrap();
        let said: Vec<_> = messages
            .iter()
            .map(|one| (one.role, &*one.content))
            .collect();
        let expected = [
            ("system", "Grade."),
            ("user", "Q: x D: y"),
            ("assistant", "1"),
            ("user", "Q: a < b D: \"c\" & d"),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn unknown_and_forgotten_variables_are_refused() {
        let unknown = read("answers = ['0', '1']\nsystem = ''\nuser = '{{ query }} {{ doc }}'");
        assert!(
            unknown
                .err()
                .unwrap()
                .to_string()
                .contains("`query` and `document`")
        );
        let forgotten = read("answers = ['0', '1']\nsystem = ''\nuser = '{{ query }}'");
        assert!(
            forgotten
                .err()
                .unwrap()
                .to_string()
                .contains("never shows the teacher document")
        );
    }
}
