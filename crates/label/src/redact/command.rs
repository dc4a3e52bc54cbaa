//! An outside filter: every text of a job in, as many out, or nothing at all.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::process::{ChildStdin, ChildStdout, Command};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::apart::Kill;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
}

/// Sends texts through a command. Nothing that it answered is shown in an error.
pub(super) fn filter(
    command: &[String],
    hidden: Option<&str>,
    texts: &Arc<BTreeSet<String>>,
    kill: &Kill,
) -> Result<Vec<String>, String> {
    let [program, arguments @ ..] = command else {
        return Err("it is empty".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(hidden) = hidden {
        command.env_remove(hidden);
    }
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let (to, from) = kill.start(&mut command).map_err(failed)?;
    let filtered = exchange(to, from, texts);
    if filtered.is_err() {
        // It may wait for more. How it ends is no news then.
        kill.now();
    }
    let status = kill.wait().map_err(failed)?;
    let filtered = filtered.map_err(|problem| format!("{program} {problem}"))?;
    if !status.success() {
        return Err(format!("{program} ended with {status}"));
    }
    Ok(filtered)
}

/// Writes all texts and reads as many, at once: pipes hold only a part of them.
fn exchange(
    to: ChildStdin,
    from: ChildStdout,
    texts: &Arc<BTreeSet<String>>,
) -> Result<Vec<String>, String> {
    let sent = Arc::clone(texts);
    // Nobody waits for this thread: that the command stops reading shows in what it does not say.
    std::thread::spawn(move || {
        let mut to = BufWriter::new(to);
        let mut texts = sent.iter();
        texts.try_for_each(|text| writeln!(to, "{}", json!({"text": text})))
    });
    let mut filtered = Vec::with_capacity(texts.len());
    for line in BufReader::new(from).lines() {
        let number = filtered.len() + 1;
        let line = line.map_err(|error| format!("answered line {number} with: {error}"))?;
        let line: Line = serde_json::from_str(&line).map_err(|_| {
            format!("answered line {number} with something else than {{\"text\": …}}")
        })?;
        filtered.push(line.text);
        if filtered.len() > texts.len() {
            break;
        }
    }
    if filtered.len() != texts.len() {
        let (answered, sent) = (filtered.len(), texts.len());
        return Err(format!("answered {answered} of {sent} texts"));
    }
    Ok(filtered)
}
