//! A curve as a picture: queries on a logarithmic axis, nDCG@10 upwards, intervals as bands.

use std::fmt::Write;

use super::{Curve, Interval};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
/// Left, right, top and bottom of the frame that is drawn into.
const FRAME: [f64; 4] = [64.0, 616.0, 40.0, 344.0];
const STUDENT: &str = "#1f6feb";
const TEACHER: &str = "#bc4c00";

pub(super) fn draw(curve: &Curve) -> String {
    let [left, right, top, bottom] = FRAME;
    let scale = Scale::of(curve);
    let mut body = String::new();
    for tick in scale.ticks() {
        let y = scale.y(tick);
        line(&mut body, (left, y), (right, y), "stroke=\"#d0d7de\"");
        text(
            &mut body,
            (left - 8.0, y + 4.0),
            "end",
            "#57606a",
            &format!("{tick:.2}"),
        );
    }
    for point in &curve.points {
        let x = scale.x(point.queries);
        line(
            &mut body,
            (x, bottom),
            (x, bottom + 5.0),
            "stroke=\"#57606a\"",
        );
        text(
            &mut body,
            (x, bottom + 20.0),
            "middle",
            "#57606a",
            &point.queries.to_string(),
        );
    }
    if let Some(teacher) = &curve.teacher {
        let Interval { value, low, high } = teacher.ndcg;
        band(
            &mut body,
            TEACHER,
            &[
                (left, scale.y(low), scale.y(high)),
                (right, scale.y(low), scale.y(high)),
            ],
        );
        let y = scale.y(value);
        let dashed = format!("stroke=\"{TEACHER}\" stroke-width=\"2\" stroke-dasharray=\"6 4\"");
        line(&mut body, (left, y), (right, y), &dashed);
        text(&mut body, (right, y - 6.0), "end", TEACHER, "teacher");
    }
    let points = curve.points.iter();
    let edges: Vec<_> = points
        .map(|it| {
            (
                scale.x(it.queries),
                scale.y(it.ndcg.low),
                scale.y(it.ndcg.high),
            )
        })
        .collect();
    band(&mut body, STUDENT, &edges);
    let places: Vec<_> = (curve.points.iter())
        .map(|point| (scale.x(point.queries), scale.y(point.ndcg.value)))
        .collect();
    for pair in places.windows(2) {
        let stroke = format!("stroke=\"{STUDENT}\" stroke-width=\"2\"");
        line(&mut body, pair[0], pair[1], &stroke);
    }
    for (x, y) in &places {
        add(
            &mut body,
            format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{STUDENT}\"/>"),
        );
    }
    if let Some((x, y)) = places.last() {
        text(&mut body, (*x, y - 10.0), "end", STUDENT, "student");
    }
    text(
        &mut body,
        (left, top - 16.0),
        "start",
        "#24292f",
        "nDCG@10, with 95 % intervals over queries",
    );
    text(
        &mut body,
        (f64::midpoint(left, right), bottom + 42.0),
        "middle",
        "#24292f",
        "labelled queries",
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// From numbers to places.
struct Scale {
    /// Logarithms of the fewest and the most queries.
    queries: (f64, f64),
    ndcg: (f64, f64),
}

impl Scale {
    fn of(curve: &Curve) -> Self {
        let logs = || curve.points.iter().map(|point| (point.queries as f64).ln());
        let (fewest, most) = (
            logs().fold(f64::MAX, f64::min),
            logs().fold(f64::MIN, f64::max),
        );
        let of_points = curve.points.iter().map(|point| point.ndcg);
        let teacher = curve.teacher.iter().map(|teacher| teacher.ndcg);
        let all: Vec<Interval> = of_points.chain(teacher).collect();
        let bottom = all.iter().map(|it| it.low).fold(f64::MAX, f64::min);
        let top = all.iter().map(|it| it.high).fold(f64::MIN, f64::max);
        // A little room around, and some of it where all numbers are one.
        let room = 0.05 * (top - bottom) + 0.005;
        Self {
            queries: (fewest, most.max(fewest + 1e-6)),
            ndcg: (bottom - room, top + room),
        }
    }

    fn x(&self, queries: usize) -> f64 {
        let [left, right, ..] = FRAME;
        let (first, last) = self.queries;
        // Points keep clear of the axis.
        let share = ((queries as f64).ln() - first) / (last - first);
        left + (right - left) * (0.04 + 0.92 * share)
    }

    fn y(&self, ndcg: f64) -> f64 {
        let [_, _, top, bottom] = FRAME;
        let (least, most) = self.ndcg;
        bottom - (bottom - top) * (ndcg - least) / (most - least)
    }

    /// Round numbers, at most eleven of them.
    fn ticks(&self) -> Vec<f64> {
        let (least, most) = self.ndcg;
        let steps = [0.01, 0.02, 0.05, 0.1];
        let step = steps
            .into_iter()
            .find(|step| (most - least) / step <= 10.0)
            .unwrap_or(0.2);
        let first = (least / step).ceil();
        let ticks = (0..=10).map(|n| (first + f64::from(n)) * step);
        ticks.filter(|tick| *tick <= most).collect()
    }
}

/// The area between low and high, given as x, y of low and y of high.
fn band(body: &mut String, color: &str, edges: &[(f64, f64, f64)]) {
    let above = edges.iter().map(|(x, _, high)| (x, high));
    let below = edges.iter().rev().map(|(x, low, _)| (x, low));
    let corners: Vec<String> = above
        .chain(below)
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let corners = corners.join(" ");
    add(
        body,
        format_args!("<polygon points=\"{corners}\" fill=\"{color}\" fill-opacity=\"0.15\"/>"),
    );
}

fn line(body: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    add(
        body,
        format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {stroke}/>"
        ),
    );
}

fn text(body: &mut String, at: (f64, f64), anchor: &str, color: &str, words: &str) {
    let (x, y) = at;
    add(
        body,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{color}\">{words}</text>"
        ),
    );
}

fn add(body: &mut String, element: std::fmt::Arguments) {
    // Writing to a string can't fail.
    let _ = writeln!(body, "{element}");
}
