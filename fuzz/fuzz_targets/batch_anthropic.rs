#![no_main]

use libfuzzer_sys::fuzz_target;
use retort_label::replies::{Reader, outcome};

fuzz_target!(|bytes: &[u8]| {
    outcome(Reader::BatchAnthropic, bytes).expect("a line that is read or refused");
});
