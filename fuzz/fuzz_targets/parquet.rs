#![no_main]

use libfuzzer_sys::fuzz_target;
use retort_data::import::{Format, Reader, count_rows};

// Stops at panics of the crate `parquet`, too, which the reader catches.
fuzz_target!(|bytes: &[u8]| {
    let _ = count_rows(Reader::Table(Format::Parquet), bytes);
});
