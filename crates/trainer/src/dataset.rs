//! Judgements as training examples: tokenised pairs with what a student is to learn of each, grouped
//! by query. They are made once and lie on disk; a step reads those that it is made of.

mod source;
mod store;

use std::collections::BTreeSet;
use std::ops::Range;

use retort_data::collection::Collection;
use retort_data::label_set;
use retort_model::{Encoded, PairTokenizer, Student};

use crate::loss::Target;
use crate::sentinels::data::{Contradictions, plain};
use crate::warning::Warning;
use crate::{Error, Result, TrainSettings};

use source::Judgement;
pub(crate) use source::count_queries;
use store::{Store, Writer};

/// All examples of a run.
pub(crate) struct Dataset {
    store: Store,
    parts: Vec<Part>,
    /// The longest pair and those with the highest ids.
    extremes: Vec<Encoded>,
    /// Which of the texts that are not to be learnt from are, without case and spaces.
    pub(crate) leaked: BTreeSet<String>,
    /// What is probably wrong with the labels.
    pub(crate) warning: Option<Warning>,
}

/// What was judged of one pair.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Example {
    pub(crate) pair: Encoded,
    pub(crate) target: Target,
}

/// The queries of one label set, or of the gold gains.
pub(crate) struct Part {
    /// Their numbers.
    pub(crate) queries: Range<usize>,
    /// How much of it an epoch has.
    pub(crate) share: f64,
}

/// Pairs that are tokenised at a time.
const PAIRS_AT_A_TIME: usize = 4096;

impl Dataset {
    /// Reads what the settings name and tokenises what was judged. `unseen` are texts that should not
    /// be learnt from.
    ///
    /// # Errors
    /// A bad label set, one of fewer queries than are to be learned from, a label about a text that
    /// has changed since, or a tokenizer that refuses.
    pub(crate) fn read(
        settings: &TrainSettings,
        collection: &Collection,
        tokenizer: &PairTokenizer,
        unseen: &BTreeSet<String>,
    ) -> Result<Self> {
        let (data, uncertainty) = (&settings.data, settings.loss.uncertainty);
        let mut making = Making::new(tokenizer, unseen)?;
        let mut sets = Vec::new();
        let mut parts = Vec::new();
        for (folder, share) in data.label_sets() {
            let sealed = label_set::open(folder)?;
            let kept = match data.queries {
                Some(count) if sets.is_empty() => {
                    Some(source::drawn(&sealed, count, settings.seed)?)
                }
                _ => None,
            };
            let judgements = source::of_labels(folder, &sealed, kept, uncertainty, collection);
            let queries = making.add(judgements)?;
            parts.push(Part { queries, share });
            sets.push(sealed);
        }
        if let Some(gold) = &data.gold {
            let judgements = source::of_gold(gold, &sets, collection)?;
            parts.push(Part {
                queries: making.add(judgements)?,
                share: gold.share,
            });
        }
        if !making.has_order && !settings.loss.judges_alone() {
            return Err(Error::Setting {
                key: "loss",
                problem:
                    "compares documents of a query, and of no query were two judged differently, \
                          so there is nothing to learn: judge more documents of a query, or give \
                          loss.bce a weight"
                        .to_owned(),
            });
        }
        making.finish(parts)
    }

    /// What there is of it.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Queries in all; one that several label sets have counts for each.
    pub(crate) fn queries(&self) -> usize {
        self.store.queries()
    }

    /// How many examples a query has.
    pub(crate) fn examples(&self, query: usize) -> usize {
        self.store.examples(query)
    }

    /// The id of a query, and its examples.
    ///
    /// # Errors
    /// A disk that fails.
    pub(crate) fn query(&self, query: usize) -> Result<(String, Vec<Example>)> {
        self.store.read(query)
    }

    /// Whether a model can read all pairs.
    ///
    /// # Errors
    /// When they are too long, or a token is none of the model's.
    pub(crate) fn check(&self, student: &Student) -> Result<()> {
        Ok(student.check(&self.extremes)?)
    }

