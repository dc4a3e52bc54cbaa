//! What a run learns from and is measured on, all read before the first step.

use retort_data::collection::Collection;
use retort_model::{Encoded, ModelConfig, PairTokenizer};

use crate::dataset::Dataset;
use crate::evaluation::Evaluation;
use crate::sentinels::data::{leak, plain};
use crate::settings::TrainSettings;
use crate::train::Run;
use crate::verdict;
use crate::warning::Warning;
use crate::{Error, Result};

/// Tokenised, and ready to be learnt from and ranked.
pub(crate) struct Material {
    pub(crate) collection: Collection,
    pub(crate) dataset: Dataset,
    pub(crate) dev: Evaluation,
    pub(crate) dev_pairs: Vec<Encoded>,
    pub(crate) test: verdict::Subject,
}

impl Material {
    pub(crate) fn read(run: &Run) -> Result<Self> {
        let TrainSettings {
            data,
            evaluation,
            verdict,
            ..
        } = run.settings;
        let collection = Collection::read(&data.collection)?;
        let tokenizer = tokenizer(run)?;
        let dev = Evaluation::read(&collection, &evaluation.split, &evaluation.candidates)?;
        let test = verdict::Subject::read(verdict, &collection, &tokenizer)?;
        let unseen = dev.queries.iter().chain(test.queries());
        let unseen = unseen.map(|query| plain(&query.text)).collect();
        Ok(Self {
            dataset: Dataset::read(run.settings, &collection, &tokenizer, &unseen)?,
            dev_pairs: dev.encode(&collection, &tokenizer, &evaluation.candidates)?,
            dev,
            test,
            collection,
        })
    }

    /// What is probably wrong with it.
    pub(crate) fn warnings(&self, settings: &TrainSettings) -> Vec<Warning> {
        let leaked = &self.dataset.leaked;
        let (dev, test) = (&settings.evaluation, &settings.verdict);
        let of_dev = leak(&dev.split, &self.dev.queries, leaked);
        // Dev and test may be one.
        let is_other = (&dev.split, &dev.candidates) != (&test.split, &test.candidates);
        let of_test = leak(&test.split, self.test.queries(), leaked).filter(|_| is_other);
        let warnings = [of_dev, of_test, self.dataset.warning.clone()];
        warnings.into_iter().flatten().collect()
    }
}

/// The base model's tokenizer, cutting at a length that the model can read.
pub(crate) fn tokenizer(run: &Run) -> Result<PairTokenizer> {
    let max_tokens = run.settings.data.max_tokens;
    let positions = ModelConfig::read(run.base)?.max_tokens();
    if max_tokens > positions {
        return Err(Error::Setting {
            key: "data.max_tokens",
            problem: format!("is {max_tokens}, but the base model has {positions} positions"),
        });
    }
    Ok(PairTokenizer::open(run.base, max_tokens)?)
}
