//! What is told to a user whose training goes wrong in silence: the cause, and a way out.

use std::fmt;

/// Something that is probably wrong. Training goes on.
#[derive(Clone, Debug, PartialEq)]
pub enum Warning {
    /// The student tells the documents of a query apart no more.
    Collapsed {
        /// Steps made.
        step: usize,
        /// The standard deviation of a query's scores.
        spread: f64,
        /// That of the teacher's.
        teacher: f64,
    },
    /// The loss stays where one score for all documents would leave it.
    Stuck {
        /// Steps made.
        step: usize,
        /// The mean over the last steps.
        loss: f64,
        /// What one score for all would cost.
        constant: f64,
    },
    /// The dev measure falls while the loss does.
    Overfitting {
        /// Steps made.
        step: usize,
        /// The dev measures, the last one last.
        ndcg: Vec<f64>,
    },
    /// The process takes ever more memory.
    Memory {
        /// Steps made.
        step: usize,
        /// Bytes that it had, some hundred steps ago.
        before: u64,
        /// Bytes that it has.
        now: u64,
    },
    /// No evaluation was better than that of the model before the first step.
    NoBetter {
        /// Steps made.
        step: usize,
        /// Dev queries.
        queries: usize,
        /// The measure before the first step.
        ndcg: f64,
    },
    /// Queries of an evaluation are learnt from.
    Leak {
        /// The evaluation's split.
        split: String,
        /// The queries' ids there.
        queries: Vec<String>,
        /// Queries of the evaluation.
        of: usize,
    },
    /// What reads the same to the student is relevant by one label and not by another.
    Contradiction {
        /// How often.
        count: usize,
        /// A query, and the documents with the lowest and the highest label.
        example: [String; 3],
        /// The labels, as shares of the top grade.
        labels: [f64; 2],
    },
}

/// How many ids a warning names.
const NAMED: usize = 3;
const MEBIBYTE: u64 = 1 << 20;

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Collapsed {
                step,
                spread,
                teacher,
            } => write!(
                f,
                "step {step}: collapsed scores: those of a query differ by {spread:.1e} \
                 (standard deviation), the teacher's by {teacher:.1e}. Resume from a checkpoint before \
                 it, or start anew, with a lower optimizer.learning_rate or a longer schedule.warmup"
            ),
            Self::Stuck {
                step,
                loss,
                constant,
            } => write!(
                f,
                "step {step}: nothing is learnt: the loss stays at {loss:.4}, and one score for all \
                 documents would cost {constant:.4}. Raise optimizer.learning_rate; if that does not \
                 help, hold the labels against gold gains (`retort labels audit`)"
            ),
            Self::Overfitting { step, ndcg } => {
                let falls: Vec<String> = ndcg.iter().map(|ndcg| format!("{ndcg:.4}")).collect();
                write!(
                    f,
                    "step {step}: learning by heart: dev nDCG@10 falls ({}) while the loss does. The \
                     best checkpoint is kept: end here (evaluation.patience), or begin with fewer \
                     schedule.epochs, more queries, or some model.dropout",
                    falls.join(", ")
                )
            }
            Self::Memory { step, before, now } => write!(
                f,
                "step {step}: memory grows: {} MiB where it was {} MiB, and rising. Should it run out, \
                 `retort train --resume` goes on from the last checkpoint; this is a fault worth reporting",
                now / MEBIBYTE,
                before / MEBIBYTE
            ),
            Self::NoBetter {
                step,
                queries,
                ndcg,
            } => write!(
                f,
                "step {step}: no checkpoint is better on dev than the model before the first step \
                 (nDCG@10 {ndcg:.4} of {queries} queries), so that one is kept and exported. If dev \
                 is too small to tell, give evaluation.candidates more queries and documents; else the \
                 labels contradict dev's gains (`retort labels audit`)"
            ),
            Self::Leak { split, queries, of } => write!(
                f,
                "leak: {} of the {of} queries of {split} are learnt from as well ({}), so what is \
                 measured on them was learnt by heart. Leave them out of the labels, or of that \
                 evaluation's candidates",
                queries.len(),
                some(queries)
            ),
            Self::Contradiction {
                count,
                example: [query, low, high],
                labels: [lowest, highest],
            } => write!(
                f,
                "contradicting labels: {count} texts are relevant by one label and not by another, \
                 such as, for query {query}, document {low} ({lowest:.2} of the top grade) and {high} \
                 ({highest:.2}), which read the same up to data.max_tokens. Leave the duplicates out \
                 of the collection, judge them again, or raise data.max_tokens"
            ),
        }
    }
}

/// A few of them.
fn some(ids: &[String]) -> String {
    let named = ids[..ids.len().min(NAMED)].join(", ");
    if ids.len() > NAMED {
        named + ", …"
    } else {
        named
    }
}
