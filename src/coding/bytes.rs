//! Bytes without a model of their own, coded: names, metadata, graphs, the index.
//!
//! Each bit is coded with one context per order n = 0, 1, 2, 3, 4, 6: the bits of its byte so far together with the last n
//! bytes. Their probabilities are mixed in the logistic domain with weights that learn which orders to trust (as in PAQ).
//! All integers. Slow, but these are small.

use crate::coding::arithmetic::{Decoder, Encoder};
use crate::model::context::{Machine, Task, adapt_if};

/// Context lengths in bytes.
const ORDERS: [u32; INPUTS] = [0, 1, 2, 3, 4, 6];
const INPUTS: usize = 6;
/// Those, and some that are always zero, for vectors.
const LANES: usize = 8;
/// log2 of the contexts of one order.
const SLOT_BITS: u32 = 16;
/// Probability one half, not visited: the first visit moves it half way.
const FRESH: u32 = 0x8000_0000;
/// Weights are in units of 2^-16.
const FIRST_WEIGHT: i32 = 22_000;
const MOST_WEIGHT: i32 = 1 << 20;
/// Log-odds are in units of 1/256, from -2047 to 2047.
const LAST: i32 = 2047;

/// `4096 / (1 + exp(-x / 256))` at x = -2048, -1920, .. 2048, rounded and within 1..=4095.
const LOGISTIC: [i32; 33] = [
    1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785, 3902,
    3976, 4022, 4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095,
];

/// Most bytes that `coded` bytes can stand for: a byte takes eight decisions.
#[must_use]
pub fn most_decoded(coded: usize) -> usize {
    crate::coding::arithmetic::most_decisions(coded) / 8
}

/// Probability in units of 2^-12 from log-odds, linear between the entries of the table.
const fn squash(x: i32) -> i32 {
    let x = if x < -LAST {
        -LAST
    } else if x > LAST {
        LAST
    } else {
        x
    } + 2048;
    let (index, rest) = ((x >> 7) as usize, x & 127);
    (LOGISTIC[index] * (128 - rest) + LOGISTIC[index + 1] * rest + 64) >> 7
}

/// Log-odds by probability in units of 2^-12: the least x with `squash(x) >= p`.
static STRETCH: [i16; 1 << 12] = {
    let mut stretch = [LAST as i16; 1 << 12];
    let (mut x, mut p) = (-LAST, 0);
    while x <= LAST {
        while p <= squash(x) {
            stretch[p as usize] = x as i16;
            p += 1;
        }
        x += 1;
    }
    stretch
};

/// A set of weights for each value of a byte's bits so far.
const WEIGHTS: usize = 1 << 8;

struct Model {
    contexts: Box<[u32; INPUTS << SLOT_BITS]>,
    /// A set of weights for each value of the byte's bits so far.
    weights: Box<[[i32; LANES]; WEIGHTS]>,
    /// The last bytes, latest lowest.
    history: u64,
}

impl Model {
    fn new() -> Self {
        let contexts = vec![FRESH; INPUTS << SLOT_BITS].into_boxed_slice();
        Self {
            contexts: contexts.try_into().expect("as many as there should be"),
            weights: Box::new([[FIRST_WEIGHT; LANES]; WEIGHTS]),
            history: 0,
        }
    }

