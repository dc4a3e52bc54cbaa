//! From judgements to a directory that serves, through the binary, on a two-layer BERT.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::{SmallJob, fail, retort, stdout, succeed};
use retort_data::label_set;
use serde_json::{Value, json};

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn score(directory: &Path, lines: &str) -> Vec<Value> {
    let mut command = retort();
    command.args(["score", "--device", "cpu"]).arg(directory);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", common::stderr(&output));
    stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_run_ends_with_a_verdict_and_a_directory_that_scores() {
    let job = SmallJob::new();
    let said = stdout(&succeed(&mut job.train("run")));
    assert!(said.contains("student-before"), "{said}");

    let verdict = read_json(&job.path("run/verdict.json"));
    let systems = verdict["systems"].as_array().unwrap();
    let names: Vec<&str> = systems
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "random",
            "bm25",
            "base-cosine",
            "teacher",
            "student-before",
            "student"
        ]
    );
    assert_eq!(verdict["split"], "test");
    for system in systems {
        let (low, high) = (
            system["ndcg@10_ci"][0].as_f64().unwrap(),
            system["ndcg@10_ci"][1].as_f64().unwrap(),
        );
        let ndcg = system["ndcg@10"].as_f64().unwrap();
        assert!(
            0.0 <= low && low <= ndcg && ndcg <= high && high <= 1.0,
            "{system}"
        );
        assert!(
            (0.0..=1.0).contains(&system["mrr@10"].as_f64().unwrap()),
            "{system}"
        );
        assert_eq!(system["queries"], 4);
    }

    let pairs = [
        ("cordless drill", "Combi drill, 18 V"),
        ("drill", "A bath towel, white"),
        ("", ""),
    ];
    let line = |(query, document): (&str, &str)| {
        format!("{}\n", json!({"query": query, "document": document}))
    };
    let together = score(&job.path("run/export"), &pairs.map(line).concat());
    for (pair, scored) in pairs.into_iter().zip(&together) {
        let logit = scored["logit"].as_f64().unwrap();
        let sigmoid = 1.0 / (1.0 + (-logit).exp());
        assert!(
            (scored["score"].as_f64().unwrap() - sigmoid).abs() < 1e-6,
            "{scored}"
        );
        // A pair's score does not depend on its company.
        let alone = score(&job.path("run/export"), &line(pair));
        assert!(
            (alone[0]["logit"].as_f64().unwrap() - logit).abs() < 1e-5,
            "{scored}"
        );
    }

    let export = |out: &str| {
        let mut command = retort();
        command
            .arg("export")
            .arg(job.path("run"))
            .arg("--out")
            .arg(job.path(out));
        command
    };
    succeed(&mut export("again"));
    let weights = |folder: &str| std::fs::read(job.path(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("again"), weights("run/export"));
    std::fs::write(job.path("again/model.safetensors"), "mine").unwrap();
    let said = fail(&mut export("again"), 65);
    assert!(said.contains("exists already"), "{said}");
    assert_eq!(weights("again"), b"mine");
}

