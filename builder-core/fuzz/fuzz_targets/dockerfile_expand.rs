//! [`slipway_fuzz::dockerfile_expand`] for cargo-fuzz.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    slipway_fuzz::dockerfile_expand(data);
});
