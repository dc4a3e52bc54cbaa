//! Judgements as text, and back again.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;

use common::{Act, Job, Server, documents, graded};
use retort_label::{Format, LabelSettings, Progress, collect, export, import};
use serde_json::{Value, json};

async fn run(settings: &LabelSettings) {
    let never = std::future::pending();
    // Questions that end without an answer are part of these tests.
    let _ = collect(settings, false, |_: Progress| (), never).await;
}

fn exported(ledger: &Path, format: Format) -> String {
    let mut out = Vec::new();
    let lines = export(ledger, None, format, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let named = usize::from(format == Format::Csv);
    assert_eq!(text.lines().count(), lines + named);
    text
}

fn parsed(text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_question_is_exported_under_each_pair_and_can_be_imported() {
    let job = Job::new(6);
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    let same = corpus.replace("document 5 of", "document 3 of");
    std::fs::write(job.path("corpus.jsonl"), same).unwrap();
    let server = Server::start(|seen| match seen.document {
        2 => Act::Reply(
            400,
            "request-id: r-2\r\n".into(),
            r#"{"error":{"code":"content_filter"}}"#.into(),
        ),
        document => graded(document),
    });
    let mut settings = job.settings(&server, "");
    run(&settings).await;
    let text = exported(&job.ledger(), Format::Jsonl);
    let lines = parsed(&text);
    let ids: Vec<&str> = lines
        .iter()
        .map(|line| line["document_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["d0", "d1", "d2", "d3", "d4", "d5"]);
    assert_eq!(
        (&lines[2]["outcome"], &lines[2]["request_id"]),
        (&json!("filtered"), &json!("r-2"))
    );
    assert_eq!(lines[2]["probabilities"], Value::Null);
    let p = 0.2 + 0.7 * 3.0 / 97.0;
    for line in [&lines[3], &lines[5]] {
        assert!((line["grade"].as_f64().unwrap() - p).abs() < 1e-5, "{line}");
        assert_eq!(line["model"], "scripted-1");
    }

    std::fs::write(job.path("exported.jsonl"), &text).unwrap();
    settings.ledger = job.path("copy.sqlite");
    let imported = import(&job.path("exported.jsonl"), &settings).unwrap();
    assert_eq!(imported, 5, "two pairs share a judgement");
    let without = |text: &str| {
        let mut lines = parsed(text);
        for line in &mut lines {
            for name in ["model", "request_id"] {
                line.as_object_mut().unwrap().remove(name);
            }
        }
        lines
    };
    let copied = exported(&settings.ledger, Format::Jsonl);
    assert_eq!(without(&copied), without(&text));
    run(&settings).await;
    assert_eq!(server.count(), 5, "what was imported is not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_orders_and_ids_of_any_kind_are_written_as_the_format_allows() {
    let job = Job::new(3);
    // An id with everything in it that a line could trip over.
    for file in ["corpus.jsonl", "candidates.jsonl"] {
        let text = std::fs::read_to_string(job.path(file)).unwrap();
        std::fs::write(job.path(file), text.replace("\"d1\"", r#""d,\"1\" x""#)).unwrap();
    }
    let server = Server::start(|seen| {
        let score = seen.body["texts"].as_array().unwrap().len();
        let scores: Vec<Value> = (0..score)
            .map(|index| json!({"index": index, "score": 0.75}))
            .collect();
        Act::Reply(200, String::new(), Value::from(scores).to_string())
    });
    let mut settings = job.settings(&server, "dialect = 'tei'\nscale = 'probability'\n");
    run(&settings).await;
    let lines = parsed(&exported(&job.ledger(), Format::Jsonl));
    assert!(
        lines
            .iter()
            .all(|line| line["score"] == 0.75 && line["grade"] == 0.75)
    );
    let csv = exported(&job.ledger(), Format::Csv);
    assert!(
        csv.contains("\nq0,\"d,\"\"1\"\" x\",,0,ok,0.75,,,0.75,"),
        "{csv}"
    );
    let mut out = Vec::new();
    let error = export(&job.ledger(), None, Format::TrecQrels, &mut out).unwrap_err();
    assert!(error.to_string().contains("can't hold the id"), "{error}");

    let ordered = "kind = 'listwise'\nsystem = 'Order.'\nuser = '{{ query }}\
                   {% for one in documents %} [{{ loop.index }}] {{ one }}{% endfor %}'";
    std::fs::write(job.path("prompt.toml"), ordered).unwrap();
    let server = Server::start(|seen| {
        let question = seen.body["messages"].as_array().unwrap().last().unwrap();
        assert_eq!(documents(question["content"].as_str().unwrap()).len(), 3);
        let choice = json!({"message": {"content": "[2] > [3] > [1]"}});
        Act::Reply(200, String::new(), json!({"choices": [choice]}).to_string())
    });
    settings = job.settings(&server, "log_probabilities = false\n");
    settings.ledger = job.path("orders.sqlite");
    run(&settings).await;
    let lines = parsed(&exported(&settings.ledger, Format::Jsonl));
    assert_eq!(lines[0]["ranking"], json!([1, 2, 0]));
    assert_eq!(lines[0]["document_ids"].as_array().unwrap().len(), 3);
    let csv = exported(&settings.ledger, Format::Csv);
    assert!(csv.contains(",\"[1,2,0]\",3,"), "{csv}");
}
