//! Bytes without a model of their own, coded: names, metadata, graphs, the index.
//!
//! Each bit is coded with one context per order n = 0, 1, 2, 3, 4, 6: the bits of its byte so far together with the last n
//! bytes. Their probabilities are mixed in the logistic domain with weights that learn which orders to trust (as in PAQ).
//! All integers. Slow, but these are small.

use crate::coding::arithmetic::{Decoder, Encoder};
use crate::model::context::adapt_if;

/// Context lengths in bytes.
const ORDERS: [u32; INPUTS] = [0, 1, 2, 3, 4, 6];
const INPUTS: usize = 6;
/// log2 of the contexts of one order.
const SLOT_BITS: u32 = 16;
/// Probability one half, not visited: the first visit moves it half way.
const FRESH: u32 = 0x8000_0000;
/// Weights are in units of 2^-16.
const FIRST_WEIGHT: i32 = 22_000;
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
fn squash(x: i32) -> i32 {
    let x = x.clamp(-LAST, LAST) + 2048;
    let (index, rest) = ((x >> 7) as usize, x & 127);
    (LOGISTIC[index] * (128 - rest) + LOGISTIC[index + 1] * rest + 64) >> 7
}

struct Model {
    contexts: Vec<u32>,
    /// A set of weights for each value of the byte's bits so far.
    weights: Vec<[i32; INPUTS]>,
    /// Log-odds by probability in units of 2^-12: the least x with `squash(x) >= p`.
    stretch: Vec<i32>,
    /// The last bytes, latest lowest.
    history: u64,
}

impl Model {
    fn new() -> Self {
        let mut stretch = Vec::with_capacity(4096);
        for x in -LAST..=LAST {
            while stretch.len() <= squash(x) as usize {
                stretch.push(x);
            }
        }
        stretch.resize(4096, LAST);
        Self {
            contexts: vec![FRESH; INPUTS << SLOT_BITS],
            weights: vec![[FIRST_WEIGHT; INPUTS]; 256],
            stretch,
            history: 0,
        }
    }

    /// Codes the bits of one byte, highest first, with `bit(probability of one, bit index) -> bit`.
    fn code(&mut self, mut bit: impl FnMut(u32, u32) -> bool) -> u8 {
        let bases = ORDERS.map(|order| {
            let context = self.history & ((1 << (8 * order)) - 1);
            (context + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        // A one, then the bits so far.
        let mut partial = 1u64;
        for index in (0..8).rev() {
            let slots: [usize; INPUTS] = std::array::from_fn(|n| {
                let hash = (bases[n] ^ partial).wrapping_mul(0xd6e8_feb8_6659_fd93);
                (n << SLOT_BITS) + (hash >> (64 - SLOT_BITS)) as usize
            });
            let inputs = slots.map(|slot| self.stretch[(self.contexts[slot] >> 20) as usize]);
            let weights = &mut self.weights[partial as usize];
            let sum: i64 =
                inputs.iter().zip(&*weights).map(|(input, weight)| i64::from(*input) * i64::from(*weight)).sum();
            let mixed = squash((sum >> 16).clamp(-i64::from(LAST), i64::from(LAST)) as i32).clamp(2, 4093);
            let one = bit((mixed as u32) << 20, index);
            let error = (i32::from(one) << 12) - mixed;
            for (weight, input) in weights.iter_mut().zip(inputs) {
                *weight = (*weight + ((input * error + (1 << 8)) >> 9)).clamp(-(1 << 20), 1 << 20);
            }
            for slot in slots {
                adapt_if(true, &mut self.contexts[slot], one);
            }
            partial = partial << 1 | u64::from(one);
        }
        self.history = self.history << 8 | (partial & 255);
        partial as u8
    }
}

/// The code of `bytes`.
#[must_use]
pub fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    let mut model = Model::new();
    for byte in bytes {
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

/// Decodes `coded` into `out`, which says how many bytes there are. False if `coded` is not exactly their code.
#[must_use]
pub fn decode(coded: &[u8], out: &mut [u8]) -> bool {
    let mut decoder = Decoder::new(coded);
    let mut model = Model::new();
    for byte in out {
        *byte = model.code(|p, _| decoder.bit_if(true, p));
    }
    decoder.check()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_and_shrinks() {
        let text: String = (0..200).map(|i| format!("layer{}.{}.conv{}.weight\n", i / 40, i / 4 % 10, i % 4)).collect();
        for length in [0, 1, 2, 100, text.len()] {
            let bytes = &text.as_bytes()[..length];
            let coded = encode(bytes);
            let mut out = vec![0; length];
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
