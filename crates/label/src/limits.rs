//! How fast a teacher may be asked: a rate that never passes a provider's limit, and a number of
//! requests in flight that finds what a server can take.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A token bucket over requests or tokens a minute.
///
/// It holds a second's worth and refills at 59/60 of the limit, so that no window of a minute sees
/// more than the limit, and a steady caller gets 98 % of it.
pub(crate) struct Bucket {
    per_second: f64,
    capacity: f64,
    level: Mutex<Level>,
}

struct Level {
    amount: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn per_minute(limit: u32) -> Self {
        let capacity = f64::from(limit) / 60.0;
        Self {
            per_second: capacity * 59.0 / 60.0,
            capacity,
            level: Mutex::new(Level {
                amount: capacity,
                at: Instant::now(),
            }),
        }
    }

    /// Takes an amount and waits until it is due. Who comes first is served first; an amount
    /// above the capacity waits for as long as it takes to refill.
    pub(crate) async fn take(&self, amount: f64) {
        let wait = {
            let mut level = self.refilled();
            level.amount -= amount;
            // One request more than is there may leave: the bucket owes it then.
            -level.amount / self.per_second
        };
        if wait > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(wait)).await;
        }
    }

    /// Corrects an amount that was taken on an estimate: `left_over` of it was not used, or, when
    /// negative, was used beyond it.
    pub(crate) fn settle(&self, left_over: f64) {
        let mut level = self.refilled();
        level.amount = (level.amount + left_over).min(self.capacity);
    }

    fn refilled(&self) -> MutexGuard<'_, Level> {
        let mut level = lock(&self.level);
        let now = Instant::now();
        let passed = now.duration_since(level.at).as_secs_f64();
        level.amount = (level.amount + passed * self.per_second).min(self.capacity);
        level.at = now;
        level
    }
}

/// The number of requests in flight: from one, twice as many a round trip until the server first
/// says that it is too much; then half as many each time it says so, and one more a round trip
/// while all goes well (additive increase, multiplicative decrease: Chiu and Jain, 1989).
pub(crate) struct Gate {
    most: usize,
    state: Mutex<Flow>,
    freed: Notify,
}

struct Flow {
    limit: f64,
    in_flight: usize,
    last_decrease: Option<Instant>,
}

/// A place in flight, given back when dropped.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    entered: Instant,
}

impl Gate {
    /// Lets up to `most` through.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::new(Flow {
                limit: 1.0,
                in_flight: 0,
                last_decrease: None,
            }),
            freed: Notify::new(),
        }
    }

    /// Waits for a place.
    pub(crate) async fn enter(&self) -> Pass<'_> {
        loop {
            let freed = self.freed.notified();
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            freed.await;
        }
    }

    fn try_enter(&self) -> Option<Pass<'_>> {
        let mut state = lock(&self.state);
        let open = state.in_flight == 0 || (state.in_flight + 1) as f64 <= state.limit;
        open.then(|| {
            state.in_flight += 1;
            Pass {
                gate: self,
                entered: Instant::now(),
            }
        })
    }

    /// The most requests that are ever in flight.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Requests in flight now.
    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.state).in_flight
    }

    /// Requests that may be in flight now.
    pub(crate) fn limit(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 1 to a number that was a usize"
        )]
        let limit = lock(&self.state).limit as usize;
        limit
    }
}

impl Pass<'_> {
    /// The request went well: there may be room for more.
    pub(crate) fn went_well(&self) {
        let mut state = lock(&self.gate.state);
        let step = match state.last_decrease {
            None => 1.0,
            Some(_) => 1.0 / state.limit,
        };
        state.limit = (state.limit + step).min(self.gate.most as f64);
        drop(state);
        self.gate.freed.notify_one();
    }

    /// The server had too much to do. Requests that left before the last decrease say nothing
    /// new: they are of the same storm.
    pub(crate) fn too_much(&self) {
        let mut state = lock(&self.gate.state);
        if state.last_decrease.is_none_or(|last| self.entered > last) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.last_decrease = Some(Instant::now());
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        lock(&self.gate.state).in_flight -= 1;
        self.gate.freed.notify_one();
    }
}

/// A lock whose holder panicked: numbers are whole at every instant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_never_passes_its_limit_in_any_minute_and_gives_98_percent_of_it() {
        let bucket = Bucket::per_minute(600);
        let start = Instant::now();
        let mut times = Vec::new();
        while start.elapsed() < Duration::from_mins(5) {
            bucket.take(1.0).await;
            times.push(start.elapsed().as_secs_f64());
        }
        for (index, time) in times.iter().enumerate() {
            let in_window = times[index..].iter().take_while(|t| **t < time + 60.0);
            let count = in_window.count();
            assert!(count <= 600, "{count} requests in the minute from {time}");
        }
        assert!(times.len() as f64 >= 0.98 * 600.0 * 5.0, "{}", times.len());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_given_back_and_what_was_used_beyond_is_owed() {
        let bucket = Bucket::per_minute(6000);
        let start = Instant::now();
        bucket.take(1000.0).await;
        let first = start.elapsed().as_secs_f64();
        assert!(
            (first - 900.0 / (100.0 * 59.0 / 60.0)).abs() < 0.01,
            "{first}"
        );
        bucket.settle(-1000.0);
        bucket.take(1.0).await;
        let second = start.elapsed().as_secs_f64() - first;
        assert!(
            (second - 1001.0 / (100.0 * 59.0 / 60.0)).abs() < 0.01,
            "{second}"
        );
        // No more comes back than the bucket holds.
        bucket.settle(1e9);
        let start = Instant::now();
        bucket.take(100.0).await;
        assert!(start.elapsed() < Duration::from_millis(1));
        bucket.take(100.0).await;
        assert!(start.elapsed() > Duration::from_millis(900));
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_halves_the_requests_in_flight_once_and_calm_brings_them_back() {
        let gate = Gate::new(16);
        assert_eq!(gate.limit(), 1);
        for _ in 0..15 {
            gate.enter().await.went_well();
        }
        let mut passes = Vec::new();
        for _ in 0..16 {
            passes.push(gate.enter().await);
        }
        assert!(gate.try_enter().is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        for pass in &passes {
            pass.too_much();
        }
        assert_eq!(gate.limit(), 8);
        passes.truncate(8);
        assert!(gate.try_enter().is_none(), "eight are still in flight");
        drop(passes);
        for _ in 0..1000 {
            gate.enter().await.went_well();
        }
        assert_eq!(gate.limit(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_is_always_let_through() {
        let gate = Gate::new(4);
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(1)).await;
            gate.enter().await.too_much();
        }
        assert_eq!(gate.limit(), 1);
        assert!(gate.try_enter().is_some());
    }
}
