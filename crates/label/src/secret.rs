//! API keys: from the environment, a file or a command, and into one header of one origin. They
//! have no `Debug` and no `Display` that shows them.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fs_err as fs;
use reqwest::header::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// Where a key comes from (`[teacher.api_key]`): one of the first three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// An environment variable.
    #[serde(default)]
    pub env: Option<String>,
    /// A file; white space around the key is left out.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// A command and its arguments; the key is what it prints.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// The header that it goes into, as it is; without this, the one that the dialect has for it.
    #[serde(default)]
    pub header: Option<String>,
}

/// Where the key comes from, in words; a command's arguments are left out.
impl fmt::Display for KeySettings {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if let Some(name) = &self.env {
            write!(f, "the key in the variable {name}")
        } else if let Some(path) = &self.file {
            write!(f, "the key in {}", path.display())
        } else if let Some(command) = &self.command {
            let program = command.first().map_or("a command", String::as_str);
            write!(f, "the key that {program} prints")
        } else {
            f.write_str("no key")
        }
    }
}

/// A key, or an end of it, that is shorter may stand in a reply by chance, as a word or a digit: it is
/// not looked for there. Who gives out real keys makes them longer.
const LEAST_TRACE: usize = 8;

/// A key. It is overwritten when dropped.
pub(crate) struct Secret(String);

impl Secret {
    /// Fetches the key; `None` where no source is named.
    pub(crate) fn fetch(settings: &KeySettings) -> Result<Option<Self>> {
        let problem = |problem: String| Error::Setting(format!("[teacher.api_key] {problem}"));
        let text = match (&settings.env, &settings.file, &settings.command) {
            (None, None, None) => return Ok(None),
            (Some(name), None, None) => std::env::var(name)
                .map_err(|_| problem(format!("the environment has no variable {name}")))?,
            (None, Some(path), None) => {
                fs::read_to_string(path).map_err(|error| problem(error.to_string()))?
            }
            (None, None, Some(command)) => printed_by(command).map_err(problem)?,
            _ => return Err(problem("name one of env, file and command".to_owned())),
        };
        let key = Self(text.trim().to_owned());
        if key.0.is_empty() {
            return Err(problem("the key is empty".to_owned()));
        }
        Ok(Some(key))
    }

    /// The value of a header that carries the key after `prefix`.
    pub(crate) fn header(&self, prefix: &str) -> Result<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("{prefix}{}", self.0)).map_err(|_| {
            Error::Setting("[teacher.api_key] the key has characters that no header takes".into())
        })?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// A text without the key, should a server have echoed it, whole or its longest half; unless it
    /// is too short to tell, as what local servers are given for a key.
    pub(crate) fn removed_from(&self, text: &str) -> String {
        if self.0.len() < LEAST_TRACE {
            return text.to_owned();
        }
        let mut text = text.replace(&self.0, "[key]");
        // Providers echo the ends of a key, as in "sk-ab***yz".
        let start = |length: usize| self.0.get(..length);
        let end = |length: usize| self.0.get(self.0.len().checked_sub(length)?..);
        let is_in = |text: &str, part: Option<&str>| part.is_some_and(|part| text.contains(part));
        if !is_in(&text, start(LEAST_TRACE)) && !is_in(&text, end(LEAST_TRACE)) {
            return text;
        }
        for length in (LEAST_TRACE..self.0.len()).rev() {
            for part in [start(length), end(length)].into_iter().flatten() {
                text = text.replace(part, "[key]");
            }
        }
        text
    }

    /// A reply's body without the key, even where JSON spells it with escapes; of a file of many
    /// lines, each by itself.
    pub(crate) fn removed_from_reply(&self, body: &str) -> String {
        if !body.contains('\\') {
            return self.removed_from(body);
        }
        let Ok(json) = serde_json::from_str::<Value>(body) else {
            let lines: Vec<&str> = body.split('\n').collect();
            return match &*lines {
                [line] => self.removed_from(line),
                lines => (lines.iter())
                    .map(|line| self.removed_from_reply(line))
                    .collect::<Vec<_>>()
                    .join("\n"),
            };
        };
        let unescaped = json.to_string();
        let removed = self.removed_from(&unescaped);
        if removed == unescaped {
            self.removed_from(body)
        } else {
            removed
        }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // Best effort without unsafe code: the buffer is filled before it is freed.
        let length = self.0.len();
        self.0.clear();
        self.0.extend(std::iter::repeat_n('\0', length));
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("[key]")
    }
}

fn printed_by(command: &[String]) -> Result<String, String> {
    let [program, arguments @ ..] = command else {
        return Err("command is empty".to_owned());
    };
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} ended with {}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("what {program} printed is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_shown_even_where_a_server_echoes_it() {
        let key = Secret("sk-0123456789abcdefghij".to_owned());
        assert_eq!(format!("{key:?}"), "[key]");
        assert_eq!(
            key.removed_from("bad key sk-0123456789abcdefghij!"),
            "bad key [key]!"
        );
        assert_eq!(
            key.removed_from("bad key sk-0123456***cdefghij"),
            "bad key [key]***[key]"
        );
        assert_eq!(
            key.removed_from_reply(r#"{"m":"\u0073k-0123456789abcdefghij","n":"\/"}"#),
            r#"{"m":"[key]","n":"/"}"#
        );
        assert_eq!(
            key.removed_from_reply("{\"m\":\"\\u0073k-0123456789abcdefghij\"}\n{\"m\":\"\\/\"}\n"),
            "{\"m\":\"[key]\"}\n{\"m\":\"\\/\"}\n"
        );
        let untouched = r#"{"m":"\/"}"#;
        assert_eq!(key.removed_from_reply(untouched), untouched);
    }

    #[test]
    fn a_key_that_is_hardly_one_changes_no_reply() {
        let reply = r#"{"token":"0","logprob":-0.1,"m":"\u0061"}"#;
        for key in ["0", "a", "token", "logprob"] {
            let key = Secret(key.to_owned());
            assert_eq!(key.removed_from_reply(reply), reply);
            assert_eq!(key.removed_from(reply), reply);
        }
        let key = Secret("logprobs".to_owned());
        assert_eq!(key.removed_from("no logprobs"), "no [key]");
    }

    #[test]
    fn a_panic_that_shows_all_there_is_shows_no_key() {
        let key = Secret("sk-0123456789abcdefghij".to_owned());
        let header = key.header("Bearer ").unwrap();
        assert!(header.is_sensitive());
        let client = reqwest::Client::new();
        let request = client
            .post("http://127.0.0.1/")
            .header("authorization", &header);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            panic!("{key:?} {header:?} {request:?}")
        }));
        let said = panicked.unwrap_err().downcast::<String>().unwrap();
        assert!(
            !said.contains("01234567") && !said.contains("cdefghij"),
            "{said}"
        );
    }

    #[test]
    fn a_key_comes_from_one_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "abc\n").unwrap();
        let of_file = KeySettings {
            file: Some(path),
            ..KeySettings::default()
        };
        assert_eq!(Secret::fetch(&of_file).unwrap().unwrap().0, "abc");
        let of_command = KeySettings {
            command: Some(vec!["printf".into(), "def".into()]),
            ..KeySettings::default()
        };
        assert_eq!(Secret::fetch(&of_command).unwrap().unwrap().0, "def");
        let both = KeySettings {
            env: Some("HOME".into()),
            ..of_command
        };
        let error = Secret::fetch(&both).unwrap_err().to_string();
        assert!(error.contains("one of env, file and command"), "{error}");
        assert!(Secret::fetch(&KeySettings::default()).unwrap().is_none());
    }
}
