//! A labelling job's settings, and what they come to before anything is sent.

mod check;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::batch::BatchSettings;
use crate::dialect::Dialect;
use crate::dialect::anthropic::{self, Anthropic};
use crate::dialect::chat::Chat;
use crate::dialect::generative::Generative;
use crate::dialect::rationale::Rationale;
use crate::dialect::rerank::{self, Rerank, Scale};
use crate::money::{BudgetSettings, Price};
use crate::prompt::{Kind, Prompt};
use crate::redact::RedactionSettings;
use crate::replica::Replica;
use crate::secret::{KeySettings, Secret};
use crate::shard::Part;
use crate::{Error, Result, treatment};

/// A labelling job (`configs/label.toml`).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LabelSettings {
    /// The collection's folder.
    pub collection: PathBuf,
    /// The pairs to judge, as `retort candidates` writes them.
    pub candidates: PathBuf,
    /// Where the judgements are kept; one ledger may hold those of many jobs and teachers.
    pub ledger: PathBuf,
    /// The prompt file; rerankers have none.
    #[serde(default)]
    pub prompt: Option<PathBuf>,
    /// Of a pairwise prompt: how many others each of a query's documents is compared with, even.
    #[serde(default = "four")]
    pub comparisons: usize,
    /// Of a listwise prompt: documents that are ordered at once.
    #[serde(default = "twenty")]
    pub window: usize,
    /// Send nothing to a host that is not this machine or on a private network.
    #[serde(default)]
    pub local_only: bool,
    /// Try each endpoint before the first question.
    #[serde(default = "yes")]
    pub preflight: bool,
    /// The part of the job that this process does.
    #[serde(skip)]
    pub part: Option<Part>,
    /// Questions go in batches, at their price.
    #[serde(skip)]
    pub in_batches: bool,
    /// How long requests in flight may take to end once the job is told to stop.
    #[serde(default = "half_a_minute")]
    pub drain_seconds: u64,
    /// What is replaced in texts before they are sent.
    #[serde(default)]
    pub redaction: Option<RedactionSettings>,
    /// Whom to ask.
    pub teacher: TeacherSettings,
    /// What the ledger may come to.
    #[serde(default)]
    pub budget: BudgetSettings,
}

impl LabelSettings {
    /// What a question costs.
    pub(crate) fn price(&self) -> Price {
        if self.in_batches {
            self.teacher.price.in_batches()
        } else {
            self.teacher.price
        }
    }
}

/// How to reach a teacher (`[teacher]`).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherSettings {
    /// What label sets call it: model and precision, say.
    pub name: String,
    /// The wire format.
    #[serde(default)]
    pub dialect: Wire,
    /// The base URLs of its servers, up to and with `/v1`; a query's pairs go to the same one.
    pub endpoints: Vec<String>,
    /// The model's name in requests.
    pub model: String,
    /// Which of several things that bear that name: a commit, a date, a quantisation.
    #[serde(default)]
    pub revision: String,
    /// Where its key comes from; none is sent without it.
    #[serde(default)]
    pub api_key: KeySettings,
    /// Hosts that may be sent texts, and the key, unencrypted.
    #[serde(default)]
    pub allow_http: Vec<String>,

    /// Read the probabilities of the answers; `false` where a server gives none.
    #[serde(default = "yes")]
    pub log_probabilities: bool,
    /// How often each question is asked; more than once makes sense without log-probabilities, and
    /// of orders, which are asked each time about documents in another order.
    #[serde(default = "one")]
    pub samples: u32,
    /// 0 unless the same question is asked several times.
    #[serde(default)]
    pub temperature: f64,
    /// The least probability that the answers must have together: below it, the teacher was
    /// answering something else.
    #[serde(default = "nine_tenths")]
    pub least_mass: f64,
    /// The request's field that limits what is written: `max_completion_tokens` at OpenAI.
    #[serde(default = "max_tokens")]
    pub limit_field: String,
    /// Further fields of the request.
    #[serde(default)]
    pub extra: Map<String, Value>,
    /// Of a reranker: what its scores are, where that is not what its dialect asks for.
    #[serde(default)]
    pub scale: Option<Scale>,
    /// Of a reranker or generative scoring: documents in one request.
    #[serde(default = "sixteen")]
    pub documents_per_request: usize,

    /// The most requests in flight, over all endpoints; fewer leave while a server has too much.
    #[serde(default = "four")]
    pub concurrency: usize,
    /// Requests a minute, over all endpoints.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, in and out, over all endpoints.
    #[serde(default)]
    pub tokens_per_minute: Option<u32>,
    /// How long one request may take.
    #[serde(default = "a_minute")]
    pub timeout_seconds: u64,
    /// How often a request that failed for a passing reason is sent again.
    #[serde(default = "five")]
    pub retries: u32,
    /// What to do when the server starts to call its model otherwise.
    #[serde(default)]
    pub on_model_change: OnChange,
    /// What it charges.
    #[serde(default)]
    pub price: Price,
    /// How it is sent batches.
    #[serde(default)]
    pub batch: BatchSettings,
}

