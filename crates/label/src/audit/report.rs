//! An audit as a person reads it.

use std::fmt;

use retort_data::agreement::BINS;

use super::{Agreement, Audit, CalibrationBin, Estimate, KappaOf, Mass};

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            labels,
            queries,
            likeliest,
            mass,
            agreement,
        } = self;
        writeln!(f, "{labels} labels of {queries} queries")?;
        let counts: Vec<String> = (likeliest.iter().enumerate())
            .map(|(grade, count)| format!("{count} of {grade}"))
            .collect();
        writeln!(f, "likeliest grades: {}", counts.join(", "))?;
        let Mass {
            least,
            first_percentile,
            median,
        } = mass;
        write!(
            f,
            "mass on the grades: {least:.4} at least, 1 % below {first_percentile:.4}, half below \
             {median:.4}"
        )?;
        match agreement {
            Some(agreement) => write!(f, "\n\n{agreement}"),
            None => write!(f, "\nno gold gains for these queries"),
        }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            pairs,
            queries,
            unlisted,
            skipped,
            relevant_grade,
            relevant_gain,
            ..
        } = self;
        writeln!(
            f,
            "against gold: {pairs} pairs of {queries} queries; {unlisted} unlisted pairs taken for \
             gain 0, {skipped} left out\n\
             relevant: grades from {relevant_grade}, gains from {relevant_gain}"
        )?;
        writeln!(f, "{:<20} {:<25} likeliest grade", "", "expected grade")?;
        let rows = [
            ("AUC in a query", self.soft.auc, self.hard.auc),
            (
                "AUC over all pairs",
                self.soft.auc_pooled,
                self.hard.auc_pooled,
            ),
            ("pairs in order", self.soft.pair_order, self.hard.pair_order),
            ("nDCG@10 of labelled", self.soft.ndcg, self.hard.ndcg),
            ("Kendall's τ-b", self.soft.tau, self.hard.tau),
        ];
        for (name, soft, hard) in rows {
            let (soft, hard) = (in_words(soft), in_words(hard));
            writeln!(f, "{name:<20} {soft:<25} {hard}")?;
        }
        let kappa_of = match self.kappa_of {
            KappaOf::Grades => "κ of grade and gain",
            KappaOf::Binarised => "κ of relevant or not",
        };
        writeln!(f, "{kappa_of:<20} {:<25} {}", "", in_words(self.kappa))?;
        let error = in_words(self.calibration.error);
        writeln!(f, "\ncalibration error of P(relevant): {error}")?;
        write!(f, "{:<12} {:>7}  mean P  relevant", "P(relevant)", "pairs")?;
        for bin in &self.calibration.bins {
            let CalibrationBin {
                from,
                pairs,
                said,
                relevant,
            } = bin;
            let to = from + 1.0 / BINS as f64;
            let bounds = format!("{from:.1}–{to:.1}");
            write!(f, "\n{bounds:<12} {pairs:>7}  {said:.4}    {relevant:.4}")?;
        }
        Ok(())
    }
}

fn in_words(estimate: Option<Estimate>) -> String {
    match estimate {
        Some(Estimate { value, low, high }) => format!("{value:.4} ({low:.4}–{high:.4})"),
        None => "no value".to_owned(),
    }
}
