//! The binarisation: how one residual becomes decisions and raw bits. Written once, for encoder, decoder and cost.
//!
//! A residual r in a class with `low` low bits, `upper = |r| >> low`:
//!
//! 1. up to 16 decisions "upper > k", stopping after the first zero, four to a step of the coder;
//! 2. if all 16 are one, `x = upper - 15` as raw bits: 5 bits `n = floor(log2 x)`, then the n bits below its highest one;
//! 3. the low bits: the highest with a context if `upper` is 0, everything else raw;
//! 4. if r is not 0 the sign: with a context (by `upper`) where a prediction leans to one side, else raw.

use crate::coding::arithmetic::{Decoder, Encoder};
use crate::model::context::{
    self, COST_BITS, COSTS, ContextSet, GROUP, LOW_BIT, MOST_COST, Machine, Portable, SIGN, UNARY,
};
use crate::model::rows;

/// Where decisions go to or come from. An encoder takes what is given and returns it; a decoder ignores it.
pub trait BinCoder {
    /// Contexts learn from what is coded.
    const ADAPTS: bool;
    /// What is rare is better kept out of the loop.
    const APART: bool;
    /// Something comes of it but what contexts learn.
    const WRITES: bool = true;
    /// Up to four decisions: `ones` times one, then a zero unless all four are one.
    fn group(&mut self, contexts: &[u32; GROUP], ones: usize) -> usize;
    /// A decision if `coded`, else zero.
    fn bit(&mut self, context: u32, coded: bool, one: bool) -> bool;
    /// A raw bit if `coded`, else anything.
    fn raw_bit(&mut self, coded: bool, one: bool) -> bool;
    /// The low `count <= 32` bits of `bits`, which has no others.
    fn raw(&mut self, bits: u32, count: u32) -> u32;
}

impl BinCoder for Encoder {
    const ADAPTS: bool = true;
    const APART: bool = true;

    #[inline(always)]
    fn group(&mut self, contexts: &[u32; GROUP], ones: usize) -> usize {
        Encoder::group(self, contexts, ones);
        ones
    }

    #[inline(always)]
    fn bit(&mut self, context: u32, coded: bool, one: bool) -> bool {
        if coded {
            Encoder::bit(self, context, one);
        }
        one
    }

    #[inline(always)]
    fn raw_bit(&mut self, coded: bool, one: bool) -> bool {
        Encoder::raw(self, u32::from(one && coded), u32::from(coded));
        one
    }

    #[inline(always)]
    fn raw(&mut self, bits: u32, count: u32) -> u32 {
        Encoder::raw(self, bits, count);
        bits
    }
}

impl BinCoder for Decoder {
    const ADAPTS: bool = true;
    const APART: bool = false;

    #[inline(always)]
    fn group(&mut self, contexts: &[u32; GROUP], _ones: usize) -> usize {
        Decoder::group(self, contexts)
    }

    #[inline(always)]
    fn bit(&mut self, context: u32, coded: bool, _one: bool) -> bool {
        self.bit_if(coded, context)
    }

    #[inline(always)]
    fn raw_bit(&mut self, coded: bool, _one: bool) -> bool {
        Decoder::raw_bit_if(self, coded)
    }

    #[inline(always)]
    fn raw(&mut self, _bits: u32, count: u32) -> u32 {
        Decoder::raw(self, count)
    }
}

/// Lets contexts learn, and writes nothing.
pub struct Learner;

impl BinCoder for Learner {
    const WRITES: bool = false;
    const ADAPTS: bool = true;
    const APART: bool = true;

    #[inline(always)]
    fn group(&mut self, _contexts: &[u32; GROUP], ones: usize) -> usize {
        ones
    }

    #[inline(always)]
    fn bit(&mut self, _context: u32, _coded: bool, one: bool) -> bool {
        one
    }

    #[inline(always)]
    fn raw_bit(&mut self, _coded: bool, one: bool) -> bool {
        one
    }

    #[inline(always)]
    fn raw(&mut self, bits: u32, _count: u32) -> u32 {
        bits
    }
}

/// Adds up costs in units of 2^-11 bits; leaves the contexts as they are.
#[derive(Default)]
pub struct Cost(pub u32);

