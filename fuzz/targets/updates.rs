//! Updates of which few values changed.

#![no_main]

mod harness;
use std::sync::OnceLock;

use deepcabac_core::coding::changes::{CODES, Found, Rates, fit};
use deepcabac_core::cpu::dispatch;
use deepcabac_core::exact::Pattern;
use harness::{Golden, Input};

/// Bytes of a type, and bits of its mantissa.
const TYPES: [(usize, u32); 10] = [(1, 0), (2, 0), (4, 0), (8, 0), (1, 3), (1, 2), (2, 10), (2, 7), (4, 23), (8, 52)];
/// Sets of rates that are made once for each type: making one takes longer than decoding.
const SETS: usize = 8;

fn run(mut input: Input) {
    let mode = input.byte();
    match TYPES[input.below(TYPES.len())] {
        (1, mantissa) => decode::<u8>(mode, mantissa, input),
        (2, mantissa) => decode::<u16>(mode, mantissa, input),
        (4, mantissa) => decode::<u32>(mode, mantissa, input),
        (_, mantissa) => decode::<u64>(mode, mantissa, input),
    }
}

/// Rates of this number, of a type.
fn rates<P: Pattern>(mantissa: u32, number: usize) -> &'static Rates {
    static MADE: [[OnceLock<Rates>; SETS]; TYPES.len()] = [const { [const { OnceLock::new() }; SETS] }; TYPES.len()];
    let kind = TYPES.iter().position(|kind| *kind == (P::BITS as usize / 8, mantissa)).expect("it is one of them");
    MADE[kind][number].get_or_init(|| {
        let codes: Vec<u8> = (0..1 + 5 * number).map(|k| ((k * 7 + number * 11) % CODES) as u8).collect();
        Rates::new::<P>(mantissa, number * number, &codes).expect("these are codes")
    })
}

fn base<P: Pattern>(seed: usize, count: usize) -> Box<[P]> {
    let of = |k: usize| ((seed | k << 8) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (seed & 31);
    (0..count).map(|k| P::of(of(k))).collect()
}

fn decode<P: Pattern>(mode: u8, mantissa: u32, mut input: Input) {
    let (number, seed, count) = (input.below(SETS), input.short(), input.short() % 1000);
    let base = base::<P>(seed, count);
    let own;
    // Now and then rates of the input's own.
    let rates = if mode >= 250 {
        let codes: Vec<u8> = (0..input.below(8)).map(|_| input.byte()).collect();
        let Some(made) = Rates::new::<P>(mantissa, input.short(), &codes) else { return };
        own = made;
        &own
    } else {
        rates::<P>(mantissa, number)
    };
    let code = input.rest();
    let mut values = base.clone();
    let good = dispatch::decode_changes(rates, &base, &code, &mut Found::Values(&mut values));
    if mode & 1 != 0 {
        let (mut places, mut after) = (Vec::new(), Vec::new());
        let listed = dispatch::decode_changes(rates, &base, &code, &mut Found::List(&mut places, &mut after));
        let mut other = base.clone();
        for (place, value) in places.iter().zip(&after) {
            other[*place as usize] = *value;
        }
        assert_eq!(good, listed, "a chunk is good and bad");
        assert!(same(&other, &values), "a list differs from values");
        assert!(places.is_sorted() && places.windows(2).all(|two| two[0] < two[1]), "a value changes twice");
    }
    if good && mode & 2 != 0 {
        let mut again = Vec::new();
        dispatch::encode_changes(rates, &base, &values, &mut again);
        let mut back = base.clone();
        let good = again.is_empty() || dispatch::decode_changes(rates, &base, &again, &mut Found::Values(&mut back));
        assert!(good && same(&back, &values), "decoded changes do not come back");
    }
}

fn same<P: Pattern>(one: &[P], other: &[P]) -> bool {
    one.iter().map(|one| one.wide()).eq(other.iter().map(|one| one.wide()))
}

/// Changes of one place in `each`, of every type: those of the golden files need their bases, which are not there.
fn seeds(_golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (kind, (item, mantissa)) in TYPES.into_iter().enumerate() {
        for each in [1, 9, 40] {
            let mode = (kind + each) as u8 % 4;
            seeds.push(match item {
                1 => seed::<u8>(mode, kind, mantissa, each),
                2 => seed::<u16>(mode, kind, mantissa, each),
                4 => seed::<u32>(mode, kind, mantissa, each),
                _ => seed::<u64>(mode, kind, mantissa, each),
            });
        }
    }
    seeds
}

fn seed<P: Pattern>(mode: u8, kind: usize, mantissa: u32, each: usize) -> Vec<u8> {
    let (number, start, count) = (each % SETS, 77 + 2 * each, 500_u16);
    let base = base::<P>(start, usize::from(count));
    let mut values = base.clone();
    for value in values.iter_mut().step_by(each) {
        *value = P::of(value.wide().wrapping_add(1 + each as u64));
    }
    assert!(!fit(mantissa, &base, &values).1.is_empty());
    let mut out = vec![mode, kind as u8, number as u8];
    out.extend((start as u16).to_le_bytes());
    out.extend(count.to_le_bytes());
    dispatch::encode_changes(rates::<P>(mantissa, number), &base, &values, &mut out);
    out
}

harness::target!(run, seeds);
