//! The preflight: servers that answer with status 200 and do the wrong thing.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Act, Job, Seen, Server, completion, rows, texts};
use retort_label::ledger::Reader;
use retort_label::{Collected, Error, LabelSettings, Progress, Reading, collect, plan, preflight};
use serde_json::{Value, json};

async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    collect(settings, false, |_: Progress| (), std::future::pending()).await
}

/// The job's settings, with a preflight.
fn checked(job: &Job, server: &Server, more: &str) -> LabelSettings {
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

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

/// Whether a text is the preflight's relevant document, or ends in it.
fn is_relevant(text: &str) -> bool {
    text.contains("eat and drink")
}

/// What a chat model should answer.
fn sane(seen: &Seen) -> Value {
    let question = question(&seen.body);
    let p = if is_relevant(question) { 0.9 } else { 0.1 };
    completion(&[("1", p), ("0", 1.0 - p)], (30 + words(question), 1))
}

fn scores(seen: &Seen, score: impl Fn(&str) -> f64) -> Value {
    let scores = texts(&seen.body).unwrap().iter().enumerate();
    scores
        .map(|(index, text)| json!({"index": index, "score": score(text.as_str().unwrap())}))
        .collect()
}

/// What TEI should answer.
fn logits(seen: &Seen) -> Value {
    let of = |text: &str| if is_relevant(text) { 6.0 } else { -9.0 };
    scores(seen, |text| of(text) - text.len() as f64 / 1e4)
}

/// A job of 40 pairs, one of them with a document of some 1600 words.
fn job() -> Job {
    let job = Job::new(40);
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    let long = "document 7 of some length".to_owned() + &" and more of it".repeat(400);
    let corpus = corpus.replace("document 7 of some length", &long);
    std::fs::write(job.path("corpus.jsonl"), corpus).unwrap();
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_tried_once_and_what_was_found_is_sealed_with_the_labels() {
    let job = job();
    let servers = [0, 1].map(|_| Server::start(|seen| ok(&sane(seen))));
    let mut settings = checked(&job, &servers[0], "concurrency = 4\n");
    assert_eq!(plan(&settings, false).unwrap().preflight_requests, 3);
    run(&settings).await.unwrap();
    assert_eq!(servers[0].count(), 3 + 40);
    let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
    assert_eq!(spent.requests, 43, "they are on the bill");

    // Nothing to ask, nothing to try; and what was found holds for more questions.
    run(&settings).await.unwrap();
    let more = json!({"query_id": "q0", "document_id": "d39", "source": "random"});
    let candidates = std::fs::read_to_string(job.path("candidates.jsonl")).unwrap();
    std::fs::write(
        job.path("candidates.jsonl"),
        format!("{candidates}{more}\n"),
    )
    .unwrap();
    assert_eq!(plan(&settings, false).unwrap().preflight_requests, 0);
    run(&settings).await.unwrap();
    assert_eq!(servers[0].count(), 44);

    // Another endpoint answers for itself, another recipe (its prompt) is another matter.
    settings.teacher.endpoints.push(servers[1].url.clone());
    let more = json!({"query_id": "q0", "document_id": "d38", "source": "random"});
    std::fs::write(job.path("candidates.jsonl"), format!("{more}\n")).unwrap();
    run(&settings).await.unwrap();
    assert_eq!(servers.iter().map(Server::count).sum::<usize>(), 44 + 3 + 1);

    let set = job.path("set");
    retort_label::seal(&job.ledger(), None, None, &set).unwrap();
    let set = retort_data::label_set::read(&set).unwrap();
    let found = set.manifest.preflights;
    let endpoints: Vec<&str> = found
        .iter()
        .filter_map(|one| one["endpoint"].as_str())
        .collect();
    let of_server = |server: &Server| format!("{}/", server.url);
    assert_eq!(endpoints, servers.each_ref().map(of_server));
    assert_eq!(found[0]["reading"], "whole");
    // A token has about four bytes.
    assert!(found[0]["words"].as_u64().unwrap() >= 1500);
    assert_eq!(found[0]["model"], "scripted-1");

    let prompt = std::fs::read_to_string(job.path("prompt.toml")).unwrap();
    std::fs::write(job.path("prompt.toml"), prompt.replace("Grade", "Judge")).unwrap();
    assert_eq!(plan(&settings, false).unwrap().preflight_requests, 6);
    settings.preflight = false;
    assert_eq!(plan(&settings, false).unwrap().preflight_requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_about_shorter_texts_does_not_hold_for_longer_ones() {
    let job = Job::new(20);
    let server = Server::start(|seen| ok(&sane(seen)));
    let settings = checked(&job, &server, "");
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 3 + 20);
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    // Few bytes, and many tokens.
    let corpus = corpus.replace("document 7 of", &format!("document 7 {}", "钻".repeat(300)));
    std::fs::write(job.path("corpus.jsonl"), corpus).unwrap();
    run(&settings).await.unwrap();
    assert_eq!(server.count(), 3 + 20 + 3 + 1);
    let found = Reader::open(&job.ledger()).unwrap().recipes().unwrap();
    let words: Vec<usize> = found[0].preflights.iter().map(|one| one.words).collect();
    assert!(words[0] < 100 && words[1] >= 300, "{words:?}");
}

/// A chat model that compares the two documents it is shown, or orders them.
fn compares(seen: &Seen) -> Act {
    let question = question(&seen.body);
    let (first, second) = question.split_once(" B: ").unwrap();
    let tokens = (30 + words(question), 1);
    let is_second = is_relevant(second) && !is_relevant(first);
    let said = if is_second { "[2] > [1]" } else { "[1] > [2]" };
    // It prefers the first place, too.
    let p = if is_second { 0.4 } else { 0.1 };
    let mut reply = completion(&[("B", p), ("A", 1.0 - p)], tokens);
    reply["choices"][0]["message"]["content"] = said.into();
    ok(&reply)
}

const PAIRWISE: &str = "kind = 'pairwise'\nanswers = ['A', 'B']\nsystem = 'Which?'\n\
                        user = '{{ query }} A: {{ document_a }} B: {{ document_b }}'";
const LISTWISE: &str = "kind = 'listwise'\nsystem = 'Order.'\n\
                        user = '{{ query }} {% for one in documents %}{{ loop.first and \"[1] A: \" or \" [2] B: \" }}{{ one }}{% endfor %}'";
const YES_NO: &str =
    "answers = ['no', 'yes']\nsystem = 'Grade.'\nuser = '{{ query }}: {{ document }}?'";

/// vLLM's generative scoring.
fn generative(seen: &Seen) -> Act {
    if seen.headers.starts_with("POST /v1/tokenize ") {
        let token = if seen.body["prompt"] == "yes" { 9 } else { 7 };
        return ok(&json!({"tokens": [token], "count": 1, "max_model_len": 100_000}));
    }
    let items = seen.body["items"].as_array().unwrap();
    let query = words(seen.body["query"].as_str().unwrap());
    let read: u64 = items
        .iter()
        .map(|item| query + words(item.as_str().unwrap()))
        .sum();
    let data = items.iter().enumerate().map(|(index, item)| {
        let p = if is_relevant(item.as_str().unwrap()) {
            0.8
        } else {
            0.2
        };
        json!({"index": index, "score": p})
    });
    let data: Vec<Value> = data.collect();
    let usage = json!({"prompt_tokens": read, "completion_tokens": items.len()});
    ok(&json!({"model": "m", "data": data, "usage": usage}))
}

/// Writes its answer: a grade, or which of two documents is better.
fn anthropic(seen: &Seen) -> Act {
    let asked = question(&seen.body);
    let text = match asked.split_once(" B: ") {
        Some((_, second)) if is_relevant(second) => "B",
        Some(_) => "A",
        None if is_relevant(asked) => "1",
        None => "0",
    };
    let usage = json!({"input_tokens": 30 + words(asked), "output_tokens": 1});
    let content = json!([{"type": "text", "text": text}]);
    ok(&json!({"model": "m", "content": content, "usage": usage}))
}

/// A chat model without log-probabilities.
fn writes(seen: &Seen) -> Act {
    let mut reply = sane(seen);
    let is_relevant = is_relevant(question(&seen.body));
    reply["choices"][0]["message"]["content"] = if is_relevant { "1" } else { "0" }.into();
    reply["choices"][0]["logprobs"] = Value::Null;
    ok(&reply)
}

/// Where a reranker puts its scores: a list, a field, and whether they are probabilities.
type Place = (&'static str, &'static str, bool);

fn reranker(seen: &Seen, (list, field, is_probability): Place) -> Act {
    let all = logits(seen);
    let scores = all.as_array().unwrap().iter().map(|one| {
        let score = one["score"].as_f64().unwrap();
        let p = 1.0 / (1.0 + (-score).exp());
        json!({"index": one["index"], field: if is_probability { p } else { score }})
    });
    ok(&json!({list: scores.collect::<Vec<Value>>()}))
}

/// Lets a server pass that does as it is asked, in so many requests and once.
async fn passes(
    prompt: &str,
    more: &str,
    script: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    requests: u64,
) {
    let job = job();
    if !prompt.is_empty() {
        std::fs::write(job.path("prompt.toml"), prompt).unwrap();
    }
    let server = Server::start(script);
    let settings = checked(&job, &server, more);
    let planned = plan(&settings, false).unwrap().preflight_requests;
    assert_eq!(planned as u64, requests, "{more}");
    let found = preflight(&settings).await.unwrap();
    assert_eq!(found[0].reading, Reading::Whole, "{more}");
    let spent = Reader::open(&job.ledger()).unwrap().spent().unwrap();
    assert_eq!(spent.requests, requests, "{more}");
    let planned = plan(&settings, false).unwrap().preflight_requests;
    assert_eq!(planned, 0, "{more}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sane_server_of_every_dialect_and_kind_passes() {
    let without = "log_probabilities = false\n";
    passes("", "", |seen| ok(&sane(seen)), 3).await;
    passes("", without, writes, 3).await;
    passes(PAIRWISE, "", compares, 3).await;
    passes(LISTWISE, without, compares, 3).await;
    let of_anthropic = format!("dialect = 'anthropic'\n{without}");
    passes("", &of_anthropic, anthropic, 3).await;
    passes(PAIRWISE, &of_anthropic, anthropic, 3).await;
    passes(YES_NO, "dialect = 'generative-scoring'\n", generative, 2).await;

    passes("", "dialect = 'tei'\n", |seen| ok(&logits(seen)), 2).await;
    let places: [(&str, Place); 6] = [
        ("cohere", ("results", "relevance_score", true)),
        ("jina", ("results", "relevance_score", true)),
        ("voyage", ("data", "relevance_score", true)),
        ("vllm-rerank", ("results", "relevance_score", false)),
        ("vllm-score", ("data", "score", false)),
        ("llama-rerank", ("results", "relevance_score", false)),
    ];
    for (dialect, place) in places {
        let dialect = format!("dialect = '{dialect}'\n");
        passes("", &dialect, move |seen| reranker(seen, place), 2).await;
        let one_by_one = format!("{dialect}documents_per_request = 1\n");
        passes("", &one_by_one, move |seen| reranker(seen, place), 4).await;
    }
}

/// Runs a job whose preflight must fail, and returns what it said.
async fn refused_of(
    prompt: &str,
    more: &str,
    script: impl Fn(&Seen) -> Act + Send + Sync + 'static,
) -> String {
    let job = job();
    if !prompt.is_empty() {
        std::fs::write(job.path("prompt.toml"), prompt).unwrap();
    }
    let server = Server::start(script);
    let error = run(&checked(&job, &server, more)).await.unwrap_err();
    assert!(matches!(error, Error::Preflight { .. }), "{error}");
    assert!(rows(&job.ledger()).is_empty(), "a question was asked");
    let reader = Reader::open(&job.ledger()).unwrap();
    assert!(server.count() <= 6, "{} requests", server.count());
    assert!(reader.recipes().unwrap()[0].preflights.is_empty());
    error.to_string()
}

async fn refused(more: &str, script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> String {
    refused_of("", more, script).await
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
        &[
            "probability of 0.100",
            "Sure",
            "structured_outputs",
            "preflight = false",
        ],
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
        reply["usage"]["prompt_tokens"] = words(question(&seen.body)).min(512).into();
        ok(&reply)
    })
    .await;
    says(&said, &["cut in silence", "num_ctx"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teacher_that_does_not_tell_two_documents_apart_compares_none() {
    let said = refused_of(PAIRWISE, "", |seen| {
        let tokens = (30 + words(question(&seen.body)), 1);
        ok(&completion(&[("A", 0.8), ("B", 0.2)], tokens))
    })
    .await;
    says(&said, &["preferred the second by 0.2 where"]);
    let said = refused_of(LISTWISE, "log_probabilities = false\n", |_| {
        ok(&json!({"choices": [{"message": {"content": "[1] > [2]"}}]}))
    })
    .await;
    says(&said, &["preferred the second by 0 where"]);
    let said = refused_of(LISTWISE, "log_probabilities = false\n", |_| {
        ok(&json!({"choices": [{"message": {"content": "The second one."}}]}))
    })
    .await;
    says(&said, &["expected an order", "The second one."]);
    let said = refused_of(YES_NO, "dialect = 'generative-scoring'\n", |seen| {
        let Act::Reply(status, headers, body) = generative(seen) else {
            unreachable!("it replies");
        };
        Act::Reply(status, headers, body.replace("0.8", "0.2"))
    })
    .await;
    says(
        &said,
        &["a relevant document got 0.2 and an irrelevant one 0.2"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reranker_whose_scores_are_not_what_they_should_be_gets_no_question() {
    let tei = "dialect = 'tei'\n";
    let said = refused(tei, |seen| {
        let Act::Reply(.., body) = reranker(seen, ("results", "score", true)) else {
            unreachable!("it replies");
        };
        let body: Value = serde_json::from_str(&body).unwrap();
        ok(&body["results"])
    })
    .await;
    says(&said, &["both from 0 to 1, expected logits", "scale"]);

    let said = refused("dialect = 'cohere'\n", |seen| {
        reranker(seen, ("results", "relevance_score", false))
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
        ("", 400, r#"{"error":{"message":"in words of its own"}}"#),
        (
            "dialect = 'tei'\n",
            413,
            r#"{"error":"inputs must have less than 512 tokens"}"#,
        ),
    ] {
        let job = job();
        let server = Server::start(move |seen| {
            let is_long = seen.body.to_string().len() > 4000;
            match texts(&seen.body) {
                _ if is_long => Act::Reply(status, String::new(), problem.to_owned()),
                Some(_) => ok(&logits(seen)),
                None => ok(&sane(seen)),
            }
        });
        let found = preflight(&checked(&job, &server, more)).await.unwrap();
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
    run(&checked(&job, &server, "")).await.unwrap();
    assert_eq!(server.count(), 2 + 3 + 40);

    let refusing = Server::start(|_| Act::Reply(401, String::new(), "who are you?".to_owned()));
    let other = Job::new(20);
    let error = run(&checked(&other, &refusing, "")).await.unwrap_err();
    assert!(matches!(error, Error::Authentication { .. }), "{error}");

    let away = Server::start(|_| Act::Reply(500, String::new(), "down".to_owned()));
    let mut settings = checked(&other, &away, "retries = 0\n");
    let error = run(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Gone { .. }), "{error}");
    assert_eq!(away.count(), 1);
    // While another endpoint answers, the job goes on with that; asked for alone, a preflight says
    // what is wrong.
    settings.teacher.endpoints.push(server.url.clone());
    run(&settings).await.unwrap();
    assert_eq!((rows(&other.ledger()).len(), away.count()), (20, 2));
    let error = preflight(&settings).await.unwrap_err().to_string();
    assert!(error.contains("down"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preflight_keeps_to_the_budget() {
    let job = job();
    let server = Server::start(|seen| ok(&sane(seen)));
    let settings = checked(&job, &server, "[budget]\ntokens = 50\n");
    let error = run(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_stopped_in_its_preflight_asks_nothing() {
    let job = job();
    let server = Server::start(|_| Act::Reply(503, String::new(), "warming up".to_owned()));
    let settings = checked(&job, &server, "");
    let count = std::sync::Arc::clone(&server.requests);
    let stop = async {
        while count.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        "SIGTERM"
    };
    let error = collect(&settings, false, |_: Progress| (), stop)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Interrupted { labelled: 0, .. }),
        "{error}"
    );
    assert!(rows(&job.ledger()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_changed_is_found_by_a_preflight_asked_for_alone() {
    let job = job();
    let server = Server::start(|seen| {
        let mut reply = sane(seen);
        reply["model"] = if seen.number < 3 + 40 { "old" } else { "new" }.into();
        ok(&reply)
    });
    let settings = checked(&job, &server, "");
    run(&settings).await.unwrap();
    let error = preflight(&settings).await.unwrap_err().to_string();
    says(&error, &["\"new\" now", "\"old\" before"]);
    let found = preflight(&settings).await.unwrap();
    assert_eq!(found[0].model.as_deref(), Some("new"));
    let recipes = Reader::open(&job.ledger()).unwrap().recipes().unwrap();
    assert_eq!(recipes[0].models, ["old", "new"]);
}

/// Waits until something is so, but not for ever.
fn await_that(is_so: impl Fn() -> bool) -> bool {
    for _ in 0..1000 {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_tried_side_by_side_and_one_that_breaks_off_gets_no_rest() {
    let job = job();
    let breaking = Server::start(|seen| match seen.number {
        0 => Act::Reset,
        _ => ok(&sane(seen)),
    });
    let asked = Arc::clone(&breaking.requests);
    // It answers when the other was asked twice.
    let waiting = Server::start(move |seen| {
        if await_that(|| asked.load(Ordering::SeqCst) > 1) {
            ok(&sane(seen))
        } else {
            Act::Reply(401, String::new(), "the other is not asked".to_owned())
        }
    });
    let mut settings = checked(&job, &waiting, "timeout_seconds = 60\n");
    settings.teacher.endpoints.push(breaking.url.clone());
    let mut first = None;
    let report = |now: Progress| {
        first.get_or_insert((now.done, waiting.count() + breaking.count()));
    };
    collect(&settings, false, report, std::future::pending())
        .await
        .unwrap();
    // The first report is of the end of the preflight: of three requests, of which one broke off.
    assert_eq!(first, Some((0, 3 + 1 + 3)));
    let found = preflight(&settings).await.unwrap();
    let endpoints: Vec<&str> = found.iter().map(|one| &*one.endpoint).collect();
    assert!(endpoints[0].starts_with(&waiting.url), "{endpoints:?}");
    assert!(endpoints[1].starts_with(&breaking.url), "{endpoints:?}");
}
