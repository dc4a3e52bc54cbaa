//! Reasons beside grades: asked for, told from the grade, kept, and shown.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::Path;

use common::batches::{ANTHROPIC, BatchServer, completed, line, lines};
use common::{Act, Job, Seen, Server, completion, graded};
use retort_data::label_set;
use retort_label::ledger::{Outcome, Reader};
use retort_label::{
    Collected, Error, Format, LabelSettings, Progress, collect, collect_in_batches, export, import,
    merge, plan, preflight, seal,
};
use rusqlite::Connection;
use serde_json::{Value, json};

const AFTER: &str = "answers = ['0', '1']\nrationale = 'after'\nsystem = 'Grade, then say why.'\n\
                     user = '{{ query }}: {{ document }}'";
const BEFORE: &str = "answers = ['0', '1']\nrationale = 'before'\nsystem = 'First say why.'\n\
                      user = '{{ query }}: {{ document }}'";
const WRITTEN: &str = "log_probabilities = false\n";

async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    collect(settings, false, |_: Progress| (), std::future::pending()).await
}

fn job(pairs: usize, prompt: &str) -> Job {
    let job = Job::new(pairs);
    std::fs::write(job.path("prompt.toml"), prompt).unwrap();
    job
}

fn exported(ledger: &Path, recipe: Option<i64>) -> Vec<Value> {
    let mut out = Vec::new();
    export(ledger, recipe, Format::Jsonl, &mut out).unwrap();
    let lines = std::str::from_utf8(&out).unwrap().lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Reasons that a careless reader would take a grade from.
fn reasons(document: usize) -> String {
    format!("Of 1 thing it has 0, \"d{document}\" says.")
}

/// How probable the grade 1 is.
fn probability(document: usize) -> f64 {
    0.2 + 0.7 * (document % 20) as f64 / 20.0
}

/// Grade and reasons in the order that a request asks for.
fn written(body: &Value, grade: &str, reasons: &str) -> String {
    if body.to_string().contains("First say why") {
        format!("{reasons}\n{grade}")
    } else {
        format!("{grade}\n{reasons}")
    }
}

/// What a teacher says of a document that has this probability of being relevant.
fn said(body: &Value, p: f64, reasons: &str) -> Value {
    let grade = if p < 0.5 { "0" } else { "1" };
    let text = written(body, grade, reasons);
    if body["system"].is_string() {
        return json!({"model": "m", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": 40, "output_tokens": 20}});
    }
    let mut reply = completion(&[], (40, 20));
    let choice = &mut reply["choices"][0];
    choice["finish_reason"] = "stop".into();
    choice["message"]["content"] = text.as_str().into();
    choice["logprobs"] = Value::Null;
    if body["logprobs"] == true {
        let alternatives = |of: &[(&str, f64)]| -> Vec<Value> {
            let of = of.iter();
            of.map(|(token, p)| json!({"token": token, "logprob": p.ln()}))
                .collect()
        };
        let token = |token: &str| {
            let alternatives = if token == grade {
                alternatives(&[("1", p), ("0", 1.0 - p)])
            } else {
                // Anything else may well have been a grade.
                alternatives(&[("0", 0.95), (token, 0.05)])
            };
            json!({"token": token, "logprob": -0.1, "top_logprobs": alternatives})
        };
        let mut tokens: Vec<Value> = text.split_inclusive([' ', '\n']).map(token).collect();
        if grade == text.lines().next().unwrap() {
            tokens[0] = token(grade);
        }
        tokens.push(token("<|im_end|>"));
        choice["logprobs"] = json!({"content": tokens});
    }
    reply
}

fn reply(body: &Value) -> Act {
    Act::Reply(200, String::new(), body.to_string())
}

fn of_document(seen: &Seen) -> Value {
    let document = seen.document;
    said(&seen.body, probability(document), &reasons(document))
}

fn cut(mut reply: Value, text: &str) -> Act {
    if reply["content"].is_array() {
        reply["content"][0]["text"] = text.into();
        reply["stop_reason"] = "max_tokens".into();
    } else {
        reply["choices"][0]["message"]["content"] = text.into();
        reply["choices"][0]["finish_reason"] = "length".into();
    }
    self::reply(&reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_are_exported_and_the_label_is_the_grades_alone() {
    for (prompt, of_teacher) in [
        (AFTER, ""),
        (BEFORE, ""),
        (AFTER, WRITTEN),
        (BEFORE, WRITTEN),
        (AFTER, ANTHROPIC),
        (BEFORE, ANTHROPIC),
    ] {
        let job = job(20, prompt);
        let server = Server::start(|seen| reply(&of_document(seen)));
        run(&job.settings(&server, of_teacher)).await.unwrap();
        assert_eq!(server.count(), 20);
        let exported = exported(&job.ledger(), None);
        assert_eq!(exported.len(), 20);
        for line in &exported {
            let document = line["document_id"].as_str().unwrap()[1..].parse().unwrap();
            assert_eq!(line["rationale"], reasons(document), "{prompt}{of_teacher}");
            let p = probability(document);
            let p = if of_teacher.is_empty() { p } else { p.round() };
            let grade = line["grade"].as_f64().unwrap();
            assert!((grade - p).abs() < 2e-6, "{prompt}{of_teacher}: {line}");
        }
        let mut csv = Vec::new();
        export(&job.ledger(), None, Format::Csv, &mut csv).unwrap();
        let csv = String::from_utf8(csv).unwrap();
        assert!(csv.lines().next().unwrap().ends_with(",rationale"));
        assert!(
            csv.contains(",\"Of 1 thing it has 0, \"\"d7\"\" says.\"\n"),
            "{csv}"
        );

        let set = job.path("set");
        seal(&job.ledger(), None, None, &set).unwrap();
        let set = label_set::read(&set).unwrap();
        assert_eq!(set.labels.len(), 20);
        let place = if prompt == AFTER { "after" } else { "before" };
        assert_eq!(set.manifest.recipe["rationale"], place);
        assert_eq!(set.manifest.recipe["rationale_tokens"], 60);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sample_keeps_its_own_reasons() {
    for prompt in [AFTER, BEFORE] {
        let job = job(10, prompt);
        // Of three samples one differs.
        let server = Server::start(|seen| {
            let p = if seen.attempt == 1 { 0.1 } else { 0.9 };
            let grade = f64::round(p);
            reply(&said(
                &seen.body,
                p,
                &format!("Call it {grade}, time {}.", seen.attempt),
            ))
        });
        let samples = "log_probabilities = false\nsamples = 3\ntemperature = 1.0\n";
        run(&job.settings(&server, samples)).await.unwrap();
        let exported = exported(&job.ledger(), None);
        assert_eq!(exported.len(), 30);
        for line in &exported {
            let why = line["rationale"].as_str().unwrap();
            let grade = line["grade"].as_f64().unwrap();
            assert!(why.starts_with(&format!("Call it {grade},")), "{line}");
        }
        let of_one = exported.iter().filter(|line| line["document_id"] == "d3");
        let mut times: Vec<_> = of_one.map(|line| line["rationale"].to_string()).collect();
        times.sort_unstable();
        times.dedup();
        assert_eq!(times.len(), 3);
        seal(&job.ledger(), None, None, &job.path("set")).unwrap();
        let labels = label_set::read(&job.path("set")).unwrap().labels;
        assert!((labels.iter()).all(|label| (label.grade - 2.0 / 3.0).abs() < 1e-6));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_was_cut_has_a_grade_only_where_that_came_first() {
    for of_teacher in ["", WRITTEN, ANTHROPIC] {
        let before = job(20, BEFORE);
        let server = Server::start(|seen| match seen.document {
            3 => cut(of_document(seen), "1. It fits.\n1"),
            5 => cut(of_document(seen), "It"),
            _ => reply(&of_document(seen)),
        });
        let done = run(&before.settings(&server, of_teacher)).await;
        let Err(Error::Unlabelled {
            failed: 2, outcome, ..
        }) = done
        else {
            panic!("{of_teacher}: {done:?}");
        };
        assert_eq!(outcome, Outcome::Unparsable);
        let lines = exported(&before.ledger(), None);
        let without = lines.iter().filter(|line| line["outcome"] == "unparsable");
        let without: Vec<_> = without.collect();
        assert_eq!(without.len(), 2);
        for line in without {
            assert_eq!(
                (&line["grade"], &line["rationale"]),
                (&Value::Null, &Value::Null)
            );
            let problem = line["problem"].as_str().unwrap();
            assert!(problem.contains("`rationale_tokens`, 60 now"), "{problem}");
        }

        let after = job(20, AFTER);
        let server = Server::start(|seen| match seen.document {
            3 => cut(of_document(seen), "0\nIt has"),
            5 => cut(of_document(seen), "0"),
            _ => reply(&of_document(seen)),
        });
        run(&after.settings(&server, of_teacher)).await.unwrap();
        let lines = exported(&after.ledger(), None);
        let of = |id: &str| lines.iter().find(|line| line["document_id"] == id).unwrap();
        assert_eq!(of("d3")["rationale"], "It has…");
        assert_eq!(
            (&of("d5")["rationale"], &of("d5")["outcome"]),
            (&Value::Null, &json!("ok"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_without_reasons_is_asked_and_known_as_before() {
    let job = Job::new(20);
    let server = Server::start(|seen| graded(seen.document));
    let settings = job.settings(&server, "");
    let request = plan(&settings, false).unwrap().first_request.unwrap();
    let expected = json!({
        "model": "scripted",
        "messages": [
            {"role": "system", "content": "Grade."},
            {"role": "user", "content": "query 0: document 0 of some length"},
        ],
        "temperature": 0.0,
        "max_tokens": 1,
        "logprobs": true,
        "top_logprobs": 20,
    });
    assert_eq!(request, expected);
    run(&settings).await.unwrap();
    // All that is in the keys besides the texts.
    let expected = json!({
        "dialect": "chat",
        "teacher": "scripted",
        "model": "scripted",
        "revision": "",
        "extra": {},
        "text_treatment": 1,
        "kind": "graded",
        "prompt": "sha256:5d375e6580bee8ee0595cbe6e95b3d4271497ffcee939e3657fc81c8dd5db9c1",
        "grades": 2,
        "log_probabilities": true,
        "temperature": 0.0,
    });
    let recipe = &Reader::open(&job.ledger()).unwrap().recipes().unwrap()[0];
    assert_eq!(recipe.spec, expected);
    assert!(
        exported(&job.ledger(), None)
            .iter()
            .all(|line| line["rationale"].is_null())
    );
}

#[test]
fn reasons_count_in_the_worst_case() {
    let server = Server::start(|seen| graded(seen.document));
    let most = |tokens: &str, of_teacher: &str| {
        let job = job(
            20,
            &format!("{tokens}{}", AFTER.replace("rationale = 'after'\n", "")),
        );
        let plan = plan(&job.settings(&server, of_teacher), false).unwrap();
        let limit = plan.first_request.unwrap()["max_tokens"].as_u64().unwrap();
        (limit, plan.most_tokens)
    };
    for of_teacher in [WRITTEN, ANTHROPIC] {
        let (limit, without) = most("", of_teacher);
        let forty = "rationale = 'before'\nrationale_tokens = 40\n";
        assert_eq!(most(forty, of_teacher), (limit + 40, without + 20 * 40));
    }
    let (limit, without) = most("", "");
    let (with_reasons, most) = most("rationale = 'after'\n", "");
    assert!(limit == 1 && with_reasons > 60);
    assert_eq!(most, without + 20 * (with_reasons - limit));
}

#[test]
fn judgements_that_have_no_reasons_are_refused_by_name() {
    const PAIRWISE: &str = "kind = 'pairwise'\nanswers = ['A', 'B']\nsystem = 'Which?'\n\
                            user = '{{ query }} A: {{ document_a }} B: {{ document_b }}'";
    const LISTWISE: &str = "kind = 'listwise'\nsystem = 'Order.'\nuser = '{{ query }}\
                            {% for one in documents %} [{{ loop.index }}] {{ one }}{% endfor %}'";
    let server = Server::start(|seen| graded(seen.document));
    for (prompt, of_teacher, expected) in [
        (PAIRWISE, "", "a pairwise prompt has none"),
        (LISTWISE, WRITTEN, "a listwise prompt has none"),
        (
            "",
            "dialect = 'generative-scoring'\n",
            "generative-scoring writes nothing",
        ),
        ("", "dialect = 'tei'\n", "a reranker gives scores"),
    ] {
        let prompt = match prompt {
            "" => AFTER.to_owned(),
            prompt => format!("rationale = 'after'\n{prompt}"),
        };
        let job = job(20, &prompt);
        let error = plan(&job.settings(&server, of_teacher), false).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        let without = prompt.replace("rationale = 'after'\n", "");
        std::fs::write(job.path("prompt.toml"), without).unwrap();
        plan(&job.settings(&server, of_teacher), false).unwrap();
    }
    for (example, expected) in [
        ("", "needs a `rationale`"),
        ("rationale = ' '\n", "needs a `rationale`"),
    ] {
        let prompt =
            format!("{AFTER}\n[[examples]]\nquery = 'a'\ndocument = 'b'\nanswer = '1'\n{example}");
        let error = plan(&job(20, &prompt).settings(&server, ""), false).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn examples_show_what_is_asked_for() {
    let server = Server::start(|seen| graded(seen.document));
    for (prompt, expected) in [(AFTER, "1\nIt fits."), (BEFORE, "It fits.\n1")] {
        let example = "[[examples]]\nquery = 'a'\ndocument = 'b'\nanswer = '1'\n\
                       rationale = 'It fits.'\n";
        let job = job(20, &format!("{prompt}\n{example}"));
        let request = plan(&job.settings(&server, ""), false)
            .unwrap()
            .first_request;
        assert_eq!(request.unwrap()["messages"][2]["content"], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_come_in_batches_as_they_come_one_by_one() {
    let of_file = |settings: &LabelSettings| {
        let mut lines = exported(&settings.ledger, None);
        for line in &mut lines {
            let line = line.as_object_mut().unwrap();
            line.retain(|name, _| !["at", "request_id"].contains(&&**name));
        }
        lines
    };
    for (prompt, of_teacher) in [
        (AFTER, ""),
        (BEFORE, ""),
        (AFTER, ANTHROPIC),
        (BEFORE, ANTHROPIC),
    ] {
        let job = job(40, prompt);
        let server = Server::start(|seen| reply(&of_document(seen)));
        let settings = job.settings(&server, of_teacher);
        run(&settings).await.unwrap();
        let one_by_one = of_file(&settings);
        assert_eq!(
            one_by_one[7]["rationale"]
                .as_str()
                .map(|one| one.contains("says.")),
            Some(true)
        );

        let server = BatchServer::start(|_, requests| {
            completed(lines(requests, |document, request| {
                let (p, why) = (probability(document), reasons(document));
                if request["body"].is_null() {
                    let message = said(&request["params"], p, &why);
                    let result = json!({"type": "succeeded", "message": message});
                    json!({"custom_id": request["custom_id"], "result": result}).to_string()
                } else {
                    line(request, 200, &said(&request["body"], p, &why), &Value::Null)
                }
            }))
        });
        server.end();
        let mut settings: LabelSettings =
            toml::from_str(&job.toml(&server.url, of_teacher)).unwrap();
        settings.ledger = job.path("batched.sqlite");
        settings.teacher.batch.poll_seconds = 0;
        let never = std::future::pending();
        let done = collect_in_batches(&settings, false, true, |_: Progress| (), never).await;
        assert!(done.is_ok(), "{done:?}");
        assert_eq!(of_file(&settings), one_by_one, "{prompt}{of_teacher}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_survive_import_merge_and_an_old_ledger() {
    let job = job(20, BEFORE);
    let server = Server::start(|seen| reply(&of_document(seen)));
    let mut settings = job.settings(&server, "");
    // A ledger of version 1, in which others' judgements are.
    let db = Connection::open(job.ledger()).unwrap();
    db.execute_batch(include_str!("golden/ledger-1.sql"))
        .unwrap();
    drop(db);
    let old = exported(&job.ledger(), Some(1));
    run(&settings).await.unwrap();
    assert_eq!(exported(&job.ledger(), Some(1)), old);
    let recipes = Reader::open(&job.ledger()).unwrap().recipes().unwrap();
    let ours = exported(&job.ledger(), Some(recipes.last().unwrap().id));
    assert_eq!(ours.len(), 20);
    assert!(ours.iter().all(|line| line["rationale"].is_string()));

    let text = ours.iter().map(Value::to_string).collect::<Vec<_>>();
    let text = text.join("\n") + "\n";
    std::fs::write(job.path("exported.jsonl"), text).unwrap();
    settings.ledger = job.path("imported.sqlite");
    assert_eq!(import(&job.path("exported.jsonl"), &settings).unwrap(), 20);
    let merged = job.path("merged.sqlite");
    merge(std::slice::from_ref(&settings.ledger), &merged).unwrap();
    for ledger in [&settings.ledger, &merged] {
        let lines = exported(ledger, None);
        let why = |lines: &[Value]| -> Vec<Value> {
            let lines = lines.iter();
            lines.map(|line| line["rationale"].clone()).collect()
        };
        assert_eq!(why(&lines), why(&ours));
    }
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 20, "nothing is asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_reasons_is_not_kept() {
    const KEY: &str = "sk-0123456789abcdefghij";
    for prompt in [AFTER, BEFORE] {
        let job = job(20, prompt);
        std::fs::write(job.path("key"), KEY).unwrap();
        let server = Server::start(|seen| {
            assert!(seen.headers.contains(KEY));
            let why = format!("The header says {KEY}.");
            let body = said(&seen.body, 0.8, &why).to_string();
            // JSON may spell it otherwise.
            Act::Reply(200, String::new(), body.replace("sk-0", "\\u0073k-0"))
        });
        let key = format!("[teacher.api_key]\nfile = {:?}\n", job.path("key"));
        run(&job.settings(&server, &key)).await.unwrap();
        for line in exported(&job.ledger(), None) {
            assert_eq!(line["rationale"], "The header says [key].");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preflight_finds_a_teacher_that_gives_no_reasons() {
    fn graded_for(seen: &Seen, reasons: &str) -> Act {
        let messages = seen.body["messages"].as_array().unwrap();
        let question = messages.last().unwrap()["content"].as_str().unwrap();
        let is_relevant = question.contains("eat and drink");
        let mut said = said(&seen.body, if is_relevant { 0.9 } else { 0.1 }, reasons);
        let words = question.split_whitespace().count();
        said["usage"]["prompt_tokens"] = (30 + words).into();
        reply(&said)
    }
    for prompt in [AFTER, BEFORE] {
        let job = job(20, prompt);
        let server = Server::start(|seen| graded_for(seen, "So it is."));
        let mut settings = job.settings(&server, "");
        settings.preflight = true;
        assert_eq!(preflight(&settings).await.unwrap().len(), 1);

        // Kept to one word.
        let server = Server::start(|seen| graded_for(seen, ""));
        settings.teacher.endpoints = vec![server.url.clone()];
        let error = run(&settings).await.unwrap_err();
        assert!(
            matches!(&error, Error::Preflight { problem, .. } if problem.contains("nothing of why")),
            "{error}"
        );
        assert_eq!(server.count(), 3, "no question was asked");
    }
}