impl BinCoder for Cost {
    const ADAPTS: bool = false;
    const APART: bool = false;

    #[inline(always)]
    fn group(&mut self, contexts: &[u32; GROUP], ones: usize) -> usize {
        let used = context::lesson(ones).used;
        for k in 0..GROUP {
            self.0 += COSTS.of(contexts[k], k < ones) & used[k];
        }
        ones
    }

    #[inline(always)]
    fn bit(&mut self, context: u32, coded: bool, one: bool) -> bool {
        self.0 += COSTS.of(context, one) & u32::from(coded).wrapping_neg();
        one
    }

    #[inline(always)]
    fn raw_bit(&mut self, coded: bool, one: bool) -> bool {
        self.0 += u32::from(coded) << COST_BITS;
        one
    }

    #[inline(always)]
    fn raw(&mut self, bits: u32, count: u32) -> u32 {
        self.0 += count << COST_BITS;
        bits
    }
}

/// Decisions of magnitudes below lie one after the other in a set.
pub const TOGETHER: u32 = SIGN as u32;

/// What a residual of this `magnitude < UNARY`, without low bits, costs more than one of a magnitude less with the same sign:
/// a difference of [`Cost`], from those decisions alone that are not the same. And more than that one can cost more than one
/// of a magnitude less again, without looking at its decisions. Both are 0 for magnitude 0.
#[inline(always)]
pub fn saving<const KIND: u8>(set: &ContextSet, leaning: bool, negative: bool, magnitude: u32) -> (i32, i32) {
    let cost = |magnitude: u32, more: bool| COSTS.of(set[decision(magnitude)], more) as i32;
    let sign = |magnitude: u32| {
        let raw = 1 << COST_BITS;
        if rows::predicts(KIND) && leaning { COSTS.of(set[sign_context(magnitude)], negative) as i32 } else { raw }
    };
    let less = magnitude.saturating_sub(1);
    let (ends, signed) = (cost(less, false), sign(less));
    let saved = cost(less, true) + cost(magnitude, false) - ends + sign(magnitude) - if less > 0 { signed } else { 0 };
    if magnitude > 0 { (saved, MOST_COST + ends + signed) } else { (0, 0) }
}

/// What residuals of magnitude `m << shift`, m = 0, 1, ..., cost, the positive and the negative one: what [`Cost`] adds up,
/// from decisions that are looked up once for all.
#[inline(always)]
pub fn tabulate<const KIND: u8>(set: &ContextSet, low: u32, leaning: bool, shift: u32, costs: &mut [[u32; 2]]) {
    // Of each upper part, and of all decisions being one.
    let (mut uppers, mut ones) = ([0; UNARY], 0);
    for (k, cost) in uppers.iter_mut().enumerate() {
        let context = set[decision(k as u32)];
        *cost = ones + COSTS.of(context, false);
        ones += COSTS.of(context, true);
    }
    for (m, costs) in (0..).zip(costs) {
        let magnitude: u32 = m << shift;
        let upper = magnitude >> low;
        let escape = || ones + ((5 + (upper - (UNARY as u32 - 1)).ilog2()) << COST_BITS);
        let mut sum = uppers.get(upper as usize).copied().unwrap_or_else(escape);
        if low > 0 {
            let with_context = upper == 0;
            let highest = COSTS.of(set[LOW_BIT], magnitude >> (low - 1) != 0);
            sum += if with_context { highest } else { 1 << COST_BITS };
            sum += (low - 1) << COST_BITS;
        }
        *costs = [false, true].map(|negative| {
            let context = set[sign_context(upper)];
            let sign = if rows::predicts(KIND) && leaning { COSTS.of(context, negative) } else { 1 << COST_BITS };
            sum + if magnitude != 0 { sign } else { 0 }
        });
    }
}

/// A magnitude and its upper part.
#[derive(Clone, Copy, Default)]
pub struct Magnitude {
    /// |residual|.
    pub value: u32,
    upper: u32,
}

/// Codes `residual` in a class of `low` low bits; `leaning`: the sign has a context, which it never has in tensors without predictions.
#[inline(always)]
pub fn code<C: BinCoder, M: Machine, const KIND: u8>(
    coder: &mut C,
    set: &mut ContextSet,
    low: u32,
    leaning: bool,
    residual: i32,
) {
    let magnitude = code_magnitude::<C, M>(coder, set, low, residual.unsigned_abs());
    code_sign::<C, KIND>(coder, set, leaning, magnitude, residual < 0);
}

