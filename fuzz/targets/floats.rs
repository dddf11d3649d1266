//! Floating-point values as symbols and copied bits.

#![no_main]

mod harness;
use deepcabac_core::cpu::dispatch;
use deepcabac_core::exact::Pattern;
use deepcabac_core::file::Method;
use harness::{Golden, Input};

/// Bytes of a type, and bits of its mantissa.
pub const TYPES: [(usize, u32); 7] = [(1, 3), (1, 2), (2, 10), (2, 7), (4, 23), (8, 52), (1, 4)];
/// From so many values on there are four times as many lanes: see `rans.rs`.
const MANY: usize = 1 << 13;

fn run(mut input: Input) {
    let (mode, (item, mantissa)) = (input.byte(), TYPES[input.below(TYPES.len())]);
    match item {
        1 => decode::<u8>(mode, mantissa, input),
        2 => decode::<u16>(mode, mantissa, input),
        4 => decode::<u32>(mode, mantissa, input),
        _ => decode::<u64>(mode, mantissa, input),
    }
}

fn decode<P: Pattern>(mode: u8, mantissa: u32, mut input: Input) {
    let (width, count) = (1 + input.below(64), 1 + input.short() % 400);
    let count = if mode & 0xf0 == 0x70 { count + MANY } else { count };
    let code = input.rest();
    let mut patterns: Box<[P]> = vec![P::default(); count].into();
    if dispatch::decode_floats(mantissa, width, &code, &mut patterns) && mode & 1 != 0 {
        let mut again = Vec::new();
        dispatch::encode_floats(mantissa, width, mode & 2 != 0, &patterns, &mut again);
        let again: Box<[u8]> = again.into();
        let mut back: Box<[P]> = vec![P::default(); count].into();
        assert!(dispatch::decode_floats(mantissa, width, &again, &mut back), "decoded values have no code");
        assert!(back.iter().map(|one| one.wide()).eq(patterns.iter().map(|one| one.wide())), "values change");
    }
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (tensor, code) in golden.tensors() {
        let Method::Symbols { width, .. } = tensor.method else { continue };
        let (item, mantissa) = (tensor.dtype.item(), tensor.dtype.mantissa());
        let Some(kind) = TYPES.iter().position(|kind| *kind == (item, mantissa)) else { continue };
        let elements = tensor.elements(0);
        let count = (elements.end - elements.start) as usize;
        let seed = match item {
            1 => cut::<u8>(mantissa, width, count, &code),
            2 => cut::<u16>(mantissa, width, count, &code),
            4 => cut::<u32>(mantissa, width, count, &code),
            _ => cut::<u64>(mantissa, width, count, &code),
        };
        for mode in [0, 3] {
            seeds.push([&[mode, kind as u8], &seed[..]].concat());
        }
    }
    seeds
}

/// The first values of a chunk, coded, after width and number.
fn cut<P: Pattern>(mantissa: u32, width: usize, count: usize, code: &[u8]) -> Vec<u8> {
    let mut patterns = vec![P::default(); count];
    assert!(dispatch::decode_floats(mantissa, width, code, &mut patterns));
    let (width, count) = (width.min(64), count.min(200));
    let mut out = vec![(width - 1) as u8, (count - 1) as u8, 0];
    dispatch::encode_floats(mantissa, width, true, &patterns[..count], &mut out);
    out
}

harness::target!(run, seeds);
