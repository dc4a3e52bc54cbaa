//! What an audit counts as relevant, and what it asks for.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What an audit counts as relevant and what it asks of a teacher (`[audit]` of
/// `configs/audit.toml`).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSettings {
    /// The least grade that counts as relevant; without it, the upper half of the scale does.
    pub relevant_grade: Option<usize>,
    /// The least gold gain that counts as relevant; without it, the gain that lies where
    /// `relevant_grade` lies on its scale.
    pub relevant_gain: Option<u8>,
    /// What to take a pair for that the qrels do not list.
    pub unlisted: Unlisted,
    /// The least κ of the hard label.
    pub least_kappa: Option<f64>,
    /// The least AUC within queries of the soft label.
    pub least_auc: Option<f64>,
    /// The least share of pairs that the soft label has in the right order.
    pub least_pair_order: Option<f64>,
    /// The largest share of irrelevant documents that may turn relevant by a change that makes none
    /// of them more relevant ([`crate::probe`]).
    pub most_label_flip: f64,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            relevant_grade: None,
            relevant_gain: None,
            unlisted: Unlisted::Zero,
            least_kappa: None,
            least_auc: None,
            least_pair_order: None,
            most_label_flip: 0.1,
        }
    }
}

/// What a pair is that the qrels do not list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlisted {
    /// Of gain 0, as the format says.
    Zero,
    /// Unknown: qrels pooled from a few systems list what was judged, and no more.
    Skip,
}

/// The file that holds [`AuditSettings`].
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFile {
    /// The settings.
    #[serde(default)]
    pub audit: AuditSettings,
}

impl AuditSettings {
    /// The least grade that counts as relevant on a scale from 0 to `top_grade`.
    ///
    /// # Errors
    /// A setting out of range.
    pub(crate) fn relevant_grade(&self, top_grade: usize) -> Result<usize> {
        let shares = [
            ("least_auc", self.least_auc),
            ("least_pair_order", self.least_pair_order),
            ("most_label_flip", Some(self.most_label_flip)),
        ];
        for (name, share) in shares {
            if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
                return Err(Error::Setting(format!(
                    "[audit] {name} must be from 0 to 1"
                )));
            }
        }
        if (self.least_kappa).is_some_and(|kappa| !(-1.0..=1.0).contains(&kappa)) {
            let problem = "[audit] least_kappa must be from -1 to 1";
            return Err(Error::Setting(problem.to_owned()));
        }
        match self.relevant_grade {
            None => Ok(top_grade / 2 + 1),
            Some(grade) if (1..=top_grade).contains(&grade) => Ok(grade),
            Some(grade) => Err(Error::Setting(format!(
                "[audit] relevant_grade is {grade}, expected one from 1 to {top_grade}, the top of \
                 the labels' scale"
            ))),
        }
    }
}
