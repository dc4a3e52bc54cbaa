//! Sentinels: they watch numbers that are there anyway for training that goes wrong in silence. Each
//! speaks once, and leaves the weights alone.

pub(crate) mod data;

use std::collections::VecDeque;

use crate::event::StepReport;
use crate::warning::Warning;

/// Those that watch steps and evaluations.
#[derive(Default)]
pub(crate) struct Sentinels {
    collapse: Collapse,
    stagnation: Stagnation,
    overfitting: Overfitting,
    memory: Memory,
}

impl Sentinels {
    /// After a step; `resident` is how many bytes of memory the process has, if that is known.
    pub(crate) fn step(&mut self, made: &StepReport, resident: Option<u64>) -> Vec<Warning> {
        self.overfitting.losses.push(made.loss);
        let warnings = [
            self.collapse.step(made),
            self.stagnation.step(made),
            resident.and_then(|bytes| self.memory.step(made.step, bytes)),
        ];
        warnings.into_iter().flatten().collect()
    }

    /// After an evaluation.
    pub(crate) fn evaluation(&mut self, step: usize, ndcg: f64) -> Option<Warning> {
        self.overfitting.evaluation(step, ndcg)
    }
}

/// Scores of a query that hardly differ, where the teacher's do.
#[derive(Default)]
struct Collapse {
    /// Steps in a row.
    steps: usize,
}

impl Collapse {
    const STEPS: usize = 20;
    /// Of the teacher's spread. A head that was just drawn has some hundredths of it.
    const SHARE: f64 = 1e-3;

    fn step(&mut self, made: &StepReport) -> Option<Warning> {
        let is_flat = made.spread < Self::SHARE * made.teacher_spread;
        self.steps = if is_flat { self.steps + 1 } else { 0 };
        (self.steps == Self::STEPS).then_some(Warning::Collapsed {
            step: made.step,
            spread: made.spread,
            teacher: made.teacher_spread,
        })
    }
}

/// A loss that stays at a constant's.
#[derive(Default)]
struct Stagnation {
    /// Of the last steps after the peak of the learning rate: the loss, that of one score for all
    /// documents, and that of the teacher's own scores.
    last: VecDeque<[f64; 3]>,
    peak: f64,
    has_spoken: bool,
}

impl Stagnation {
    const STEPS: usize = 100;
    /// Of the way from a constant to the teacher: less is nothing.
    const SHARE: f64 = 0.02;

    fn step(&mut self, made: &StepReport) -> Option<Warning> {
        if made.learning_rate > self.peak {
            // Warming up.
            self.peak = made.learning_rate;
            self.last.clear();
        }
        self.last
            .push_back([made.loss, made.constant_loss, made.teacher_loss]);
        if self.last.len() > Self::STEPS {
            self.last.pop_front();
        }
        if self.has_spoken || self.last.len() < Self::STEPS {
            return None;
        }
        let mean = |which: usize| {
            let sum: f64 = self.last.iter().map(|losses| losses[which]).sum();
            sum / self.last.len() as f64
        };
        let [loss, constant, teacher] = [0, 1, 2].map(mean);
        let way = constant - teacher;
        // Where the teacher tells nothing apart, a constant is all there is to learn.
        self.has_spoken = way > 1e-3 * constant.abs() && constant - loss < Self::SHARE * way;
        self.has_spoken.then_some(Warning::Stuck {
            step: made.step,
            loss,
            constant,
        })
    }
}

/// A dev measure that falls while the loss does.
#[derive(Default)]
struct Overfitting {
    /// Since the last evaluation.
    losses: Vec<f64>,
    /// Of each evaluation in a row of falls: its measure, and the mean loss before it.
    falls: Vec<(f64, f64)>,
    has_spoken: bool,
}

impl Overfitting {
    const FALLS: usize = 3;
    /// From the first to the last: less is noise.
    const LEAST: f64 = 0.01;

    fn evaluation(&mut self, step: usize, ndcg: f64) -> Option<Warning> {
        if self.losses.is_empty() {
            // Before the first step, and there is no loss to compare with.
            return None;
        }
        let loss = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        self.losses.clear();
        let falls = |(before, loss_before): &(f64, f64)| ndcg < *before && loss < *loss_before;
        if !self.falls.last().is_some_and(falls) {
            self.falls.clear();
        }
        self.falls.push((ndcg, loss));
        let (highest, _) = self.falls[0];
        if self.has_spoken || self.falls.len() <= Self::FALLS || highest - ndcg < Self::LEAST {
            return None;
        }
        self.has_spoken = true;
        let ndcg = self.falls.iter().map(|(ndcg, _)| *ndcg).collect();
        Some(Warning::Overfitting { step, ndcg })
    }
}

/// Memory that grows and grows. What a step takes varies with the lengths of its texts; the least
/// that a window of steps took does not.
#[derive(Default)]
struct Memory {
    /// Steps of this window, and the least in them.
    window: Option<(usize, u64)>,
    /// The least of each window that was above the one before it.
    rises: Vec<u64>,
    has_spoken: bool,
}

impl Memory {
    const WINDOW: usize = 50;
    const RISES: usize = 5;
    /// Over the window before: less may be a cache that fills.
    const LEAST: f64 = 0.01;

