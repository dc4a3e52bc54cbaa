//! What becomes of a run when its device fails.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{SmallJob, fail, retort, root, stderr, succeed};
use retort_model::{
    CrossEncoder, Device, DeviceChoice, Encoded, Error as ModelError, Head, Precision, choose,
    configure, is_software, score, unanswered,
};
use retort_trainer::{Error, Event, Run, TrainSettings, last_step, train};

/// Panics are listened to in all of a process: one test after another.
static ALONE: Mutex<()> = Mutex::new(());

fn gpu() -> Option<(Device, MutexGuard<'static, ()>)> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    configure(None, Precision::F32);
    let choice = std::env::var("RETORT_TEST_GPU");
    let choice = choice.map_or(DeviceChoice::Wgpu, |it| it.parse().unwrap());
    match choose(choice) {
        Ok((device, _)) => {
            die_where_nobody_answers();
            Some((device, alone))
        }
        Err(error) => {
            let is_required = std::env::var_os("RETORT_REQUIRE_GPU").is_some();
            assert!(!is_required, "{error}");
            println!("skipped: {error}");
            None
        }
    }
}

/// The thread of wgpu's that dies now and then (`.config/nextest.toml`) would leave the test waiting.
fn die_where_nobody_answers() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Some((said, since)) = unanswered()
                && since > Duration::from_secs(20)
            {
                println!("nobody answers since: {said}");
                std::process::abort();
            }
        }
    });
}

fn without_dropout(job: &SmallJob, others: &[&str]) -> TrainSettings {
    let mut settings = job.settings();
    settings.push("model.dropout=0.0".to_owned());
    settings.extend(others.iter().map(ToString::to_string));
    retort_data::settings::read(&root().join("configs/demo.toml"), &settings).unwrap()
}

#[test]
fn a_device_that_is_lost_leaves_a_run_to_go_on_with_on_a_gpu() {
    let Some((device, _alone)) = gpu() else {
        return;
    };
    let job = SmallJob::new();
    let settings = without_dropout(&job, &["schedule.epochs=2"]);
    let folder = job.path("run");
    let run = Run {
        settings: &settings,
        folder: &folder,
        allowed_changes: &[],
        base: &root().join("tests/golden/bert"),
        device: &device,
        others: &[],
    };
    let lost = train(&run, |event| {
        if let Event::Step(made) = event
            && made.step == 7
        {
            // In Burn's words, or near: from a thread that serves the device.
            let _ = std::thread::spawn(|| panic!("Parent device is lost")).join();
            panic!("RecvError");
        }
    });
    let Err(Error::Model(ModelError::Device { said })) = lost else {
        panic!("the run did not end by its device");
    };
    assert!(said.contains("Parent device is lost"), "{said}");
    assert_eq!(last_step(&folder), Some(5));

    // Elsewhere, too.
    let mut command = retort();
    command
        .args(["train", "--device", "cpu", "--resume"])
        .arg(&folder);
    let said = stderr(&succeed(&mut command));
    assert!(folder.join("verdict.json").exists());
    assert!(said.contains("the first step took"), "{said}");
}

/// By itself, where steps are told of one later, and as one that stands for two, since one is all that may be
/// there.
#[test]
fn one_gpu_and_two_learn_what_the_cpu_does_on_a_gpu() {
    let Some((device, _alone)) = gpu() else {
        return;
    };
    let job = SmallJob::new();
    let settings = without_dropout(&job, &["schedule.epochs=1", "schedule.accumulate=2"]);
    let learnt = |name: &str, device: &Device, others: &[Device]| {
        let (mut losses, mut told) = (Vec::new(), Vec::new());
        let folder = job.path(name);
        let run = Run {
            settings: &settings,
            folder: &folder,
            allowed_changes: &[],
            base: &root().join("tests/golden/bert"),
            device,
            others,
        };
        train(&run, |event| match event {
            Event::Step(made) => {
                assert!(made.gradient_norm.is_finite());
                losses.push(made.loss);
                told.push(("made", made.step));
            }
            Event::Evaluated { step, .. } => told.push(("evaluated", step)),
            _ => {}
        })
        .unwrap();
        let metrics = fs_err::read_to_string(folder.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().count(), told.len());
        (losses, told)
    };
    let (here, in_order) = learnt("here", &Device::flex(), &[]);
    let two = std::slice::from_ref(&device);
    for (name, others) in [("one", &[][..]), ("two", two)] {
        let (there, told) = learnt(name, &device, others);
        assert_eq!(told, in_order);
        for (there, here) in there.iter().zip(&here) {
            assert!((there / here - 1.0).abs() < 1e-4, "{name}: {there} {here}");
        }
    }
    // What was loaded on one device is trained on another.
    let golden = root().join("tests/golden/bert");
    let loaded = Device::flex().autodiff();
    let model = CrossEncoder::load(&golden, Head::Required, None, &loaded).unwrap();
    let device = device.autodiff();
    assert_eq!(model.on(&device).device(), device);
}

#[test]
fn more_gpus_than_there_are_are_refused_before_anything_is_written() {
    let job = SmallJob::new();
    let mut command = job.train("run");
    let said = fail(command.args(["--gpus", "2"]), 78);
    assert!(said.contains("2 devices were asked for"), "{said}");
    assert!(!job.path("run").exists());
}

#[test]
fn too_little_memory_is_an_error_that_says_so_on_a_gpu() {
    let Some((device, _alone)) = gpu() else {
        return;
    };
    if !is_software(&device) {
        println!("skipped: only of software it is known what does not fit");
        return;
    }
    let golden = root().join("tests/golden/bert");
    let model = CrossEncoder::load(&golden, Head::Required, None, &device).unwrap();
    // Of one layer's queries, keys and values there are 192 MiB, and a buffer has 128 at most.
    let pair = Encoded {
        input_ids: vec![5; 64],
        token_type_ids: vec![0; 64],
    };
    let error = score(&model, &vec![pair.clone(); 8192], usize::MAX).unwrap_err();
    assert!(matches!(error, ModelError::OutOfMemory { .. }), "{error}");
    // The device goes on.
    let shorter = |tokens: u32| Encoded {
        input_ids: (1..=tokens).map(|id| id % 60).collect(),
        token_type_ids: (0..tokens).map(|place| place / 32).collect(),
    };
    let pairs = [pair, shorter(61), shorter(33), shorter(5)];
    let there = score(&model, &pairs, 100).unwrap();
    let model = CrossEncoder::load(&golden, Head::Required, None, &Device::flex()).unwrap();
    for (there, here) in there.iter().zip(score(&model, &pairs, 100).unwrap()) {
        assert!((there - here).abs() < 1e-5, "{there} {here}");
    }
}
