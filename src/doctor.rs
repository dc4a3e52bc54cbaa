use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use retort_data::collection::Collection;
use retort_data::{candidates, label_set, settings};
use retort_label::ledger::{Reader, writer_of};
use retort_label::{LabelSettings, Preflight};
use retort_model::{Attention, DeviceChoice, Precision};
use retort_trainer::TrainSettings;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

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
}

pub(crate) fn run(arguments: &Arguments, as_json: bool) -> anyhow::Result<()> {
    let mut report = Report::default();
    let devices = devices();
    report.say("devices", &devices.join("\n"), &json!(devices));
    if let Some(config) = &arguments.config {
        let checked = of_job(&mut report, config, &arguments.overrides);
        report.note("config", checked.map(|()| (String::new(), Value::Null)));
    }
    progress::summary(as_json, &report.lines.join("\n"), &json!(report.json));
    report.first_problem.map_or(Ok(()), Err)
}

/// Every choice of a device, and what it comes to here.
fn devices() -> Vec<String> {
    let choices = [
        DeviceChoice::Auto,
        DeviceChoice::Cpu,
        DeviceChoice::Wgpu,
        DeviceChoice::Cuda,
    ];
    let found = |choice| match retort_model::choose(choice) {
        Ok((device, which)) => {
            let precisions = listed(&Precision::of(&device));
            let attentions = listed(&Attention::of(&device));
            format!("{choice}: {which}; trains in {precisions}; attention {attentions}")
        }
        // That a machine has no GPU is no fault.
        Err(error) => format!("{choice}: {error}"),
    };
    choices.map(found).to_vec()
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

fn of_job(report: &mut Report, config: &Path, overrides: &[String]) -> anyhow::Result<()> {
    let sections: Map<String, Value> = settings::read(config, overrides)?;
    if sections.contains_key("teacher") {
        memory::keep_private();
        of_labelling(report, &settings::read(config, overrides)?);
    } else {
        let settings: TrainSettings = settings::read(config, overrides)?;
        report.note("training", training(&settings));
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

/// Reads all that a training job reads but the base model, which may have to be fetched.
fn training(settings: &TrainSettings) -> anyhow::Result<(String, Value)> {
    settings.check()?;
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
