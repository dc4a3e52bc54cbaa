//! What left the machine, in numbers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Reader;
use crate::Result;
use crate::replica::host;

/// What was sent to a host, in all runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SentTo {
    /// Its name or address, and its port; empty of what runs had in flight when they were killed, or
    /// stopped and not waited for.
    pub host: String,
    /// Requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Tokens of their prompts, as the host counted them or as we estimate.
    pub tokens: u64,
    /// What was replaced in their texts before, by kind.
    pub redacted: BTreeMap<String, u64>,
}

impl Reader {
    /// What left the machine, by host: counts and no contents. What a run that was killed had in
    /// flight is there at its worst; files for `vllm run-batch` are not.
    ///
    /// # Errors
    /// An I/O error.
    pub fn sent(&self) -> Result<Vec<SentTo>> {
        let mut hosts: BTreeMap<String, SentTo> = BTreeMap::new();
        self.sql(|db| {
            let mut select = db.prepare(
                "SELECT endpoint, count(*), sum(sent_bytes), sum(input_tokens) FROM attempt \
                 WHERE sent_bytes > 0 OR input_tokens > 0 OR endpoint = '' GROUP BY endpoint",
            )?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let Some(to) = of_host(&mut hosts, &row.get::<_, String>(0)?) else {
                    continue;
                };
                to.requests += row.get::<_, u64>(1)?;
                to.bytes += row.get::<_, u64>(2)?;
                to.tokens += row.get::<_, u64>(3)?;
            }
            let mut select = db.prepare(
                "SELECT endpoint, kind.key, sum(kind.value) \
                 FROM attempt, json_each(attempt.redacted) AS kind GROUP BY endpoint, kind.key",
            )?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let Some(to) = of_host(&mut hosts, &row.get::<_, String>(0)?) else {
                    continue;
                };
                *to.redacted.entry(row.get(1)?).or_insert(0) += row.get::<_, u64>(2)?;
            }
            Ok(())
        })?;
        Ok(hosts.into_values().collect())
    }
}

/// The entry of an endpoint's host; none of a folder, whose files stay here.
fn of_host<'a>(hosts: &'a mut BTreeMap<String, SentTo>, endpoint: &str) -> Option<&'a mut SentTo> {
    let host = host(endpoint);
    if host.is_empty() && !endpoint.is_empty() {
        return None;
    }
    Some(hosts.entry(host.clone()).or_insert_with(|| SentTo {
        host,
        ..SentTo::default()
    }))
}
