//! Independent pieces of work side by side.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use burn::tensor::Device;
use rayon::ThreadPoolBuilder;

/// How many pieces of work a device gains from doing side by side: on the CPU one a core, because
/// there most operations but matrix products run on one core; elsewhere one.
pub fn parallelism(device: &Device) -> usize {
    if is_cpu(device) {
        thread::available_parallelism().map_or(1, usize::from)
    } else {
        1
    }
}

/// Whether what is computed there is computed in this memory, on this processor.
pub(crate) fn is_cpu(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// `work` on every item, on that many threads; the results in the order of the items.
///
/// Each thread is a pool of its own: a matrix product spreads over the pool that it is called from,
/// and one that stays on its core waits for no other, and does a half more a second.
pub fn parallel_map<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    if threads.min(items.len()) <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        while let Some((place, item)) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            items.get(place).map(|item| (place, item))
        } {
            done.push((place, work(item)));
        }
        done
    };
    let alone = || match ThreadPoolBuilder::new().num_threads(1).build() {
        Ok(pool) => pool.install(take),
        // Slower, and the same results.
        Err(_) => take(),
    };
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(items.len()))
            .map(|_| scope.spawn(alone))
            .collect();
        let joined = threads
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|p| resume_unwind(p)));
        joined.flatten().collect()
    });
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [0, 1, 3, 200] {
            let squares = parallel_map(&items, threads, |item| item * item);
            assert!(
                squares
                    .iter()
                    .enumerate()
                    .all(|(item, square)| item * item == *square)
            );
        }
        assert!(parallel_map(&[] as &[usize], 4, |item| *item).is_empty());
    }
}
