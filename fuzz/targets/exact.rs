//! Levels and refinement bits, joined to values that come back bit for bit: floating-point numbers, integers, differences.

#![no_main]

mod harness;
use deepcabac_core::cpu::dispatch;
use deepcabac_core::exact::{self, Form, LAST_EXPONENT, Origin, Pattern};
use deepcabac_core::file::Method;
use harness::{Golden, Input, MOST_LEVELS, decoded};

/// What a type is: bytes, and bits of the mantissa.
const TYPES: [(usize, u32); 11] =
    [(1, 0), (2, 0), (4, 0), (8, 0), (1, 3), (1, 2), (2, 10), (2, 7), (4, 23), (8, 52), (1, 4)];

fn run(mut input: Input) {
    let (mode, (item, mantissa)) = (input.byte(), TYPES[input.below(TYPES.len())]);
    match item {
        1 => join::<u8>(mode, mantissa, input),
        2 => join::<u16>(mode, mantissa, input),
        4 => join::<u32>(mode, mantissa, input),
        _ => join::<u64>(mode, mantissa, input),
    }
}

fn join<P: Pattern>(mode: u8, mantissa: u32, mut input: Input) {
    let exponent = input.short() as u32 % if mode & 64 == 0 { 80 } else { LAST_EXPONENT + 1 };
    let (width, count) = (1 + input.below(64), 1 + input.below(64));
    let seed = u64::from(input.byte());
    let of = |k: u64| P::of((seed | k << 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (seed & 31));
    let levels: Vec<i32> = (0..count).map(|_| input.level()).collect();
    let refinement = input.rest();
    let base: Box<[P]> = (0..count as u64).map(of).collect();
    let origin = match (mode % 4, mantissa > 0) {
        (0 | 1, true) => Origin::Float { zeros: mode % 4 == 1 },
        (0 | 1, false) => Origin::Integer(of(7)),
        (2, true) => Origin::Differences(&base),
        _ => Origin::Steps(&base),
    };
    let form = Form { mantissa, float: mantissa > 0, exponent };
    let mut patterns: Box<[P]> = vec![P::default(); count].into();
    if exact::join(form, origin, width, &levels, &refinement, &mut patterns) {
        let (mut levels, mut refinement) = (vec![0; count], Vec::new());
        dispatch::split(form, origin, width, &patterns, &mut levels, &mut refinement);
        let refinement: Box<[u8]> = refinement.into();
        let mut back: Box<[P]> = vec![P::default(); count].into();
        assert!(exact::join(form, origin, width, &levels, &refinement, &mut back), "joined values do not split");
        assert!(back.iter().map(|one| one.wide()).eq(patterns.iter().map(|one| one.wide())), "values change");
    }
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (tensor, code) in golden.tensors() {
        let (mode, exponent, params) = match &tensor.method {
            Method::Float { zeros, exponent, params } => (u8::from(*zeros), *exponent, params),
            Method::Integers { exponent, params, .. } => (0, *exponent, params),
            _ => continue,
        };
        let (item, mantissa) = (tensor.dtype.item(), tensor.dtype.mantissa());
        let Some(kind) = TYPES.iter().position(|kind| *kind == (item, mantissa)) else { continue };
        let (coded, elements) = (code.len() - tensor.chunks[0].refinement as usize, tensor.elements(0));
        let levels = decoded(params, &code[..coded], (elements.end - elements.start) as usize).expect("it is good");
        let count = levels.len().min(64);
        let mode = if exponent < 80 { mode } else { mode | 64 };
        let mut seed = vec![mode, kind as u8];
        seed.extend((exponent as u16).to_le_bytes());
        seed.extend([(params.width.min(64) - 1) as u8, (count - 1) as u8, 1]);
        for level in &levels[..count] {
            match i8::try_from(*level) {
                Ok(small) if small > i8::MIN => seed.push(small as u8),
                _ => seed.extend([&[128], &level.to_le_bytes()[..]].concat()),
            }
        }
        seed.extend(code[coded..].iter().take(MOST_LEVELS));
        seeds.push(seed);
    }
    seeds
}

harness::target!(run, seeds);
