//! What a run tells of itself.

use std::path::PathBuf;

use crate::verdict::Verdict;
use crate::warning::Warning;

/// What happens while a run goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// A stage begins.
    Stage(&'a str),
    /// A step was made.
    Step(StepReport),
    /// The dev queries were ranked.
    Evaluated {
        /// Steps made before.
        step: usize,
        /// Mean over the dev queries.
        ndcg: f64,
        /// Whether it is the best so far.
        best: bool,
    },
    /// Something is probably wrong.
    Warning(&'a Warning),
    /// Training ends before its last step: `[evaluation] patience` is at an end.
    Stopped {
        /// Steps made.
        step: usize,
        /// Evaluations since the best.
        since_best: usize,
    },
}

/// How a step went.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Steps made, this one included.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The loss before the update.
    pub loss: f64,
    /// What one score for all documents would have cost: the loss of a student that knows nothing.
    pub constant_loss: f64,
    /// What the teacher's own scores would have cost.
    pub teacher_loss: f64,
    /// The standard deviation of the scores of a query, in the mean over the step's.
    pub spread: f64,
    /// The same of the teacher's scores.
    pub teacher_spread: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// What the loss was multiplied with before the way back, where half precision takes that.
    pub loss_scale: Option<f64>,
    /// Whether the gradient overflowed, so that nothing was updated and the scale is halved.
    pub skipped: bool,
    /// Pairs in the step.
    pub pairs: usize,
    /// What it took by the wall clock: since the step before, or the evaluation after that.
    pub seconds: f64,
    /// The share of padding in what was computed.
    pub padding: f64,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// What the student is worth.
    pub verdict: Verdict,
    /// Steps that were made.
    pub steps: usize,
    /// The best dev nDCG@10.
    pub dev_ndcg: f64,
    /// The checkpoint it belongs to.
    pub model: PathBuf,
}
