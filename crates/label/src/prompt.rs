//! Prompts in files: a TOML file with the scale's answers and two minijinja templates.
//!
//! ```toml
//! answers = ["0", "1", "2", "3"]     # what the teacher may answer, worst first
//! system = """…the rubric…"""
//! user = """<document-{{ nonce }}>
//! {{ document }}
//! </document-{{ nonce }}>
//! Query: {{ query }}"""
//!
//! [[examples]]                       # optional: answered turns shown before the question
//! query = "dog bowl"
//! document = "Steel dog bowl, 1.5 L"
//! answer = "3"
//! ```
//!
//! `kind = "pairwise"` shows `document_a` and `document_b` and asks which is more relevant: two
//! `answers`, the first for the document that is shown first. `kind = "listwise"` shows `documents`
//! that the template numbers from `[1]`, has no `answers`, and asks for an order: `[2] > [1]`.
//!
//! `rationale = "before"` or `"after"` has the teacher say why it grades so, in `rationale_tokens` at
//! most ([`crate::dialect::rationale`]). Each example then has a `rationale` too.
//!
//! Rubric and examples come first and are the same for every pair, so that servers that keep a
//! prompt's prefix read them once. Whether query or document comes last is the prompt's to say: a
//! 1.5 B teacher orders pairs far better when it reads the query last.
//!
//! A document may try to end its block and speak for the prompt. `nonce` stands in its way: 16
//! hexadecimal digits that the question's key begins with, so that the same question is always
//! asked in the same words, and no document can know them: it would have to hold its own digest.
//! (Generative scoring shows many documents after one beginning, so its nonce is of recipe and query
//! alone.) An example has a nonce of its own, which never changes.

mod example;

use std::path::Path;

use fs_err as fs;
use minijinja::{Environment, UndefinedBehavior, Value as List, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dialect::ranking;
use crate::dialect::rationale::{Place, Rationale};
use crate::preflight::script::Known;
use crate::{Error, Result};
use example::Example;

/// Digits of a nonce: 64 bits, which nobody guesses.
pub(crate) const NONCE_DIGITS: usize = 16;

/// What a prompt asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A grade of one document.
    #[default]
    Graded,
    /// Which of two documents is more relevant.
    Pairwise,
    /// An order of many documents.
    Listwise,
}

impl Kind {
    /// What a recipe's questions ask for; a reranker's score is of one document, like a grade.
    pub(crate) fn of(recipe: &Value) -> Self {
        Self::deserialize(&recipe["kind"]).unwrap_or_default()
    }

    /// The template variables besides `query` and `nonce`.
    fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Graded => &["document"],
            Self::Pairwise => &["document_a", "document_b"],
            Self::Listwise => &["documents"],
        }
    }
}

/// A prompt, ready to be rendered.
pub(crate) struct Prompt {
    pub(crate) kind: Kind,
    /// What the teacher may answer; an answer's position is its grade, or the place of the document
    /// it prefers. None of a listwise prompt.
    pub(crate) answers: Vec<String>,
    /// The reasons that it asks for, if it does.
    pub(crate) rationale: Option<Rationale>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<Kind>,
    #[serde(default)]
    answers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rationale: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rationale_tokens: Option<u32>,
    system: String,
    user: String,
    #[serde(default)]
    examples: Vec<Example>,
}

