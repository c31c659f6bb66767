#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mycelite_journal_fuzz::pos_text(data));
