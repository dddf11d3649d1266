//! Vectors of x86 SIMD, to and from memory: the loads and stores that the safe code of this folder uses.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

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

/// States in a vector.
pub(crate) const OCTET: usize = 8;

/// Eight numbers of a slice as a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_f32(from: &[f32; OCTET]) -> __m256 {
    // SAFETY: the reference is to 32 readable bytes, and loadu needs no alignment.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

/// A vector as eight numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store_f32(to: &mut [f32; OCTET], vector: __m256) {
    // SAFETY: the reference is to 32 writable bytes, and storeu needs no alignment.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), vector) }
}

/// A vector as eight numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store_i32(to: &mut [i32; OCTET], vector: __m256i) {
    // SAFETY: the reference is to 32 writable bytes, and storeu needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) }
}

/// Eight numbers as a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_i32(from: &[i32; OCTET]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes, and loadu needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// Eight numbers as a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_octet(from: &[u32; OCTET]) -> __m256i {
    // SAFETY: the reference is to 32 readable bytes, and loadu needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// A vector as eight numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store_octet(to: &mut [u32; OCTET], vector: __m256i) {
    // SAFETY: the reference is to 32 writable bytes, and storeu needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) }
}

/// Sixteen bytes as a vector.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load_u16(from: &[u8; 2 * OCTET]) -> __m128i {
    // SAFETY: the reference is to 16 readable bytes, and loadu needs no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

/// By which states want a word, as bits: which of the next words each gets.
pub(crate) static DEALT: [[u32; OCTET]; 1 << OCTET] = {
    let mut dealt = [[0; OCTET]; 1 << OCTET];
    let mut wanted = 0;
    while wanted < 1 << OCTET {
        let (mut lane, mut word) = (0, 0);
        while lane < OCTET {
            dealt[wanted][lane] = word;
            word += (wanted >> lane & 1) as u32;
            lane += 1;
        }
        wanted += 1;
    }
    dealt
};

/// True if this processor has what the functions of this folder need.
#[inline]
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe")
        && is_x86_feature_detected!("popcnt")
}