impl Prompt {
    /// Reads a prompt file and tries it on a made-up question.
    ///
    /// # Errors
    /// A missing file, a malformed one, too few answers or too many, a template that names anything
    /// but the variables of its kind or leaves one of them out.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &fs::read_to_string(path)?)
    }

    /// [`Self::read`] of a file that says this; `path` is what errors call it.
    pub(crate) fn parse(path: &Path, source: &str) -> Result<Self> {
        let problem = |problem: String| Error::File {
            path: path.to_owned(),
            problem,
        };
        let file: PromptFile =
            toml::from_str(source).map_err(|error| problem(error.to_string()))?;
        let kind = file.kind.unwrap_or_default();
        let expected = match (kind, file.answers.len()) {
            (Kind::Graded, 0..2) => Some("`answers` needs at least two answers, worst first"),
            (Kind::Pairwise, count) if count != 2 => {
                Some("`answers` needs two answers: for the first document and for the second")
            }
            (Kind::Listwise, 1..) => {
                Some("a listwise prompt has no `answers`: an order is written")
            }
            _ => None,
        };
        if let Some(expected) = expected {
            return Err(problem(expected.to_owned()));
        }
        let alike = |(place, answer): &(usize, &String)| {
            let before = file.answers[..*place].iter();
            before.map(|one| one.trim()).any(|one| one == answer.trim())
        };
        if let Some((_, answer)) = file.answers.iter().enumerate().find(alike) {
            return Err(problem(format!(
                "`answers` has {answer:?} twice: what the teacher says must be one grade"
            )));
        }
        let rationale =
            Rationale::asked(file.rationale, file.rationale_tokens, kind).map_err(problem)?;
        let wrong = |example: &Example| example.problem(kind, &file.answers, rationale);
        if let Some(wrong) = file.examples.iter().find_map(wrong) {
            return Err(problem(wrong));
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
            kind,
            answers: file.answers,
            rationale,
            digest,
            examples: file.examples,
            templates,
        };
        match prompt.unseen()? {
            None => Ok(prompt),
            Some(unseen) => Err(problem(format!("`user` never shows the teacher {unseen}"))),
        }
    }

    /// What of a made-up question the teacher would not see, if it would not see all.
    fn unseen(&self) -> Result<Option<&'static str>> {
        let documents: &[&str] = match self.kind {
            Kind::Graded => &["a document"],
            Kind::Pairwise | Kind::Listwise => &["one document", "another document"],
        };
        let tried = self.messages("a query", documents, "0123456789abcdef")?;
        let question = tried
            .last()
            .map(|message| &*message.content)
            .unwrap_or_default();
        let variables = self.kind.variables().iter().cycle();
        let mut needed: Vec<_> = documents.iter().copied().zip(variables.copied()).collect();
        needed.push(("a query", "query"));
        if self.kind == Kind::Listwise {
            needed.extend([
                ("[1]", "the numbers [1], [2], …"),
                ("[2]", "the numbers [1], [2], …"),
            ]);
        }
        let unseen = needed.iter().find(|(text, _)| !question.contains(text));
        Ok(unseen.map(|(_, name)| *name))
    }

    /// The chat that asks a question: rubric, examples, the question. `nonce` marks what is not ours
    /// to say.
    ///
    /// # Errors
    /// A template that names an unknown variable.
    pub(crate) fn messages(
        &self,
        query: &str,
        documents: &[&str],
        nonce: &str,
    ) -> Result<Vec<Message>> {
        let mut messages = vec![Message {
            role: "system",
            content: self.render("system", query, documents, nonce)?,
        }];
        for (place, example) in self.examples.iter().enumerate() {
            let of_example = retort_files::sha256(format!("{place} {}", self.digest).as_bytes());
            let nonce = &of_example[..NONCE_DIGITS];
            let content = self.render("user", &example.query, &example.shown(), nonce)?;
            messages.push(Message {
                role: "user",
                content,
            });
            messages.push(Message {
                role: "assistant",
                content: example.reply(self.rationale),
            });
        }
        messages.push(Message {
            role: "user",
            content: self.render("user", query, documents, nonce)?,
        });
        Ok(messages)
    }

    /// What the examples say about a relevant and an irrelevant document for one query, if they do.
    pub(crate) fn known(&self) -> Option<Known> {
        self.examples.iter().find_map(|example| {
            let shown = example.shown();
            let (relevant, irrelevant) = match self.kind {
                Kind::Graded => {
                    let worst = self.examples.iter().find(|other| {
                        other.query == example.query && Some(&other.answer) == self.answers.first()
                    });
                    let is_best = Some(&example.answer) == self.answers.last();
                    (shown[0], worst.filter(|_| is_best)?.shown()[0])
                }
                Kind::Pairwise if example.answer == self.answers[0] => (shown[0], shown[1]),
                Kind::Pairwise => (shown[1], shown[0]),
                Kind::Listwise => {
                    let order = ranking::read(&example.answer, shown.len()).ok()?.ranking;
                    (shown[*order.first()?], shown[*order.last()?])
                }
            };
            Some(Known {
                query: example.query.clone(),
                relevant: relevant.to_owned(),
                irrelevant: irrelevant.to_owned(),
            })
        })
    }

    fn render(
        &self,
        template: &str,
        query: &str,
        documents: &[&str],
        nonce: &str,
    ) -> Result<String> {
        let context = match (self.kind, documents) {
            (Kind::Graded, [document]) => context! { query, nonce, document => *document },
            (Kind::Pairwise, [a, b]) => {
                context! { query, nonce, document_a => *a, document_b => *b }
            }
            _ => {
                context! { query, nonce, documents => documents.iter().copied().collect::<List>() }
            }
        };
        self.templates
            .get_template(template)
            .and_then(|template| template.render(context))
            .map_err(|error| {
                let variables = self.kind.variables().join("`, `");
                Error::Setting(format!(
                    "the prompt's `{template}` template: {error}; \
                     the variables are `query`, `nonce`, `{variables}`"
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
        let messages = read(text)
            .unwrap()
            .messages("a < b", &["\"c\" & d"], "0")
            .unwrap();
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
    fn the_shipped_prompt_keeps_a_document_in_its_block_and_its_prefix_the_same() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../prompts");
        let graded = Prompt::read(&folder.join("graded.toml")).unwrap();
        let one = graded.messages("a query", &["a text"], "00aa").unwrap();
        let other = graded.messages("another", &["other text"], "11bb").unwrap();
        let (question, prefix) = one.split_last().unwrap();
        assert_eq!(prefix, &other[..other.len() - 1], "servers read it once");
        let place = |text: &str| question.content.find(text).unwrap();
        assert!(place("<document-00aa>") < place("a text"));
        assert!(place("a text") < place("</document-00aa>"));
        assert!(place("</document-00aa>") < place("<query-00aa>"));
        assert!(place("<query-00aa>") < place("a query"));
        assert!(place("a query") < place("</query-00aa>"));
    }

    #[test]
    fn each_kind_has_its_own_variables_and_answers() {
        let pairwise = "kind = 'pairwise'\nanswers = ['A', 'B']\nsystem = 'Compare.'\n\
                        user = '{{ query }} A: {{ document_a }} B: {{ document_b }}'";
        let messages = read(pairwise)
            .unwrap()
            .messages("q", &["x", "y"], "0")
            .unwrap();
        assert_eq!(messages[1].content, "q A: x B: y");
        let listwise = "kind = 'listwise'\nsystem = 'Order {{ documents | length }}.'\n\
                        user = '{{ query }}{% for one in documents %} [{{ loop.index }}] {{ one }}{% endfor %}'\n\
                        [[examples]]\nquery = 'e'\ndocuments = ['v', 'w']\nanswer = '[2] > [1]'";
        let messages = read(listwise)
            .unwrap()
            .messages("q", &["x", "y", "z"], "0")
            .unwrap();
        let said: Vec<&str> = messages.iter().map(|one| &*one.content).collect();
        assert_eq!(
            said,
            [
                "Order 3.",
                "e [1] v [2] w",
                "[2] > [1]",
                "q [1] x [2] y [3] z"
            ]
        );

        for (prompt, said) in [
            (pairwise.replace("'A', ", ""), "needs two answers"),
            (
                pairwise.replace("document_b", "document_a"),
                "never shows the teacher document_b",
            ),
            (
                pairwise.replace("document_b", "document"),
                "`query`, `nonce`, `document_a`, `document_b`",
            ),
            (listwise.replace("loop.index", "\"-\""), "the numbers [1]"),
            (
                listwise.replace("system", "answers = ['A', 'B']\nsystem"),
                "has no `answers`",
            ),
            (listwise.replace("[2] > [1]", "[2]"), "expected [2] > [1]"),
            (
                listwise.replace("documents = ['v', 'w']", "document = 'v'"),
                "must have `documents`",
            ),
        ] {
            let error = read(&prompt).err().unwrap().to_string();
            assert!(error.contains(said), "{error} lacks {said}");
        }
    }

    #[test]
    fn the_committed_prompts_are_read_and_the_demos_is_what_its_labels_were_made_with() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for file in fs::read_dir(root.join("prompts")).unwrap() {
            Prompt::read(&file.unwrap().path()).unwrap();
        }
        let manifest = root.join("training-data/shop/labels/train/manifest.json");
        let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
        let prompt = Prompt::read(&root.join("prompts/shop-graded.toml")).unwrap();
        assert_eq!(manifest["recipe"]["prompt"], *prompt.digest);
    }

    #[test]
    fn examples_tell_a_relevant_document_from_an_irrelevant_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../prompts");
        for (prompt, query, relevant, irrelevant) in [
            (
                "graded",
                "how long to boil an egg",
                "Soft yolks",
                "The tanker's hull",
            ),
            ("yes-no", "how long do eggs keep", "Fresh eggs", "Egg cups"),
            ("shop-pairwise", "dog bowl", "Pawfell", "Dry dog food"),
            (
                "shop-listwise",
                "26 inch bike tyre",
                "Veldane road tyre 26",
                "26 inch LED",
            ),
        ] {
            let prompt = Prompt::read(&folder.join(format!("{prompt}.toml"))).unwrap();
            let known = prompt.known().unwrap();
            assert_eq!(known.query, query);
            assert!(known.relevant.starts_with(relevant), "{known:?}");
            assert!(known.irrelevant.starts_with(irrelevant), "{known:?}");
        }
        // Of another query, the worst answer is no worse than the best.
        let apart = "answers = ['0', '1']\nsystem = ''\nuser = '{{ query }} {{ document }}'\n\
                     [[examples]]\nquery = 'a'\ndocument = 'x'\nanswer = '1'\n\
                     [[examples]]\nquery = 'b'\ndocument = 'y'\nanswer = '0'";
        assert_eq!(read(apart).unwrap().known(), None);
    }

    #[test]
    fn an_answer_that_stands_for_two_grades_is_refused() {
        for answers in ["['0', '0']", "['0', '1', ' 0']"] {
            let text = format!(
                "answers = {answers}\nsystem = ''\nuser = '{{{{ query }}}} {{{{ document }}}}'"
            );
            let error = read(&text).err().unwrap().to_string();
            assert!(error.contains("0\" twice"), "{error}");
        }
    }

    #[test]
    fn unknown_and_forgotten_variables_are_refused() {
        let unknown = read("answers = ['0', '1']\nsystem = ''\nuser = '{{ query }} {{ doc }}'");
        assert!(
            unknown
                .err()
                .unwrap()
                .to_string()
                .contains("`query`, `nonce`, `document`")
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
