//! Steps of the decoding loops as vectors of WebAssembly's 128 bits. There are no gathers, so a look-up is a load for each lane,
//! and no shifts by a number for each lane: they are multiplications, or shifts by one number where it applies.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // lanes are numbered in several arrays at once

use std::arch::wasm32::*;

use crate::coding::bits::{BitReader, ones};
use crate::coding::fast::frequencies::{BITS, ESCAPE, Frequencies, PLACES, SYMBOLS};
use crate::coding::fast::strip::Sites;
use crate::coding::fast::{self, FIRST_BITS, Look, Words};
use crate::coding::lanes::Lanes;
use crate::coding::rans;
use crate::exact::Pattern;
use crate::floats::{Join, Joint, join_in_turn};
use crate::model::context::{GROUP, Machine, Portable, SETS, Task};
use crate::model::rows;

/// WebAssembly with vectors.
pub(crate) struct Simd128;

impl Machine for Simd128 {
    #[inline(always)]
    fn adapt_group(contexts: &mut [u32; GROUP], ones: usize) {
        Portable::adapt_group(contexts, ones);
    }

    #[inline(never)]
    fn apart<T: Task<Self>>(task: T) -> T::Output {
        task.run()
    }
}

impl Lanes for Simd128 {}

/// Numbers of 32 bits in a vector.
const QUAD: usize = 4;
/// Numbers in two vectors.
const OCTET: usize = 8;

impl Look for Simd128 {
    #[inline(always)]
    fn take<const KIND: u8, const N: usize>(
        frequencies: &mut Frequencies,
        words: &mut Words,
        states: &mut [u32; N],
        sites: &Sites<N>,
    ) -> [i32; N] {
        if !N.is_multiple_of(QUAD) {
            return fast::take::<Portable, N, true>(frequencies, words, states, sites);
        }
        let mut many = u32x4_splat(0);
        for low in sites.low.as_chunks().0 {
            many = v128_or(many, u32x4_gt(load(low), u32x4_splat(FIRST_BITS)));
        }
        if v128_any_true(many) {
            return take_rare::<N, true>(frequencies, words, states, sites);
        }
        let start = words.next;
        let (mut residuals, mut taken, mut escapes) = ([0; N], [0; N], u32x4_splat(0));
        for quad in 0..N / QUAD {
            let sites = Quad {
                set: load(&sites.set.as_chunks().0[quad]),
                low: load(&sites.low.as_chunks().0[quad]),
                zigzag: rows::predicts(KIND).then(|| load(&sites.zigzag.as_chunks().0[quad])),
            };
            let (residual, state, escape) = sites.take(frequencies, words, load(&states.as_chunks().0[quad]));
            store_i32(&mut residuals.as_chunks_mut().0[quad], residual);
            store(&mut taken.as_chunks_mut().0[quad], state);
            escapes = v128_or(escapes, escape);
        }
        if v128_any_true(escapes) {
            words.next = start;
            return take_rare::<N, false>(frequencies, words, states, sites);
        }
        *states = taken;
        residuals
    }
}

/// [`Look::take`] where some residuals are large.
#[cold]
#[inline(never)]
fn take_rare<const N: usize, const COUNTS: bool>(
    frequencies: &mut Frequencies,
    words: &mut Words,
    states: &mut [u32; N],
    sites: &Sites<N>,
) -> [i32; N] {
    fast::take::<Portable, N, COUNTS>(frequencies, words, states, sites)
}

/// What is known of four levels; `low` is [`FIRST_BITS`] at most.
struct Quad {
    set: v128,
    low: v128,
    zigzag: Option<v128>,
}

