//! Batches when something dies on the way: us, or the connection.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![allow(clippy::disallowed_methods, reason = "a test's panic names the line")]

mod common;

use common::batches::{
    ANTHROPIC, BatchServer, Fault, PAIRS, all_answered, asked_again, assert_pending, job,
    of_messages, run, run_until_done,
};
use common::rows;
use retort_label::ledger::Reader;
use retort_label::{Error, Progress, collect, collect_in_batches, merge, plan};

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_never_sends_a_batch_twice() {
    for dialect in ["", ANTHROPIC] {
        let of_chat = dialect.is_empty();
        let server = BatchServer::start(move |_, requests| {
            if of_chat {
                all_answered(requests)
            } else {
                of_messages(1, requests)
            }
        });
        let (job, settings) = job(&server, dialect);
        if of_chat {
            // Killed while the file went up: nothing was made of it.
            server.break_next(Fault::AfterUpload);
            tokio::select! {
                done = run(&settings) => panic!("{done:?}"),
                () = server.broken() => {}
            }
            assert_eq!(server.count(), 0);
        }
        // Killed when the batch was made and its name was on its way to us.
        server.break_next(Fault::AfterCreation);
        tokio::select! {
            done = run(&settings) => panic!("{done:?}"),
            () = server.broken() => {}
        }
        for _ in 0..5 {
            server.add_foreign(PAIRS);
        }
        assert_eq!(rows(&job.ledger()), []);
        assert_pending(&run(&settings).await, PAIRS);
        server.end();
        run_until_done(&settings).await.unwrap();
        assert_eq!(rows(&job.ledger()).len(), PAIRS);
        assert_eq!(
            (server.count(), server.asked()),
            (1, asked_again(|_| false))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_that_is_lost_on_the_way_does_not_send_a_batch_twice() {
    let server = BatchServer::start(|_, requests| all_answered(requests));
    let (_job, settings) = job(&server, "");
    server.break_next(Fault::BreakAfterCreation);
    assert_pending(&run(&settings).await, PAIRS);
    server.end();
    run(&settings).await.unwrap();
    assert_eq!(server.asked(), asked_again(|_| false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_never_arrived_is_sent_again_when_its_time_is_up() {
    let server = BatchServer::start(|_, requests| all_answered(requests));
    let (job, settings) = job(&server, "timeout_seconds = 3600\n");
    server.break_next(Fault::BreakBeforeCreation);
    assert_pending(&run(&settings).await, PAIRS);
    // It may be on its way.
    assert_pending(&run(&settings).await, PAIRS);
    assert_eq!(server.count(), 0);
    let db = rusqlite::Connection::open(job.ledger()).unwrap();
    let long_ago = "UPDATE batch SET left_at = '2026-11-21T00:00:00Z'";
    assert_eq!(db.execute(long_ago, []).unwrap(), 1);
    assert_pending(&run(&settings).await, PAIRS);
    server.end();
    run(&settings).await.unwrap();
    assert_eq!(
        (server.count(), server.asked()),
        (1, asked_again(|_| false))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_is_left_alone_until_it_is_back() {
    let server = BatchServer::start(|_, requests| all_answered(requests));
    let (job, settings) = job(&server, "[teacher.batch]\npoll_seconds = 0\n");
    // Told to stop while it waits.
    let out = async {
        while server.count() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        "SIGTERM"
    };
    let stopped = collect_in_batches(&settings, false, true, |_: Progress| (), out).await;
    assert!(
        matches!(stopped, Err(Error::Interrupted { .. })),
        "{stopped:?}"
    );

    assert_eq!(plan(&settings, false).unwrap().pending, PAIRS);
    let never = std::future::pending();
    let one_by_one = collect(&settings, false, |_: Progress| (), never).await;
    assert_pending(&one_by_one, PAIRS);
    let error = merge(&[job.ledger()], &job.path("whole.sqlite")).unwrap_err();
    assert!(error.to_string().contains("has 1 batches"), "{error}");
    let open = Reader::open(&job.ledger()).unwrap().open_batches().unwrap();
    assert_eq!((open.len(), open[0].questions), (1, PAIRS));

    server.end();
    run(&settings).await.unwrap();
    merge(&[job.ledger()], &job.path("whole.sqlite")).unwrap();
    assert_eq!(rows(&job.path("whole.sqlite")), rows(&job.ledger()));
    assert_eq!(server.asked(), asked_again(|_| false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_fails_is_tried_again_now_or_later() {
    for retries in [1, 0] {
        let server = BatchServer::start(|_, requests| all_answered(requests));
        let (_job, settings) = job(&server, &format!("retries = {retries}\n"));
        run(&settings).await.unwrap_err();
        server.end();
        server.break_next(Fault::Download);
        if retries == 0 {
            assert_pending(&run(&settings).await, PAIRS);
        }
        run(&settings).await.unwrap();
        assert_eq!(server.asked(), asked_again(|_| false));
    }
}
