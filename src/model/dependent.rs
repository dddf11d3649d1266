//! Dependent quantisation: two quantisers, and the machine that says which of them is in force.
//!
//! A level n stands for the value n * step. The first quantiser has the even levels, `n = 2 i`; the second zero and the odd
//! ones, `n = 2 i - sign(i)`. What is coded is the index i. Its parity moves the machine, and the machine's state chooses
//! the next level's quantiser. So a sequence of levels is a path through a trellis; there are as many as with one quantiser
//! of twice the step, but they lie more evenly in space, and an encoder that searches the nearest gains up to 1.5 dB.
//!
//! The machine is a shift register: the systematic feedback encoder of a convolutional code of rate 1/2, as Ungerboeck's.
//! The taps were searched: all of a size were tried, and these have the least error with a fine step.

/// Sizes of the machine in bits.
const BITS: std::ops::RangeInclusive<u8> = 3..=6;
/// Most states.
pub const MAX_STATES: usize = 1 << *BITS.end();

/// A machine's size, and what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct States {
    bits: u8,
}

impl States {
    /// A machine of `2^bits` states, if there is one.
    #[must_use]
    pub const fn of_bits(bits: u8) -> Option<Self> {
        if *BITS.start() <= bits && bits <= *BITS.end() { Some(Self { bits }) } else { None }
    }

    /// log2 of the number of states.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Whether the levels of a chunk are a path through the trellis.
    #[must_use]
    pub fn has_path(self, levels: &[i32]) -> bool {
        let (taps, mut state) = (self.taps(), 0);
        levels.iter().all(|given| {
            let odd = (state & 1) as i32;
            let index = index(*given, odd);
            state = taps.next(state, index as u32);
            level(index, odd) == *given
        })
    }

    /// What the machine adds after a level of the second quantiser, and after an odd index; exclusive or.
    #[must_use]
    pub const fn taps(self) -> Taps {
        let (odd_quantizer, odd_index) = match self.bits {
            3 => (0b110, 0b011),
            4 => (0b1100, 0b0010),
            5 => (0b1_0100, 0b0_1101),
            _ => (0b10_1011, 0b01_0010),
        };
        Taps { odd_quantizer, odd_index }
    }
}

/// How a machine moves.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Taps {
    /// After a level of the second quantiser.
    pub odd_quantizer: u32,
    /// After an odd index.
    pub odd_index: u32,
}

impl Taps {
    /// The state after `state` and an index of this parity.
    #[inline(always)]
    #[must_use]
    pub const fn next(self, state: u32, parity: u32) -> u32 {
        (state >> 1)
            ^ (self.odd_quantizer & (state & 1).wrapping_neg())
            ^ (self.odd_index & (parity & 1).wrapping_neg())
    }
}

/// The level of an index in the first quantiser (`odd` is 0) or the second (1).
#[inline(always)]
#[must_use]
pub fn level(index: i32, odd: i32) -> i32 {
    index.wrapping_mul(2).wrapping_sub(sign(index, odd))
}

/// The index of a level in the quantiser that has it.
#[inline(always)]
#[must_use]
pub fn index(level: i32, odd: i32) -> i32 {
    // (level + sign) / 2, without their sum, which the largest level of all has no room for.
    let sign = sign(level, odd);
    (level >> 1) + (sign >> 1) + (level & sign & 1)
}

/// The sign of `x`, or zero if `odd` is 0. Not by `signum`, which compilers do not make a vector of.
#[inline(always)]
fn sign(x: i32, odd: i32) -> i32 {
    x.min(odd).max(-odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_its_index_in_one_quantiser_and_zero_in_both() {
        for level in [-7, -2, -1, 0, 1, 2, 3, 4, 1000, i32::MAX, -i32::MAX, i32::MIN, i32::MAX - 1] {
            for odd in [0, 1] {
                let has = level == 0 || level & 1 == odd;
                assert_eq!(super::level(index(level, odd), odd) == level, has, "{level} {odd}");
            }
        }
    }

    #[test]
    fn every_state_is_entered_once_with_each_parity_and_half_of_them_have_each_quantiser() {
        for bits in 0..=u8::MAX {
            let Some(states) = States::of_bits(bits) else { continue };
            let (taps, count) = (states.taps(), 1 << bits);
            for parity in 0..2 {
                let mut entered = vec![false; count as usize];
                for state in 0..count {
                    entered[taps.next(state, parity) as usize] = true;
                }
                assert!(entered.into_iter().all(|entered| entered));
            }
        }
    }
}
