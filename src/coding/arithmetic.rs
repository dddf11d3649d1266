//! The arithmetic coder: an interval of 64-bit integers, narrowed step by step.
//!
//! A chunk holds two bit sequences that grow towards each other: the arithmetic code from the front, and raw bits
//! (signs, low bits, escapes: anything equiprobable) from the back. Both lengths follow from what is decoded, so none
//! is stored, and a chunk whose lengths do not add up exactly is damaged.
//!
//! # Invariants
//!
//! * Between steps `2^56 <= range < 2^64` (the first range is `2^64 - 1`).
//! * Probabilities stay between those bounds whatever is coded: `context.rs` tries all of them.
//! * A step cuts `[0, range)` at up to [`GROUP`] falling bounds `T1 > T2 > ...`, `T(k+1) = floor(T(k) * p(k) / 2^32)`,
//!   where `2^21 <= p < 2^32 - 2^21 + 2^10` (see `context.rs`). So every bound is at least `2^56 * 2^(-11*4) = 2^12`,
//!   and a part is at least `T(k) * (2^21 - 2^10) / 2^32 - 1 >= 2^(23-12) - 1 > 0`: no symbol ever gets an empty part.
//! * Encoder and decoder hold the same `range`; the decoder's `code` is the encoder's final number minus its `low`.
//! * After the last step the encoder emits 1 byte if `range >= 2^57`, else 2 bytes, chosen so that whatever follows is
//!   irrelevant: an aligned block of `2^56` (or `2^48`) numbers lies inside `[low, low + range)` because `range` is at
//!   least twice as large. Hence the number of arithmetic bytes is known to the decoder from `range` alone.

use crate::model::context::GROUP;

/// Falling interval bounds `T0 = range, T1 .. T4` for four nested decisions with probabilities `p` of "one".
#[inline(always)]
fn bounds(range: u64, p: &[u32; GROUP]) -> [u64; GROUP + 1] {
    let mut t = [range; GROUP + 1];
    for k in 0..GROUP {
        t[k + 1] = scale(t[k], p[k]);
    }
    t
}

/// `floor(range * p / 2^32)`.
#[inline(always)]
fn scale(range: u64, p: u32) -> u64 {
    if cfg!(target_family = "wasm") {
        // There is no product of 128 bits, but no need of one either: neither half overflows.
        return (range >> 32) * u64::from(p) + (((range & 0xffff_ffff) * u64::from(p)) >> 32);
    }
    ((u128::from(range) * u128::from(u64::from(p) << 32)) >> 64) as u64
}

/// log2 of the places in a block of a line.
pub const BLOCK_BITS: u32 = 14;
/// Places of a line: [`GROUP`] blocks.
pub const LINE: u64 = (GROUP as u64) << BLOCK_BITS;
/// Least probability of a block's end, so that the parts of later blocks do not get too small.
const LEAST_ONWARDS: u32 = 1 << 27;

/// A line of places laid out on a range: where something that may happen at any place happens first. A block's context is the
/// probability that it is not in that block, if it was in none before; inside a block all places are as likely.
///
/// What is left of the range falls along the line: by a part for each place, and to what the contexts leave at each block's end.
/// Probabilities of reaching a block's end are at least `2^12 - 4` of 2^32, and those of being in a block at least 63 (with
/// contexts from 2^27 to `2^32 - 2^21 + 2^10`). With `range >= 2^56` a place has at least `2^15`.
#[derive(Clone, Copy)]
pub struct Line([u64; GROUP + 1]);

impl Line {
    #[inline(always)]
    fn new(range: u64, contexts: &[u32; GROUP]) -> Self {
        let mut ends = [range; GROUP + 1];
        // Products of probabilities first, which do not wait for the range.
        let mut onwards = u32::MAX;
        for k in 0..GROUP {
            onwards = ((u64::from(onwards) * u64::from(contexts[k].max(LEAST_ONWARDS))) >> 32) as u32;
            ends[k + 1] = scale(range, onwards);
        }
        Self(ends)
    }

    /// What is left of the range from a place on; beyond the line nothing.
    #[inline(always)]
    fn left(&self, place: u64) -> u64 {
        let block = (place >> BLOCK_BITS) as usize;
        if block >= GROUP {
            return if place == LINE { self.0[GROUP] } else { 0 };
        }
        let each = (self.0[block] - self.0[block + 1]) >> BLOCK_BITS;
        self.0[block] - each * (place & ((1 << BLOCK_BITS) - 1))
    }
}

