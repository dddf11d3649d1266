//! The binarisation: how one residual becomes decisions and raw bits. Written once, for encoder, decoder and cost.
//!
//! A residual r in a class with `low` low bits, `upper = |r| >> low`:
//!
//! 1. up to 16 decisions "upper > k", stopping behind the first zero, four to a step of the coder;
//! 2. if all 16 are one, `x = upper - 15` as raw bits: 5 bits `n = floor(log2 x)`, then the n bits below its highest one;
//! 3. the low bits: the highest with a context if `upper` is 0, everything else raw;
//! 4. if r is not 0 the sign: with a context (by `upper`) where a prediction leans to one side, else raw.

use crate::coder::{Decoder, Encoder, GROUP};
use crate::context::{COST_BITS, COSTS, ContextSet, LOW_BIT, SIGN, UNARY, adapt, adapt_group};

/// Where decisions go to or come from. An encoder takes what is given and returns it; a decoder ignores it.
pub trait Coder {
    /// Up to four decisions: `ones` times one, then a zero unless all four are one.
    fn group(&mut self, contexts: &mut [u32; GROUP], ones: usize) -> usize;
    /// A decision if `coded`, else zero.
    fn bit(&mut self, context: &mut u32, coded: bool, one: bool) -> bool;
    /// The low `count <= 32` bits of `bits`.
    fn raw(&mut self, bits: u32, count: u32) -> u32;
}

impl Coder for Encoder {
    #[inline(always)]
    fn group(&mut self, contexts: &mut [u32; GROUP], ones: usize) -> usize {
        Encoder::group(self, contexts, ones);
        adapt_group(contexts, ones);
        ones
    }

    #[inline(always)]
    fn bit(&mut self, context: &mut u32, coded: bool, one: bool) -> bool {
        if coded {
            Encoder::bit(self, *context, one);
            adapt(context, one);
        }
        one
    }

    #[inline(always)]
    fn raw(&mut self, bits: u32, count: u32) -> u32 {
        Encoder::raw(self, bits, count);
        bits
    }
}

impl Coder for Decoder {
    #[inline(always)]
    fn group(&mut self, contexts: &mut [u32; GROUP], _ones: usize) -> usize {
        let ones = Decoder::group(self, contexts);
        adapt_group(contexts, ones);
        ones
    }

    #[inline(always)]
    fn bit(&mut self, context: &mut u32, coded: bool, _one: bool) -> bool {
        let one = self.bit_if(coded, *context);
        let mut new = *context;
        adapt(&mut new, one);
        *context = if coded { new } else { *context };
        one
    }

    #[inline(always)]
    fn raw(&mut self, _bits: u32, count: u32) -> u32 {
        Decoder::raw(self, count)
    }
}

/// Adds up costs in units of 2^-11 bits; leaves the contexts as they are.
#[derive(Default)]
pub struct Cost(pub u32);

impl Coder for Cost {
    #[inline(always)]
    fn group(&mut self, contexts: &mut [u32; GROUP], ones: usize) -> usize {
        for context in &contexts[..ones] {
            self.0 += COSTS.of(*context, true);
        }
        if ones < GROUP {
            self.0 += COSTS.of(contexts[ones], false);
        }
        ones
    }

    #[inline(always)]
    fn bit(&mut self, context: &mut u32, coded: bool, one: bool) -> bool {
        if coded {
            self.0 += COSTS.of(*context, one);
        }
        one
    }

    #[inline(always)]
    fn raw(&mut self, bits: u32, count: u32) -> u32 {
        self.0 += count << COST_BITS;
        bits
    }
}

