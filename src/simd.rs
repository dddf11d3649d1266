//! The same bits with x86 SIMD: the one place, besides the C boundary, with `unsafe`.
//!
//! The loops are the ones of `lanes.rs` and `chunk.rs`, compiled again with the instructions of x86-64-v3 (AVX2, BMI2,
//! LZCNT, MOVBE: every x86 core since 2015), and with the adaptation of four contexts as one vector. Decoding takes four
//! lanes to a vector besides (`lanes/quads.rs`, which is safe: it gets at memory by the loads and stores here).

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi32, _mm_and_si128, _mm_loadu_si128, _mm_set1_epi32, _mm_setr_epi32, _mm_slli_epi32,
    _mm_srav_epi32, _mm_srli_epi32, _mm_srlv_epi32, _mm_storeu_si128, _mm_sub_epi32, _mm256_loadu_si256,
    _mm256_storeu_si256,
};

use crate::chunk::{self, Quantizer, Sums};
use crate::coder::GROUP;
use crate::context::{self, Lesson, Machine};
use crate::lanes::{self, Job, Lane, Lanes, quads};
use crate::params::Params;

/// AVX2. Only constructed behind [`available`], only named by the functions below.
struct Avx2;

impl Machine for Avx2 {
    #[inline(always)]
    fn adapt_group(contexts: &mut [u32; GROUP], ones: usize) {
        // SAFETY: this type is private to the module, and its functions below are compiled with, and called only after
        // a check for, the features that adapt_group needs.
        unsafe { adapt_group(contexts, context::lesson(ones)) }
    }
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn decode<const KIND: u8>(lanes: &mut [Lane], count: usize) {
        // SAFETY: as above.
        unsafe { quads::decode::<Self, KIND>(lanes, count) }
    }
}

/// Four numbers as a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_u64(from: &[u64; 4]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes, and loadu needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// A vector as four numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store_u64(to: &mut [u64; 4], vector: __m256i) {
    // SAFETY: the reference is to 32 writable bytes, and storeu needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) }
}

/// Four numbers as a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_u32(from: &[u32; 4]) -> __m128i {
    // SAFETY: the reference is to 16 readable bytes, and loadu needs no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

/// A vector as four numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store_u32(to: &mut [u32; 4], vector: __m128i) {
    // SAFETY: the reference is to 16 writable bytes, and storeu needs no alignment.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), vector) }
}

/// True if this processor has what the functions below need.
#[inline]
pub fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe")
}

/// `context::adapt_if` on four contexts.
#[inline]
#[target_feature(enable = "avx2")]
fn adapt_group(contexts: &mut [u32; GROUP], lesson: &Lesson) {
    let [a, b, c, d] = lesson.target;
    let (old, target, used) = (load_u32(contexts), _mm_setr_epi32(a, b, c, d), load_u32(&lesson.used));
    let stage = _mm_srli_epi32::<29>(_mm_slli_epi32::<22>(old));
    let distance = _mm_sub_epi32(target, _mm_srli_epi32::<2>(old));
    let step = _mm_and_si128(_mm_srav_epi32(distance, stage), _mm_set1_epi32(!511));
    let half = _mm_add_epi32(step, _mm_srlv_epi32(_mm_set1_epi32(64), stage));
    let half = _mm_and_si128(half, used);
    store_u32(contexts, _mm_add_epi32(_mm_add_epi32(old, half), half));
}

macro_rules! with_features {
    ($(#[$doc:meta])* $name:ident, $inner:ident, $call:path, ($($argument:ident: $type:ty),*) $(-> $result:ty)?) => {
        $(#[$doc])*
        pub fn $name($($argument: $type),*) $(-> $result)? {
            #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe")]
            fn $inner($($argument: $type),*) $(-> $result)? {
                $call($($argument),*)
            }
            assert!(available(), "called on a processor without AVX2");
            // SAFETY: the features were just checked.
            unsafe { $inner($($argument),*) }
        }
    };
}

with_features!(
    /// [`lanes::decode`] on this machine.
    decode, decode_avx2, lanes::decode_on::<Avx2>, (jobs: &mut [Job])
);
with_features!(
    /// [`chunk::encode`] on this machine.
    encode, encode_avx2, chunk::encode_on::<Avx2>, (params: &Params, levels: &[i32], out: &mut Vec<u8>)
);
with_features!(
    /// [`chunk::quantize`] on this machine.
    quantize, quantize_avx2, chunk::quantize_on::<Avx2>,
    (params: &Params, weights: &[f32], quantizer: Quantizer, chosen: Option<&mut [i32]>, out: &mut Vec<u8>) -> Sums
);

/// [`Lanes::decode`] on this machine.
#[cfg(test)]
pub(crate) fn decode_lanes<const KIND: u8>(lanes: &mut [Lane], count: usize) {
    assert!(available(), "called on a processor without AVX2");
    Avx2::decode::<KIND>(lanes, count);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Portable;

    #[test]
    fn a_group_adapts_as_in_plain_rust() {
        if !available() {
            return;
        }
        let mut state = 1u64;
        for round in 0..100_000 {
            let mut contexts = [0; GROUP];
            for context in &mut contexts {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *context = (state >> 32) as u32;
            }
            let mut portable = contexts;
            Avx2::adapt_group(&mut contexts, round % 5);
            Portable::adapt_group(&mut portable, round % 5);
            assert_eq!(contexts, portable);
        }
    }
}
