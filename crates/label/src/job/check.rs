//! What a job's settings must be before anything is made of them.

use super::{LabelSettings, TeacherSettings, Wire};
use crate::prompt::{Kind, Prompt};
use crate::replica::{endpoint_url, is_loopback, is_private};
use crate::secret::KeySettings;

/// Which number is none that a job can do with, if one is. A clock can't count as far as a setting
/// can, and nobody waits that long.
pub(super) fn out_of_range(settings: &LabelSettings) -> Option<String> {
    const WEEK: u64 = 7 * 24 * 3600;
    let teacher = &settings.teacher;
    let any = u64::MAX;
    let numbers = [
        ("drain_seconds", settings.drain_seconds, 0..=WEEK),
        (
            "[teacher] timeout_seconds",
            teacher.timeout_seconds,
            1..=WEEK,
        ),
        (
            "[teacher.batch] poll_seconds",
            teacher.batch.poll_seconds,
            0..=WEEK,
        ),
        ("[teacher] samples", teacher.samples.into(), 1..=1000),
        (
            "[teacher] concurrency",
            teacher.concurrency as u64,
            1..=100_000,
        ),
        (
            "[teacher] documents_per_request",
            teacher.documents_per_request as u64,
            1..=any,
        ),
        (
            "[teacher] requests_per_minute",
            teacher.requests_per_minute.unwrap_or(1).into(),
            1..=any,
        ),
        (
            "[teacher] tokens_per_minute",
            teacher.tokens_per_minute.unwrap_or(1).into(),
            1..=any,
        ),
    ];
    if let Some(money) = settings.budget.money
        && !(0.0..=1e9).contains(&money)
    {
        return Some("[budget] money must be from 0 to 1000000000".to_owned());
    }
    let (key, _, range) = (numbers.into_iter()).find(|(_, value, range)| !range.contains(value))?;
    Some(match (*range.start(), *range.end()) {
        (least, most) if most == any => format!("{key} must be at least {least}"),
        (least, most) => format!("{key} must be from {least} to {most}"),
    })
}

/// What is wrong with the settings of a teacher, if anything is.
pub(super) fn problem(settings: &LabelSettings) -> Option<String> {
    let teacher = &settings.teacher;
    let sends_a_key = teacher.api_key != KeySettings::default();
    if teacher.endpoints.is_empty() {
        return Some("endpoints: name at least one".to_owned());
    }
    for endpoint in &teacher.endpoints {
        let url = match endpoint_url(endpoint) {
            Ok(url) => url,
            Err(problem) => return Some(problem),
        };
        if settings.local_only && !is_private(&url) {
            return Some(format!(
                "endpoint {endpoint}: local_only lets texts go to this machine and to private \
                 addresses alone; a name could stand for any address"
            ));
        }
        let name = url.host_str().unwrap_or_default();
        let is_name = |allowed: &String| allowed.eq_ignore_ascii_case(name);
        let is_allowed = teacher.allow_http.iter().any(is_name);
        if url.scheme() != "https" && !is_loopback(&url) && !is_allowed {
            let what = if sends_a_key {
                "texts and the key"
            } else {
                "texts"
            };
            return Some(format!(
                "endpoint {endpoint}: {what} would travel unencrypted; `allow_http = [{name:?}]` \
                 permits it"
            ));
        }
    }
    if !(0.0..=1.0).contains(&teacher.least_mass) {
        return Some("least_mass must be from 0 to 1".to_owned());
    }
    if !(0.0..=2.0).contains(&teacher.temperature) {
        return Some("temperature must be from 0 to 2".to_owned());
    }
    if teacher.samples > 1 && teacher.dialect.reranker().is_some() {
        return Some("samples: without a temperature all samples are alike".to_owned());
    }
    if teacher.dialect == Wire::Anthropic && teacher.log_probabilities {
        return Some("log_probabilities: this dialect has none; set it to false".to_owned());
    }
    teacher.price.problem()
}