    fn step(&mut self, step: usize, bytes: u64) -> Option<Warning> {
        let (steps, least) = self.window.take().unwrap_or((0, u64::MAX));
        let (steps, least) = (steps + 1, least.min(bytes));
        if steps < Self::WINDOW {
            self.window = Some((steps, least));
            return None;
        }
        let rises = |before: &u64| least as f64 > *before as f64 * (1.0 + Self::LEAST);
        if !self.rises.last().is_some_and(rises) {
            self.rises.clear();
        }
        self.rises.push(least);
        if self.has_spoken || self.rises.len() <= Self::RISES {
            return None;
        }
        self.has_spoken = true;
        Some(Warning::Memory {
            step,
            before: self.rises[0],
            now: least,
        })
    }
}

/// How much of this machine's memory the process has; `None` where no file says so.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Step after step of a run that learns: the loss falls from a constant's towards the teacher's.
    fn healthy(step: usize) -> StepReport {
        let noise = (step * 7 % 11) as f64 / 50.0;
        StepReport {
            step,
            steps: 1000,
            loss: 0.2 + 1.3 / (1.0 + step as f64 / 30.0) + noise,
            constant_loss: 1.5 + noise,
            teacher_loss: 0.1,
            spread: 0.02 + step as f64 / 100.0,
            teacher_spread: 1.5,
            learning_rate: 1e-4 * (step as f64 / 20.0).min(1.0),
            gradient_norm: 1.0,
            loss_scale: None,
            skipped: false,
            pairs: 40,
            seconds: 1.0,
            padding: 0.1,
        }
    }

    /// What is said of so many steps, with an evaluation after each 50th.
    fn watch(
        made: impl Fn(StepReport) -> StepReport,
        ndcg: impl Fn(usize) -> f64,
        resident: impl Fn(usize) -> u64,
    ) -> Vec<Warning> {
        let mut sentinels = Sentinels::default();
        let mut said = Vec::new();
        said.extend(sentinels.evaluation(0, ndcg(0)));
        for step in 1..=600 {
            said.extend(sentinels.step(&made(healthy(step)), Some(resident(step))));
            if step.is_multiple_of(50) {
                said.extend(sentinels.evaluation(step, ndcg(step)));
            }
        }
        said
    }

    fn rising(step: usize) -> f64 {
        // With a dip now and then.
        0.6 + step as f64 / 10_000.0 - if step.is_multiple_of(150) { 0.02 } else { 0.0 }
    }

    fn level(step: usize) -> u64 {
        500 * (1 << 20) + (step as u64 * 7_919 % 101) * (1 << 20)
    }

    #[test]
    fn a_run_that_learns_hears_nothing() {
        assert_eq!(watch(|made| made, rising, level), []);
    }

    #[test]
    fn collapsed_scores_are_told() {
        let flat = |made: StepReport| StepReport {
            spread: if made.step > 200 { 1e-6 } else { made.spread },
            ..made
        };
        let said = watch(flat, rising, level);
        assert!(
            matches!(said[..], [Warning::Collapsed { step: 220, .. }]),
            "{said:?}"
        );
        // Where the teacher tells nothing apart, neither need the student.
        let both = |made: StepReport| StepReport {
            spread: 0.0,
            teacher_spread: 0.0,
            ..made
        };
        assert_eq!(watch(both, rising, level), []);
    }

    #[test]
    fn a_loss_that_stays_at_a_constants_is_told() {
        let stuck = |made: StepReport| StepReport {
            loss: made.constant_loss * 0.999,
            ..made
        };
        let said = watch(stuck, rising, level);
        // A hundred steps from the peak of the learning rate on.
        assert!(
            matches!(said[..], [Warning::Stuck { step: 119, .. }]),
            "{said:?}"
        );
        let nothing_to_learn = |made: StepReport| StepReport {
            loss: made.constant_loss,
            teacher_loss: made.constant_loss,
            ..made
        };
        assert_eq!(watch(nothing_to_learn, rising, level), []);
    }

    #[test]
    fn a_dev_measure_that_falls_while_the_loss_does_is_told() {
        let peaked = |step: usize| 0.7 - (step as f64 - 200.0).abs() / 5000.0;
        let said = watch(|made| made, peaked, level);
        let expected = [0.7, 0.69, 0.68, 0.67];
        let [Warning::Overfitting { step: 350, ndcg }] = &said[..] else {
            panic!("{said:?}");
        };
        assert!(ndcg.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9));
        // Both get worse: the learning rate's fault, not the data's.
        let diverging = |made: StepReport| StepReport {
            loss: made.step as f64,
            ..made
        };
        let said = watch(diverging, peaked, level);
        assert!(
            !said
                .iter()
                .any(|w| matches!(w, Warning::Overfitting { .. }))
        );
    }

    #[test]
    fn memory_that_grows_and_grows_is_told() {
        let leaking = |step: usize| level(step) + step as u64 * (1 << 18);
        let said = watch(|made| made, rising, leaking);
        assert!(matches!(said[..], [Warning::Memory { .. }]), "{said:?}");
        let filling = |step: usize| level(step) + (step.min(150) as u64) * (1 << 20);
        assert_eq!(watch(|made| made, rising, filling), []);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_known() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