impl Quad {
    /// Their residuals, but for escapes, the states after them, and where there is an escape.
    #[inline(always)]
    fn take(self, frequencies: &mut Frequencies, words: &mut Words, state: v128) -> (v128, v128, v128) {
        let Self { set, low, zigzag } = self;
        let (zero, one) = (u32x4_splat(0), u32x4_splat(1));
        let place = v128_and(state, u32x4_splat(PLACES as u32 - 1));
        let (places, sets) = (array(v128_or(u32x4_shl(set, BITS), place)), array(u32x4_shl(set, 4)));
        let mut ranges = [0; QUAD];
        for k in 0..QUAD {
            let symbol = frequencies.symbols()[places[k] as usize % (SETS * PLACES)];
            let entry = (sets[k] | u32::from(symbol)) % (SETS * SYMBOLS) as u32;
            ranges[k] = frequencies.ranges[entry as usize];
            frequencies.count(&[entry]);
        }
        let range = load(&ranges);
        let first = v128_and(range, u32x4_splat(PLACES as u32 - 1));
        let symbol = v128_and(u32x4_shr(range, BITS), u32x4_splat(ESCAPE));
        let state = i32x4_mul(u32x4_shr(range, 16), u32x4_shr(state, BITS));
        let state = i32x4_add(state, i32x4_sub(place, first));
        // The sign is a bit, but of zero without low bits and where the symbol says it.
        let has_low = i32x4_gt(low, zero);
        let mut signless = v128_andnot(i32x4_eq(symbol, zero), has_low);
        if let Some(zigzag) = zigzag {
            signless = v128_or(signless, zigzag);
        }
        let mut negative = v128_andnot(v128_and(state, one), signless);
        let state = v128_bitselect(state, u32x4_shr(state, 1), signless);
        // 2^low - 1. The other bytes of a number are zeros, for which the table has a zero.
        let mask = i8x16_swizzle(u8x16(0, 1, 3, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), low);
        let lowest = v128_and(state, mask);
        let bit = |number: u32| i32x4_shr(i32x4_shl(low, 31 - number), 31);
        let state = v128_bitselect(u32x4_shr(state, 1), state, bit(0));
        let state = v128_bitselect(u32x4_shr(state, 2), state, bit(1));
        let (state, count) = refilled(state, load_u8(words.eight()));
        words.pass(count);
        let mut magnitude = i32x4_add(i16x8_mul(symbol, i32x4_add(mask, one)), lowest);
        if let Some(zigzag) = zigzag {
            magnitude = v128_bitselect(u32x4_shr(i32x4_add(symbol, one), 1), magnitude, zigzag);
            negative = v128_or(negative, v128_andnot(v128_and(zigzag, one), symbol));
        }
        // With low bits, -1 comes with 0.
        let turned = v128_xor(magnitude, i32x4_neg(negative));
        let residual = i32x4_add(turned, v128_andnot(negative, has_low));
        (residual, state, i32x4_eq(symbol, u32x4_splat(ESCAPE)))
    }
}

const _: () = assert!(SYMBOLS == 16 && FIRST_BITS == 3);

/// States, where those below 2^16 got one of the `next` words each, in their order; and how many did.
#[inline(always)]
fn refilled(states: v128, next: v128) -> (v128, usize) {
    let wants = i32x4_eq(u32x4_shr(states, 16), u32x4_splat(0));
    let wanted = i32x4_bitmask(wants);
    let word = i8x16_swizzle(next, load_u8(&DEALT[usize::from(wanted)]));
    let filled = v128_or(v128_bitselect(u32x4_shl(states, 16), states, wants), word);
    (filled, wanted.count_ones() as usize)
}

/// By which states want a word, as bits: which bytes of the next words each gets; there is none of number 255, so a zero.
static DEALT: [[u8; 16]; 1 << QUAD] = {
    let mut dealt = [[255; 16]; 1 << QUAD];
    let mut wanted = 0;
    while wanted < 1 << QUAD {
        let (mut lane, mut word) = (0, 0);
        while lane < QUAD {
            if wanted >> lane & 1 == 1 {
                dealt[wanted][4 * lane] = 2 * word;
                dealt[wanted][4 * lane + 1] = 2 * word + 1;
                word += 1;
            }
            lane += 1;
        }
        wanted += 1;
    }
    dealt
};

