//! Wrong input: a clear error, the right exit code, and nothing half-written.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{SmallJob, fail, retort, root, seal};
use retort_data::label_set::{self, LabelSet};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Fails, and leaves no run.
fn refused(job: &SmallJob, command: &mut Command, code: i32, expected: &[&str]) {
    let said = fail(command, code);
    for expected in expected {
        assert!(said.contains(expected), "{said:?} lacks {expected:?}");
    }
    let left: Vec<_> = std::fs::read_dir(job.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("run"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn an_unknown_setting_names_the_nearest() {
    let job = SmallJob::new();
    let mut train = job.train("run");
    train.args(["--set", "optimizer.learning_rat=1"]);
    refused(
        &job,
        &mut train,
        78,
        &["learning_rat", "did you mean `learning_rate`?"],
    );

    let config = std::fs::read_to_string(root().join("configs/demo.toml")).unwrap();
    let misspelt = job.path("misspelt.toml");
    std::fs::write(&misspelt, config.replace("max_tokens", "max_token")).unwrap();
    let said = fail(retort().args(["train", "--config"]).arg(&misspelt), 78);
    assert!(
        said.contains("did you mean `max_tokens`?") && said.contains("misspelt.toml"),
        "{said}"
    );
}

#[test]
fn a_setting_out_of_range_names_its_range() {
    let job = SmallJob::new();
    let mut train = job.train("run");
    train.args(["--set", "schedule.warmup=1.5"]);
    refused(&job, &mut train, 78, &["schedule.warmup: is 1.5"]);
    let mut train = job.train("run");
    train.args(["--set", "data.max_tokens=65"]);
    refused(&job, &mut train, 78, &["the base model has 64 positions"]);
    let mut train = job.train("run");
    train.args(["--set", "model.keep_layers=[0, 2]"]);
    refused(&job, &mut train, 78, &["the layers [0, 2]", "has 2"]);
}

#[test]
fn missing_files_are_named() {
    let job = SmallJob::new();
    for (setting, name) in [
        ("data.labels=nowhere", "nowhere"),
        ("data.collection=nowhere", "nowhere"),
        ("evaluation.candidates=nowhere.jsonl", "nowhere.jsonl"),
        ("evaluation.split=holdout", "there are dev, test, train"),
        ("model.init=./nowhere", "nowhere"),
    ] {
        let mut train = job.train("run");
        train.args(["--set", setting]);
        refused(&job, &mut train, 65, &[name]);
    }
    let said = fail(retort().args(["train", "--config", "nowhere.toml"]), 65);
    assert!(said.contains("nowhere.toml"), "{said}");
    let said = fail(retort().args(["train", "--resume", "nowhere"]), 65);
    assert!(said.contains("is no run"), "{said}");
}

#[test]
fn bad_judgements_name_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("made.jsonl");
    let refused = |third: &str, expected: &str| {
        let good = |document: &str| {
            format!(
                "{{\"query_id\":\"q001\",\"document_id\":\"{document}\",\"probabilities\":[0,0,0,1]}}\n"
            )
        };
        std::fs::write(
            &file,
            format!("{}{}{third}\n", good("p0001"), good("p0002")),
        )
        .unwrap();
        let mut import = retort();
        import.args(["labels", "import"]).arg(&file);
        import
            .arg("--set")
            .arg(format!("ledger={}/ledger", folder.path().display()));
        let said = fail(&mut import, 65);
        assert!(said.contains(expected), "{said:?} lacks {expected:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    };
    refused("{\"query_id\": \"q001\",", "made.jsonl:3: EOF");
    let third = |rest: &str| format!("{{\"query_id\":\"q001\",\"document_id\":\"p0003\",{rest}}}");
    refused(
        &third("\"probabilities\":[0,0,0,1.5]"),
        "made.jsonl:3: the grade 4.5 is outside the scale 0 to 3",
    );
    refused(
        &third("\"probabilities\":[0,0,1]"),
        "made.jsonl:3: has 3 probabilities",
    );
    refused(
        &third("\"probabilities\":[0,0,0,1],\"text\":\"sha256:of another text\""),
        "made.jsonl:3: was made on other texts",
    );
    refused(
        &third("\"probabilities\":[0,0,0,1]").replace("q001", "q9"),
        "q9",
    );
}

#[test]
fn a_label_set_that_is_not_what_was_sealed_is_refused() {
    let job = SmallJob::new();
    let labels = job.path("labels");
    let good = label_set::read(&labels).unwrap();
    let replace = |set: LabelSet| {
        std::fs::remove_dir_all(&labels).unwrap();
        seal(&labels, set);
    };
    let mut other = good.clone();
    other.labels[2].text = "sha256:of another text".to_owned();
    replace(other);
    refused(&job, &mut job.train("run"), 65, &["made on other texts"]);

    replace(good);
    let shard = labels.join("part-00000.parquet");
    let mut bytes = std::fs::read(&shard).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&shard, bytes).unwrap();
    refused(
        &job,
        &mut job.train("run"),
        65,
        &["part-00000.parquet", "not what was sealed"],
    );
    std::fs::remove_file(&shard).unwrap();
    refused(&job, &mut job.train("run"), 65, &["part-00000.parquet"]);
}

#[test]
fn an_existing_run_is_kept() {
    let job = SmallJob::new();
    std::fs::create_dir(job.path("taken")).unwrap();
    std::fs::write(job.path("taken/mine"), "mine").unwrap();
    let said = fail(&mut job.train("taken"), 65);
    assert!(said.contains("exists already"), "{said}");
    assert_eq!(std::fs::read_dir(job.path("taken")).unwrap().count(), 1);
}

/// A copy of the golden model folder, to be spoilt.
fn model_folder(job: &SmallJob) -> PathBuf {
    let folder = job.path("model");
    std::fs::create_dir(&folder).unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(
            root().join("tests/golden/bert").join(name),
            folder.join(name),
        )
        .unwrap();
    }
    folder
}

/// Rewrites the weights with a change to the tensors' shapes and bytes by name.
fn rewrite(folder: &Path, change: impl Fn(&mut HashMap<String, (Vec<usize>, Vec<u8>)>)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let mut tensors: HashMap<_, _> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| {
            (
                name.to_owned(),
                (view.shape().to_vec(), view.data().to_vec()),
            )
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (shape, data))| {
        (
            name,
            TensorView::new(Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_model_folder_with_wrong_tensors_names_them() {
    const NAME: &str = "bert.encoder.layer.1.output.dense.weight";
    type Tensors = HashMap<String, (Vec<usize>, Vec<u8>)>;
    type Change = (&'static str, fn(&mut Tensors));
    let changes: [Change; 4] = [
        ("missing", |tensors| {
            tensors.remove(NAME);
        }),
        ("extra", |tensors| {
            tensors.insert("bert.stray.weight".to_owned(), (vec![1], vec![0; 4]));
        }),
        ("misshapen", |tensors| {
            tensors.get_mut(NAME).unwrap().0.reverse();
        }),
        ("not a number", |tensors| {
            tensors.get_mut(NAME).unwrap().1[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
    ];
    for (what, change) in changes {
        let job = SmallJob::new();
        let folder = model_folder(&job);
        rewrite(&folder, change);
        let name = if what == "extra" {
            "bert.stray.weight"
        } else {
            NAME
        };
        let mut train = job.train("run");
        train
            .arg("--set")
            .arg(format!("model.init={}", folder.display()));
        refused(&job, &mut train, 65, &[name]);
        // A serving directory is read as strictly.
        let said = fail(retort().args(["score", "--device", "cpu"]).arg(&folder), 65);
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn pickled_weights_are_refused_with_the_way_to_convert() {
    let job = SmallJob::new();
    let folder = model_folder(&job);
    std::fs::rename(
        folder.join("model.safetensors"),
        folder.join("pytorch_model.bin"),
    )
    .unwrap();
    let mut train = job.train("run");
    train
        .arg("--set")
        .arg(format!("model.init={}", folder.display()));
    refused(
        &job,
        &mut train,
        65,
        &["pytorch_model.bin", "save_pretrained"],
    );
}

#[test]
fn malformed_pairs_on_stdin_name_their_line() {
    let job = SmallJob::new();
    let pairs = job.path("pairs.jsonl");
    std::fs::write(
        &pairs,
        "{\"query\":\"a\",\"document\":\"b\"}\n{\"query\":\"a\"}\n",
    )
    .unwrap();
    let mut score = retort();
    score.args(["score", "--device", "cpu", "tests/golden/bert"]);
    score.stdin(std::fs::File::open(&pairs).unwrap());
    let said = fail(&mut score, 65);
    assert!(
        said.contains("standard input:2: missing field `document`"),
        "{said}"
    );
}