#[test]
fn an_export_has_what_servers_read() {
    let job = SmallJob::new();
    succeed(&mut job.train("run"));
    let export = job.path("run/export");
    let config = read_json(&export.join("config.json"));
    assert_eq!(
        config["architectures"],
        json!(["BertForSequenceClassification"])
    );
    assert_eq!(config["id2label"], json!({"0": "LABEL_0"}));
    assert!(config["pad_token_id"].is_u64());
    let activation = &config["sentence_transformers"]["activation_fn"];
    assert_eq!(activation, "torch.nn.modules.activation.Sigmoid");
    let tokenizer = read_json(&export.join("tokenizer.json"));
    assert!(tokenizer["truncation"].is_null() && tokenizer["padding"].is_null());
    assert_eq!(
        read_json(&export.join("tokenizer_config.json"))["model_max_length"],
        64
    );
    let sentence_bert = read_json(&export.join("sentence_bert_config.json"));
    assert_eq!(
        sentence_bert,
        json!({"max_seq_length": 64, "do_lower_case": false})
    );
    assert!(!export.join("modules.json").exists());

    let bytes = std::fs::read(export.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let tensors = header.tensors();
    for name in ["bert.pooler.dense.weight", "classifier.bias"] {
        assert!(tensors.contains_key(name), "{name}");
    }
    assert_eq!(tensors["classifier.weight"].shape, [1, 32]);
    assert_eq!(
        tensors["bert.encoder.layer.1.intermediate.dense.weight"].shape,
        [64, 32]
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = export
            .join("model.safetensors")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}

#[test]
fn every_architecture_trains_and_serves_with_the_layers_it_keeps() {
    for (name, kept, layers) in [
        ("distilbert", "[1]", "n_layers"),
        ("electra", "[0]", "num_hidden_layers"),
        ("modernbert", "[0]", "num_hidden_layers"),
        ("roberta", "[1]", "num_hidden_layers"),
        ("xlm-roberta", "[0]", "num_hidden_layers"),
    ] {
        let job = SmallJob::new();
        let mut train = job.train("run");
        for setting in [
            format!("model.init=tests/golden/family/{name}"),
            format!("model.keep_layers={kept}"),
            "data.max_tokens=32".to_owned(),
            "schedule.epochs=1".to_owned(),
        ] {
            train.args(["--set", &setting]);
        }
        succeed(&mut train);
        let config = read_json(&job.path("run/export/config.json"));
        assert_eq!(config["model_type"], name);
        assert_eq!(config[layers], 1);
        let pair = json!({"query": "cordless drill", "document": "Combi drill, 18 V"});
        let scored = score(&job.path("run/export"), &format!("{pair}\n"));
        assert!(scored[0]["logit"].is_f64(), "{scored:?}");
    }
}

/// Four times eight queries are thirty-two, whatever each part of them weighs.
#[test]
fn accumulated_steps_go_the_way_of_large_ones() {
    let job = SmallJob::new();
    let losses = |run: &str, settings: [&str; 2]| {
        let mut train = job.train(run);
        train.args(["--set", "model.dropout=0.0"]);
        for setting in settings {
            train.args(["--set", setting]);
        }
        succeed(&mut train);
        let metrics = std::fs::read_to_string(job.path(run).join("metrics.jsonl")).unwrap();
        let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64();
        metrics.lines().filter_map(loss).collect::<Vec<f64>>()
    };
    let large = losses(
        "large",
        ["schedule.queries_per_step=8", "schedule.accumulate=1"],
    );
    let small = losses(
        "small",
        ["schedule.queries_per_step=2", "schedule.accumulate=4"],
    );
    assert!(large.len() > 5 && large.len() == small.len());
    for (large, small) in large.iter().zip(&small) {
        assert!((large - small).abs() < 1e-4 * large, "{large} {small}");
    }
}

#[test]
fn label_sets_and_gold_are_learnt_from_side_by_side() {
    let job = SmallJob::new();
    let more = [
        format!(
            "data.also=[{{labels={:?}, share=0.5}}]",
            job.path("test-labels")
        ),
        "data.gold={split=\"train\", candidates=\"training-data/shop/candidates/train.jsonl\", \
         negatives=3, share=0.02}"
            .to_owned(),
        "schedule.sampling=stratified".to_owned(),
        "evaluation.every_steps=1000".to_owned(),
    ];
    let pairs = |out: &str, settings: &[String]| {
        let mut train = job.train(out);
        train.args(["--set", "schedule.epochs=1", "--set", "model.dropout=0.0"]);
        for setting in settings {
            train.args(["--set", setting]);
        }
        let said = common::stderr(&succeed(&mut train));
        let metrics = std::fs::read_to_string(job.path(out).join("metrics.jsonl")).unwrap();
        let steps = metrics.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["pairs"].as_u64().unwrap_or(0)
        });
        (steps.sum::<u64>(), said)
    };
    assert_eq!(pairs("alone", &[]).0, 480);
    let (beside, said) = pairs("beside", &more);
    // 480 labels, half of 120, and of the gold gains some 32 groups of at most ten documents.
    assert!(
        beside > 480 + 60 + 200 && beside <= 480 + 60 + 330,
        "{beside}"
    );
    // The sets besides the first count for the sentinels as well.
    assert!(
        said.contains("queries of test are learnt from as well"),
        "{said}"
    );
}