impl rans::Decode for Simd128 {
    #[inline(always)]
    fn decode(decoder: &mut rans::Decoder, numbers: Option<&[u8]>, symbols: &mut [u8]) {
        const FEW: usize = rans::FEW_LANES;
        let whole = symbols.len() - symbols.len() % decoder.lanes;
        let (rounds, rest) = symbols.split_at_mut(whole);
        match (numbers, decoder.lanes == rans::LANES) {
            (Some(numbers), true) => decode_rounds::<{ rans::LANES }, true>(decoder, &numbers[..whole], rounds),
            (None, true) => decode_rounds::<{ rans::LANES }, false>(decoder, &[], rounds),
            (Some(numbers), false) => decode_rounds::<FEW, true>(decoder, &numbers[..whole], rounds),
            (None, false) => decode_rounds::<FEW, false>(decoder, &[], rounds),
        }
        rans::decode_in_turn(decoder, numbers.map(|numbers| &numbers[whole..]), rest);
    }
}

/// Whole rounds of `N` lanes.
#[inline(never)]
fn decode_rounds<const N: usize, const NUMBERED: bool>(
    decoder: &mut rans::Decoder,
    numbers: &[u8],
    symbols: &mut [u8],
) {
    const { assert!(N.is_multiple_of(OCTET)) };
    let rans::Decoder { places, states, words, .. } = decoder;
    let (rounds, _) = symbols.as_chunks_mut::<N>();
    let mut numbers = numbers.as_chunks::<N>().0.iter();
    for round in rounds {
        let none = [0; N];
        let numbers = if NUMBERED { numbers.next().unwrap_or(&none) } else { &none };
        for octet in 0..N / OCTET {
            let mut entries = [u32x4_splat(0); 2];
            let numbers = widened(&numbers.as_chunks().0[octet]);
            let numbers = [u32x4_extend_low_u16x8(numbers), u32x4_extend_high_u16x8(numbers)];
            for half in 0..2 {
                let lanes = &mut states.as_chunks_mut().0[2 * octet + half];
                let state = load(lanes);
                let mut place = v128_and(state, u32x4_splat(rans::PLACES as u32 - 1));
                if NUMBERED {
                    place = v128_or(place, u32x4_shl(numbers[half], rans::BITS));
                }
                let entry = look_up(places, place);
                let offset = v128_and(u32x4_shr(entry, 8), u32x4_splat(rans::PLACES as u32 - 1));
                let more = i32x4_mul(u32x4_shr(entry, 20), u32x4_shr(state, rans::BITS));
                let (state, count) = refilled(i32x4_add(more, offset), load_u8(&words.eight()));
                words.pass(count);
                store(lanes, state);
                entries[half] = v128_and(entry, u32x4_splat(255));
            }
            let pair = i16x8_narrow_i32x4(entries[0], entries[1]);
            round.as_chunks_mut().0[octet] = u64x2_extract_lane::<0>(u8x16_narrow_i16x8(pair, pair)).to_le_bytes();
        }
    }
}

/// The entries at these places.
#[inline(always)]
fn look_up(entries: &[u32], places: v128) -> v128 {
    let (places, mut found) = (array(places), [0; QUAD]);
    for k in 0..QUAD {
        found[k] = entries[places[k] as usize & (entries.len() - 1)];
    }
    load(&found)
}

impl Join for Simd128 {
    #[inline(always)]
    fn join<P: Pattern>(joint: Joint, symbols: &[u8], shifts: &[u8], raw: &mut BitReader, patterns: &mut [P]) {
        let done = match P::BITS {
            16 | 32 => join_octets(joint, symbols, shifts, raw, patterns),
            _ => 0,
        };
        raw.skip(done * (joint.low - joint.zeros + 1) as usize);
        join_in_turn(joint, &symbols[done..], &shifts[done..], raw, &mut patterns[done..]);
    }
}