    /// Codes the bits of one byte, highest first, with `bit(probability of one, bit index) -> bit`.
    ///
    /// The next bit's contexts are looked up for both values of this bit, before it is known: that takes long.
    #[inline(always)]
    fn code(&mut self, mut bit: impl FnMut(u32, u32) -> bool) -> u8 {
        let mut bases = [0; INPUTS];
        for n in 0..INPUTS {
            let context = self.history & ((1 << (8 * ORDERS[n])) - 1);
            bases[n] = (context + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        // A one, then the bits so far.
        let mut partial = 1u64;
        let mut slots = slots_of(&bases, partial);
        let mut contexts = self.look_up(&slots);
        for index in (0..8).rev() {
            let next = [slots_of(&bases, partial << 1), slots_of(&bases, partial << 1 | 1)];
            let following = [self.look_up(&next[0]), self.look_up(&next[1])];
            let mut inputs = [0; LANES];
            for n in 0..INPUTS {
                inputs[n] = i32::from(STRETCH[(contexts[n] >> 20) as usize]);
            }
            let weights = &mut self.weights[partial as usize % WEIGHTS];
            // Products are below 2^31; their sum is not, so halves are added up.
            let (mut upper, mut lower) = (0, 0);
            for n in 0..LANES {
                let product = inputs[n] * weights[n];
                upper += product >> 16;
                lower += product & 0xffff;
            }
            let mixed = squash(upper + (lower >> 16)).clamp(2, 4093);
            let one = bit((mixed as u32) << 20, index);
            let error = (i32::from(one) << 12) - mixed;
            for n in 0..LANES {
                weights[n] = (weights[n] + ((inputs[n] * error + (1 << 8)) >> 9)).clamp(-MOST_WEIGHT, MOST_WEIGHT);
            }
            for context in &mut contexts {
                adapt_if(true, context, one);
            }
            for n in 0..INPUTS {
                self.contexts[slots[n]] = contexts[n];
            }
            partial = partial << 1 | u64::from(one);
            let mut same = false;
            for n in 0..INPUTS {
                same |= slots[n] == next[usize::from(one)][n];
            }
            (slots, contexts) = (next[usize::from(one)], following[usize::from(one)]);
            if same {
                contexts = self.look_up(&slots); // one of them has just been adapted
            }
        }
        self.history = self.history << 8 | (partial & 255);
        partial as u8
    }

    #[inline(always)]
    fn look_up(&self, slots: &[usize; INPUTS]) -> [u32; LANES] {
        let mut contexts = [0; LANES];
        for n in 0..INPUTS {
            contexts[n] = self.contexts[slots[n]];
        }
        contexts
    }
}

/// Where contexts are: those of each order have [`SLOT_BITS`].
#[inline(always)]
fn slots_of(bases: &[u64; INPUTS], partial: u64) -> [usize; INPUTS] {
    let mut slots = [0; INPUTS];
    for n in 0..INPUTS {
        let hash = (bases[n] ^ partial).wrapping_mul(0xd6e8_feb8_6659_fd93);
        slots[n] = (n << SLOT_BITS) + (hash >> (64 - SLOT_BITS)) as usize;
    }
    slots
}

/// The code of `bytes`.
pub(crate) fn encode_on<M: Machine>(bytes: &[u8]) -> Vec<u8> {
    M::apart(Encoding { bytes })
}

struct Encoding<'a> {
    bytes: &'a [u8],
}

impl<M> Task<M> for Encoding<'_> {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run(self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        let mut model = Model::new();
        for byte in self.bytes {
            model.code(|p, index| {
                let one = byte >> index & 1 != 0;
                encoder.bit(p, one);
                one
            });
        }
        let mut out = Vec::new();
        encoder.finish(&mut out);
        out
    }
}

/// Decodes `coded` into `out`, which says how many bytes there are. False if `coded` is not exactly their code.
pub(crate) fn decode_on<M: Machine>(coded: &[u8], out: &mut [u8]) -> bool {
    M::apart(Decoding { coded, out })
}

struct Decoding<'a> {
    coded: &'a [u8],
    out: &'a mut [u8],
}

impl<M> Task<M> for Decoding<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut decoder = Decoder::new(self.coded);
        let mut model = Model::new();
        for byte in self.out {
            *byte = model.code(|p, _| decoder.bit_if(true, p));
        }
        decoder.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::dispatch::{decode_bytes as decode, encode_bytes as encode};
    use crate::model::context::Portable;

    #[test]
    fn text_comes_back_and_shrinks() {
        let text: String = (0..200).map(|i| format!("layer{}.{}.conv{}.weight\n", i / 40, i / 4 % 10, i % 4)).collect();
        for length in [0, 1, 2, 100, text.len()] {
            let bytes = &text.as_bytes()[..length];
            let coded = encode(bytes);
            let mut out = vec![0; length];
            assert_eq!(encode_on::<Portable>(bytes), coded);
            assert!(decode(&coded, &mut out));
            assert_eq!(out, bytes);
            assert!(length <= most_decoded(coded.len()));
        }
    }

    #[test]
    fn equal_bytes_stay_within_the_stated_expansion() {
        let bytes = vec![0; 1 << 20];
        assert!(bytes.len() <= most_decoded(encode(&bytes).len()));
    }

    #[test]
    fn damage_is_not_a_panic() {
        let coded = encode(b"some names, some metadata");
        for index in 0..coded.len() {
            for bit in 0..8 {
                let mut bad = coded.clone();
                bad[index] ^= 1 << bit;
                let _ = decode(&bad, &mut [0; 25]);
            }
            assert!(!decode(&coded[..index], &mut [0; 25]));
        }
    }
}
