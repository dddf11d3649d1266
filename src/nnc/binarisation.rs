//! How one level becomes decisions, in streams of ISO/IEC 15938-17 and of the software of 2019 alike. Written once, for encoder,
//! decoder and cost.
//!
//! 1. whether it is not zero;
//! 2. its sign;
//! 3. up to `unary` decisions "greater than k";
//! 4. what is left: Exp-Golomb code of order 0 whose prefix has contexts.
//!
//! Where a codebook limits magnitudes, what follows from the limit is not coded.

use crate::nnc::cabac::{Bins, Context};

/// Contexts of the prefix of what is left after `unary` decisions.
pub const PREFIXES: usize = 31;

/// What is the same for all levels of a tensor.
#[derive(Clone, Copy)]
pub struct Binarisation {
    /// Most decisions "greater than k".
    pub unary: usize,
    /// The first of [`PREFIXES`] contexts.
    pub prefix: usize,
    /// No magnitude is above.
    pub most: u32,
    /// Largest magnitudes of positive and of negative levels that a codebook has, and that the decoder knows.
    pub limits: [u32; 2],
    /// The sign of all levels, if a codebook has only one.
    pub only_sign: Option<bool>,
}

/// Contexts of a level that depend on what is around it.
#[derive(Clone, Copy)]
pub struct Around {
    /// Of decision 1.
    pub zero: usize,
    /// Of decision 2.
    pub sign: usize,
    /// The first one of decisions 3, two for each k: for positive and negative levels.
    pub greater: usize,
    /// Magnitude of the base's level if it is not zero: then the two are for k up to this, and above.
    pub base: u32,
}

/// What contexts know of the level before: zero, negative or positive.
#[inline(always)]
pub fn class(before: i32) -> usize {
    if before == 0 { 0 } else { 2 - usize::from(before < 0) }
}

/// Codes one level. `PLAIN`: no codebook limits it and it has no base. None if it does not fit.
#[inline(always)]
pub fn code_level<B: Bins, const PLAIN: bool>(
    bins: &mut B,
    contexts: &mut [Context],
    form: &Binarisation,
    around: &Around,
    level: i32,
) -> Option<i32> {
    let magnitude = level.unsigned_abs();
    if !bins.bin(contexts, around.zero, magnitude != 0) {
        return Some(0);
    }
    let negative = match form.only_sign {
        Some(sign) if !PLAIN => sign,
        _ => bins.bin_apart(contexts, around.sign, level < 0),
    };
    let signed = |magnitude: u32| {
        let mask = -i32::from(negative);
        Some((magnitude as i32 ^ mask) - mask)
    };
    let limit = if PLAIN { u32::MAX } else { form.limits[usize::from(negative)] };
    let mut coded = 1;
    for k in 0..form.unary as u32 {
        if !PLAIN && coded >= limit {
            return signed(coded);
        }
        let second = if PLAIN || around.base == 0 { negative } else { around.base < k };
        if !bins.bin(contexts, around.greater + 2 * k as usize + usize::from(second), magnitude > coded) {
            return signed(coded);
        }
        coded += 1;
    }
    let rest = bins.locally(move |bins| code_rest(bins, contexts, form.prefix, limit, coded, magnitude));
    rest.filter(|&coded| coded <= form.most.min(limit)).and_then(signed)
}

/// Codes what a magnitude has above `coded`. None if it does not fit 32 bits.
#[cold]
#[inline(never)]
fn code_rest<B: Bins>(
    bins: &mut B,
    contexts: &mut [Context],
    prefix: usize,
    limit: u32,
    coded: u32,
    magnitude: u32,
) -> Option<u32> {
    let (mut coded, limit) = (u64::from(coded), u64::from(limit));
    let mut exponent = 0;
    while exponent < PREFIXES as u32 && (if exponent == 0 { coded < limit } else { coded + (1 << exponent) <= limit }) {
        let more = u64::from(magnitude) >= coded + (1 << exponent);
        if !bins.bin(contexts, prefix + exponent as usize, more) {
            break;
        }
        coded += 1 << exponent;
        exponent += 1;
    }
    coded += u64::from(bins.bypass((u64::from(magnitude).wrapping_sub(coded)) as u32, exponent));
    u32::try_from(coded).ok()
}