impl TeacherSettings {
    /// Says so where the teacher calls its model otherwise than before, or stops the job.
    pub(crate) fn note_model(&self, before: Option<&str>, now: &str) -> Result<()> {
        let Some(before) = before.filter(|before| *before != now) else {
            return Ok(());
        };
        let problem = format!("it calls its model {now:?} now, and {before:?} before");
        match self.on_model_change {
            OnChange::Warn => {
                tracing::warn!("{problem}");
                Ok(())
            }
            OnChange::Stop => Err(Error::Teacher {
                url: self.endpoints.join(", "),
                problem: format!(
                    "{problem}: name one exact model in [teacher] model, or run again to go on \
                     with this one"
                ),
            }),
        }
    }
}

/// The wire formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// OpenAI's chat completions, as most servers of language models speak it.
    #[default]
    Chat,
    /// Anthropic's messages.
    Anthropic,
    /// vLLM's probability of one answer against another.
    GenerativeScoring,
    /// A reranker behind Text Embeddings Inference.
    Tei,
    /// Cohere's reranker.
    Cohere,
    /// Jina's reranker.
    Jina,
    /// A reranker behind vLLM's `/rerank`.
    VllmRerank,
    /// A reranker behind vLLM's `/score`.
    VllmScore,
    /// Voyage's reranker.
    Voyage,
    /// A reranker behind llama.cpp's server.
    LlamaRerank,
}

impl Wire {
    /// How a reranker is asked, if it is one.
    fn reranker(self) -> Option<&'static rerank::Format> {
        match self {
            Self::Chat | Self::Anthropic | Self::GenerativeScoring => None,
            Self::Tei => Some(&rerank::TEI),
            Self::Cohere => Some(&rerank::COHERE),
            Self::Jina => Some(&rerank::JINA),
            Self::VllmRerank => Some(&rerank::VLLM_RERANK),
            Self::VllmScore => Some(&rerank::VLLM_SCORE),
            Self::Voyage => Some(&rerank::VOYAGE),
            Self::LlamaRerank => Some(&rerank::LLAMA_RERANK),
        }
    }
}

/// What to do about a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    /// Stop, and go on when started again.
    #[default]
    Stop,
    /// Say so and go on.
    Warn,
}

fn yes() -> bool {
    true
}

fn one() -> u32 {
    1
}

fn four() -> usize {
    4
}

fn five() -> u32 {
    5
}

fn sixteen() -> usize {
    16
}

fn twenty() -> usize {
    20
}

fn half_a_minute() -> u64 {
    30
}

fn a_minute() -> u64 {
    60
}

fn nine_tenths() -> f64 {
    0.9
}

fn max_tokens() -> String {
    "max_tokens".to_owned()
}

/// The field of a recipe whose judgements are no labels.
pub(crate) const PROBE: &str = "probe";

/// A teacher, ready to be asked.
pub(crate) struct Teacher {
    pub(crate) dialect: Box<dyn Dialect>,
    pub(crate) replicas: Vec<Replica>,
    /// What its questions ask for.
    pub(crate) kind: Kind,
    /// What its answers are, if they are scores.
    pub(crate) scale: Option<Scale>,
    /// What determines its judgements besides the texts.
    pub(crate) recipe: Value,
    /// SHA-256 of the recipe.
    pub(crate) recipe_digest: [u8; 32],
}

impl Teacher {
    /// Checks the settings and prepares the clients; nothing is sent yet.
    ///
    /// # Errors
    /// A setting out of range, a malformed endpoint or one that a key or a text must not go to,
    /// a key that can't be fetched, a prompt that can't be read.
    pub(crate) fn new(settings: &LabelSettings) -> Result<Self> {
        let teacher = &settings.teacher;
        if let Some(problem) = check::out_of_range(settings) {
            return Err(Error::Setting(problem));
        }
        if let Some(problem) = check::problem(settings) {
            return Err(Error::Setting(format!("[teacher] {problem}")));
        }
        let redaction = settings.redaction.as_ref();
        if let Some(problem) = redaction.and_then(RedactionSettings::problem) {
            return Err(Error::Setting(format!("[redaction] {problem}")));
        }
        let key = Secret::fetch(&teacher.api_key)?.map(Arc::new);
        let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
        if let Some(key) = &key {
            headers.push(match (&teacher.api_key.header, teacher.dialect) {
                (Some(name), _) => (header(name)?, key.header("")?),
                (None, Wire::Anthropic) => (HeaderName::from_static("x-api-key"), key.header("")?),
                (None, _) => (AUTHORIZATION, key.header("Bearer ")?),
            });
        }
        if teacher.dialect == Wire::Anthropic {
            let (name, version) = anthropic::VERSION;
            headers.push((
                HeaderName::from_static(name),
                HeaderValue::from_static(version),
            ));
        }
        let count = teacher.endpoints.len();
        let replicas = teacher
            .endpoints
            .iter()
            .map(|endpoint| {
                let timeout = Duration::from_secs(teacher.timeout_seconds);
                let concurrency = teacher.concurrency.div_ceil(count);
                Replica::new(endpoint, headers.clone(), key.clone(), timeout, concurrency)
            })
            .collect::<Result<_>>()?;
        let (dialect, of_dialect) = dialect(settings)?;
        // What is here makes a judgement another judgement; where and how fast it is asked does
        // not.
        let mut recipe = json!({
            "dialect": teacher.dialect,
            "teacher": teacher.name,
            "model": teacher.model,
            "revision": teacher.revision,
            "extra": teacher.extra,
            "text_treatment": treatment::VERSION,
        });
        for (name, value) in of_dialect {
            recipe[name] = value;
        }
        if let Some(redaction) = redaction {
            recipe["redaction"] = redaction.recipe();
        }
        Ok(Self {
            dialect,
            replicas,
            kind: Kind::of(&recipe),
            scale: Scale::deserialize(&recipe["scale"]).ok(),
            recipe_digest: digest(&recipe),
            recipe,
        })
    }

