//! Batches of a whole job beside its shards: no question is bought twice, or it is said.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use common::batches::{
    BatchServer, PAIRS, all_answered, asked_again, assert_pending, job, run, run_until_done,
};
use common::{Server, dump, graded, rows};
use retort_label::{LabelSettings, Progress, collect, merge, plan};

fn shard(settings: &LabelSettings, shard: &str) -> LabelSettings {
    settings.clone().for_shard(shard.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_whole_has_out_no_shard_asks() {
    let server = BatchServer::start(|_, requests| all_answered(requests));
    let (job, settings) = job(&server, "");
    assert_pending(&run(&settings).await, PAIRS);
    let mut ledgers = Vec::new();
    let mut out = 0;
    for part in ["0/2", "1/2"] {
        let of_shard = shard(&settings, part);
        let planned = plan(&of_shard, false).unwrap();
        assert_eq!(planned.to_ask, 0);
        out += planned.pending;
        // Neither one by one, which the server would not understand, nor in batches.
        let never = std::future::pending();
        let one_by_one = collect(&of_shard, false, |_: Progress| (), never).await;
        if planned.questions > 0 {
            assert_pending(&one_by_one, planned.pending);
            assert_pending(&run(&of_shard).await, planned.pending);
        }
        ledgers.push(of_shard.ledger);
    }
    assert_eq!(out, PAIRS);
    server.end();
    run(&settings).await.unwrap();
    for part in ["0/2", "1/2"] {
        let done = run(&shard(&settings, part)).await.unwrap();
        assert_eq!(done.known, done.questions);
    }
    assert_eq!(server.asked(), asked_again(|_| false));
    merge(&ledgers, &job.ledger()).unwrap();
    assert_eq!(rows(&job.ledger()).len(), PAIRS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_twice_all_the_same_is_counted() {
    let batches = BatchServer::start(|_, requests| all_answered(requests));
    let (job, settings) = job(&batches, "");
    // The shards were asked before the batch left, and are merged while it is out.
    let one_by_one = Server::start(|seen| graded(seen.document + 1));
    let mut ledgers = Vec::new();
    for part in ["0/2", "1/2"] {
        let mut of_shard = shard(&settings, part);
        of_shard.teacher.endpoints = vec![one_by_one.url.clone()];
        let never = std::future::pending();
        let done = collect(&of_shard, false, |_: Progress| (), never).await;
        assert_eq!(done.unwrap().bought_twice, 0);
        ledgers.push(of_shard.ledger);
    }
    assert_pending(&run(&settings).await, PAIRS);
    let merged = merge(&ledgers, &job.ledger()).unwrap();
    assert_eq!(merged.bought_twice, PAIRS as u64);
    let judged = || -> Vec<String> {
        let rows = dump(&job.ledger()).into_iter();
        rows.filter(|row| row.starts_with("judgement")).collect()
    };
    let before = judged();
    batches.end();
    let done = run(&settings).await.unwrap();
    assert_eq!(
        (done.bought_twice, done.spent.requests),
        (PAIRS, 2 * PAIRS as u64 + 1)
    );
    assert_eq!(judged(), before, "the first answer stands");
    assert_eq!(run_until_done(&settings).await.unwrap().known, PAIRS);
    assert_eq!(merge(&ledgers, &job.ledger()).unwrap().bought_twice, 0);
}
