//! `retort eval --curve` on a small job: points, the teacher's line, going on.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{SmallJob, fail, retort, stdout, succeed};
use serde_json::Value;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `retort eval --curve` with the settings of the job's training.
fn draw(job: &SmallJob, curve: &str, arguments: &[&str]) -> Command {
    let mut command = retort();
    command.args(["eval", "--device", "cpu", "--config", "configs/demo.toml"]);
    command.arg("--curve").arg(job.path(curve));
    let train = job.train("unused");
    let settings = train.get_args().skip_while(|it| *it != "--set");
    command.args(settings).args(arguments);
    command
}

#[test]
fn a_curve_has_a_student_a_point_beside_the_teacher_and_gets_more_points() {
    let job = SmallJob::new();
    let said = stdout(&succeed(&mut draw(
        &job,
        "curve",
        &["--queries", "12,3", "--students", "2"],
    )));
    for expected in [
        "labelled queries",
        "minus teacher",
        "\n3 ",
        "\n12 ",
        "\nteacher ",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let curve = read_json(&job.path("curve/curve.json"));
    let points = curve["points"].as_array().unwrap();
    assert_eq!((points.len(), &curve["labelled_queries"]), (2, &24.into()));
    assert_eq!(curve["seeds"], serde_json::json!([42, 43]));
    let teacher = curve["teacher"]["ndcg@10"]["value"].as_f64().unwrap();
    for point in points {
        let mean = point["ndcg@10"]["value"].as_f64().unwrap();
        let of_students: Vec<f64> = serde_json::from_value(point["of_students"].clone()).unwrap();
        assert!(
            (mean - of_students.iter().sum::<f64>() / 2.0).abs() < 1e-9,
            "{point}"
        );
        // Every candidate of the test queries is judged, so the difference is of the means.
        let difference = point["minus_teacher"]["value"].as_f64().unwrap();
        assert!((mean - teacher - difference).abs() < 1e-9, "{point}");
        let (low, high) = (&point["ndcg@10"]["low"], &point["ndcg@10"]["high"]);
        assert!(low.as_f64().unwrap() <= mean && mean <= high.as_f64().unwrap());
    }
    // A student is what training on so many queries makes, and its checkpoints are gone.
    let config = std::fs::read_to_string(job.path("curve/3-queries-seed-43/config.toml")).unwrap();
    assert!(
        config.contains("queries = 3\n") && config.contains("seed = 43\n"),
        "{config}"
    );
    assert!(config.contains("epochs = 16\n"), "{config}");
    assert!(!job.path("curve/3-queries-seed-43/steps").exists());
    assert!(
        std::fs::read_to_string(job.path("curve/curve.svg"))
            .unwrap()
            .contains("</svg>")
    );

    // Points that are there stay, byte for byte and untouched.
    let kept = job.path("curve/12-queries-seed-42/ndcg.json");
    let made = std::fs::metadata(&kept).unwrap().modified().unwrap();
    let json = stdout(&succeed(&mut draw(
        &job,
        "curve",
        &["--queries", "3,12,24", "--json"],
    )));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["curve"]["points"].as_array().unwrap().len(), 3);
    assert_eq!(
        json["curve"]["points"][1]["of_students"][0],
        points[1]["of_students"][0]
    );
    assert_eq!(std::fs::metadata(&kept).unwrap().modified().unwrap(), made);

    let others = ["--set", "optimizer.learning_rate=1e-4"];
    let said = fail(&mut draw(&job, "curve", &others), 65);
    assert!(said.contains("was started with something else"), "{said}");
    assert!(said.contains("or name a new folder"), "{said}");
    let said = fail(&mut draw(&job, "curve", &["--queries", "25"]), 78);
    assert!(
        said.contains("from 1 to the label set's 24 queries"),
        "{said}"
    );
    let said = fail(&mut draw(&job, "new", &["--set", "data.queries=3"]), 78);
    assert!(
        said.contains("leave it out") && !job.path("new").exists(),
        "{said}"
    );
}

#[test]
fn a_curve_of_all_queries_is_what_training_makes() {
    let job = SmallJob::new();
    succeed(&mut draw(&job, "curve", &["--queries", "24"]));
    let mut resume = retort();
    resume
        .args(["train", "--device", "cpu", "--resume"])
        .arg(job.path("curve"));
    let said = fail(&mut resume, 65);
    assert!(said.contains("is a learning curve's folder"), "{said}");
    succeed(&mut job.train("run"));
    let verdict = read_json(&job.path("run/verdict.json"));
    let system = |name: &str| {
        let systems = verdict["systems"].as_array().unwrap();
        let found = systems
            .iter()
            .find(|system| system["name"] == name)
            .unwrap();
        (found["ndcg@10"].clone(), found["ndcg@10_ci"].clone())
    };
    let curve = read_json(&job.path("curve/curve.json"));
    let of = |line: &Value| {
        let ndcg = &line["ndcg@10"];
        (
            ndcg["value"].clone(),
            serde_json::json!([ndcg["low"], ndcg["high"]]),
        )
    };
    assert_eq!(of(&curve["points"][0]), system("student"));
    assert_eq!(of(&curve["teacher"]), system("teacher"));
}

#[test]
fn a_killed_curve_goes_on_and_ends_as_another() {
    let job = SmallJob::new();
    succeed(&mut draw(&job, "whole", &["--queries", "6,24"]));
    let mut rounds = 0;
    loop {
        let mut child = draw(&job, "killed", &["--queries", "6,24"])
            .spawn()
            .unwrap();
        // Longer each time, so that some round comes to an end.
        rounds += 1;
        assert!(rounds < 60, "no round came to an end");
        let until = std::time::Instant::now() + Duration::from_millis(300 * rounds);
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if std::time::Instant::now() > until => break None,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let of = |curve: &str| read_json(&job.path(curve).join("curve.json"));
    assert_eq!(of("killed"), of("whole"));
}
