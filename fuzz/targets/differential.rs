//! The portable and the AVX2 build of each decoder on the same bytes: levels, and all that the coder knows afterwards.

#![no_main]

mod harness;
mod units;
use deepcabac_core::coding::changes::{CODES, Rates};
use deepcabac_core::cpu::differential;
use deepcabac_core::exact::Pattern;
use harness::{Golden, Input, Levels};
use units::Unit;

/// The first byte says which decoder: as often as it takes to be worth it.
fn run(mut input: Input) {
    if !differential::available() {
        return;
    }
    match input.below(64) {
        which @ 0..32 => levels(which as u8 % 4, input),
        32..48 => match input.below(4) {
            0 => floats::<u8>(3, input),
            1 => floats::<u16>(7, input),
            2 => floats::<u32>(23, input),
            _ => floats::<u64>(52, input),
        },
        48..56 => changes::<u16>(input),
        // Slow: memory for its contexts.
        56 => {
            let count = input.below(100);
            differential::bytes((&input.rest(), count));
        }
        _ => {
            let Unit { tensors, code, .. } = Unit::read(input);
            differential::nnc(&tensors.iter().map(units::Own::get).collect::<Vec<_>>(), &code);
        }
    }
}

/// The same code in up to nine lanes, each with one level less.
fn levels(coder: u8, input: Input) {
    let Levels { mode, params, count, code } = Levels::read(input, coder);
    let lanes = if coder == 0 { 1 + usize::from(mode) % 9 } else { 1 };
    let chunks: Vec<(&[u8], usize)> = (0..lanes).map(|k| (&code[..], count.saturating_sub(k).max(1))).collect();
    differential::chunks(&vec![params; lanes], &chunks);
}

fn floats<P: Pattern>(mantissa: u32, mut input: Input) {
    let (width, count) = (1 + input.below(64), 1 + input.short() % 400);
    differential::floats::<P>(mantissa, width, (&input.rest(), count));
}

fn changes<P: Pattern>(mut input: Input) {
    let codes = [input.byte() % CODES as u8, input.byte() % CODES as u8];
    let rates = Rates::new::<P>(7, input.below(256), &codes).expect("these are codes");
    let (seed, count) = (input.short(), input.short() % 1000);
    let of = |k: usize| ((seed | k << 8) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (seed & 31);
    let base: Box<[P]> = (0..count).map(|k| P::of(of(k))).collect();
    differential::changes(&rates, &base, &input.rest());
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    let with = |which: u8, seeds: Vec<Vec<u8>>| seeds.into_iter().map(move |seed| [&[which], &seed[..]].concat());
    let levels = (0..4).flat_map(|coder| with(coder, golden.levels(coder)));
    levels.chain(with(57, units::seeds())).collect()
}

harness::target!(run, seeds);
