//! What the user sees while a command works, and when it is done.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on stderr; invisible where stderr is no terminal.
pub(crate) fn bar(total: usize, what: &str) -> ProgressBar {
    let target = if stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(total as u64), target);
    let template = "{prefix} {wide_bar} {pos}/{len} | {msg} | {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// What a command ends with, on stdout.
pub(crate) fn summary(as_json: bool, text: &str, json: &serde_json::Value) {
    let line = if as_json {
        json.to_string()
    } else {
        text.to_owned()
    };
    // The work is done and kept: that nobody reads of it (a closed pipe) is no failure.
    let _ = writeln!(stdout(), "{line}");
}
