#![no_main]

use libfuzzer_sys::fuzz_target;
use retort_data::import::{Reader, count_rows};

fuzz_target!(|bytes: &[u8]| {
    let _ = count_rows(Reader::Candidates, bytes);
});
