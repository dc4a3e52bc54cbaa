//! Memory of the device: pages of the host's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

static BLOCKS: RwLock<BTreeMap<u64, u64>> = RwLock::new(BTreeMap::new());
static CHANGES: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicU64 = AtomicU64::new(0);
pub static MOST: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn mmap(at: *mut u8, bytes: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
    fn munmap(at: *mut u8, bytes: usize) -> i32;
}

/// New pages, if the device has as many bytes left. What they hold is no number where
/// `poisoned`, but for so many that it would take long.
pub fn take(bytes: usize, all: u64, poisoned: bool) -> Option<u64> {
    let held = HELD.fetch_add(bytes as u64, Ordering::SeqCst) + bytes as u64;
    // SAFETY: an anonymous mapping (2 and 32) to read and write (3), reserved by nobody (0x4000).
    let at = if held > all {
        usize::MAX as *mut u8
    } else {
        unsafe { mmap(std::ptr::null_mut(), bytes, 3, 2 | 32 | 0x4000, -1, 0) }
    };
    if at as usize == usize::MAX {
        HELD.fetch_sub(bytes as u64, Ordering::SeqCst);
        return None;
    }
    MOST.fetch_max(held, Ordering::SeqCst);
    if poisoned && bytes < 64 << 20 {
        // SAFETY: it was mapped just now.
        unsafe { std::ptr::write_bytes(at, 0xff, bytes) };
    }
    BLOCKS.write().unwrap().insert(at as u64, bytes as u64);
    CHANGES.fetch_add(1, Ordering::SeqCst);
    Some(at as u64)
}

pub fn give_back(at: u64) {
    if let Some(bytes) = BLOCKS.write().unwrap().remove(&at) {
        CHANGES.fetch_add(1, Ordering::SeqCst);
        HELD.fetch_sub(bytes, Ordering::SeqCst);
        // SAFETY: it was mapped, and is nobody's from here on.
        unsafe { munmap(at as *mut u8, bytes as usize) };
    }
}

pub fn held() -> u64 {
    HELD.load(Ordering::SeqCst)
}

/// Whether all these bytes are the device's.
pub fn has(address: u64, bytes: usize) -> bool {
    thread_local!(static LAST: RefCell<(u64, Vec<(u64, u64)>)> = const { RefCell::new((0, Vec::new())) });
    let end = address.wrapping_add(bytes as u64);
    LAST.with_borrow_mut(|(changes, known)| {
        let now = CHANGES.load(Ordering::SeqCst);
        if *changes != now {
            *changes = now;
            known.clear();
        }
        if known.iter().any(|(begin, stop)| *begin <= address && end <= *stop && address < end) {
            return true;
        }
        let blocks = BLOCKS.read().unwrap();
        let Some((begin, size)) = blocks.range(..=address).next_back() else {
            return false;
        };
        let found = end <= begin + size && address < end;
        if found {
            known.push((*begin, begin + size));
        }
        found
    })
}
