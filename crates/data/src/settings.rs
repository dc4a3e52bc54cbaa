//! Settings files: TOML, overridden key by key from the command line, with unknown keys refused.

use std::path::Path;

use fs_err as fs;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::{Error, Result};

/// Reads a settings file and applies `section.key=value` overrides.
///
/// # Errors
/// A missing file; TOML that does not parse (with its line); an unknown key, naming the nearest
/// known one; a value of the wrong type. Of the file or of the overrides, whichever has it.
pub fn read<T: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<T> {
    let text = fs::read_to_string(path)?;
    let of_file = |error: toml::de::Error| {
        let problem = explain(error.to_string().trim_end());
        Error::Setting(format!("{}: {problem}", path.display()))
    };
    if overrides.is_empty() {
        // Parsed from the text, an error shows the line it is on.
        return toml::from_str(&text).map_err(of_file);
    }
    let mut table: Table = toml::from_str(&text).map_err(of_file)?;
    let mut read = toml::from_str::<T>(&text);
    // The override since which it has the problem that it has.
    let mut at_fault = None;
    for assignment in overrides {
        set(&mut table, assignment)?;
        let now = Value::Table(table.clone()).try_into::<T>();
        match (&read, &now) {
            (Err(before), Err(after)) if before.message() == after.message() => continue,
            _ => at_fault = Some(assignment),
        }
        read = now;
    }
    read.map_err(|error| match at_fault {
        None => of_file(error),
        Some(assignment) => {
            let problem = explain(error.to_string().trim_end());
            Error::Setting(format!("--set {assignment}: {problem}"))
        }
    })
}

/// Sets one key from `section.key=value`; a value that is no TOML is taken as a string.
fn set(table: &mut Table, assignment: &str) -> Result<()> {
    let (key, value) = assignment
        .split_once('=')
        .ok_or_else(|| Error::Setting(format!("--set {assignment}: expected section.key=value")))?;
    let parsed: Option<Table> = toml::from_str(&format!("value = {value}")).ok();
    let value = parsed
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_owned()));

    let mut sections: Vec<&str> = key.trim().split('.').collect();
    let Some(last) = sections.pop() else {
        return Ok(());
    };
    let mut table = table;
    for section in sections {
        let entry = table
            .entry(section)
            .or_insert_with(|| Value::Table(Table::new()));
        table = entry.as_table_mut().ok_or_else(|| {
            Error::Setting(format!(
                "--set {assignment}: `{section}` is a value, not a section"
            ))
        })?;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

/// Adds the nearest known key to an "unknown field" message, whose form serde fixes:
/// ``unknown field `x`, expected one of `a`, `b` ``.
fn explain(message: &str) -> String {
    let Some((_, rest)) = message.split_once("unknown field `") else {
        return message.to_owned();
    };
    let Some((unknown, known)) = rest.split_once('`') else {
        return message.to_owned();
    };
    let nearest = known.split('`').skip(1).step_by(2).max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    });
    match nearest {
        Some(nearest) => format!("{message}\nunknown key `{unknown}`: did you mean `{nearest}`?"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        optimizer: Optimizer,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "read to be refused when misspelt")]
    struct Optimizer {
        learning_rate: f64,
        weight_decay: f64,
    }

    fn read_text(text: &str, overrides: &[&str]) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.toml");
        fs::write(&path, text).unwrap();
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        read(&path, &overrides)
    }

    const GOOD: &str = "[optimizer]\nlearning_rate = 2e-5\nweight_decay = 0.01\n";

    #[test]
    fn overrides_replace_values() {
        let settings = read_text(GOOD, &["optimizer.learning_rate=1e-4"]).unwrap();
        assert!((settings.optimizer.learning_rate - 1e-4).abs() < 1e-12);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_in_the_file_and_in_an_override() {
        let misspelt = GOOD.replace("learning_rate", "learnin_rate");
        let error = read_text(&misspelt, &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean `learning_rate`?"), "{error}");
        assert!(error.contains("line 2"), "{error}");
        let error = read_text(GOOD, &["optimizer.wieght_decay=0"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean `weight_decay`?"), "{error}");
        assert!(
            error.starts_with("--set optimizer.wieght_decay=0: "),
            "{error}"
        );
        // What the file has wrong is not put down to an override.
        let error = read_text(&misspelt, &["optimizer.weight_decay=0"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("train.toml"), "{error}");
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_malformed_override_is_refused() {
        let error = read_text(GOOD, &["optimizer.learning_rate"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("section.key=value"), "{error}");
    }
}
