//! The sparse coder: zeros apart from the rest.

#![no_main]

mod harness;
use harness::{Golden, Input};

fn run(input: Input) {
    harness::levels(input, 2);
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    golden.levels(2)
}

harness::target!(run, seeds);
