use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use retort_data::collection::Collection;
use retort_data::{candidates, label_set, settings};
use retort_label::ledger::{Reader, writer_of};
use retort_label::{LabelSettings, Preflight};
use retort_model::{
    Attention, Device, DeviceChoice, Error, Precision, Trial, is_software, try_out,
};
use retort_trainer::{Run, TrainSettings};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::device::{set_up, watch};
use crate::{label, memory, progress};

#[derive(Args)]
pub(crate) struct Arguments {
    /// A labelling or a training job's settings; a labelling job's endpoints are tried with a few
    /// requests, which are on its bill
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Override one setting; may be given again
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,

    /// Try this device alone, a software adapter too: cpu, wgpu or cuda
    #[arg(long)]
    device: Option<DeviceChoice>,
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let mut report = Report::default();
    set_up(Precision::F32);
    match arguments.device {
        Some(choice) => report.note("device", device(choice, |_| true).map_err(Into::into)),
        None => devices(&mut report),
    }
    if let Some(config) = &arguments.config {
        let checked = of_job(&mut report, config, arguments);
        report.note("config", checked.map(|()| (String::new(), Value::Null)));
    }
    progress::summary(as_json, &report.lines.join("\n"), &json!(report.json));
    report.first_problem.map_or(Ok(()), Err)
}

/// Every choice of a device, and what it comes to here.
fn devices(report: &mut Report) {
    let (mut lines, mut json) = (Vec::new(), Map::new());
    for choice in [
        DeviceChoice::Auto,
        DeviceChoice::Cpu,
        DeviceChoice::Wgpu,
        DeviceChoice::Cuda,
    ] {
        // `auto` is one of the others, and software takes its time.
        let is_tried = |device: &Device| choice != DeviceChoice::Auto && !is_software(device);
        let (line, about) = device(choice, is_tried).unwrap_or_else(|error| {
            let problem = error.to_string();
            let about = json!({"problem": problem});
            // That a machine has no GPU is no fault.
            if !matches!(
                error,
                Error::DeviceNotFound { .. } | Error::DeviceNotBuilt { .. }
            ) {
                report.first_problem.get_or_insert(error.into());
            }
            (problem, about)
        });
        lines.push(format!("{choice}: {line}"));
        json.insert(choice.to_string(), about);
    }
    report.say("devices", &lines.join("\n"), &Value::Object(json));
}

