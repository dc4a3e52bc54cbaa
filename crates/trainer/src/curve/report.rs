//! A curve as a person reads it.

use std::fmt;

use super::{Curve, Interval};

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            split,
            test_queries,
            seeds,
            points,
            teacher,
            ..
        } = self;
        writeln!(
            f,
            "{split}: {test_queries} queries; students a point: {}",
            seeds.len()
        )?;
        writeln!(
            f,
            "{:<16} nDCG@10   95 % interval    minus teacher   95 % interval",
            "labelled queries"
        )?;
        for point in points {
            write!(f, "{:<16} {}", point.queries, plain(&point.ndcg))?;
            if let Some(Interval { value, low, high }) = point.minus_teacher {
                write!(f, "    {value:>+13.4}   {low:+.4} to {high:+.4}")?;
            }
            writeln!(f)?;
        }
        let Some(teacher) = teacher else {
            return write!(
                f,
                "no teacher's line: [verdict] teacher_labels names no labels of the test candidates"
            );
        };
        writeln!(f, "{:<16} {}", "teacher", plain(&teacher.ndcg))?;
        if teacher.queries < *test_queries {
            writeln!(
                f,
                "the teacher and differences to it: over the {} queries that it judged whole",
                teacher.queries
            )?;
        }
        match (self.passes_at, self.surely_passes_at) {
            (None, _) => write!(f, "the student does not pass its teacher"),
            (Some(at), None) => write!(
                f,
                "the student passes its teacher from {at} queries on, by no more than chance may do"
            ),
            (Some(at), Some(surely)) => write!(
                f,
                "the student passes its teacher from {at} queries on, beyond chance from {surely} on"
            ),
        }
    }
}

fn plain(Interval { value, low, high }: &Interval) -> String {
    format!("{value:>7.4}   {low:.4}–{high:.4}")
}
