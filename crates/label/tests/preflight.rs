//! The preflight: servers that answer with status 200 and do the wrong thing.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use common::{Act, Job, Seen, Server, completion, documents, rows};
use retort_label::ledger::Reader;
use retort_label::{Collected, Error, LabelSettings, Progress, Reading, collect, plan, probe};
use serde_json::{Value, json};

async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    collect(settings, false, |_: Progress| (), std::future::pending()).await
}

fn probing(job: &Job, server: &Server, more: &str) -> LabelSettings {
    let mut settings = job.settings(server, more);
    settings.preflight = true;
    settings
}

fn ok(body: &Value) -> Act {
    Act::Reply(200, String::new(), body.to_string())
}

fn question(body: &Value) -> &str {
    let last = body["messages"].as_array().unwrap().last().unwrap();
    last["content"].as_str().unwrap()
}

fn words(body: &Value) -> u64 {
    question(body).split_whitespace().count() as u64
}

/// Whether the words of the probe's query are in its document.
fn is_relevant(text: &str) -> bool {
    text.contains("eat and drink")
}

/// What a chat model should answer.
fn sane(seen: &Seen) -> Value {
    let p = if is_relevant(question(&seen.body)) {
        0.9
    } else {
        0.1
    };
    completion(&[("1", p), ("0", 1.0 - p)], (30 + words(&seen.body), 1))
}

/// What TEI should answer.
fn logits(seen: &Seen) -> Value {
    let score = |text: &str| {
        let length = text.len() as f64;
        if is_relevant(text) {
            6.0 - length / 1e4
        } else {
            -9.0 - length / 1e4
        }
    };
    scores(seen, score)
}

fn scores(seen: &Seen, score: impl Fn(&str) -> f64) -> Value {
    let scores = documents(&seen.body).unwrap().iter().enumerate();
    scores
        .map(|(index, text)| json!({"index": index, "score": score(text.as_str().unwrap())}))
        .collect()
}

