//! Failures of a device, of which Burn tells by panics as often as by errors.

use std::mem;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::Device;

use crate::error::Error;
use crate::parallel::is_cpu;

/// Does what computes on a device, and makes an error of a panic in it or in the threads that serve
/// the device. On the CPU, where no device can fail, a panic stays one.
///
/// # Errors
/// Those of `work`; [`Error::Device`] and [`Error::OutOfMemory`], with what the first panic said.
pub fn guard<T, E: From<Error>>(
    device: &Device,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    if is_cpu(device) {
        return work();
    }
    LISTENING.call_once(listen);
    GUARDS.fetch_add(1, Ordering::SeqCst);
    let done = catch_unwind(AssertUnwindSafe(work));
    let is_last = GUARDS.fetch_sub(1, Ordering::SeqCst) == 1;
    if let Ok(done) = done {
        if is_last {
            answered();
        }
        return done;
    }
    // The thread that asked is told that nobody answers; why, the thread that served it said first.
    let first = mem::take(&mut *said()).into_iter().next();
    let said = first.map(|(said, _)| said).unwrap_or_default();
    Err(Error::of_device(&said).into())
}

/// What a panic said while a guard was at work, and how long ago, if the device has answered nothing
/// since. The thread that served it may be dead, and what waits for its answer wait for ever.
pub fn unanswered() -> Option<(String, Duration)> {
    let said = said();
    let (what, when) = said.first()?;
    Some((what.clone(), when.elapsed()))
}

/// The device has answered: what panics said before came to nothing.
pub fn answered() {
    said().clear();
}

static LISTENING: Once = Once::new();
/// Guards that are at work.
static GUARDS: AtomicUsize = AtomicUsize::new(0);
/// What panics said meanwhile.
static SAID: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

/// Has panics recorded instead of printed, while a guard is at work.
fn listen() {
    let before = take_hook();
    set_hook(Box::new(move |panic| {
        if GUARDS.load(Ordering::SeqCst) == 0 {
            before(panic);
        } else {
            said().push((told(panic), Instant::now()));
        }
    }));
}

fn said() -> MutexGuard<'static, Vec<(String, Instant)>> {
    SAID.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(panic: &PanicHookInfo) -> String {
    let what = panic.payload_as_str().unwrap_or("a panic without a word");
    let what = what.trim_start_matches("called `Result::unwrap()` on an `Err` value: ");
    match panic.location() {
        Some(place) => format!("{what} ({}:{})", in_crate(place.file()), place.line()),
        None => what.to_owned(),
    }
}

/// A source file's path from its crate's folder on, where cargo has unpacked that.
fn in_crate(path: &str) -> &str {
    let unpacked = path.split_once("/registry/src/");
    let of_crate = unpacked.and_then(|(_, path)| path.split_once('/'));
    of_crate.map_or(path, |(_, path)| path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn places_begin_with_their_crate() {
        let path = "/home/me/.cargo/registry/src/index.crates.io-1949/cubecl-0.12.0/src/lib.rs";
        assert_eq!(super::in_crate(path), "cubecl-0.12.0/src/lib.rs");
        assert_eq!(
            super::in_crate("crates/model/src/guard.rs"),
            "crates/model/src/guard.rs"
        );
    }
}
