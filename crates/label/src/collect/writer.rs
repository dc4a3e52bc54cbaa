//! The ledger's one writer: a thread that commits in groups and tells each sender when its records
//! are on disk.

use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot};

use crate::ledger::{Ledger, Record};
use crate::money::Amount;
use crate::{Error, Result};

/// Senders whose records go to disk together.
const MOST_IN_A_GROUP: usize = 256;

/// The sending end; the writer ends when the last of them is gone.
pub(crate) struct Writer(mpsc::Sender<Task>);

/// The end of a [`Writer`].
pub(crate) struct Written(JoinHandle<Result<Ledger>>);

struct Task {
    records: Vec<Record>,
    at_risk: Option<Amount>,
    done: oneshot::Sender<()>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(ledger: Ledger) -> Result<(Self, Written)> {
        let (sender, receiver) = mpsc::channel(MOST_IN_A_GROUP);
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || write(ledger, receiver))?;
        Ok((Self(sender), Written(thread)))
    }

    /// Puts records on disk, all or none.
    pub(crate) async fn write(&self, records: Vec<Record>) -> Result<()> {
        self.send(records, None).await
    }

    /// Puts on disk what may be in flight.
    pub(crate) async fn put_at_risk(&self, amount: Amount) -> Result<()> {
        self.send(Vec::new(), Some(amount)).await
    }

    async fn send(&self, records: Vec<Record>, at_risk: Option<Amount>) -> Result<()> {
        let (done, is_done) = oneshot::channel();
        let task = Task {
            records,
            at_risk,
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

fn write(mut ledger: Ledger, mut tasks: mpsc::Receiver<Task>) -> Result<Ledger> {
    while let Some(first) = tasks.blocking_recv() {
        let mut group = vec![first];
        while group.len() < MOST_IN_A_GROUP {
            match tasks.try_recv() {
                Ok(task) => group.push(task),
                Err(_) => break,
            }
        }
        if let Some(amount) = group.iter().filter_map(|task| task.at_risk).next_back() {
            ledger.put_at_risk(amount.micros, amount.tokens)?;
        }
        let records: Vec<Record> = group
            .iter_mut()
            .flat_map(|task| std::mem::take(&mut task.records))
            .collect();
        if !records.is_empty() {
            ledger.commit(&records)?;
        }
        for task in group {
            // A worker that was stopped does not wait for it.
            let _ = task.done.send(());
        }
    }
    Ok(ledger)
}