#[test]
fn training_files_of_flagembedding_are_learnt_from_without_a_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let line = |size: usize| {
        let negatives = ["hat", "belt", "shoes, blue,"].map(|what| format!("{what} {size}"));
        let line = json!({
            "query": format!("red shoes {size}"),
            "pos": [format!("shoes, red, {size}")],
            "neg": negatives,
        });
        format!("{line}\n")
    };
    let lines: String = (0..16).map(line).collect();
    std::fs::write(path("train.jsonl"), lines).unwrap();
    let mut import = retort();
    import.args(["import", "flagembedding"]);
    import.arg(path("train.jsonl"));
    succeed(import.arg("--out").arg(path("my")));
    let mut candidates = retort();
    candidates.args([
        "candidates",
        "--split",
        "train",
        "--per-run",
        "1000",
        "--depth",
        "1000",
    ]);
    candidates.args(["--bm25", "0", "--trigrams", "0", "--random", "0"]);
    for (flag, name) in [
        ("--collection", "my"),
        ("--run", "my/runs/train.tsv"),
        ("--out", "candidates.jsonl"),
    ] {
        candidates.arg(flag).arg(path(name));
    }
    succeed(&mut candidates);

    let evaluated = format!(
        "{{split=\"train\", candidates={:?}, every_steps=9}}",
        path("candidates.jsonl")
    );
    let config = format!(
        "name = 'gold'\nseed = 1\nevaluation = {evaluated}\n\
         verdict = {{split=\"train\", candidates={candidates:?}}}\n\
         data = {{collection={:?}, max_tokens=64, gold={{split=\"train\", candidates={candidates:?}}}}}\n\
         model = {{init='tests/golden/bert', dropout=0.0}}\nloss = {{lce=1.0}}\n\
         optimizer = {{learning_rate=1e-3}}\n\
         schedule = {{epochs=1, documents_per_query=4, queries_per_step=4, warmup=0.1, tokens_per_pass=512}}\n",
        path("my"),
        candidates = path("candidates.jsonl"),
    );
    std::fs::write(path("gold.toml"), config).unwrap();
    let mut train = retort();
    train.args(["train", "--device", "cpu", "--config"]);
    succeed(train.arg(path("gold.toml")).arg("--out").arg(path("run")));
    let metrics = std::fs::read_to_string(path("run/metrics.jsonl")).unwrap();
    let pairs = metrics.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["pairs"].as_u64().unwrap_or(0)
    });
    assert_eq!(pairs.sum::<u64>(), 16 * 4);
    assert!(path("run/export/model.safetensors").exists());

    // Relevant documents alone leave nothing to compare.
    let mut train = retort();
    train.args(["train", "--device", "cpu", "--config"]);
    train.arg(path("gold.toml"));
    train.args(["--set", "data.gold={split=\"train\"}", "--out"]);
    let said = fail(train.arg(path("none")), 78);
    assert!(said.contains("so there is nothing to learn"), "{said}");
    assert!(!path("none").exists());
}

/// In nDCG@10 of the dev queries before the first step.
fn at_first(run: &Path) -> f64 {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    first["dev_ndcg@10"].as_f64().unwrap()
}