/// Why a teacher can't be asked with this prompt, if it can't.
pub(super) fn prompt_problem(teacher: &TeacherSettings, prompt: &Prompt) -> Option<String> {
    let is_scored = teacher.dialect == Wire::GenerativeScoring;
    if is_scored && prompt.answers.len() != 2 {
        return Some(format!(
            "dialect: generative-scoring tells two answers apart, and the prompt has {}: the chat \
             dialect takes it",
            prompt.answers.len()
        ));
    }
    if is_scored && prompt.rationale.is_some() {
        return Some(
            "dialect: generative-scoring writes nothing, and the prompt has `rationale`: the chat \
             dialect takes it"
                .to_owned(),
        );
    }
    if prompt.kind == Kind::Listwise && teacher.log_probabilities {
        return Some("log_probabilities: an order is written out; set it to false".to_owned());
    }
    // The samples of an order are asked about documents in different orders.
    let are_alike = is_scored || teacher.temperature == 0.0 && prompt.kind != Kind::Listwise;
    (teacher.samples > 1 && are_alike)
        .then(|| "samples: without a temperature all samples are alike".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Teacher;

    #[test]
    fn only_a_host_that_is_named_gets_texts_and_a_key_unencrypted() {
        let refused = |endpoint: &str, more: &str| {
            let text = format!(
                "collection = 'c'\ncandidates = 'c'\nledger = 'l'\n[teacher]\nname = 'n'\n\
                 model = 'm'\ndialect = 'tei'\nendpoints = ['{endpoint}']\n{more}"
            );
            problem(&toml::from_str(&text).unwrap())
        };
        let key = "[teacher.api_key]\nenv = 'KEY'";
        let said = "texts and the key would travel unencrypted; `allow_http = [\"10.1.2.3\"]`";
        let problem = refused("http://10.1.2.3:8000/v1", key).unwrap();
        assert!(problem.contains(said), "{problem}");
        for (endpoint, host) in [
            ("http://10.1.2.3:8000/v1", "10.1.2.3"),
            ("http://[fd00::1]/v1", "[fd00::1]"),
            ("http://teacher.internal/v1", "Teacher.internal"),
        ] {
            assert!(refused(endpoint, "").is_some(), "{endpoint}");
            let other = format!("allow_http = ['10.1.2.4', 'internal']\n{key}");
            assert!(refused(endpoint, &other).is_some(), "{endpoint}");
            let named = format!("allow_http = ['{host}']\n{key}");
            assert_eq!(refused(endpoint, &named), None, "{endpoint}");
        }
        for endpoint in ["https://example.org/v1", "http://127.0.0.1:8000/v1"] {
            assert_eq!(refused(endpoint, key), None, "{endpoint}");
        }
    }

    #[test]
    fn a_number_that_no_job_can_do_with_is_refused_by_its_key_and_range() {
        let refused = |more: &str| {
            let (top, teacher) = more.split_once(';').unwrap_or(("", more));
            let text = format!(
                "collection = 'c'\ncandidates = 'c'\nledger = 'l'\n{top}\n[teacher]\nname = 'n'\n\
                 model = 'm'\ndialect = 'tei'\nendpoints = ['http://127.0.0.1:1']\n{teacher}"
            );
            let settings = toml::from_str(&text).map_err(|error| error.to_string());
            let made = settings.and_then(|settings: LabelSettings| {
                Teacher::new(&settings).map_err(|error| error.to_string())
            });
            made.err()
        };
        let most = i64::MAX;
        for fine in [
            "",
            "drain_seconds = 0;",
            "drain_seconds = 604800;timeout_seconds = 604800",
            "concurrency = 100000\nretries = 4294967295\nrequests_per_minute = 4294967295",
            "[teacher.batch]\npoll_seconds = 0",
        ] {
            assert_eq!(refused(fine), None, "{fine}");
        }
        // What has no bound is no length of time, and nothing is made as large as it.
        for key in ["comparisons", "window"] {
            assert_eq!(refused(&format!("{key} = {most};")), None);
        }
        let unbound = format!(
            "documents_per_request = {most}\n[teacher.batch]\nrequests = {most}\nat_once = {most}\n\
             [budget]\ntokens = {most}"
        );
        assert_eq!(refused(&unbound), None);

        for (more, expected) in [
            (
                format!("drain_seconds = {most};"),
                "drain_seconds must be from 0 to 604800",
            ),
            (
                format!("timeout_seconds = {most}"),
                "[teacher] timeout_seconds must be from 1 to 604800",
            ),
            (
                "timeout_seconds = 0".to_owned(),
                "[teacher] timeout_seconds must be from 1 to 604800",
            ),
            (
                format!("[teacher.batch]\npoll_seconds = {most}"),
                "[teacher.batch] poll_seconds must be from 0 to 604800",
            ),
            (
                format!("concurrency = {most}"),
                "[teacher] concurrency must be from 1 to 100000",
            ),
            (
                "samples = 4294967295\ntemperature = 1".to_owned(),
                "[teacher] samples must be from 1 to 1000",
            ),
            (
                "requests_per_minute = 0".to_owned(),
                "[teacher] requests_per_minute must be at least 1",
            ),
            (
                format!("[budget]\nmoney = {most}"),
                "[budget] money must be from 0 to 1000000000",
            ),
        ] {
            assert_eq!(refused(&more).as_deref(), Some(expected), "{more}");
        }
        // These are refused where the file is read, with the line.
        for key in [
            "samples",
            "retries",
            "requests_per_minute",
            "tokens_per_minute",
        ] {
            let problem = refused(&format!("{key} = {most}")).unwrap();
            assert!(problem.contains(key), "{problem}");
            assert!(problem.contains(&most.to_string()), "{problem}");
        }
    }
}