/// Bits by which `range` must be shifted left to be at least `2^56` again: a multiple of 8, at most 56.
#[inline(always)]
fn normalisation(range: u64) -> u32 {
    range.leading_zeros() & 56
}

/// Number of arithmetic bytes that the encoder emits after the last step.
#[inline(always)]
fn tail_bytes(range: u64) -> usize {
    if range >= 1 << 57 { 1 } else { 2 }
}

/// Most decisions, so most levels, that a chunk of so many bytes can hold.
///
/// The likeliest decision has the probability `c = 1 - 2^-11`: a one's stays below it, as adaptation takes half of a distance at
/// most, and a zero's does not exceed it. So a decision multiplies the range by c at most, but for rounding, which is below
/// `2^-56` of a step's first range. Before shifts, n of them leave `2^64 c^n`. With s bytes shifted out that is at least
/// `2^(56 - 8s)`, and one byte or two follow these; so `n <= 8 (s + 1) / -log2(c)`, 11,354 for each byte of the chunk. Raw bits
/// take bytes and hold no decision. The limit has room for the rounding.
#[must_use]
pub fn most_decisions(bytes: usize) -> usize {
    bytes.saturating_add(8).saturating_mul(11_400)
}

/// Writes one chunk.
pub struct Encoder {
    low: u64,
    range: u64,
    /// The arithmetic code, `written` bytes of it (32 bits, so that nothing overflows), and room for eight more.
    code: Vec<u8>,
    written: u32,
    raw: Vec<u8>,
    /// Raw bits not yet in `raw`, the first one lowest.
    raw_word: u64,
    /// How many they are: fewer than 32.
    raw_count: u32,
}

/// Room that an encoder of arithmetic code starts with.
const ROOM: usize = 1 << 12;

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// An encoder with nothing written.
    #[must_use]
    pub fn new() -> Self {
        let (code, raw) = (vec![0; ROOM], Vec::new());
        Self { low: 0, range: u64::MAX, code, written: 0, raw, raw_word: 0, raw_count: 0 }
    }

    /// Codes `ones` decisions of value one, then (if `ones < 4`) a zero.
    #[inline(always)]
    pub fn group(&mut self, p: &[u32; GROUP], ones: usize) {
        // Eight, so that an index can be masked instead of checked.
        let [t0, t1, t2, t3, t4] = bounds(self.range, p);
        let ends: [u64; 2 * GROUP] = [t0, t1, t2, t3, t4, 0, 0, 0];
        self.take(ends[(ones + 1) % (2 * GROUP)], ends[ones % (2 * GROUP)]);
    }

    /// Codes one decision.
    #[inline(always)]
    pub fn bit(&mut self, p: u32, one: bool) {
        let bound = scale(self.range, p);
        if one { self.take(0, bound) } else { self.take(bound, self.range) }
    }

    /// A line laid out on the present range, for [`Encoder::part`].
    #[inline(always)]
    #[must_use]
    pub fn line(&self, contexts: &[u32; GROUP]) -> Line {
        Line::new(self.range, contexts)
    }

    /// Codes that something is between two places of the present line, `from < to`.
    #[inline(always)]
    pub fn part(&mut self, line: &Line, from: u64, to: u64) {
        self.take(line.left(to), line.left(from));
    }

    #[inline(always)]
    fn take(&mut self, from: u64, to: u64) {
        let (low, carry) = self.low.overflowing_add(from);
        if carry {
            self.carry();
        }
        let range = to - from;
        let shift = normalisation(range);
        // All eight bytes, of which the next ones overwrite those that do not count: no branch on how many do.
        let written = self.written as usize;
        match self.code.get_mut(written..written + 8).and_then(<[u8]>::first_chunk_mut) {
            Some(bytes) => *bytes = low.to_be_bytes(),
            None => self.grow(low),
        }
        self.written += shift / 8;
        self.low = low << shift;
        self.range = range << shift;
    }

    /// Writes where there was no room.
    #[cold]
    fn grow(&mut self, low: u64) {
        self.code.resize(2 * self.code.len(), 0);
        self.code[self.written as usize..][..8].copy_from_slice(&low.to_be_bytes());
    }

    /// Adds one to the number written so far. It never overflows: the final number is below 2^64 before any shift.
    #[cold]
    fn carry(&mut self) {
        for byte in self.code[..self.written as usize].iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }

    /// Writes the low `count <= 32` bits of `bits` as they are, least significant first.
    #[inline(always)]
    pub fn raw(&mut self, bits: u32, count: u32) {
        self.raw_word |= u64::from(bits) << self.raw_count;
        self.raw_count += count;
        if self.raw_count >= 32 {
            self.raw.extend_from_slice(&(self.raw_word as u32).to_le_bytes());
            self.raw_word >>= 32;
            self.raw_count -= 32;
        }
    }

    /// Ends the chunk and appends it to `out`.
    pub fn finish(mut self, out: &mut Vec<u8>) {
        let tail = tail_bytes(self.range);
        let block = 1u64 << (64 - 8 * tail);
        let (end, carry) = self.low.overflowing_add(block - 1);
        if carry {
            self.carry();
        }
        out.extend_from_slice(&self.code[..self.written as usize]);
        out.extend_from_slice(&end.to_be_bytes()[..tail]);
        let rest = self.raw_count.div_ceil(8) as usize;
        out.extend(self.raw_word.to_le_bytes()[..rest].iter().rev());
        out.extend(self.raw.iter().rev());
    }
}