/// A job of 40 pairs, one of them with a document of some 6000 bytes.
fn job() -> Job {
    let job = Job::new(40);
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    let long = "document 7 of some length".to_owned() + &" and more of it".repeat(400);
    let corpus = corpus.replace("document 7 of some length", &long);
    std::fs::write(job.path("corpus.jsonl"), corpus).unwrap();
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_probed_once_and_what_was_found_is_sealed_with_the_labels() {
    let job = job();
    let servers = [0, 1].map(|_| Server::start(|seen| ok(&sane(seen))));
    let mut settings = probing(&job, &servers[0], "concurrency = 4\n");
    assert_eq!(plan(&settings, false).unwrap().probes, 3);
    run(&settings).await.unwrap();
    assert_eq!(servers[0].count(), 3 + 40);
    let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
    assert_eq!(spent.requests, 43, "probes are on the bill");

    // Nothing to ask, nothing to probe; and what was found holds for more questions.
    run(&settings).await.unwrap();
    let more = json!({"query_id": "q0", "document_id": "d39", "source": "random"});
    let candidates = std::fs::read_to_string(job.path("candidates.jsonl")).unwrap();
    std::fs::write(
        job.path("candidates.jsonl"),
        format!("{candidates}{more}\n"),
    )
    .unwrap();
    assert_eq!(plan(&settings, false).unwrap().probes, 0);
    run(&settings).await.unwrap();
    assert_eq!(servers[0].count(), 44);

    // Another endpoint answers for itself, another recipe (its prompt) is another matter.
    settings.teacher.endpoints.push(servers[1].url.clone());
    let more = json!({"query_id": "q0", "document_id": "d38", "source": "random"});
    std::fs::write(job.path("candidates.jsonl"), format!("{more}\n")).unwrap();
    run(&settings).await.unwrap();
    assert_eq!(
        servers.each_ref().map(Server::count).iter().sum::<usize>(),
        44 + 3 + 1
    );

    let set = job.path("set");
    retort_label::seal(&job.ledger(), None, None, &set).unwrap();
    let probes = retort_data::label_set::read(&set).unwrap().manifest.probes;
    let endpoints: Vec<&str> = probes
        .iter()
        .filter_map(|one| one["endpoint"].as_str())
        .collect();
    let of_server = |server: &Server| format!("{}/", server.url);
    assert_eq!(endpoints, servers.each_ref().map(of_server));
    assert_eq!(probes[0]["reading"], "whole");
    assert!(probes[0]["document_bytes"].as_u64().unwrap() > 6000);
    assert_eq!(probes[0]["model"], "scripted-1");

    let prompt = std::fs::read_to_string(job.path("prompt.toml")).unwrap();
    std::fs::write(job.path("prompt.toml"), prompt.replace("Grade", "Judge")).unwrap();
    assert_eq!(plan(&settings, false).unwrap().probes, 6);
    settings.preflight = false;
    assert_eq!(plan(&settings, false).unwrap().probes, 0);
}

/// Runs a job whose preflight must fail, and returns what it said.
async fn refused(more: &str, script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> String {
    let job = job();
    let server = Server::start(script);
    let error = run(&probing(&job, &server, more)).await.unwrap_err();
    assert!(matches!(error, Error::Preflight { .. }), "{error}");
    assert!(rows(&job.ledger()).is_empty(), "a question was asked");
    let reader = Reader::open(&job.ledger()).unwrap();
    assert_eq!(reader.spent().unwrap().requests, server.count() as u64);
    assert!(server.count() <= 6, "{} requests", server.count());
    assert!(reader.recipes().unwrap()[0].probes.is_empty());
    error.to_string()
}

fn says(said: &str, expected: &[&str]) {
    for expected in expected {
        assert!(said.contains(expected), "{said:?} lacks {expected:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_server_that_does_otherwise_than_asked_gets_no_question() {
    let said = refused("", |_| {
        ok(&completion(&[("Sure", 0.9), ("1", 0.1)], (40, 1)))
    })
    .await;
    says(
        &said,
        &["probability of 0.100", "Sure", "structured_outputs"],
    );

    let said = refused("", |_| {
        ok(&json!({"choices": [{"message": {"content": "1"}, "logprobs": null}]}))
    })
    .await;
    says(&said, &["no log-probabilities", "drop_params"]);

    let without = "log_probabilities = false\n";
    let said = refused(without, |_| {
        ok(&json!({"choices": [{"message": {"content": "I would say 1"}}]}))
    })
    .await;
    says(&said, &["I would say 1", "expected one of"]);

    let said = refused("", |_| {
        ok(&json!({"choices": [{"message": {"refusal": "I'd rather not"}}]}))
    })
    .await;
    says(&said, &["refused", "I'd rather not"]);

    // The same for all.
    let said = refused("", |_| ok(&completion(&[("1", 0.7), ("0", 0.3)], (40, 1)))).await;
    says(&said, &["a relevant document got 0.7", "prompt"]);

    // A context of 512 tokens, which no reply tells of.
    let said = refused("", |seen| {
        let mut reply = sane(seen);
        reply["usage"]["prompt_tokens"] = words(&seen.body).min(512).into();
        ok(&reply)
    })
    .await;
    says(&said, &["cut in silence", "num_ctx"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reranker_whose_scores_are_not_what_they_should_be_gets_no_question() {
    let tei = "dialect = 'tei'\n";
    let sigmoid = |score: f64| 1.0 / (1.0 + (-score).exp());
    let said = refused(tei, move |seen| {
        let mut reply = logits(seen);
        for one in reply.as_array_mut().unwrap() {
            one["score"] = sigmoid(one["score"].as_f64().unwrap()).into();
        }
        ok(&reply)
    })
    .await;
    says(&said, &["all from 0 to 1, expected logits", "scale"]);

    let cohere = "dialect = 'cohere'\n";
    let said = refused(cohere, |seen| {
        let renamed = logits(seen)
            .to_string()
            .replace("\"score\"", "\"relevance_score\"");
        Act::Reply(200, String::new(), format!("{{\"results\":{renamed}}}"))
    })
    .await;
    says(&said, &["from 0 to 1", "logit"]);

    // The end of a long document is cut off, on a server that gives no usage.
    for more in [tei, "dialect = 'tei'\ndocuments_per_request = 1\n"] {
        let said = refused(more, |seen| {
            ok(&scores(seen, |text| {
                let read = &text[..text.len().min(2000)];
                if is_relevant(read) { 6.0 } else { -9.0 }
            }))
        })
        .await;
        says(&said, &["cut in silence", "differ at their end"]);
    }

    let said = refused(tei, |seen| {
        let mut reply = logits(seen);
        reply[1]["index"] = 0.into();
        ok(&reply)
    })
    .await;
    says(&said, &["comes twice", "dialect"]);

    let said = refused(tei, |seen| ok(&scores(seen, |text| -(text.len() as f64)))).await;
    says(&said, &["irrelevant", "reranker"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_so_when_a_document_is_too_long_passes() {
    for (more, status, problem) in [
        ("", 400, r#"{"error":{"code":"context_length_exceeded"}}"#),
        (
            "dialect = 'tei'\n",
            413,
            r#"{"error":"inputs must have less than 512 tokens"}"#,
        ),
    ] {
        let job = job();
        let server = Server::start(move |seen| {
            let texts = documents(&seen.body).map_or_else(
                || question(&seen.body).to_owned(),
                |texts| Value::from(texts.clone()).to_string(),
            );
            match texts.len() {
                0..4000 if documents(&seen.body).is_some() => ok(&logits(seen)),
                0..4000 => ok(&sane(seen)),
                _ => Act::Reply(status, String::new(), problem.to_owned()),
            }
        });
        let found = probe(&probing(&job, &server, more)).await.unwrap();
        assert_eq!(found[0].reading, Reading::Refused, "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_waited_for_and_what_does_not_stops_the_job() {
    let job = job();
    let server = Server::start(|seen| match seen.number {
        0 => Act::Reply(
            503,
            "retry-after-ms: 20\r\n".to_owned(),
            "warming up".to_owned(),
        ),
        1 => Act::Reset,
        _ => ok(&sane(seen)),
    });
    run(&probing(&job, &server, "")).await.unwrap();
    assert_eq!(server.count(), 2 + 3 + 40);

    let refusing = Server::start(|_| Act::Reply(401, String::new(), "who are you?".to_owned()));
    let other = Job::new(20);
    let error = run(&probing(&other, &refusing, "")).await.unwrap_err();
    assert!(matches!(error, Error::Authentication { .. }), "{error}");

    let away = Server::start(|_| Act::Reply(500, String::new(), "down".to_owned()));
    let mut settings = probing(&other, &away, "retries = 0\n");
    let error = run(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
    assert_eq!(away.count(), 1);
    // While another endpoint answers, the job goes on with that; `doctor` says what is wrong.
    settings.teacher.endpoints.push(server.url.clone());
    run(&settings).await.unwrap();
    assert_eq!((rows(&other.ledger()).len(), away.count()), (20, 2));
    let error = probe(&settings).await.unwrap_err().to_string();
    assert!(error.contains("down"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_keep_to_the_budget() {
    let job = job();
    let server = Server::start(|seen| ok(&sane(seen)));
    let settings = probing(&job, &server, "[budget]\ntokens = 50\n");
    let error = run(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_changed_is_found_by_the_probe_that_doctor_asks_for() {
    let job = job();
    let server = Server::start(|seen| {
        let mut reply = sane(seen);
        reply["model"] = if seen.number < 3 + 40 { "old" } else { "new" }.into();
        ok(&reply)
    });
    let settings = probing(&job, &server, "");
    run(&settings).await.unwrap();
    let error = probe(&settings).await.unwrap_err().to_string();
    says(&error, &["\"new\" now", "\"old\" before"]);
    let found = probe(&settings).await.unwrap();
    assert_eq!(found[0].model.as_deref(), Some("new"));
    let recipes = Reader::open(&job.ledger()).unwrap().recipes().unwrap();
    assert_eq!(recipes[0].models, ["old", "new"]);
}
