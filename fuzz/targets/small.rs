//! The coder of the smallest size: binary decisions, with regression on the columns before.

#![no_main]

mod harness;
use harness::{Golden, Input};

fn run(input: Input) {
    harness::levels(input, 3);
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    golden.levels(3)
}

harness::target!(run, seeds);