/// Zero bytes before and after the chunk in a decoder's buffer, so that eight bytes can be read anywhere in it.
const PADDING: usize = 8;

/// Reads one chunk. On any input it returns numbers and stays inside its buffer; [`Decoder::check`] tells damage.
pub struct Decoder {
    pub(crate) code: u64,
    pub(crate) range: u64,
    /// Next byte of the arithmetic code, as an index into the buffer.
    pub(crate) next: u32,
    /// Raw bits read.
    pub(crate) raw_bits: u32,
    /// The chunk between zero bytes.
    buffer: Vec<u8>,
}

impl Decoder {
    /// Starts on the chunk `bytes`, copying it.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        // The first read takes eight bytes, and later ones start at the end of the chunk plus eight at the latest.
        let mut buffer = vec![0; bytes.len() + 3 * PADDING];
        buffer[PADDING..PADDING + bytes.len()].copy_from_slice(bytes);
        let code = word_at(&buffer, PADDING as u32);
        Self { code, range: u64::MAX, next: 2 * PADDING as u32, raw_bits: 0, buffer }
    }

    fn length(&self) -> usize {
        self.buffer.len() - 3 * PADDING
    }

    /// True while no more has been read than the chunk can hold. Cheap; for use once a row.
    #[must_use]
    pub fn plausible(&self) -> bool {
        (self.next as usize) < self.buffer.len() - PADDING && self.raw_bits as usize <= 8 * self.length()
    }

    /// True if exactly the whole chunk was read: arithmetic bytes and raw bytes add up, padding bits are zero.
    #[must_use]
    pub fn check(&self) -> bool {
        let shifted = self.next as usize - 2 * PADDING;
        let raw_bytes = self.raw_bits.div_ceil(8) as usize;
        if shifted + tail_bytes(self.range) + raw_bytes != self.length() {
            return false;
        }
        let unused = 8 * raw_bytes - self.raw_bits as usize;
        unused == 0 || self.buffer[PADDING + self.length() - raw_bytes] >> (8 - unused) == 0
    }

    /// Reads up to four decisions, stopping after the first zero; returns the number of ones.
    #[inline(always)]
    pub fn group(&mut self, p: &[u32; GROUP]) -> usize {
        let t = bounds(self.range, p);
        let mut ones = 0;
        let (mut from, mut to) = (t[1], t[0]);
        for k in 1..=GROUP {
            let below = self.code < t[k];
            ones += usize::from(below);
            to = if below { t[k] } else { to };
            from = if below { if k < GROUP { t[k + 1] } else { 0 } } else { from };
        }
        self.take(from, to);
        ones
    }

    /// Reads one decision if `coded`; otherwise it is zero and nothing is read.
    #[inline(always)]
    pub fn bit_if(&mut self, coded: bool, p: u32) -> bool {
        let bound = scale(self.range, p & u32::from(coded).wrapping_neg());
        let one = self.code < bound;
        let (from, to) = if one { (0, bound) } else { (bound, self.range) };
        self.take(from, to);
        one
    }

    /// A line laid out on the present range, for [`Decoder::place`].
    #[inline(always)]
    #[must_use]
    pub fn line(&self, contexts: &[u32; GROUP]) -> Line {
        Line::new(self.range, contexts)
    }

    /// The place on the present line that the code points at, [`LINE`] if it is beyond. Nothing is read yet:
    /// [`Decoder::part`] says which places mean the same.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, line: &Line) -> u64 {
        let ends = &line.0;
        if self.code < ends[GROUP] {
            return LINE;
        }
        let mut block = 0;
        for end in &ends[1..GROUP] {
            block += usize::from(self.code < *end);
        }
        let each = (ends[block] - ends[block + 1]) >> BLOCK_BITS;
        let into = (ends[block] - 1).saturating_sub(self.code) / each;
        ((block as u64) << BLOCK_BITS) + into.min((1 << BLOCK_BITS) - 1)
    }

    /// Reads that something is between two places of the present line, `from < to`.
    #[inline(always)]
    pub fn part(&mut self, line: &Line, from: u64, to: u64) {
        self.take(line.left(to), line.left(from));
    }

    #[inline(always)]
    fn take(&mut self, from: u64, to: u64) {
        let range = to - from;
        let shift = normalisation(range);
        self.range = range << shift;
        let word = self.word_at(self.next);
        // `word >> 64 - shift`, also for shift 0.
        self.code = ((self.code.wrapping_sub(from)) << shift) | ((word >> 1) >> (63 - shift));
        self.next += shift / 8;
    }

    /// The eight bytes of arithmetic code at `next`, big end first; zero after the chunk (on damaged input).
    #[inline(always)]
    pub(crate) fn word_at(&self, next: u32) -> u64 {
        word_at(&self.buffer, next)
    }

    /// Reads `count <= 32` raw bits.
    #[inline(always)]
    pub fn raw(&mut self, count: u32) -> u32 {
        let bits = self.raw_word() & ((1 << count) - 1);
        self.raw_bits += count;
        bits as u32
    }

    /// Reads a raw bit if `coded`; otherwise it may be anything, and nothing is read.
    #[inline(always)]
    pub fn raw_bit_if(&mut self, coded: bool) -> bool {
        let bit = self.raw_word() & 1 != 0;
        self.raw_bits += u32::from(coded);
        bit
    }

    /// At least 57 raw bits, the next one lowest; past the front of the chunk they are zeros.
    #[inline(always)]
    pub(crate) fn raw_word(&self) -> u64 {
        self.raw_word_at(self.raw_bits)
    }

    /// The same after so many raw bits.
    #[inline(always)]
    pub(crate) fn raw_word_at(&self, raw_bits: u32) -> u64 {
        // The last eight bytes of the chunk lie at its length, because as many bytes of padding precede it.
        let index = (self.length() as u32).saturating_sub(raw_bits / 8);
        word_at(&self.buffer, index) >> (raw_bits % 8)
    }
}

