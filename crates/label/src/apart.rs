//! Blocking work beside the runtime: reading texts, and waiting for a command that filters them.
//! What nobody waits for any more is over: a job that is told to stop ends at once, and so does the
//! command.

use std::io;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::{Error, Result};

/// How long a signal may take that was sent to the job and to its command alike, as Ctrl-C is.
const GRACE: Duration = Duration::from_millis(50);

/// How often it is looked whether a command has ended that says nothing more.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Does something unless a signal comes first. Where it fails, and a signal comes right then, the
/// signal is why: the command was told to stop as well.
pub(crate) async fn unless_stopped<T>(
    stop: &mut (impl Future<Output = &'static str> + Unpin),
    wanted: impl Future<Output = Result<T>>,
) -> Result<T> {
    let interrupted = |signal| {
        Err(Error::Interrupted {
            signal,
            labelled: 0,
        })
    };
    let error = tokio::select! {
        done = wanted => match done {
            Ok(done) => return Ok(done),
            Err(error) => error,
        },
        signal = &mut *stop => return interrupted(signal),
    };
    tokio::select! {
        signal = stop => interrupted(signal),
        () = tokio::time::sleep(GRACE) => Err(error),
    }
}

/// Does blocking work on a thread of its own. If the future is dropped before, the command that it
/// waits for is killed; the thread, which keeps nobody waiting, ends by itself.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce(&Kill) -> Result<T> + Send + 'static,
) -> Result<T> {
    let kill = Kill::default();
    let _guard = KillOnDrop(kill.clone());
    let (sender, done) = oneshot::channel();
    // Not one of the runtime's, whose end waits for them.
    let thread = thread::Builder::new().spawn(move || {
        // An error means that nobody waits for it any more.
        let _ = sender.send(work(&kill));
    })?;
    match done.await {
        Ok(done) => done,
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Err(Error::Io(io::Error::other("a thread ended too early"))),
        },
    }
}

/// The command that some work waits for, for others to kill.
#[derive(Clone, Default)]
pub(crate) struct Kill(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    is_over: bool,
    running: Option<Child>,
}

struct KillOnDrop(Kill);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
        state.kill();
    }
}

impl State {
    fn kill(&mut self) {
        if let Some(child) = &mut self.running {
            // One that has ended needs no killing.
            let _ = child.kill();
        }
    }
}

impl Kill {
    /// Starts a command, with pipes to and from it.
    pub(crate) fn start(&self, command: &mut Command) -> io::Result<(ChildStdin, ChildStdout)> {
        let mut state = self.lock();
        if state.is_over {
            return Err(io::Error::other("it was told to stop"));
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        state.running = Some(child);
        pipes.ok_or_else(|| io::Error::other("it has no standard input or output"))
    }

    /// Kills the command.
    pub(crate) fn now(&self) {
        self.lock().kill();
    }

    /// Waits for the command's end.
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            // Held while waiting, the lock would keep others from killing it.
            let mut state = self.lock();
            let Some(child) = &mut state.running else {
                return Err(io::Error::other("it was not started"));
            };
            if let Some(status) = child.try_wait()? {
                state.running = None;
                return Ok(status);
            }
            drop(state);
            thread::sleep(LOOK_EVERY);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_loses_its_command() {
        let (sender, ended) = mpsc::channel();
        let (started, is_started) = oneshot::channel();
        let work = apart(move |kill| {
            let (_to, mut from) = kill.start(Command::new("sleep").arg("1000"))?;
            started.send(()).unwrap();
            let read = from.read(&mut [0]).unwrap();
            sender.send((read, kill.wait()?.success())).unwrap();
            // Nothing is started any more.
            sender
                .send((0, kill.start(&mut Command::new("true")).is_ok()))
                .unwrap();
            Ok(())
        });
        let stopped = async {
            is_started.await.unwrap();
            "SIGTERM"
        };
        let error = unless_stopped(&mut Box::pin(stopped), work).await;
        let stopped_by = |error: &Error| matches!(error, Error::Interrupted { signal, .. } if *signal == "SIGTERM");
        assert!(error.as_ref().is_err_and(stopped_by), "{error:?}");
        assert_eq!(ended.recv().unwrap(), (0, false));
        assert_eq!(ended.recv().unwrap(), (0, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_signal_that_ended_the_command_too_is_why_it_failed() {
        let failed = || async { Err::<(), _>(Error::Setting("it ended badly".to_owned())) };
        let later = async {
            tokio::time::sleep(GRACE / 2).await;
            "SIGINT"
        };
        let error = unless_stopped(&mut Box::pin(later), failed()).await;
        assert!(matches!(error, Err(Error::Interrupted { .. })), "{error:?}");
        let never = std::future::pending();
        let error = unless_stopped(&mut Box::pin(never), failed()).await;
        assert!(matches!(error, Err(Error::Setting(_))), "{error:?}");
    }

    #[tokio::test]
    async fn a_panic_of_the_work_is_a_panic_of_who_waits_for_it() {
        let waiting = tokio::spawn(apart(|_| -> Result<()> { panic!("on purpose") }));
        assert!(waiting.await.unwrap_err().is_panic());
    }

    #[tokio::test]
    async fn work_that_ends_is_told() {
        let status = apart(|kill| {
            kill.start(&mut Command::new("true"))?;
            Ok(kill.wait()?)
        });
        assert!(status.await.unwrap().success());
    }
}
