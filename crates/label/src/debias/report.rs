//! A correction as a person reads it.

use std::fmt;

use super::{Debiased, Worth};
use crate::Estimate;

impl fmt::Display for Debiased {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            rows,
            method,
            queries,
            pairs,
            folds,
            change,
            ..
        } = self;
        writeln!(
            f,
            "{rows} labels corrected by {method}, fitted to {pairs} of {queries} gold queries\n\n\
             on queries that it was not fitted to ({folds} folds):"
        )?;
        let mut columns = vec![("before".to_owned(), &self.before)];
        let after = self.after.iter();
        columns.extend(after.map(|(method, worth)| (method.to_string(), worth)));
        let row = |f: &mut fmt::Formatter, name: &str, cell: &dyn Fn(&str, &Worth) -> String| {
            let cells = columns.iter().map(|(column, worth)| cell(column, worth));
            let cells: Vec<String> = cells.map(|cell| format!("  {cell:<23}")).collect();
            writeln!(f, "{name:<20}{}", cells.concat().trim_end())
        };
        row(f, "", &|column, _| column.to_owned())?;
        row(f, "AUC in a query", &|_, worth| in_words(worth.auc))?;
        row(f, "nDCG@10 of labelled", &|_, worth| in_words(worth.ndcg))?;
        row(f, "calibration error", &|_, worth| {
            in_words(worth.calibration_error)
        })?;
        writeln!(f, "label above gold, by its correlation with")?;
        for name in super::features::NAMES {
            row(
                f,
                &format!("  {name}"),
                &|_, worth| match worth.over_rated_with.get(name) {
                    Some(Some(correlation)) => format!("{correlation:+.3}"),
                    _ => "no value".to_owned(),
                },
            )?;
        }
        write!(
            f,
            "\n{method} after minus before: AUC {}, nDCG@10 {}, calibration error {}",
            signed(change.auc),
            signed(change.ndcg),
            signed(change.calibration_error)
        )
    }
}

fn in_words(estimate: Option<Estimate>) -> String {
    match estimate {
        Some(Estimate { value, low, high }) => format!("{value:.4} ({low:.4}–{high:.4})"),
        None => "no value".to_owned(),
    }
}

fn signed(estimate: Option<Estimate>) -> String {
    match estimate {
        Some(Estimate { value, low, high }) => format!("{value:+.4} ({low:+.4} to {high:+.4})"),
        None => "no value".to_owned(),
    }
}
