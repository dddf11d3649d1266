//! CRC-32 (`checksum.rs`) with carry-less products: blocks of bytes are moved onto later ones until one is left.
//!
//! Bits are the coefficients of a polynomial, the first one highest. What stands `n` bits before a block can be added to the block
//! once it is multiplied by `x^n` modulo the CRC's polynomial: what is left after a division stays the same. (Gopal, Ozturk,
//! Guilford and others: Fast CRC computation for generic polynomials using PCLMULQDQ, Intel 2009.)

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::checksum::{self, POLYNOMIAL};

/// Bytes of a block, and blocks that are moved at a time.
const BLOCK: usize = 16;
const BLOCKS: usize = 4;

/// True if this processor has what [`update`] needs.
#[inline]
pub(crate) fn available() -> bool {
    is_x86_feature_detected!("pclmulqdq") && is_x86_feature_detected!("sse2")
}

/// `x^n` modulo the polynomial, as a factor: products of polynomials whose first bit is the lowest come out one bit lower.
const fn factor(n: u32) -> i64 {
    let mut power = 1u32 << 31;
    let mut k = 0;
    while k < n {
        power = power >> 1 ^ if power & 1 != 0 { POLYNOMIAL } else { 0 };
        k += 1;
    }
    (power as i64) << 1
}

/// Factors of the first and second half of a block that is moved by so many bits. A half is a polynomial of 64 bits and a factor
/// one of 32, so the first half, which is 64 bits further away, is multiplied by `x^(bits + 32)`.
const fn factors(bits: u32) -> [i64; 2] {
    [factor(bits + 32), factor(bits - 32)]
}

/// [`checksum::update`].
pub(crate) fn update(crc: u32, bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    if blocks.len() < BLOCKS {
        return checksum::update(crc, bytes);
    }
    assert!(available(), "called on a processor without carry-less products");
    // SAFETY: the features were just checked.
    let left = unsafe { moved(crc, blocks) };
    checksum::update(checksum::update(0, &left), rest)
}

/// A block that stands for all of at least [`BLOCKS`] blocks, the state added to the first.
#[target_feature(enable = "pclmulqdq,sse2")]
fn moved(crc: u32, blocks: &[[u8; BLOCK]]) -> [u8; BLOCK] {
    const FAR: [i64; 2] = factors(8 * (BLOCK * BLOCKS) as u32);
    const NEAR: [i64; 2] = factors(8 * BLOCK as u32);
    let (far, near) = (_mm_set_epi64x(FAR[1], FAR[0]), _mm_set_epi64x(NEAR[1], NEAR[0]));
    let (groups, rest) = blocks.as_chunks::<BLOCKS>();
    let (first, groups) = groups.split_first().expect("at least one group");
    let mut sums = [_mm_setzero_si128(); BLOCKS];
    for k in 0..BLOCKS {
        sums[k] = load(&first[k]);
    }
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128(crc as i32));
    for group in groups {
        for k in 0..BLOCKS {
            sums[k] = onto(sums[k], far, load(&group[k]));
        }
    }
    let mut sum = sums[0];
    for next in &sums[1..] {
        sum = onto(sum, near, *next);
    }
    for block in rest {
        sum = onto(sum, near, load(block));
    }
    let mut left = [0; BLOCK];
    // SAFETY: there are 16 writable bytes, and storeu needs no alignment.
    unsafe { _mm_storeu_si128(left.as_mut_ptr().cast(), sum) }
    left
}

/// A block moved, and added to another one.
#[inline]
#[target_feature(enable = "pclmulqdq,sse2")]
fn onto(block: __m128i, factors: __m128i, next: __m128i) -> __m128i {
    let first = _mm_clmulepi64_si128::<0x00>(block, factors);
    let second = _mm_clmulepi64_si128::<0x11>(block, factors);
    _mm_xor_si128(_mm_xor_si128(first, second), next)
}

#[inline]
#[target_feature(enable = "sse2")]
fn load(block: &[u8; BLOCK]) -> __m128i {
    // SAFETY: there are 16 readable bytes, and loadu needs no alignment.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}
