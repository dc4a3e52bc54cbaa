//! Teachers that err by chance and by habit, and students of them: learning curves on the demo's shop,
//! with a part of its products stuffed.
//!
//!   cargo bench --bench teachers                          students of 10, 100 and 300 queries
//!   cargo bench --bench teachers -- --queries 30,300      other flags of `retort eval --curve`
//!
//! Nine students, each in training as long as the demo's, which on two cores takes three to nine
//! minutes. It works in target/teachers; what was trained is kept there, and a run that was stopped goes
//! on.

#![allow(clippy::unwrap_used, reason = "a benchmark ends when something fails")]
#![allow(clippy::disallowed_methods, reason = "a panic names the line")]
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

#[path = "../crates/label/tests/simulated/mod.rs"]
mod simulated;

use std::path::{Path, PathBuf};
use std::process::Command;

use simulated::{StuffedShop, Teacher};

/// Queries whose gold gains the correction is fitted to.
const GOLD: usize = 30;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/teachers");
    let path = |name: &str| folder.join(name);
    // What cargo says to benchmarks is not for the command.
    let flags: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    if !path("judged").exists() {
        let _ = fs_err::remove_dir_all(&folder);
        fs_err::create_dir_all(&folder).unwrap();
        judge(root, &folder);
        fs_err::write(path("judged"), "").unwrap();
    }
    for (curve, labels, teacher) in [
        ("by-chance", "by-chance-train", "by-chance-test"),
        ("by-habit", "by-habit-train", "by-habit-test"),
        (
            "by-habit-debiased",
            "by-habit-debiased-train",
            "by-habit-test",
        ),
    ] {
        let mut command = retort(root);
        command.args(["eval", "--config", "configs/demo.toml", "--curve"]);
        command.arg(path(curve));
        for (key, name) in [
            ("data.collection", "shop"),
            ("data.labels", labels),
            ("verdict.teacher_labels", teacher),
        ] {
            command
                .arg("--set")
                .arg(format!("{key}={}", path(name).display()));
        }
        if !flags.iter().any(|flag| flag.starts_with("--queries")) {
            command.args(["--queries", "10,100,300"]);
        }
        println!("\nlabels wrong {}\n", curve.replace('-', " "));
        run(command.args(&flags));
    }
}

/// The shop, both teachers' judgements of it, and the correction.
fn judge(root: &Path, folder: &Path) {
    let path = |name: String| -> PathBuf { folder.join(name) };
    let shop = StuffedShop::write(&path("shop".to_owned()));
    shop.keep_gold("gold", "train", GOLD);
    for (name, teacher) in [("by-chance", Teacher::NOISY), ("by-habit", Teacher::BIASED)] {
        for split in ["train", "test"] {
            let candidates = root.join(format!("training-data/shop/candidates/{split}.jsonl"));
            shop.judge(
                teacher,
                &candidates,
                split,
                &path(format!("{name}-{split}")),
            );
        }
    }
    let mut command = retort(root);
    command
        .args(["labels", "debias"])
        .arg(path("by-habit-train".to_owned()));
    command.arg("--collection").arg(path("shop".to_owned()));
    command.args(["--gold", "gold", "--out"]);
    run(command.arg(path("by-habit-debiased-train".to_owned())));
}

fn retort(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_retort"));
    command.current_dir(root);
    command
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}");
}
