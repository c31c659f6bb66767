#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mycelite_journal_fuzz::record_header(data));
