//! Symbols of stored frequencies (`coding/rans.rs`), eight lanes to a vector.

#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // vectors are numbered in several arrays at once

use std::arch::x86_64::*;

use crate::coding::rans::{BITS, Decoder, FEW_LANES, LANES, PLACES, Words, decode_in_turn};
use crate::cpu::vector::{DEALT, OCTET, load_octet, load_u16, store_octet};

/// [`crate::coding::rans::Decode::decode`].
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
pub(crate) fn decode(decoder: &mut Decoder, numbers: Option<&[u8]>, symbols: &mut [u8]) {
    let whole = symbols.len() - symbols.len() % decoder.lanes;
    let (rounds, rest) = symbols.split_at_mut(whole);
    match (numbers, decoder.lanes == LANES) {
        (Some(numbers), true) => decode_rounds::<LANES, { LANES / OCTET }, true>(decoder, &numbers[..whole], rounds),
        (None, true) => decode_rounds::<LANES, { LANES / OCTET }, false>(decoder, &[], rounds),
        (Some(numbers), false) => decode_rounds::<FEW_LANES, 1, true>(decoder, &numbers[..whole], rounds),
        (None, false) => decode_rounds::<FEW_LANES, 1, false>(decoder, &[], rounds),
    }
    decode_in_turn(decoder, numbers.map(|numbers| &numbers[whole..]), rest);
}

/// Whole rounds of `N` lanes in `V` vectors.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
fn decode_rounds<const N: usize, const V: usize, const NUMBERED: bool>(
    decoder: &mut Decoder,
    numbers: &[u8],
    symbols: &mut [u8],
) {
    const { assert!(N == V * OCTET) };
    let Decoder { places, states, words, .. } = decoder;
    let mut lanes = [_mm256_setzero_si256(); V];
    for v in 0..V {
        lanes[v] = load_octet(&states.as_chunks().0[v]);
    }
    let (rounds, _) = symbols.as_chunks_mut::<N>();
    let mut numbers = numbers.as_chunks::<N>().0.iter();
    for round in rounds {
        let none = [0; N];
        let numbers = if NUMBERED { numbers.next().unwrap_or(&none) } else { &none };
        for v in 0..V {
            let entries = look_up::<NUMBERED>(places, lanes[v], &numbers.as_chunks::<OCTET>().0[v]);
            let offset = _mm256_and_si256(_mm256_srli_epi32::<8>(entries), _mm256_set1_epi32(PLACES as i32 - 1));
            let more =
                _mm256_mullo_epi32(_mm256_srli_epi32::<20>(entries), _mm256_srli_epi32::<{ BITS as i32 }>(lanes[v]));
            lanes[v] = refilled(words, _mm256_add_epi32(more, offset));
            round.as_chunks_mut::<OCTET>().0[v] = low_bytes(entries);
        }
    }
    for v in 0..V {
        store_octet(&mut states.as_chunks_mut().0[v], lanes[v]);
    }
}

/// The entries of the places that states are at.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up<const NUMBERED: bool>(places: &[u32], states: __m256i, numbers: &[u8; OCTET]) -> __m256i {
    let mut index = _mm256_and_si256(states, _mm256_set1_epi32(PLACES as i32 - 1));
    if NUMBERED {
        let numbers = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*numbers)));
        index = _mm256_or_si256(index, _mm256_slli_epi32::<{ BITS as i32 }>(numbers));
        index = _mm256_and_si256(index, _mm256_set1_epi32(places.len() as i32 - 1));
    }
    assert!(places.len() >= PLACES && places.len().is_power_of_two());
    // SAFETY: each index is below the number of places, which is a power of two and not less than PLACES.
    unsafe { _mm256_i32gather_epi32::<4>(places.as_ptr().cast(), index) }
}

/// States below 2^16 get the next words, in their order.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
fn refilled(words: &mut Words, states: __m256i) -> __m256i {
    let wants = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(states), _mm256_setzero_si256());
    let wanted = _mm256_movemask_ps(_mm256_castsi256_ps(wants)) as u8;
    let next = _mm256_cvtepu16_epi32(load_u16(&words.eight()));
    let word = _mm256_permutevar8x32_epi32(next, load_octet(&DEALT[usize::from(wanted)]));
    let filled = _mm256_or_si256(_mm256_slli_epi32::<16>(states), word);
    words.pass(wanted.count_ones() as usize);
    _mm256_blendv_epi8(states, filled, wants)
}

/// The lowest byte of each of eight numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn low_bytes(numbers: __m256i) -> [u8; OCTET] {
    let first = _mm256_setr_epi8(
        0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1,
        -1, -1, -1,
    );
    let halves = _mm256_shuffle_epi8(numbers, first);
    let both = _mm_or_si128(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    _mm_cvtsi128_si64(both).to_le_bytes()
}