/// Eight bytes, big end first; zero where there are none (on damaged input).
#[inline(always)]
fn word_at(buffer: &[u8], index: u32) -> u64 {
    // An end computed from 32 bits cannot overflow: the compiler is left with one comparison.
    let index = index as usize;
    match buffer.get(index..index + 8).and_then(<[u8]>::first_chunk) {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn probability(random: &mut Random) -> u32 {
        let p = match random.next() % 4 {
            0 => 1 << 21,
            1 => u32::MAX - (1 << 21) + 1,
            _ => random.next() as u32,
        };
        p.clamp(1 << 21, u32::MAX - (1 << 21) + 1)
    }

    /// The least and the largest probability, with the visits that are counted below it.
    const ENDS: [u32; 2] = [1 << 21, u32::MAX - (1 << 21) + (1 << 10)];

    /// A bound grows with the range and with its probability, and so does what is left above it with the range alone; rounding
    /// does not change that. So parts are smallest at the ends of what both may be.
    #[test]
    fn every_part_of_a_step_has_room_and_one_shift_makes_the_range_large_again() {
        for range in [1 << 56, (1 << 56) + 1, (1 << 57) - 1, 1 << 63, u64::MAX] {
            for which in 0..1 << GROUP {
                let p: [u32; GROUP] = std::array::from_fn(|k| ENDS[which >> k & 1]);
                let t = bounds(range, &p);
                assert!(t[GROUP] >= 1 << 12);
                for k in 0..GROUP {
                    assert!(t[k] - t[k + 1] >= (1 << 11) - 1, "{range:#x} {p:?}");
                }
            }
        }
        // Every number of leading zeros that a part can have.
        for zeros in 0..=u64::from(u64::MAX.leading_zeros() + 53) {
            for part in [u64::MAX >> zeros, 1 << (63 - zeros)] {
                let shift = normalisation(part);
                assert!(shift.is_multiple_of(8) && shift <= 56 && part.leading_zeros() >= shift);
                assert!(part << shift >= 1 << 56);
            }
        }
    }

    /// As above, bounds of a line: contexts and range at their ends.
    #[test]
    fn every_place_of_a_line_has_room() {
        for range in [1 << 56, (1 << 56) + 1, u64::MAX] {
            for which in 0..3_usize.pow(GROUP as u32) {
                let contexts =
                    std::array::from_fn(|k| [ENDS[0], LEAST_ONWARDS, ENDS[1]][which / 3_usize.pow(k as u32) % 3]);
                let line = Line::new(range, &contexts);
                for block in 0..GROUP {
                    assert!((line.0[block] - line.0[block + 1]) >> BLOCK_BITS >= 1 << 15, "{range:#x} {contexts:?}");
                }
                assert!(line.0[GROUP] >= 1 << 15);
                assert_eq!((line.left(0), line.left(LINE), line.left(LINE + 1)), (range, line.0[GROUP], 0));
            }
        }
    }

    #[test]
    fn a_byte_holds_so_many_decisions_and_no_more() {
        let likeliest = 1.0 - 1.0 / 2048.0;
        let each = 8.0 / -f64::log2(likeliest);
        assert_eq!(each.ceil() as u32, 11_354);
        for (p, ones) in [(ENDS[1] - (1 << 10), GROUP), (ENDS[0], 0)] {
            for count in [0, 1, 1000, 3_000_000] {
                let mut encoder = Encoder::new();
                (0..count).for_each(|_| encoder.group(&[p; GROUP], ones));
                let (mut bytes, decisions) = (Vec::new(), (ones.max(1) * count) as f64);
                encoder.finish(&mut bytes);
                // One byte or two end the code.
                let least = each * (bytes.len() as f64 - 3.0);
                assert!((least..=each * bytes.len() as f64).contains(&decisions), "{count} {decisions}");
                assert!(decisions <= most_decisions(bytes.len()) as f64);
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_the_length_is_exact() {
        for seed in 1..200 {
            let mut random = Random(seed);
            let steps: Vec<([u32; 4], usize, bool, u32)> = (0..seed * 3)
                .map(|_| {
                    let p = [(); 4].map(|()| probability(&mut random));
                    (p, (random.next() % 5) as usize, random.next().is_multiple_of(2), (random.next() % 33) as u32)
                })
                .collect();
            let mut encoder = Encoder::new();
            for (p, ones, one, count) in &steps {
                encoder.group(p, *ones);
                encoder.bit(p[0], *one);
                encoder.raw((0x1234_5678_9abc_def0_u64 & ((1 << count) - 1)) as u32, *count);
            }
            let mut bytes = Vec::new();
            encoder.finish(&mut bytes);
            let mut decoder = Decoder::new(&bytes);
            for (p, ones, one, count) in &steps {
                assert_eq!(decoder.group(p), *ones);
                assert_eq!(decoder.bit_if(true, p[0]), *one);
                assert_eq!(decoder.raw(*count), (0x1234_5678_9abc_def0_u64 & ((1 << count) - 1)) as u32);
                assert!(!decoder.bit_if(false, p[1]));
            }
            assert!(decoder.plausible());
            assert!(decoder.check());
        }
    }

    #[test]
    fn a_carry_runs_through_bytes_already_written() {
        // Zeros with a tiny probability of one push `low` up towards all ones; the last step tips it over.
        let mut encoder = Encoder::new();
        let likely = [u32::MAX - (1 << 21) + 1; 4];
        for _ in 0..2000 {
            encoder.group(&likely, 0);
        }
        let mut bytes = Vec::new();
        encoder.finish(&mut bytes);
        let mut decoder = Decoder::new(&bytes);
        for _ in 0..2000 {
            assert_eq!(decoder.group(&likely), 0);
        }
        assert!(decoder.plausible());
        assert!(decoder.check());
    }

    #[test]
    fn any_bytes_decode_to_something_without_a_panic() {
        let mut random = Random(7);
        for length in 0..40 {
            let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            let mut decoder = Decoder::new(&bytes);
            for _ in 0..500 {
                let p = [(); 4].map(|()| probability(&mut random));
                assert!(decoder.group(&p) <= 4);
                decoder.raw((random.next() % 33) as u32);
            }
            assert!(!decoder.check());
        }
    }
}
