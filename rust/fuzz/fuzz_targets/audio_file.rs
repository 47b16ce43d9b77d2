#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moshi_ctl_server::fuzzing::audio_file(data));