/// Codes `residual` (ignored by a decoder) and returns it.
///
/// `leaning`: the sign has a context. `PREDICTED`: false if `leaning` is known to be false.
#[inline(always)]
pub fn code<C: Coder, const PREDICTED: bool>(
    coder: &mut C,
    set: &mut ContextSet,
    low: u32,
    leaning: bool,
    residual: i32,
) -> i32 {
    let magnitude = residual.unsigned_abs();
    let mut upper = coder.group(group(set, 0), ((magnitude >> low) as usize).min(GROUP)) as u32;
    if upper == GROUP as u32 {
        upper = code_large(coder, set, magnitude >> low);
    }
    let magnitude = if low == 0 { upper } else { code_low_bits(coder, set, low, upper, magnitude) };

    let coded = PREDICTED && leaning && magnitude != 0;
    let raw = u32::from(magnitude != 0 && !coded);
    let context = &mut set[SIGN + (upper as usize).min(LOW_BIT - SIGN - 1)];
    let negative = PREDICTED && coder.bit(context, coded, residual < 0);
    let negative = u32::from(negative && coded) | (coder.raw(u32::from(residual < 0) & raw, raw) & raw);
    ((magnitude ^ negative.wrapping_neg()).wrapping_add(negative)) as i32
}

#[inline(always)]
fn group(set: &mut ContextSet, index: usize) -> &mut [u32; GROUP] {
    (&mut set[GROUP * index..GROUP * (index + 1)]).try_into().expect("four contexts")
}

/// The decisions behind the fourth, and the escape. Returns the upper part.
#[inline(never)]
fn code_large<C: Coder>(coder: &mut C, set: &mut ContextSet, upper: u32) -> u32 {
    for index in 1..UNARY / GROUP {
        let before = (GROUP * index) as u32;
        let ones = coder.group(group(set, index), (upper.wrapping_sub(before) as usize).min(GROUP));
        if ones < GROUP {
            return before + ones as u32;
        }
    }
    let x = upper.wrapping_sub(UNARY as u32 - 1).max(1);
    let bits = coder.raw(x.ilog2(), 5);
    let rest = coder.raw(x & ((1 << bits) - 1), bits);
    (rest | 1 << bits).wrapping_add(UNARY as u32 - 1)
}

/// The low bits. Returns the magnitude.
#[inline(always)]
fn code_low_bits<C: Coder>(coder: &mut C, set: &mut ContextSet, low: u32, upper: u32, magnitude: u32) -> u32 {
    let with_context = upper == 0;
    let highest = magnitude >> (low - 1) & 1;
    let coded = coder.bit(&mut set[LOW_BIT], with_context, highest != 0);
    let raw = low - u32::from(with_context);
    let rest = coder.raw(magnitude & ((1 << raw) - 1), raw);
    (upper << low) | (u32::from(with_context && coded) << (low - 1)) | rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context;
    use crate::scale::Resolution;

    const VALUES: [i32; 24] = [
        0, 1, -1, 2, 3, -4, 5, 8, -15, 15, 16, -16, 17, 18, 40, -1000, 65_535, 65_536, -1_000_000, 1 << 30,
        -(1 << 30), i32::MAX, -i32::MAX, i32::MIN,
    ];

    #[test]
    fn every_residual_comes_back_in_every_class_and_costs_what_is_written() {
        for low in [0, 1, 2, 9, 17] {
            for leaning in [false, true] {
                let fresh = context::initial(Resolution::Coarse)[20];
                let (mut written, mut read) = (fresh, fresh);
                let mut encoder = Encoder::new();
                let mut cost = Cost::default();
                for value in VALUES {
                    let before = written;
                    assert_eq!(code::<_, true>(&mut cost, &mut written, low, leaning, value), value);
                    assert_eq!(before, written);
                    assert_eq!(code::<_, true>(&mut encoder, &mut written, low, leaning, value), value);
                }
                let mut bytes = Vec::new();
                encoder.finish(&mut bytes);
                assert!((f64::from(cost.0) / 2048.0 / 8.0 - bytes.len() as f64).abs() < 3.0);
                let mut decoder = Decoder::default();
                decoder.start(&bytes);
                for value in VALUES {
                    assert_eq!(code::<_, true>(&mut decoder, &mut read, low, leaning, 0), value);
                }
                assert!(decoder.check());
                assert_eq!(written, read);
            }
        }
    }
}