/// Codes the first half of a residual: points 1 to 3. A decoder ignores `magnitude` and returns its own.
#[inline(always)]
pub fn code_magnitude<C: BinCoder, M: Machine>(
    coder: &mut C,
    set: &mut ContextSet,
    low: u32,
    magnitude: u32,
) -> Magnitude {
    let mut upper = code_group::<C, M>(coder, set, 0, magnitude >> low);
    if upper == GROUP as u32 {
        upper = if C::APART {
            code_large_apart(coder, set, magnitude >> low)
        } else {
            code_large::<C, M>(coder, set, magnitude >> low)
        };
    }
    let value = if low == 0 { upper } else { code_low_bits(coder, set, low, upper, magnitude) };
    Magnitude { value, upper }
}

/// Codes the second half: point 4. A decoder ignores `negative`. Returns the residual.
#[inline(always)]
pub fn code_sign<C: BinCoder, const KIND: u8>(
    coder: &mut C,
    set: &mut ContextSet,
    leaning: bool,
    magnitude: Magnitude,
    negative: bool,
) -> i32 {
    // Without a magnitude there is no sign to code, but then what it is does not matter.
    let signed = magnitude.value != 0;
    let leaning = rows::predicts(KIND) && leaning;
    let mut turn = coder.raw_bit(signed && !leaning, negative) && !leaning;
    if rows::predicts(KIND) {
        let context = &mut set[sign_context(magnitude.upper)];
        turn |= code_bit(coder, context, signed && leaning, negative);
    }
    let turn = u32::from(turn);
    (magnitude.value ^ turn.wrapping_neg()).wrapping_add(turn) as i32
}

/// The context of the decision "upper > k", `k < UNARY`.
#[inline(always)]
fn decision(k: u32) -> usize {
    let k = k as usize % UNARY;
    context::group_start(k / GROUP) + k % GROUP
}

/// The context of the sign of a residual with this upper part.
#[inline(always)]
fn sign_context(upper: u32) -> usize {
    SIGN + (upper as usize).min(LOW_BIT - SIGN - 1)
}

/// Codes up to four decisions "upper > k" from `k = 4 * index` on, and returns how many are true.
#[inline(always)]
fn code_group<C: BinCoder, M: Machine>(coder: &mut C, set: &mut ContextSet, index: usize, upper: u32) -> u32 {
    let contexts = group_of(set, index);
    let ones = coder.group(contexts, (upper.wrapping_sub((GROUP * index) as u32) as usize).min(GROUP));
    if C::ADAPTS {
        M::adapt_group(contexts, ones);
    }
    ones as u32
}

/// The contexts of a group.
#[inline(always)]
pub(crate) fn group_of(set: &mut ContextSet, index: usize) -> &mut [u32; GROUP] {
    let start = context::group_start(index);
    (&mut set[start..start + GROUP]).try_into().expect("a set has four groups")
}

/// Codes one decision if `coded`.
#[inline(always)]
pub(crate) fn code_bit<C: BinCoder>(coder: &mut C, context: &mut u32, coded: bool, one: bool) -> bool {
    let one = coder.bit(*context, coded, one);
    if C::ADAPTS {
        context::adapt_if(coded, context, one);
    }
    one
}

/// The decisions after the fourth, and the escape. Returns the upper part.
#[inline(always)]
fn code_large<C: BinCoder, M: Machine>(coder: &mut C, set: &mut ContextSet, upper: u32) -> u32 {
    for index in 1..UNARY / GROUP {
        let ones = code_group::<C, M>(coder, set, index, upper);
        if ones < GROUP as u32 {
            return (GROUP * index) as u32 + ones;
        }
    }
    code_escape(coder, upper)
}

/// [`code_large`], for loops that are better without it.
#[cold]
#[inline(never)]
fn code_large_apart<C: BinCoder>(coder: &mut C, set: &mut ContextSet, upper: u32) -> u32 {
    code_large::<C, Portable>(coder, set, upper)
}