#[test]
fn a_second_stage_goes_on_with_the_head_of_the_first() {
    let job = SmallJob::new();
    succeed(job.train("first").args(["--set", "loss={lce=1.0}"]));
    let best = read_json(&job.path("first/verdict.json"));
    let student = |verdict: &Value, name: &str| {
        let systems = verdict["systems"].as_array().unwrap();
        let system = systems.iter().find(|system| system["name"] == name);
        system.unwrap()["ndcg@10"].as_f64().unwrap()
    };
    let init = format!("model.init={}", job.path("first/export").display());
    let mut kept = job.train("kept");
    kept.args([
        "--set",
        &init,
        "--set",
        "model.head=kept",
        "--set",
        "schedule.epochs=1",
    ]);
    succeed(&mut kept);
    let verdict = read_json(&job.path("kept/verdict.json"));
    let (before, after) = (
        student(&verdict, "student-before"),
        student(&best, "student"),
    );
    assert!((before - after).abs() < 1e-9, "{before} {after}");

    let mut new = job.train("new");
    new.args(["--set", &init, "--set", "schedule.epochs=1"]);
    let said = common::stderr(&succeed(&mut new));
    assert!(said.contains("has a head of its own"), "{said}");
    assert!((at_first(&job.path("new")) - at_first(&job.path("kept"))).abs() > 1e-6);

    let bare = job.path("bare");
    std::fs::create_dir(&bare).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(
            common::root().join("tests/golden/bert").join(file),
            bare.join(file),
        )
        .unwrap();
    }
    let config = std::fs::read_to_string(bare.join("config.json")).unwrap();
    let config = config.replace("BertForSequenceClassification", "BertModel");
    std::fs::write(bare.join("config.json"), config).unwrap();
    let init = format!("model.init={}", bare.display());
    let mut headless = job.train("headless");
    headless.args(["--set", &init, "--set", "model.head=kept"]);
    let said = fail(&mut headless, 78);
    assert!(said.contains("model.head: is \"kept\", but"), "{said}");
}

/// What a job of some settings says of itself.
fn said_of(job: &SmallJob, settings: &[&str]) -> String {
    let mut train = job.train("run");
    train.args(["--set", "model.dropout=0.0"]);
    for setting in settings {
        train.args(["--set", setting]);
    }
    common::stderr(&succeed(&mut train))
}

#[test]
fn training_that_goes_wrong_in_silence_is_told_and_named() {
    let part = |name: &str, lines: usize| {
        let text = std::fs::read_to_string(common::root().join("training-data/shop").join(name));
        text.unwrap()
            .split_inclusive('\n')
            .take(lines)
            .collect::<String>()
    };
    let cases: [(&[&str], &str, &str); 5] = [
        (&[], "", ""),
        (
            &["optimizer.learning_rate=0.9", "schedule.epochs=4"],
            "collapsed scores",
            "lower optimizer.learning_rate",
        ),
        (
            &["optimizer.learning_rate=1e-9", "schedule.epochs=12"],
            "nothing is learnt",
            "Raise optimizer.learning_rate",
        ),
        (
            &["evaluation.split=train"],
            "queries of train are learnt from as well",
            "Leave them out",
        ),
        (
            &["data.max_tokens=8"],
            "contradicting labels",
            "raise data.max_tokens",
        ),
    ];
    for (settings, named, way_out) in cases {
        let job = SmallJob::new();
        if settings == ["evaluation.split=train"] {
            std::fs::write(job.path("dev.jsonl"), part("candidates/train.jsonl", 60)).unwrap();
        }
        if settings == ["data.max_tokens=8"] {
            let mut set = label_set::read(&job.path("labels")).unwrap();
            for (place, label) in set.labels.iter_mut().enumerate() {
                label.grade = if place.is_multiple_of(2) { 3.0 } else { 0.0 };
                label.probabilities = vec![0.0; 4];
                label.probabilities[if place.is_multiple_of(2) { 3 } else { 0 }] = 1.0;
            }
            std::fs::remove_dir_all(job.path("labels")).unwrap();
            common::seal(&job.path("labels"), set);
        }
        let said = said_of(&job, settings);
        let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN")).collect();
        if named.is_empty() {
            assert!(warnings.is_empty(), "{warnings:?}");
        } else {
            let fits = |line: &&str| line.contains(named) && line.contains(way_out);
            assert!(warnings.iter().any(fits), "{named}: {said}");
        }
    }
}
