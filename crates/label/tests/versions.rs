//! Ledgers that older versions wrote: brought up to date, whole or not at all.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use std::path::{Path, PathBuf};

use common::dump;
use retort_label::ledger::{Ledger, Outcome, Reader, Spent};
use retort_label::{merge, seal};
use rusqlite::Connection;

/// What the ledger of version 1 came to, with what its last run had in flight.
const SPENT: Spent = Spent {
    requests: 11,
    tokens: 7 * 41 + 700 + 90,
    micros: 7 * 135 + 5000 + 900,
};

/// A ledger as version 1 left it.
fn version_1(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let db = Connection::open(&path).unwrap();
    db.execute_batch(include_str!("golden/ledger-1.sql"))
        .unwrap();
    path
}

fn version(path: &Path) -> i64 {
    let db = Connection::open(path).unwrap();
    db.pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap()
}

/// The tables and indices of a ledger, as they were made.
fn schema(path: &Path) -> Vec<Option<String>> {
    let db = Connection::open(path).unwrap();
    let mut select = db
        .prepare("SELECT sql FROM sqlite_schema ORDER BY type, name")
        .unwrap();
    let rows = select.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_ledger_of_version_1_becomes_the_newest_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = version_1(folder.path(), "old.sqlite");
    let before = dump(&path);
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.spent().unwrap(), SPENT);
    let recipes = reader.recipes().unwrap();
    let outcomes: Vec<_> = recipes[0].outcomes.clone().into_iter().collect();
    assert_eq!(
        outcomes,
        [
            (Outcome::Ok, 5),
            (Outcome::Filtered, 1),
            (Outcome::Unparsable, 1)
        ]
    );
    assert_eq!(
        (&*recipes[0].models[0], &*recipes[1].models[0]),
        ("scripted-1", "m")
    );

    let judged = |rows: Vec<String>| -> Vec<String> {
        let is_as_it_was = |row: &String| {
            ["judgement:", "recipe:", "reply:"]
                .iter()
                .any(|table| row.starts_with(table))
        };
        rows.into_iter().filter(is_as_it_was).collect()
    };
    let upgraded = dump(&path);
    // No request is known to have been billed for more than its worst case.
    let no_factor = |row: String| row.replace(", Real(1.0)]", "]");
    let without = upgraded.iter().cloned().map(no_factor).collect();
    assert_eq!(judged(without), judged(before));
    Reader::open(&path).unwrap();
    assert_eq!(dump(&path), upgraded);

    let new = folder.path().join("new.sqlite");
    Ledger::open(&new).unwrap().close().unwrap();
    assert_eq!(schema(&path), schema(&new));
    assert_eq!(version(&path), version(&new));

    seal(&path, Some(1), None, &folder.path().join("set")).unwrap();
    let set = retort_data::label_set::read(&folder.path().join("set")).unwrap();
    let ids: Vec<&str> = set.labels.iter().map(|one| &*one.document_id).collect();
    assert_eq!(ids, ["d0", "d1", "d3", "d4", "d6", "d7"]);
}

#[test]
fn it_is_opened_for_writing_and_merged_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let written = version_1(folder.path(), "written.sqlite");
    let ledger = Ledger::open(&written).unwrap();
    assert_eq!(ledger.spent().unwrap(), SPENT);
    ledger.close().unwrap();

    let source = version_1(folder.path(), "source.sqlite");
    let into = folder.path().join("into.sqlite");
    let merged = merge(std::slice::from_ref(&source), &into).unwrap();
    assert_eq!((merged.judgements, merged.requests), (7, 11));
    assert_eq!(merged.spent, SPENT);
    let again = merge(&[source], &into).unwrap();
    assert_eq!((again.judgements, again.spent), (0, SPENT));
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_version_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = version_1(folder.path(), "old.sqlite");
    let db = Connection::open(&path).unwrap();
    // Something that the upgrade trips over half way.
    db.execute_batch("CREATE TABLE attempt_3 (x)").unwrap();
    drop(db);
    let before = dump(&path);
    assert!(Reader::open(&path).is_err());
    assert!(Ledger::open(&path).is_err());
    assert_eq!((version(&path), dump(&path)), (1, before));
}