fn device(
    choice: DeviceChoice,
    is_tried: impl Fn(&Device) -> bool,
) -> retort_model::Result<(String, Value)> {
    let (device, which) = retort_model::choose(choice)?;
    let (precisions, attentions) = (Precision::of(&device), Attention::of(&device));
    let mut json = json!({
        "device": which,
        "precisions": precisions,
        "attentions": attentions,
        "memory": device.memory_capacity(),
    });
    let mut said = vec![which];
    if let Some(bytes) = device.memory_capacity() {
        said.push(format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
    }
    said.push(format!("trains in {}", listed(&precisions)));
    said.push(format!("attention {}", listed(&attentions)));
    if device != Device::flex() && is_tried(&device) {
        watch(&device);
        let Trial {
            of_logits,
            of_gradients,
            took,
        } = try_out(&device)?;
        let seconds = took.as_secs_f64();
        said.push(format!(
            "computes what the CPU does within {of_logits:.0e}, and gradients within \
             {of_gradients:.0e} ({seconds:.1} s)"
        ));
        json["trial"] = json!({
            "logits": of_logits,
            "gradients": of_gradients,
            "seconds": seconds,
        });
    }
    Ok((said.join("; "), json))
}

fn listed(names: &[impl ToString]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// What was found, and the first thing that is wrong.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    json: Map<String, Value>,
    first_problem: Option<anyhow::Error>,
}

impl Report {
    fn say(&mut self, what: &str, text: &str, json: &Value) {
        self.lines
            .push(format!("{what}\n  {}", text.replace('\n', "\n  ")));
        self.json.insert(what.to_owned(), json.clone());
    }

    /// Says what a check found; one that fails does not keep the others from being made.
    fn note(&mut self, what: &str, found: anyhow::Result<(String, Value)>) {
        match found {
            Ok((text, json)) => {
                if !text.is_empty() {
                    self.say(what, &text, &json);
                }
            }
            Err(error) => {
                let problem = format!("{error:#}");
                self.say(what, &problem, &json!({"problem": problem}));
                self.first_problem.get_or_insert(error);
            }
        }
    }
}

fn of_job(report: &mut Report, config: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let overrides = &arguments.overrides;
    let sections: Map<String, Value> = settings::read(config, overrides)?;
    if sections.contains_key("teacher") {
        memory::keep_private();
        of_labelling(report, &settings::read(config, overrides)?);
    } else {
        let settings: TrainSettings = settings::read(config, overrides)?;
        let choice = arguments.device.unwrap_or_default();
        report.note("training", training(&settings, choice));
    }
    Ok(())
}

fn of_labelling(report: &mut Report, settings: &LabelSettings) {
    report.note("ledger", ledger(&settings.ledger));
    let planned = retort_label::plan(settings, false);
    let key = settings.teacher.api_key.to_string();
    let said = planned.map(|plan| {
        let text = format!("{}\nwith {key}", label::describe(&plan));
        (text, json!({"plan": plan, "key": key}))
    });
    let is_planned = said.is_ok();
    report.note("labelling", said.map_err(Into::into));
    // Without a plan, the preflight would meet the same problem.
    if is_planned {
        report.note("preflight", preflight(settings));
    }
}

fn ledger(path: &Path) -> anyhow::Result<(String, Value)> {
    let shown = path.display();
    let writer = writer_of(path)?;
    if !path.exists() {
        return Ok((format!("{shown}, not there yet"), json!({"path": path})));
    }
    let spent = Reader::open(path)?.spent()?;
    let written = match &writer {
        Some(process) => format!("process {process} writes it"),
        None => "nobody writes it".to_owned(),
    };
    let (requests, tokens) = (spent.requests, spent.tokens);
    let text = format!("{shown}, {requests} requests, {tokens} tokens; {written}");
    let json = json!({"path": path, "spent": spent, "writer": writer});
    Ok((text, json))
}

fn preflight(settings: &LabelSettings) -> anyhow::Result<(String, Value)> {
    let runtime = Runtime::new().context("the asynchronous runtime did not start")?;
    let found = runtime.block_on(retort_label::preflight(settings))?;
    let lines: Vec<String> = found.iter().map(Preflight::to_string).collect();
    Ok((lines.join("\n"), json!(found)))
}

/// Reads all that a training job reads, of base models those that need not be fetched.
fn training(settings: &TrainSettings, choice: DeviceChoice) -> anyhow::Result<(String, Value)> {
    settings.check()?;
    let base = Path::new(&settings.model.init);
    let (device, _) = retort_model::choose(choice)?;
    if base.is_dir() {
        let run = Run {
            settings,
            folder: Path::new(""),
            allowed_changes: &[],
            base,
            device: &device,
            others: &[],
        };
        run.check_base()?;
    } else {
        settings.check_device(&device)?;
    }
    let data = &settings.data;
    let collection = Collection::read(&data.collection)?;
    let mut labels = 0;
    let mut folders = Vec::new();
    for (folder, _) in data.label_sets() {
        for label in label_set::open(folder)?.labels() {
            label_set::subject(&label?, &collection, folder)?;
            labels += 1;
        }
        folders.push(folder.display().to_string());
    }
    if let Some(gold) = &data.gold {
        let gains = collection.qrels(&gold.split)?;
        labels += gains.values().map(BTreeMap::len).sum::<usize>();
        folders.push(format!("gains of {}", gold.split));
        if let Some(file) = &gold.candidates {
            candidates::read_of(file, &collection)?;
        }
    }
    let mut pairs = Vec::new();
    for (split, file) in [
        (&settings.evaluation.split, &settings.evaluation.candidates),
        (&settings.verdict.split, &settings.verdict.candidates),
    ] {
        collection.qrels(split)?;
        pairs.push(candidates::read_of(file, &collection)?.len());
    }
    if let Some(folder) = &settings.verdict.teacher_labels {
        for label in label_set::open(folder)?.labels() {
            label_set::subject(&label?, &collection, folder)?;
        }
    }
    let base = &settings.model.init;
    Ok((
        format!(
            "{labels} judgements in {}, {} pairs to evaluate on, {} for the verdict, base model \
             {base}",
            folders.join(", "),
            pairs[0],
            pairs[1]
        ),
        json!({"judgements": labels, "evaluation": pairs[0], "verdict": pairs[1], "base": base}),
    ))
}