    /// Queries as they are.
    #[cfg(test)]
    pub(crate) fn of_tests(queries: &[(String, Vec<Example>)], parts: Vec<Part>) -> Self {
        let mut writer = Writer::new().unwrap();
        for (id, examples) in queries {
            writer.write(id, examples).unwrap();
        }
        Self {
            store: writer.finish().unwrap(),
            parts,
            extremes: Vec::new(),
            leaked: BTreeSet::new(),
            warning: None,
        }
    }
}

/// A dataset in the making.
struct Making<'a> {
    tokenizer: &'a PairTokenizer,
    unseen: &'a BTreeSet<String>,
    writer: Writer,
    /// Whole queries that are not tokenised yet.
    waiting: Vec<Judgement>,
    extremes: [Encoded; 3],
    leaked: BTreeSet<String>,
    contradictions: Contradictions,
    /// Whether any query has documents that were judged differently.
    has_order: bool,
}

impl<'a> Making<'a> {
    fn new(tokenizer: &'a PairTokenizer, unseen: &'a BTreeSet<String>) -> Result<Self> {
        let nothing = || Encoded {
            input_ids: Vec::new(),
            token_type_ids: Vec::new(),
        };
        Ok(Self {
            tokenizer,
            unseen,
            writer: Writer::new()?,
            waiting: Vec::new(),
            extremes: [nothing(), nothing(), nothing()],
            leaked: BTreeSet::new(),
            contradictions: Contradictions::default(),
            has_order: false,
        })
    }

    /// Adds judgements that come query by query; gives back the numbers of the queries.
    fn add(&mut self, judgements: impl Iterator<Item = Result<Judgement>>) -> Result<Range<usize>> {
        let first = self.writer.queries();
        for judgement in judgements {
            let judgement = judgement?;
            let is_next = |last: &Judgement| last.query.id != judgement.query.id;
            if self.waiting.len() >= PAIRS_AT_A_TIME && self.waiting.last().is_some_and(is_next) {
                self.write()?;
            }
            self.waiting.push(judgement);
        }
        self.write()?;
        Ok(first..self.writer.queries())
    }

    fn write(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let documents: Vec<String> = (waiting.iter().map(|it| it.document.full_text())).collect();
        let texts = waiting.iter().zip(&documents);
        let pairs: Vec<(&str, &str)> = texts.map(|(it, text)| (&*it.query.text, &**text)).collect();
        let mut pairs = self.tokenizer.encode_pairs(&pairs)?.into_iter();
        for judgements in waiting.chunk_by(|a, b| a.query.id == b.query.id) {
            let query = &judgements[0].query;
            let text = plain(&query.text);
            if self.unseen.contains(&text) {
                self.leaked.insert(text);
            }
            let examples: Vec<Example> = (judgements.iter().zip(&mut pairs))
                .map(|(judgement, pair)| Example {
                    pair,
                    target: judgement.target,
                })
                .collect();
            let of_first = judgements[0].target.logit;
            let mut targets = judgements.iter().map(|it| it.target.logit);
            self.has_order |= targets.any(|logit| logit.total_cmp(&of_first).is_ne());
            let shares = judgements.iter().map(|it| (&*it.document.id, it.share));
            let read = examples.iter().map(|example| &*example.pair.input_ids);
            self.contradictions.of_query(&query.id, shares.zip(read));
            for Example { pair, .. } in &examples {
                let measures: [fn(&Encoded) -> usize; 3] = [
                    Encoded::len,
                    |pair| pair.input_ids.iter().copied().max().unwrap_or(0) as usize,
                    |pair| pair.token_type_ids.iter().copied().max().unwrap_or(0) as usize,
                ];
                for (extreme, measure) in self.extremes.iter_mut().zip(measures) {
                    if measure(pair) > measure(extreme) {
                        *extreme = pair.clone();
                    }
                }
            }
            self.writer.write(&query.id, &examples)?;
        }
        Ok(())
    }

    fn finish(self, parts: Vec<Part>) -> Result<Dataset> {
        Ok(Dataset {
            store: self.writer.finish()?,
            parts,
            extremes: self.extremes.into(),
            leaked: self.leaked,
            warning: self.contradictions.warning(),
        })
    }
}
