//! `cargo hv`: the one tool of libhv.

fn main() {}