/// What follows sixteen ones. Returns the upper part.
#[inline(always)]
pub(crate) fn code_escape<C: BinCoder>(coder: &mut C, upper: u32) -> u32 {
    let x = upper.wrapping_sub(UNARY as u32 - 1).max(1);
    let bits = coder.raw(x.ilog2(), 5);
    let rest = coder.raw(x & ((1 << bits) - 1), bits);
    (rest | 1 << bits).wrapping_add(UNARY as u32 - 1)
}

/// The low bits. Returns the magnitude.
#[inline(always)]
pub(crate) fn code_low_bits<C: BinCoder>(
    coder: &mut C,
    set: &mut ContextSet,
    low: u32,
    upper: u32,
    magnitude: u32,
) -> u32 {
    let with_context = upper == 0;
    let highest = magnitude >> (low - 1) & 1;
    let coded = code_bit(coder, &mut set[LOW_BIT], with_context, highest != 0);
    let raw = low - u32::from(with_context);
    let rest = coder.raw(magnitude & ((1 << raw) - 1), raw);
    (upper << low) | (u32::from(with_context && coded) << (low - 1)) | rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::context;
    use crate::model::rows::ROW;

    const VALUES: [i32; 24] = [
        0,
        1,
        -1,
        2,
        3,
        -4,
        5,
        8,
        -15,
        15,
        16,
        -16,
        17,
        18,
        40,
        -1000,
        65_535,
        65_536,
        -1_000_000,
        1 << 30,
        -(1 << 30),
        i32::MAX,
        -i32::MAX,
        i32::MIN,
    ];

    #[test]
    fn costs_are_the_same_in_tables_and_differences() {
        let mut set = context::initial()[40];
        for (number, context) in set.iter_mut().enumerate() {
            *context = context.wrapping_mul(2_654_435_761 * (2 * number as u32 + 1)) | 1 << 21;
        }
        for (low, leaning) in [(0, false), (0, true), (1, true), (3, false), (9, true)] {
            let walk = |residual: i32| {
                let mut cost = Cost::default();
                code::<_, Portable, ROW>(&mut cost, &mut set.clone(), low, leaning, residual);
                cost.0
            };
            for shift in [0, low.saturating_sub(1)] {
                let mut costs = [[0; 2]; 40];
                tabulate::<ROW>(&set, low, leaning, shift, &mut costs);
                for (m, costs) in costs.into_iter().enumerate() {
                    let residual = (m as i32) << shift;
                    assert_eq!(costs, [walk(residual), walk(-residual)]);
                }
            }
            for magnitude in 0..if low == 0 { UNARY as i32 } else { 0 } {
                for sign in [1, -1] {
                    let cost = |less: i32| walk(sign * (magnitude - less).max(0)) as i32;
                    let (saved, more) = saving::<ROW>(&set, leaning, sign < 0, magnitude as u32);
                    assert_eq!(saved, cost(0) - cost(1));
                    assert!(more >= cost(1) - cost(2));
                }
            }
        }
    }

    #[test]
    fn every_residual_comes_back_in_every_class_and_costs_what_is_written() {
        for low in [0, 1, 2, 9, 10] {
            for leaning in [false, true] {
                let fresh = context::initial()[40];
                let (mut written, mut read) = (fresh, fresh);
                let mut encoder = Encoder::new();
                let mut cost = Cost::default();
                for value in VALUES {
                    let before = written;
                    code::<_, Portable, ROW>(&mut cost, &mut written, low, leaning, value);
                    assert_eq!(before, written);
                    code::<_, Portable, ROW>(&mut encoder, &mut written, low, leaning, value);
                }
                let mut bytes = Vec::new();
                encoder.finish(&mut bytes);
                assert!((f64::from(cost.0) / 2048.0 / 8.0 - bytes.len() as f64).abs() < 3.0);
                let mut decoder = Decoder::new(&bytes);
                for value in VALUES {
                    let magnitude = code_magnitude::<_, Portable>(&mut decoder, &mut read, low, 0);
                    assert_eq!(code_sign::<_, ROW>(&mut decoder, &mut read, leaning, magnitude, false), value);
                }
                assert!(decoder.check());
                assert_eq!(written, read);
            }
        }
    }
}
