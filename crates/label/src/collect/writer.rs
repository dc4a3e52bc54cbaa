//! The ledger's one writer: a thread that commits in groups, each with what may be in flight by then,
//! and tells each sender when its records are on disk.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot};

use crate::ledger::{Ledger, Record};
use crate::money::{Budget, Settled};
use crate::{Error, Result};

/// Senders whose records go to disk together.
const MOST_IN_A_GROUP: usize = 256;

/// The sending end; the writer ends when the last of them is gone.
pub(crate) struct Writer(mpsc::Sender<Task>);

/// The end of a [`Writer`].
pub(crate) struct Written(JoinHandle<Result<Ledger>>);

struct Task {
    records: Vec<Record>,
    settled: Option<Settled>,
    done: oneshot::Sender<()>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(ledger: Ledger, budget: Arc<Budget>) -> Result<(Self, Written)> {
        let (sender, receiver) = mpsc::channel(MOST_IN_A_GROUP);
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || write(ledger, &budget, receiver))?;
        Ok((Self(sender), Written(thread)))
    }

    /// Puts records on disk, all or none; if they are of a request that is over, it is settled.
    pub(crate) async fn write(&self, records: Vec<Record>, settled: Option<Settled>) -> Result<()> {
        let (done, is_done) = oneshot::channel();
        let task = Task {
            records,
            settled,
            done,
        };
        // Where the writer failed, `Written` has the reason; this only ends the worker.
        let gone = || Error::Io(std::io::Error::other("the ledger's writer ended"));
        self.0.send(task).await.map_err(|_| gone())?;
        is_done.await.map_err(|_| gone())
    }
}

impl Written {
    /// Waits for the writer, and gives the ledger back or the reason it failed.
    pub(crate) async fn await_end(self) -> Result<Ledger> {
        let joined = tokio::task::spawn_blocking(move || self.0.join()).await;
        match joined {
            Ok(Ok(ended)) => ended,
            _ => Err(Error::Io(std::io::Error::other(
                "the ledger's writer panicked",
            ))),
        }
    }
}

fn write(mut ledger: Ledger, budget: &Budget, mut tasks: mpsc::Receiver<Task>) -> Result<Ledger> {
    while let Some(first) = tasks.blocking_recv() {
        let mut group = vec![first];
        while group.len() < MOST_IN_A_GROUP {
            match tasks.try_recv() {
                Ok(task) => group.push(task),
                Err(_) => break,
            }
        }
        let mut records: Vec<Record> = group
            .iter_mut()
            .flat_map(|task| std::mem::take(&mut task.records))
            .collect();
        let settled: Vec<Settled> = group.iter().filter_map(|task| task.settled).collect();
        let at_risk = budget.to_record(&settled);
        records.push(Record::AtRisk(at_risk));
        ledger.commit(&records)?;
        budget.recorded(&settled, at_risk);
        for task in group {
            // A worker that was stopped does not wait for it.
            let _ = task.done.send(());
        }
    }
    Ok(ledger)
}
