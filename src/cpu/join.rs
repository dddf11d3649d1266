//! Floating-point patterns from symbols and raw bits (`floats.rs`), eight at a time.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::coding::bits::{BitReader, ones};
use crate::cpu::vector::{OCTET, load_u16};
use crate::exact::Pattern;
use crate::floats::{Joint, join_in_turn};

/// [`crate::floats::Join::join`].
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
pub(crate) fn join<P: Pattern>(joint: Joint, symbols: &[u8], shifts: &[u8], raw: &mut BitReader, patterns: &mut [P]) {
    let done = match P::BITS {
        16 | 32 => octets(joint, symbols, shifts, raw, patterns),
        _ => 0,
    };
    raw.skip(done * (joint.low - joint.zeros + 1) as usize);
    join_in_turn(joint, &symbols[done..], &shifts[done..], raw, &mut patterns[done..]);
}

/// As many as come in eights and have their raw bits well before the end; returns their number.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
fn octets<P: Pattern>(joint: Joint, symbols: &[u8], shifts: &[u8], raw: &BitReader, patterns: &mut [P]) -> usize {
    let Joint { low, zeros, base } = joint;
    let width = low - zeros + 1;
    let (bytes, at) = raw.parts();
    let Some(bytes) = bytes.get(at / 8..) else { return 0 };
    let first = (at % 8) as u32;
    // Where in its half vector the four bytes begin that have a value's bits, and how many bits of others are before those.
    let second = (first + 4 * width) / 8;
    let (mut places, mut before) = ([0u8; 32], [0u32; OCTET]);
    for lane in 0..OCTET {
        let start = first + lane as u32 * width - if lane < 4 { 0 } else { 8 * second };
        for byte in 0..4 {
            places[4 * lane + byte] = (start / 8) as u8 + byte as u8;
        }
        before[lane] = start % 8;
    }
    // SAFETY: both arrays have 32 bytes, and loadu needs no alignment.
    let (places, before) =
        unsafe { (_mm256_loadu_si256(places.as_ptr().cast()), _mm256_loadu_si256(before.as_ptr().cast())) };
    let shift = |bits: u32| _mm_cvtsi32_si128(bits as i32);
    let (low_by, zeros_by, sign_by) = (shift(low), shift(zeros), shift(low - zeros));
    let lowest = _mm256_set1_epi32(ones(low - zeros) as i32);
    let magnitudes = _mm256_set1_epi32(ones(P::BITS - 1) as i32);
    let sign_up = shift(P::BITS - 1);
    let base = _mm256_set1_epi32(base as i32);
    let one = _mm256_set1_epi32(1);
    let octets = symbols.as_chunks::<OCTET>().0.iter().zip(shifts.as_chunks::<OCTET>().0);
    let mut done = 0;
    for ((symbols, shifts), patterns) in octets.zip(patterns.as_chunks_mut::<OCTET>().0) {
        let at = done / OCTET * width as usize;
        let halves = (
            bytes.get(at..).and_then(<[u8]>::first_chunk),
            bytes.get(at + second as usize..).and_then(<[u8]>::first_chunk),
        );
        let (Some(lower), Some(upper)) = halves else { break };
        let windows = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(load_u16(lower)), load_u16(upper));
        let fields = _mm256_srlv_epi32(_mm256_shuffle_epi8(windows, places), before);
        let heads = _mm256_add_epi32(_mm256_add_epi32(widened(symbols), widened(shifts)), base);
        let rest = _mm256_sll_epi32(_mm256_and_si256(fields, lowest), zeros_by);
        let magnitude = _mm256_and_si256(_mm256_or_si256(_mm256_sll_epi32(heads, low_by), rest), magnitudes);
        let signs = _mm256_sll_epi32(_mm256_and_si256(_mm256_srl_epi32(fields, sign_by), one), sign_up);
        let whole = _mm256_or_si256(magnitude, signs);
        let to = patterns.as_mut_ptr();
        if P::BITS == 16 {
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(whole, whole));
            // SAFETY: eight patterns of 16 bits, and storeu needs no alignment.
            unsafe { _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed)) }
        } else {
            // SAFETY: eight patterns of 32 bits; only these two widths come here.
            unsafe { _mm256_storeu_si256(to.cast(), whole) }
        }
        done += OCTET;
    }
    done
}

/// Eight bytes as numbers of 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(bytes: &[u8; OCTET]) -> __m256i {
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)))
}
