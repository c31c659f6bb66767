#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mycelite_journal_fuzz::sealed(data));
