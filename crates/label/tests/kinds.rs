//! Kinds of judgement besides the plain grade, from the question to the label set: teachers derive
//! their answers from a known order, and the sealed labels must find it again.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use common::batches::{BatchServer, End, File, line};
use common::{Act, Job, Seen, Server, completion, documents};
use retort_data::label_set::{self, LabelSet};
use retort_label::ledger::{Outcome, Reader};
use retort_label::{
    Collected, Error, LabelSettings, PositionBias, Progress, collect, collect_in_batches,
};
use serde_json::{Value, json};

async fn run(settings: &LabelSettings) -> Result<Collected, Error> {
    collect(settings, false, |_: Progress| (), std::future::pending()).await
}

fn reply(body: &Value) -> Act {
    Act::Reply(200, String::new(), body.to_string())
}

fn question(seen: &Seen) -> &str {
    let messages = seen.body["messages"].as_array().unwrap();
    messages.last().unwrap()["content"].as_str().unwrap()
}

fn sealed(job: &Job, name: &str) -> LabelSet {
    let candidates = job.path("candidates.jsonl");
    let set = job.path(name);
    retort_label::seal(&job.ledger(), None, Some(&candidates), &set).unwrap();
    label_set::read(&set).unwrap()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// How relevant a document is, by its number: each query's twenty are spread evenly over ±2.85, in
/// an order that has nothing to do with the order of the candidates.
fn relevance(document: usize) -> f64 {
    (document * 7 % 20) as f64 * 0.3 - 2.85
}

/// A number from −1 to 1 that looks random and is the same for the same seed.
fn noise(seed: usize) -> f64 {
    let mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    f64::from((mixed >> 40) as u32) / f64::from(1_u32 << 23) - 1.0
}

/// The least of the queries' Kendall's tau between the sealed grades and the known order.
fn least_tau(set: &LabelSet) -> f64 {
    let mut queries: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for label in &set.labels {
        let known = relevance(label.document_id[1..].parse().unwrap());
        let of_query = queries.entry(&label.query_id).or_default();
        of_query.push((label.grade, known));
    }
    let tau = |pairs: &Vec<(f64, f64)>| {
        let mut sum = 0.0;
        for (i, (grade, known)) in pairs.iter().enumerate() {
            for (other_grade, other_known) in &pairs[..i] {
                let product = (grade - other_grade) * (known - other_known);
                sum += f64::from(i8::from(product > 0.0) - i8::from(product < 0.0));
            }
        }
        2.0 * sum / (pairs.len() * (pairs.len() - 1)) as f64
    };
    queries.values().map(tau).fold(f64::INFINITY, f64::min)
}

#[tokio::test(flavor = "multi_thread")]
async fn yes_and_no_are_two_grades_however_they_are_spelt() {
    let job = Job::new(40);
    let prompt = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../prompts/yes-no.toml");
    std::fs::copy(prompt, job.path("prompt.toml")).unwrap();
    let server = Server::start(|seen| {
        let p = sigmoid(relevance(seen.document));
        let said = [("Yes", 0.7 * p), (" yes", 0.3 * p), ("No", 1.0 - p)];
        reply(&completion(&said, (40, 1)))
    });
    run(&job.settings(&server, "")).await.unwrap();
    let set = sealed(&job, "set");
    assert_eq!((set.labels.len(), set.manifest.top_grade), (40, 1));
    for label in set.labels {
        let p = sigmoid(relevance(label.document_id[1..].parse().unwrap()));
        assert!((label.grade - p).abs() < 2e-6, "{label:?}");
    }
}

/// vLLM with a context of 100 tokens, of which a byte takes a half.
fn vllm(seen: &Seen) -> Act {
    if seen.headers.starts_with("POST /v1/tokenize ") {
        let token = match seen.body["prompt"].as_str() {
            Some("yes") => 9,
            _ => 7,
        };
        return reply(&json!({"tokens": [token], "count": 1, "max_model_len": 100}));
    }
    assert!(seen.headers.starts_with("POST /v1/generative_scoring "));
    assert_eq!(seen.body["label_token_ids"], json!([9, 7]));
    let query = seen.body["query"].as_str().unwrap();
    let items: Vec<String> = serde_json::from_value(seen.body["items"].clone()).unwrap();
    let read = |item: &String| usize::midpoint(query.len(), item.len()).min(99);
    let score = |item: &String| sigmoid(relevance(documents(item)[0]));
    let mut data: Vec<Value> = (items.iter().enumerate())
        .map(|(index, item)| json!({"index": index, "object": "score", "score": score(item)}))
        .collect();
    data.reverse();
    if seen.attempt == 0 && seen.number.is_multiple_of(3) {
        data.pop();
    }
    let read: usize = items.iter().map(read).sum();
    let usage = json!({"prompt_tokens": read, "completion_tokens": items.len()});
    reply(&json!({"object": "list", "model": "m", "data": data, "usage": usage}))
}

#[tokio::test(flavor = "multi_thread")]
async fn generative_scoring_asks_for_many_documents_and_notices_a_text_that_was_cut() {
    let job = Job::new(60);
    let prompt =
        "answers = ['no', 'yes']\nsystem = 'Grade.'\nuser = '{{ query }}: {{ document }}?'";
    std::fs::write(job.path("prompt.toml"), prompt).unwrap();
    let corpus = std::fs::read_to_string(job.path("corpus.jsonl")).unwrap();
    let long = format!("document 42 of {}", "more ".repeat(50));
    let corpus = corpus.replace("document 42 of some length", &long);
    std::fs::write(job.path("corpus.jsonl"), corpus).unwrap();
    let server = Server::start(vllm);
    let more = "concurrency = 2\ndialect = 'generative-scoring'\ndocuments_per_request = 8\n";
    let error = run(&job.settings(&server, more)).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Unlabelled {
                failed: 1,
                asked: 60,
                outcome: Outcome::Truncated,
                ..
            }
        ),
        "{error}"
    );
    let set = job.path("set");
    retort_label::seal(&job.ledger(), None, None, &set).unwrap();
    let labels = label_set::read(&set).unwrap().labels;
    assert_eq!(labels.len(), 59);
    for label in labels {
        let p = sigmoid(relevance(label.document_id[1..].parse().unwrap()));
        assert!((label.grade - p).abs() < 2e-6, "{label:?}");
    }
    // Two for the tokens, nine for the documents, one of them again one by one; and second tries.
    let most = 2 + 2 * (9 + 8);
    assert!(server.count() <= most, "{} requests", server.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn generative_scoring_asks_in_the_same_words_whatever_a_document_is_asked_beside() {
    let job = Job::new(40);
    let prompt = "answers = ['no', 'yes']\nsystem = 'Grade.'\n\
                  user = '{{ query }} <{{ nonce }}> {{ document }} </{{ nonce }}>'";
    std::fs::write(job.path("prompt.toml"), prompt).unwrap();
    let mut wordings = Vec::new();
    for documents_per_request in [1, 8] {
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let kept = Arc::clone(&asked);
        let server = Server::start(move |seen| {
            for item in seen.body["items"].as_array().into_iter().flatten() {
                let item = item.as_str().unwrap();
                let wording = format!("{}{item}", seen.body["query"].as_str().unwrap());
                kept.lock().unwrap().insert(documents(item)[0], wording);
            }
            vllm(seen)
        });
        let more = format!(
            "dialect = 'generative-scoring'\ndocuments_per_request = {documents_per_request}\n"
        );
        let mut settings = job.settings(&server, &more);
        settings.ledger = job.path(&format!("{documents_per_request}.sqlite"));
        run(&settings).await.unwrap();
        wordings.push(asked.lock().unwrap().clone());
    }
    assert_eq!(wordings[0].len(), 40);
    assert_eq!(wordings[0], wordings[1]);
    let mark = |document: usize| wordings[0][&document].split(['<', '>']).nth(1).unwrap();
    assert_eq!(mark(0).len(), 16);
    assert_eq!((mark(0), mark(0) == mark(20)), (mark(19), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_several_tokens_is_refused_before_anything_is_asked() {
    let job = Job::new(20);
    let server = Server::start(|seen| {
        assert!(seen.headers.starts_with("POST /v1/tokenize "));
        reply(&json!({"tokens": [1, 2], "count": 2, "max_model_len": 100}))
    });
    let more = "dialect = 'generative-scoring'\n";
    let error = run(&job.settings(&server, more)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Setting(problem) if problem.contains("must be one token")),
        "{error}"
    );
    assert!(!job.ledger().exists());
}

const PAIRWISE: &str = "kind = 'pairwise'\nanswers = ['A', 'B']\nsystem = 'Which fits better?'\n\
                        user = '{{ query }} A: {{ document_a }} B: {{ document_b }}'";

/// Prefers the more relevant document, with noise, and the one that is shown first.
fn prefers(seen: &Seen) -> Act {
    let shown = documents(question(seen));
    let (a, b) = (shown[0], shown[1]);
    let noise = 0.8 * noise(1000 * a + b);
    let p = sigmoid(relevance(a) - relevance(b) + 0.5 + noise);
    reply(&completion(&[("A", p), ("B", 1.0 - p)], (80, 1)))
}

#[tokio::test(flavor = "multi_thread")]
async fn comparisons_give_the_order_back_and_tell_the_bias_for_the_first_place() {
    let job = Job::new(60);
    std::fs::write(job.path("prompt.toml"), PAIRWISE).unwrap();
    let server = Server::start(prefers);
    let settings = job.settings(&server, "concurrency = 8\n");
    run(&settings).await.unwrap();
    // Four for each document, but for edges that the two cycles share, in both orders.
    let asked = server.count();
    assert!(
        (3 * 20 * 3..=3 * 20 * 4).contains(&asked),
        "{asked} requests"
    );
    let set = sealed(&job, "set");
    assert_eq!((set.labels.len(), set.manifest.top_grade), (60, 1));
    assert_eq!(set.manifest.recipe["kind"], "pairwise");
    let tau = least_tau(&set);
    assert!(tau > 0.85, "Kendall's tau is {tau}");
    // The strengths of a query are centred.
    let logit = |p: f64| (p / (1.0 - p)).ln();
    let of_first = set.labels.iter().filter(|label| label.query_id == "q0");
    let sum: f64 = of_first.map(|label| logit(label.grade)).sum();
    assert!(sum.abs() < 1e-6, "{sum}");

    let reader = Reader::open(&job.ledger()).unwrap();
    let recipes = reader.recipes().unwrap();
    let bias = retort_label::position_bias(&reader, &recipes[0]).unwrap();
    let PositionBias {
        first,
        flipped,
        pairs,
    } = bias.unwrap();
    assert_eq!(pairs, asked / 2);
    assert!((0.53..0.65).contains(&first), "{first}");
    assert!((0.02..0.4).contains(&flipped), "{flipped}");

    // One more candidate is compared with four others; the rest is known.
    let candidates = std::fs::read_to_string(job.path("candidates.jsonl")).unwrap();
    let more = json!({"query_id": "q0", "document_id": "d59", "source": "random"});
    std::fs::write(
        job.path("candidates.jsonl"),
        format!("{candidates}{more}\n"),
    )
    .unwrap();
    run(&settings).await.unwrap();
    assert!(
        (1..=8).contains(&(server.count() - asked)),
        "{}",
        server.count()
    );
    assert_eq!(sealed(&job, "more").labels.len(), 61);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_failed_leaves_its_documents_with_the_others() {
    let job = Job::new(20);
    std::fs::write(job.path("prompt.toml"), PAIRWISE).unwrap();
    let server = Server::start(|seen| {
        if seen.document == 3 {
            return Act::Reply(
                400,
                String::new(),
                r#"{"error":{"code":"content_filter"}}"#.into(),
            );
        }
        prefers(seen)
    });
    let error = run(&job.settings(&server, "concurrency = 8\n"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unlabelled { .. }), "{error}");
    assert_eq!(sealed(&job, "set").labels.len(), 20);
}

const LISTWISE: &str = "kind = 'listwise'\nsystem = 'Order.'\n\
                        user = '{{ query }}{% for one in documents %} [{{ loop.index }}] {{ one }}{% endfor %}'";

/// Orders what it is shown by relevance, with noise; now and then leaves some out, names some twice
/// and one that is not there, or talks.
fn orders(seen: &Seen) -> Act {
    let shown = documents(question(seen));
    let score = |place: usize| {
        let document = shown[place - 1];
        relevance(document) + 0.9 * noise(1000 * shown[0] + document)
    };
    let mut places: Vec<usize> = (1..=shown.len()).collect();
    places.sort_by(|a, b| score(*b).total_cmp(&score(*a)));
    let mut named: Vec<String> = places.iter().map(|place| format!("[{place}]")).collect();
    match shown[0] % 5 {
        0 => named.truncate(shown.len() * 3 / 4),
        1 => named.extend(["[1]".to_owned(), "[99]".to_owned()]),
        _ => {}
    }
    let mut written = named.join(" > ");
    if seen.attempt == 0 && shown[0] % 7 == 3 {
        written = format!("Here is the order: {written}");
    }
    let choice = json!({"finish_reason": "stop", "message": {"content": written}});
    reply(&json!({"model": "m", "choices": [choice]}))
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_shuffled_documents_give_the_order_back() {
    let job = Job::new(60);
    std::fs::write(job.path("prompt.toml"), LISTWISE).unwrap();
    // One window that holds all, and windows that overlap.
    for (window, samples, requests, bound) in [(20, 4, 12, 0.85), (8, 3, 36, 0.8)] {
        let server = Server::start(orders);
        let more = format!("concurrency = 4\nsamples = {samples}\nlog_probabilities = false\n");
        let mut settings = job.settings(&server, &more);
        settings.window = window;
        settings.ledger = job.path(&format!("{window}.sqlite"));
        run(&settings).await.unwrap();
        // Those that talked were asked twice.
        assert!(
            (requests..2 * requests).contains(&server.count()),
            "{}",
            server.count()
        );
        let set = job.path(&format!("set-{window}"));
        let candidates = job.path("candidates.jsonl");
        retort_label::seal(&settings.ledger, None, Some(&candidates), &set).unwrap();
        let set = label_set::read(&set).unwrap();
        assert_eq!((set.labels.len(), set.manifest.top_grade), (60, 1));
        let tau = least_tau(&set);
        assert!(
            tau > bound,
            "Kendall's tau is {tau} with windows of {window}"
        );
        let grades: HashSet<u64> = set.labels.iter().map(|one| one.grade.to_bits()).collect();
        assert!(grades.len() > 50, "{} grades", grades.len());
        // Training keeps strengths apart up to ±4.6.
        assert!(
            set.labels
                .iter()
                .all(|one| (0.01..0.99).contains(&one.grade))
        );

        let reader = Reader::open(&settings.ledger).unwrap();
        let recipes = reader.recipes().unwrap();
        let bias = retort_label::position_bias(&reader, &recipes[0])
            .unwrap()
            .unwrap();
        assert!(
            (0.4..0.6).contains(&bias.first) && bias.pairs > 100,
            "{bias:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kind_can_not_do_is_refused_before_anything_is_sent() {
    let job = Job::new(20);
    let server = Server::start(|_| panic!("nothing is to be sent"));
    let refused = async |prompt: &str, more: &str, change: fn(&mut LabelSettings)| {
        std::fs::write(job.path("prompt.toml"), prompt).unwrap();
        let mut settings = job.settings(&server, more);
        change(&mut settings);
        run(&settings).await.unwrap_err().to_string()
    };
    let graded = "answers = ['0', '1', '2']\nsystem = ''\nuser = '{{ query }} {{ document }}'";
    for (prompt, more, change, said) in [
        (
            PAIRWISE,
            "",
            (|s| s.comparisons = 3) as fn(&mut LabelSettings),
            "even number",
        ),
        (PAIRWISE, "", |s| s.comparisons = 0, "even number"),
        (
            LISTWISE,
            "log_probabilities = false",
            |s| s.window = 1,
            "at least 2",
        ),
        (LISTWISE, "", |_| (), "set it to false"),
        (PAIRWISE, "samples = 2", |_| (), "all samples are alike"),
        (
            graded,
            "dialect = 'generative-scoring'",
            |_| (),
            "two answers",
        ),
    ] {
        let error = refused(prompt, more, change).await;
        assert!(error.contains(said), "{error} lacks {said}");
    }
    let one = json!({"query_id": "q0", "document_id": "d1", "source": "random"});
    std::fs::write(job.path("candidates.jsonl"), format!("{one}\n")).unwrap();
    let error = refused(PAIRWISE, "", |_| ()).await;
    assert!(
        error.contains("has one document for the query q0"),
        "{error}"
    );
    std::fs::write(job.path("made.jsonl"), "").unwrap();
    let settings = job.settings(&server, "");
    let error = retort_label::import(&job.path("made.jsonl"), &settings).unwrap_err();
    assert!(error.to_string().contains("one document each"), "{error}");
    assert!(!job.ledger().exists());
}

/// What a teacher says to a request of any kind, in the form of its dialect.
fn said(body: &Value) -> Value {
    let messages = body["messages"].as_array().unwrap();
    let shown = documents(messages.last().unwrap()["content"].as_str().unwrap());
    let p = match *shown {
        [one] => sigmoid(relevance(one)),
        [a, b] => sigmoid(relevance(a) - relevance(b)),
        _ => f64::NAN,
    };
    let answers = if shown.len() == 1 {
        ["yes", "no"]
    } else {
        ["A", "B"]
    };
    if body["logprobs"] == true {
        return completion(&[(answers[0], p), (answers[1], 1.0 - p)], (80, 1));
    }
    let written = if p.is_nan() {
        let mut places: Vec<usize> = (0..shown.len()).collect();
        places.sort_by(|a, b| relevance(shown[*b]).total_cmp(&relevance(shown[*a])));
        let named: Vec<String> = places.iter().map(|at| format!("[{}]", at + 1)).collect();
        named.join(" > ")
    } else {
        answers[usize::from(p < 0.5)].to_owned()
    };
    if body["system"].is_string() {
        return json!({"model": "m", "content": [{"type": "text", "text": written}],
            "usage": {"input_tokens": 80, "output_tokens": 9}});
    }
    let choice = json!({"finish_reason": "stop", "message": {"content": written}});
    json!({"model": "m", "choices": [choice], "usage": {"prompt_tokens": 80, "completion_tokens": 9}})
}

/// A batch whose lines are in the form of their dialect; the first comes back without every third.
fn batched(number: usize, requests: &[Value]) -> End {
    let of_one = |request: &Value| match &request["body"] {
        Value::Null => {
            let result = json!({"type": "succeeded", "message": said(&request["params"])});
            json!({"custom_id": request["custom_id"], "result": result}).to_string()
        }
        body => line(request, 200, &said(body), &Value::Null),
    };
    let kept = requests
        .iter()
        .enumerate()
        .filter(|(place, _)| number > 0 || place % 3 != 2);
    End {
        status: "completed",
        output: File::Lines(kept.map(|(_, one)| of_one(one)).collect()),
        errors: File::Null,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn judgements_of_every_kind_come_in_batches_as_they_come_one_by_one() {
    const YES_NO: &str = "answers = ['no', 'yes']\nsystem = 'Does it fit?'\n\
                          user = '{{ query }}: {{ document }}'";
    const WRITTEN: &str = "log_probabilities = false\n";
    const ANTHROPIC: &str = "dialect = 'anthropic'\nlog_probabilities = false\n";
    for (prompt, of_teacher) in [
        (YES_NO, ""),
        (YES_NO, ANTHROPIC),
        (PAIRWISE, ""),
        (PAIRWISE, ANTHROPIC),
        (LISTWISE, WRITTEN),
        (LISTWISE, ANTHROPIC),
    ] {
        let job = Job::new(60);
        std::fs::write(job.path("prompt.toml"), prompt).unwrap();
        let labels = |ledger: &Path, name: &str| {
            retort_label::seal(ledger, None, None, &job.path(name)).unwrap();
            let mut labels = label_set::read(&job.path(name)).unwrap().labels;
            for label in &mut labels {
                label.at.clear();
            }
            labels
        };
        let server = Server::start(|seen| reply(&said(&seen.body)));
        run(&job.settings(&server, of_teacher)).await.unwrap();
        let one_by_one = labels(&job.ledger(), "one-by-one");
        assert_eq!(one_by_one.len(), 60);

        let server = BatchServer::start(batched);
        server.end();
        let mut settings: LabelSettings =
            toml::from_str(&job.toml(&server.url, of_teacher)).unwrap();
        settings.ledger = job.path("batched.sqlite");
        settings.teacher.batch.poll_seconds = 0;
        let never = std::future::pending();
        let done = collect_in_batches(&settings, false, true, |_: Progress| (), never).await;
        assert!(done.is_ok(), "{done:?}");
        assert_eq!(server.count(), 2);
        assert!(
            labels(&settings.ledger, "batched") == one_by_one,
            "{prompt}{of_teacher}"
        );
    }
}
