//! The fast coder: a symbol a level, sixteen strips at once.

#![no_main]

mod harness;
use harness::{Golden, Input};

fn run(input: Input) {
    harness::levels(input, 1);
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    golden.levels(1)
}

harness::target!(run, seeds);
