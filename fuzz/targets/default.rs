//! The default coder: binary decisions, one level after the other, in lanes.

#![no_main]

mod harness;
use harness::{Golden, Input};

fn run(input: Input) {
    harness::levels(input, 0);
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    golden.levels(0)
}

harness::target!(run, seeds);