    /// The highest grade that it gives.
    pub(crate) fn top_grade(&self) -> usize {
        let grades = self.recipe["grades"].as_u64().unwrap_or_default();
        usize::try_from(grades)
            .unwrap_or_default()
            .saturating_sub(1)
    }

    /// Whether it is asked for reasons.
    pub(crate) fn asks_why(&self) -> bool {
        !self.recipe["rationale"].is_null()
    }

    /// The same teacher, asked about texts that are no pairs of a collection: what it says is kept
    /// apart from what becomes labels.
    pub(crate) fn for_probe(mut self, version: u32) -> Self {
        self.recipe[PROBE] = version.into();
        self.recipe_digest = digest(&self.recipe);
        self
    }
}

fn header(name: &str) -> Result<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        Error::Setting(format!(
            "[teacher.api_key] header: {name:?} is no header's name, such as \"api-key\""
        ))
    })
}

fn digest(recipe: &Value) -> [u8; 32] {
    Sha256::digest(recipe.to_string()).into()
}

/// The wire format, and what of its settings determines a judgement.
fn dialect(settings: &LabelSettings) -> Result<(Box<dyn Dialect>, Map<String, Value>)> {
    let teacher = &settings.teacher;
    let (model, extra) = (teacher.model.clone(), teacher.extra.clone());
    if let Some(format) = teacher.dialect.reranker() {
        let prompt = settings.prompt.as_ref().map(|path| Prompt::read(path));
        if let Some(Ok(Prompt {
            rationale: Some(_), ..
        })) = prompt
        {
            return Err(Error::Setting(
                "prompt: `rationale` is for teachers that write, and a reranker gives scores: \
                 leave `prompt` out"
                    .to_owned(),
            ));
        }
        let scale = teacher.scale.unwrap_or(format.scale);
        let of_dialect = json!({"kind": "score", "scale": scale, "grades": 2});
        let dialect = Rerank {
            format,
            model,
            scale,
            documents_per_request: teacher.documents_per_request,
            extra,
        };
        return Ok((Box::new(dialect), fields(of_dialect)));
    }
    let path = settings
        .prompt
        .as_ref()
        .ok_or_else(|| Error::Setting("prompt: a language model needs a prompt file".to_owned()))?;
    let prompt = Prompt::read(path).map_err(|error| error.of_setting("prompt"))?;
    if let Some(problem) = check::prompt_problem(teacher, &prompt) {
        return Err(Error::Setting(format!("[teacher] {problem}")));
    }
    let mut of_dialect = fields(json!({
        "kind": prompt.kind,
        "prompt": prompt.digest,
        // What comparisons and orders come to is sealed as the probability of the upper of two.
        "grades": if prompt.kind == Kind::Listwise { 2 } else { prompt.answers.len() },
    }));
    if let Some(Rationale { place, tokens }) = prompt.rationale {
        of_dialect.insert("rationale".into(), json!(place));
        of_dialect.insert("rationale_tokens".into(), tokens.into());
    }
    if teacher.dialect != Wire::GenerativeScoring {
        of_dialect.insert("log_probabilities".into(), teacher.log_probabilities.into());
        of_dialect.insert("temperature".into(), teacher.temperature.into());
    }
    let temperature = teacher.temperature;
    let dialect: Box<dyn Dialect> = match teacher.dialect {
        Wire::GenerativeScoring => Box::new(Generative {
            prompt,
            model,
            documents_per_request: teacher.documents_per_request,
            extra,
            server: None,
        }),
        Wire::Anthropic => Box::new(Anthropic {
            prompt,
            model,
            temperature,
            extra,
        }),
        _ => Box::new(Chat {
            prompt,
            model,
            log_probabilities: teacher.log_probabilities,
            temperature,
            limit_field: teacher.limit_field.clone(),
            least_mass: teacher.least_mass,
            extra,
        }),
    };
    Ok((dialect, of_dialect))
}

fn fields(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