/// As many as come in eights and have their raw bits well before the end; returns their number.
#[inline(never)]
fn join_octets<P: Pattern>(joint: Joint, symbols: &[u8], shifts: &[u8], raw: &BitReader, patterns: &mut [P]) -> usize {
    let Joint { low, zeros, base } = joint;
    let width = low - zeros + 1;
    let (bytes, at) = raw.parts();
    let Some(bytes) = bytes.get(at / 8..) else { return 0 };
    let first = (at % 8) as u32;
    // Where in its vector the four bytes begin that have a value's bits, and what moves these to the top of a number: they
    // are 24 at most.
    let second = (first + 4 * width) / 8;
    let (mut places, mut powers) = ([[0; 16]; 2], [[0; QUAD]; 2]);
    for lane in 0..OCTET {
        let (half, k) = (lane / QUAD, lane % QUAD);
        let start = first + lane as u32 * width - if half == 0 { 0 } else { 8 * second };
        for byte in 0..4 {
            places[half][4 * k + byte] = (start / 8) as u8 + byte as u8;
        }
        powers[half][k] = 1 << (32 - width - start % 8);
    }
    let (places, powers) = ([load_u8(&places[0]), load_u8(&places[1])], [load(&powers[0]), load(&powers[1])]);
    let (base, top) = (u32x4_splat(base as u32), u32x4_splat(1 << 31));
    let magnitudes = u32x4_splat(ones(P::BITS - 1) as u32);
    let octets = symbols.as_chunks::<OCTET>().0.iter().zip(shifts.as_chunks::<OCTET>().0);
    let mut done = 0;
    for ((symbols, shifts), patterns) in octets.zip(patterns.as_chunks_mut::<OCTET>().0) {
        let at = done / OCTET * width as usize;
        let window = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map(load_u8);
        let (Some(lower), Some(upper)) = (window(at), window(at + second as usize)) else { break };
        let heads = u16x8_add(widened(symbols), widened(shifts));
        let join = |half: usize, window: v128, head: v128| {
            let field = i32x4_mul(i8x16_swizzle(window, places[half]), powers[half]);
            let rest = u32x4_shl(u32x4_shr(v128_andnot(field, top), 32 - width), zeros);
            let magnitude = v128_and(v128_or(u32x4_shl(i32x4_add(head, base), low), rest), magnitudes);
            v128_or(magnitude, u32x4_shr(v128_and(field, top), 32 - P::BITS))
        };
        let lower = join(0, lower, u32x4_extend_low_u16x8(heads));
        let upper = join(1, upper, u32x4_extend_high_u16x8(heads));
        let to = patterns.as_mut_ptr().cast::<v128>();
        if P::BITS == 16 {
            // SAFETY: eight patterns of 16 bits, and stores need no alignment.
            unsafe { v128_store(to, u16x8_narrow_i32x4(lower, upper)) }
        } else {
            // SAFETY: eight patterns of 32 bits; only these two widths come here.
            unsafe {
                v128_store(to, lower);
                v128_store(to.add(1), upper);
            }
        }
        done += OCTET;
    }
    done
}

/// Eight bytes as numbers of 16 bits.
#[inline(always)]
fn widened(bytes: &[u8; OCTET]) -> v128 {
    u16x8_extend_low_u8x16(u64x2(u64::from_le_bytes(*bytes), 0))
}

/// A vector as four numbers.
#[inline(always)]
fn array(vector: v128) -> [u32; QUAD] {
    let mut array = [0; QUAD];
    store(&mut array, vector);
    array
}

/// Sixteen bytes as a vector.
#[inline(always)]
fn load_u8(from: &[u8; 16]) -> v128 {
    // SAFETY: the reference is to 16 readable bytes, and loads need no alignment.
    unsafe { v128_load(from.as_ptr().cast()) }
}

/// Four numbers as a vector.
#[inline(always)]
fn load(from: &[u32; QUAD]) -> v128 {
    // SAFETY: as above.
    unsafe { v128_load(from.as_ptr().cast()) }
}

/// A vector as four numbers.
#[inline(always)]
fn store(to: &mut [u32; QUAD], vector: v128) {
    // SAFETY: the reference is to 16 writable bytes, and stores need no alignment.
    unsafe { v128_store(to.as_mut_ptr().cast(), vector) }
}

/// A vector as four numbers.
#[inline(always)]
fn store_i32(to: &mut [i32; QUAD], vector: v128) {
    // SAFETY: as above.
    unsafe { v128_store(to.as_mut_ptr().cast(), vector) }
}
