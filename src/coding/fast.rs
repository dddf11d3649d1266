//! The fast coder: one symbol a level, of sixteen, and many levels at once.
//!
//! A chunk's rows are dealt out to [`STRIPS`] strips, as many rows to each, which are coded in step: the first level of
//! each strip, then the second of each, and so on. What rows are left over is one more strip, coded after them. Strips know
//! their own rows (`strip.rs`), and share what columns and context sets have seen (`frequencies.rs`).
//!
//! Each strip has a number of 32 bits, its state, that grows as levels are put into it, and words of 16 bits are taken
//! from it before it overflows: an asymmetric numeral system (Duda 2013, in the form of range variants). All states share
//! one sequence of words, in the order in which a decoder needs them. An encoder works backwards, so it collects what is to be
//! put in first ([`Operation`]).

#![allow(clippy::needless_range_loop)] // strips are numbered in several arrays at once

pub(crate) mod frequencies;
pub(crate) mod strip;

use std::cell::Cell;
use std::ops::Range;

use frequencies::{BITS, ESCAPE, Frequencies, PLACES, SYMBOLS};
use strip::{Sites, Strips};

use crate::coding::output::Output;
use crate::model::context::{Machine, Portable, SETS, Task};
use crate::model::params::Params;
use crate::model::rows::{self, for_kind};

/// Strips that are coded in step.
pub(crate) const STRIPS: usize = 16;
/// Rows from which a chunk has them: with less, columns would learn too little. And levels from which any chunk has them
/// that has a row for each.
const LEAST_ROWS: usize = 4 * STRIPS;
const LEAST_LEVELS: usize = 1 << 17;
/// A state at its start in an encoder and its end in a decoder; at rest it is never smaller.
const LEAST_STATE: u32 = 1 << 16;
/// Frequencies may change after so many columns, and at the end of a row.
const BLOCK: usize = 512;
/// Low bits that are taken with the symbol.
pub(crate) const FIRST_BITS: u32 = 3;

/// Where the strips of a chunk of `count` levels lie in it.
pub(crate) fn strips(params: &Params, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let each = strip_levels(params, count);
    let together = (0..STRIPS).map(move |k| k * each..(k + 1) * each).filter(|strip| !strip.is_empty());
    together.chain((STRIPS * each < count).then_some(STRIPS * each..count))
}

/// Levels in each of the strips that are coded in step; 0 if there are too few rows.
fn strip_levels(params: &Params, count: usize) -> usize {
    if has_strips(params.width, count) { count / params.width / STRIPS * params.width } else { 0 }
}

/// Whether a chunk of `count` levels in rows of `width` is coded in strips, as far as there are rows for them.
pub(crate) const fn has_strips(width: usize, count: usize) -> bool {
    count / width >= LEAST_ROWS || count >= LEAST_LEVELS
}

/// What is put into a state at once: a symbol's range of places and some raw bits, or raw bits alone.
#[derive(Clone, Copy)]
struct Operation {
    /// The bits, below them their number (8 bits) and the lane (8 bits).
    what: u32,
    /// First place, and in the upper half how many; of all for raw bits alone, which changes nothing.
    range: u32,
}

impl Operation {
    #[inline(always)]
    const fn new(lane: usize, bits: u32, value: u32, range: u32) -> Self {
        Self { what: value << 16 | bits << 8 | lane as u32, range }
    }
}

/// Appends the code of `levels` to `out`.
pub(crate) fn encode<M: Machine>(params: &Params, levels: &[i32], out: &mut Vec<u8>) {
    let each = strip_levels(params, levels.len());
    let (together, rest) = levels.split_at(STRIPS * each);
    let mut encoder = Encoder { frequencies: Frequencies::new(), operations: Vec::with_capacity(levels.len()) };
    for_kind!(params, encode_kind::<KIND, M>(params, together, rest, &mut encoder));
    M::apart(Finish { encoder, lanes: if each > 0 { STRIPS } else { 1 }, out });
}

fn encode_kind<const KIND: u8, M: Machine>(params: &Params, together: &[i32], rest: &[i32], encoder: &mut Encoder) {
    if const { rows::regressed(KIND) } {
        unreachable!("regression is of the binary coder alone");
    } else {
        M::apart(Encoding::<KIND, STRIPS> { encoder, params, levels: together });
        M::apart(Encoding::<KIND, 1> { encoder, params, levels: rest });
    }
}

/// Levels of `N` strips.
struct Encoding<'a, const KIND: u8, const N: usize> {
    encoder: &'a mut Encoder,
    params: &'a Params,
    levels: &'a [i32],
}

impl<M, const KIND: u8, const N: usize> Task<M> for Encoding<'_, KIND, N> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.encoder.strips::<KIND, N>(self.params, self.levels);
    }
}

/// What was collected becomes words.
struct Finish<'a> {
    encoder: Encoder,
    lanes: usize,
    out: &'a mut Vec<u8>,
}

impl<M> Task<M> for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.encoder.finish(self.lanes, self.out);
    }
}

struct Encoder {
    frequencies: Frequencies,
    operations: Vec<Operation>,
}

impl Encoder {
    #[inline(always)]
    fn strips<const KIND: u8, const N: usize>(&mut self, params: &Params, levels: &[i32]) {
        let count = levels.len() / N;
        let mut strips = Strips::<N>::new::<KIND>(params, count);
        let mut start = 0;
        while start < count {
            let width = params.width.min(count - start);
            let mut rows: [&[i32]; N] = [&[]; N];
            for k in 0..N {
                rows[k] = &levels[k * count + start..][..width];
            }
            for column in 0..width {
                let sites = strips.locate::<KIND>(column);
                let mut given = [0; N];
                for k in 0..N {
                    given[k] = rows[k][column];
                }
                let residuals = sites.residuals::<KIND>(&given);
                self.put(&sites, &residuals);
                strips.commit::<KIND>(column, &sites, &sites.indices::<KIND>(&residuals));
                if column % BLOCK == BLOCK - 1 || column == width - 1 {
                    self.frequencies.pass(N * (column % BLOCK + 1));
                }
            }
            strips.end_row::<KIND>();
            start += width;
        }
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, sites: &Sites<N>, residuals: &[i32; N]) {
        let (mut symbols, mut entries, mut what) = ([0; N], [0; N], [0; N]);
        let mut rare = 0;
        for k in 0..N {
            let (residual, low, zigzag) = (residuals[k], sites.low[k], sites.zigzag[k]);
            let (symbol, negative) = (symbol_of(sites, k, residual), u32::from(residual < 0));
            let first = low.min(FIRST_BITS);
            let lowest = ones_complement(residual) & ((1 << first) - 1);
            let bits = if low > 0 { first + 1 } else { u32::from(symbol > 0) } & !zigzag;
            let value = (lowest << 1 | negative) & !zigzag;
            (symbols[k], entries[k]) = (symbol, (SYMBOLS as u32 * sites.set[k] + symbol) % (SETS * SYMBOLS) as u32);
            what[k] = Operation::new(k, bits, value, 0).what;
            rare |= u32::from(symbol == ESCAPE) | u32::from(low > FIRST_BITS);
        }
        let ranges = &self.frequencies.ranges;
        let mut put = [Operation { what: 0, range: 0 }; N];
        for k in 0..N {
            put[k] = Operation { what: what[k], range: ranges[entries[k] as usize] };
        }
        self.operations.extend_from_slice(&put);
        self.frequencies.count(&entries);
        if rare != 0 {
            self.put_rare(sites, &symbols, residuals);
        }
    }

    #[cold]
    #[inline(never)]
    fn put_rare<const N: usize>(&mut self, sites: &Sites<N>, symbols: &[u32; N], residuals: &[i32; N]) {
        for k in 0..N {
            if sites.low[k] > FIRST_BITS {
                let rest = sites.low[k] - FIRST_BITS;
                self.raw(k, rest, ones_complement(residuals[k]) >> FIRST_BITS & ((1 << rest) - 1));
            }
        }
        for k in 0..N {
            if symbols[k] != ESCAPE {
                continue;
            }
            // At least 1.
            let x = if sites.zigzag[k] != 0 {
                residuals[k].unsigned_abs() - ESCAPE / 2
            } else {
                upper_of(sites, k, residuals[k]) - (ESCAPE - 1)
            };
            let bits = x.ilog2();
            self.raw(k, 5, bits);
            self.raw(k, bits.min(16), x & ((1 << bits.min(16)) - 1));
            if bits > 16 {
                self.raw(k, bits - 16, (x ^ 1 << bits) >> 16);
            }
            if sites.zigzag[k] != 0 {
                self.raw(k, 1, u32::from(residuals[k] < 0));
            }
        }
    }

    fn raw(&mut self, lane: usize, bits: u32, value: u32) {
        self.operations.push(Operation::new(lane, bits, value, (PLACES as u32) << 16));
    }

    /// Puts everything into the states, the last first.
    #[inline(always)]
    fn finish(self, lanes: usize, out: &mut Vec<u8>) {
        let mut states = [LEAST_STATE; STRIPS];
        // At most one for each. A word is written whether it counts or not, and if not, overwritten: there is no branch.
        let mut words = vec![0; self.operations.len() + 1];
        let mut first = self.operations.len();
        for Operation { what, range } in self.operations.iter().rev() {
            let state = &mut states[*what as usize % STRIPS];
            let (bits, value) = (*what >> 8 & 0xff, *what >> 16);
            let (start, frequency) = (*range & (PLACES as u32 - 1), *range >> 16);
            words[first] = *state as u16;
            // Larger states would overflow.
            let large = u64::from(*state) >= u64::from(frequency) << (32 - BITS - bits);
            first -= usize::from(large);
            *state >>= if large { 16 } else { 0 };
            let with_bits = *state << bits | value;
            *state = ((with_bits / frequency) << BITS) + start + with_bits % frequency;
        }
        out.extend(states[..lanes].iter().flat_map(|state| state.to_le_bytes()));
        out.extend(words[first + 1..].iter().flat_map(|word| word.to_le_bytes()));
    }
}

/// Magnitudes such that -1 comes with 0, for residuals with low bits.
#[inline(always)]
fn ones_complement(residual: i32) -> u32 {
    (residual ^ (residual >> 31)) as u32
}

/// What is left above the low bits.
#[inline(always)]
fn upper_of<const N: usize>(sites: &Sites<N>, k: usize, residual: i32) -> u32 {
    if sites.low[k] > 0 { ones_complement(residual) >> sites.low[k] } else { residual.unsigned_abs() }
}

#[inline(always)]
fn symbol_of<const N: usize>(sites: &Sites<N>, k: usize, residual: i32) -> u32 {
    let alternating = 2 * residual.unsigned_abs().min(ESCAPE) - u32::from(residual > 0);
    let symbol = if sites.zigzag[k] != 0 { alternating } else { upper_of(sites, k, residual) };
    symbol.min(ESCAPE)
}

/// Symbols that were looked up.
pub(crate) struct Found<const N: usize> {
    pub(crate) symbols: [u32; N],
    /// `SYMBOLS * set + symbol` of each.
    pub(crate) entries: [u32; N],
    pub(crate) ranges: [u32; N],
}

/// How the machine looks symbols up and takes words. One implementation is plain Rust, the others SIMD; all do the same.
pub(crate) trait Look: Sized {
    /// Takes the residuals at these sites.
    #[inline(always)]
    fn take<const KIND: u8, const N: usize>(
        frequencies: &mut Frequencies,
        words: &mut Words,
        states: &mut [u32; N],
        sites: &Sites<N>,
    ) -> [i32; N] {
        take::<Self, N, true>(frequencies, words, states, sites)
    }

    /// The symbols at these places of these sets.
    #[inline(always)]
    fn up<const N: usize>(frequencies: &Frequencies, sets: &[u32; N], places: &[u32; N]) -> Found<N> {
        let mut found = Found { symbols: [0; N], entries: [0; N], ranges: [0; N] };
        let table = frequencies.symbols();
        for k in 0..N {
            found.symbols[k] = u32::from(table[(sets[k] as usize * PLACES + places[k] as usize) % (SETS * PLACES)]);
            found.entries[k] = (SYMBOLS as u32 * sets[k] + found.symbols[k]) % (SETS * SYMBOLS) as u32;
        }
        for k in 0..N {
            found.ranges[k] = frequencies.ranges[found.entries[k] as usize];
        }
        found
    }

    /// Brings states below 2^16 above it, each with the next word, in their order.
    #[inline(always)]
    fn refill<const N: usize>(words: &mut Words, states: &mut [u32; N]) {
        for state in states {
            if *state < LEAST_STATE {
                *state = *state << 16 | words.take();
            }
        }
    }
}

impl Look for Portable {}

/// Zero bytes after a chunk: what is read at once.
const PADDING: usize = 16;

/// The words of a chunk; zeros after its end.
pub(crate) struct Words {
    /// The chunk and zeros.
    buffer: Vec<u8>,
    /// Index of the next word's first byte.
    pub(crate) next: usize,
}

impl Words {
    fn new(bytes: &[u8]) -> Self {
        Self { buffer: [bytes, &[0; PADDING]].concat(), next: 0 }
    }

    /// The next eight words, low bytes first.
    #[inline(always)]
    pub(crate) fn eight(&self) -> &[u8; PADDING] {
        self.buffer.get(self.next..).and_then(<[u8]>::first_chunk).unwrap_or(&[0; PADDING])
    }

    /// So many words were taken.
    #[inline(always)]
    pub(crate) fn pass(&mut self, count: usize) {
        self.next += 2 * count;
    }

    #[inline(always)]
    fn take(&mut self) -> u32 {
        let [low, high, ..] = *self.eight();
        self.pass(1);
        u32::from(low) | u32::from(high) << 8
    }

    /// False if more was taken than there is.
    fn plausible(&self) -> bool {
        self.next + PADDING <= self.buffer.len()
    }
}

/// Memory of a decoder that lasts from chunk to chunk.
#[cfg_attr(test, derive(PartialEq, Debug))]
pub(crate) struct Decoder {
    frequencies: Frequencies,
    /// After the last chunk.
    states: [u32; STRIPS],
    /// Bytes of it that were read.
    read: usize,
}

thread_local! {
    /// Left by the last call on this thread: most of two megabytes would be the same again.
    static SPARE: Cell<Option<Box<Decoder>>> = const { Cell::new(None) };
}

impl Decoder {
    /// The one that this thread has left, or a new one.
    pub(crate) fn take() -> Box<Self> {
        SPARE.take().unwrap_or_else(|| Box::new(Self::new()))
    }

    /// Kept for the next call on this thread.
    pub(crate) fn leave(self: Box<Self>) {
        SPARE.set(Some(self));
    }

    fn new() -> Self {
        Self { frequencies: Frequencies::with_symbols(), states: [LEAST_STATE; STRIPS], read: 0 }
    }

    /// Whether both are in the same state after a chunk.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        (self.states, self.read) == (other.states, other.read) && self.frequencies.agree(&other.frequencies)
    }

    /// Decodes a chunk; false if `bytes` are not exactly its code.
    pub(crate) fn decode<M: Machine + Look>(&mut self, params: &Params, bytes: &[u8], output: &mut Output) -> bool {
        for_kind!(params, decode_kind::<KIND, M>(self, params, bytes, output))
    }
}

fn decode_kind<const KIND: u8, M: Machine + Look>(
    decoder: &mut Decoder,
    params: &Params,
    bytes: &[u8],
    output: &mut Output,
) -> bool {
    decoder.frequencies.reset();
    let each = strip_levels(params, output.len());
    let lanes = if each > 0 { STRIPS } else { 1 };
    let mut words = Words::new(bytes);
    let mut states = [LEAST_STATE; STRIPS];
    for state in &mut states[..lanes] {
        *state = words.take() | words.take() << 16;
    }
    let mut good = states.iter().all(|state| *state >= LEAST_STATE);
    if each > 0 {
        good = good && decode_strips::<M, KIND, STRIPS>(decoder, params, &mut words, &mut states, output, 0, each);
    }
    let (first, mut last) = (STRIPS * each, [states[0]]);
    let rest = output.len() - first;
    good = good && decode_strips::<M, KIND, 1>(decoder, params, &mut words, &mut last, output, first, rest);
    [states[0]] = last;
    (decoder.states, decoder.read) = (states, words.next);
    good && words.next == bytes.len() && states == [LEAST_STATE; STRIPS]
}

/// Decodes `N` strips of `count` levels each; false if the chunk has fewer words.
fn decode_strips<M: Machine + Look, const KIND: u8, const N: usize>(
    decoder: &mut Decoder,
    params: &Params,
    words: &mut Words,
    states: &mut [u32; N],
    output: &mut Output,
    first: usize,
    count: usize,
) -> bool {
    if const { rows::regressed(KIND) } {
        unreachable!("regression is of the binary coder alone");
    } else {
        let frequencies = &mut decoder.frequencies;
        M::apart(Decoding::<KIND, N> { frequencies, params, words, states, output, first, count })
    }
}

/// `N` strips to decode.
struct Decoding<'a, 'o, const KIND: u8, const N: usize> {
    frequencies: &'a mut Frequencies,
    params: &'a Params,
    words: &'a mut Words,
    states: &'a mut [u32; N],
    output: &'a mut Output<'o>,
    first: usize,
    count: usize,
}

impl<M: Look, const KIND: u8, const N: usize> Task<M> for Decoding<'_, '_, KIND, N> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Self { frequencies, params, words, states, output, first, count } = self;
        let mut strips = Strips::<N>::new::<KIND>(params, count);
        let mut start = 0;
        while start < count {
            let width = params.width.min(count - start);
            for column in 0..width {
                let sites = strips.locate::<KIND>(column);
                let residuals = M::take::<KIND, N>(frequencies, words, states, &sites);
                strips.commit::<KIND>(column, &sites, &sites.indices::<KIND>(&residuals));
                if column % BLOCK == BLOCK - 1 || column == width - 1 {
                    frequencies.pass(N * (column % BLOCK + 1));
                }
            }
            output.put_columns(first + start, count, &strips.levels[..width]);
            strips.end_row::<KIND>();
            start += width;
            if !words.plausible() {
                return false;
            }
        }
        true
    }
}

/// [`Look::take`] as it is defined; the symbols are counted if they are not yet.
#[inline(always)]
pub(crate) fn take<L: Look, const N: usize, const COUNTS: bool>(
    frequencies: &mut Frequencies,
    words: &mut Words,
    states: &mut [u32; N],
    sites: &Sites<N>,
) -> [i32; N] {
    let mut places = [0; N];
    for k in 0..N {
        places[k] = states[k] & (PLACES as u32 - 1);
    }
    let Found { symbols, entries, ranges } = L::up(frequencies, &sites.set, &places);
    let mut values = [0; N];
    for k in 0..N {
        let zigzag = sites.zigzag[k];
        let state = (ranges[k] >> 16)
            .wrapping_mul(states[k] >> BITS)
            .wrapping_add(places[k])
            .wrapping_sub(ranges[k] & (PLACES as u32 - 1));
        let bits =
            if sites.low[k] > 0 { sites.low[k].min(FIRST_BITS) + 1 } else { u32::from(symbols[k] > 0) } & !zigzag;
        values[k] = state & ((1 << bits) - 1);
        states[k] = state >> bits;
    }
    L::refill(words, states);
    if COUNTS {
        frequencies.count(&entries);
    }
    let mut residuals = [0; N];
    let mut rare = 0;
    for k in 0..N {
        let (low, zigzag) = (sites.low[k], sites.zigzag[k]);
        rare |= u32::from(symbols[k] == ESCAPE) | u32::from(low > FIRST_BITS);
        let negative = (values[k] & !zigzag | !symbols[k] & zigzag) & 1;
        let magnitude = symbols[k] << low | values[k] >> 1;
        let magnitude = if zigzag != 0 { (symbols[k] + 1) >> 1 } else { magnitude };
        residuals[k] = residual(magnitude, negative, low);
    }
    if rare != 0 {
        take_rare(words, states, sites, &symbols, &values, &mut residuals);
    }
    residuals
}

#[inline(always)]
fn residual(magnitude: u32, negative: u32, low: u32) -> i32 {
    // With low bits, -1 comes with 0.
    (magnitude ^ negative.wrapping_neg()).wrapping_add(if low > 0 { 0 } else { negative }) as i32
}

#[cold]
#[inline(never)]
fn take_rare<const N: usize>(
    words: &mut Words,
    states: &mut [u32; N],
    sites: &Sites<N>,
    symbols: &[u32; N],
    values: &[u32; N],
    residuals: &mut [i32; N],
) {
    let mut raw = |k: usize, bits: u32| {
        let value = states[k] & ((1 << bits) - 1);
        states[k] >>= bits;
        if states[k] < LEAST_STATE {
            states[k] = states[k] << 16 | words.take();
        }
        value
    };
    let mut lowest = values.map(|value| value >> 1);
    for k in 0..N {
        if sites.low[k] > FIRST_BITS {
            lowest[k] |= raw(k, sites.low[k] - FIRST_BITS) << FIRST_BITS;
            residuals[k] = residual(symbols[k] << sites.low[k] | lowest[k], values[k] & 1, sites.low[k]);
        }
    }
    for k in 0..N {
        if symbols[k] != ESCAPE {
            continue;
        }
        let bits = raw(k, 5);
        let mut x = 1 << bits | raw(k, bits.min(16));
        if bits > 16 {
            x |= raw(k, bits - 16) << 16;
        }
        residuals[k] = if sites.zigzag[k] != 0 {
            let negative = raw(k, 1);
            residual(x.wrapping_add(ESCAPE / 2), negative, 0)
        } else {
            let upper = x.wrapping_add(ESCAPE - 1);
            residual(upper << sites.low[k] | lowest[k], values[k] & 1, sites.low[k])
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk;
    use crate::cpu::dispatch;
    use crate::model::dependent::{self, States};
    use crate::model::params::{Coder, KernelPrediction, RowPrediction};
    use crate::model::rows::{self, DEPENDENT, KERNEL};
    use crate::model::scale::Resolution;
    use crate::testing::Random;

    fn params(random: &mut Random, kind: u8) -> Params {
        let mut weight = || random.next() as i8;
        let row = rows::predicts(kind).then(|| RowPrediction { above: weight() / 2, column: weight() / 2 });
        let kernel = KernelPrediction { width: 3, size: 9, weights: [0; 5].map(|_| weight() / 4) };
        Params {
            coder: Coder::Fast,
            resolution: if random.below(2) == 0 { Resolution::Coarse } else { Resolution::Fine },
            mean_log: random.below(190) as u8,
            // Some rows are longer than a block.
            width: if random.below(8) == 0 { 1 + random.below(1200) } else { 1 + random.below(40) },
            chunk_rows: 800,
            row,
            kernel: rows::in_kernels(kind).then_some(kernel),
            states: if rows::dependent(kind) { States::of_bits(3 + random.below(4) as u8) } else { None },
        }
    }

    /// Levels of all magnitudes, in rows of different size, now and then with an escape.
    fn levels(random: &mut Random, params: &Params, count: usize) -> Vec<i32> {
        let largest = random.below(12);
        let mut indices = Vec::with_capacity(count);
        for _ in 0..count {
            let bits = if random.below(300) == 0 { random.below(31) } else { random.below(largest as u64 + 1) };
            let magnitude = (random.next() >> 20) as i32 & ((1i64 << bits) - 1) as i32;
            indices.push(if random.below(2) == 0 { magnitude } else { -magnitude });
        }
        let Some(states) = params.states else { return indices };
        for strip in strips(params, count) {
            let mut state = 0;
            for index in &mut indices[strip] {
                let (given, odd) = (*index >> 1, (state & 1) as i32);
                state = states.taps().next(state, given as u32);
                *index = dependent::level(given, odd);
            }
        }
        indices
    }

    /// What became of a chunk, with all that its decoder knows after it.
    fn decoded(params: &Params, bytes: &[u8], count: usize, plain: bool) -> (bool, Vec<i32>, Decoder) {
        let (mut levels, mut decoder) = (vec![0; count], Decoder::new());
        let output = &mut Output::Levels(&mut levels);
        // As if other chunks had come before.
        decoder.frequencies.count(&[77]);
        decoder.frequencies.pass(100_000);
        #[cfg(target_arch = "x86_64")]
        if !plain {
            let good = dispatch::avx2::decode_fast(&mut decoder, params, bytes, output);
            return (good, levels, decoder);
        }
        assert!(plain);
        let good = decoder.decode::<Portable>(params, bytes, output);
        (good, levels, decoder)
    }

    fn all_kinds(test: impl Fn(&mut Random, Params)) {
        for seed in 1..60 {
            for kind in (0..=KERNEL).chain(DEPENDENT..=DEPENDENT + KERNEL) {
                let random = &mut Random(seed * 7919 + u64::from(kind));
                let params = params(random, kind);
                test(random, params);
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_the_length_is_exact() {
        all_kinds(|random, params| {
            let count = 1 + random.below(180 * params.width.min(300) as u64);
            let given = levels(random, &params, count);
            assert!(chunk::has_code(&params, &given));
            let mut bytes = Vec::new();
            dispatch::encode(&params, &given, &mut bytes);
            let (good, levels, _) = decoded(&params, &bytes, count, true);
            assert!(good);
            assert_eq!(levels, given);
            bytes.push(0);
            assert!(!decoded(&params, &bytes, count, true).0);
            bytes.truncate(bytes.len() - 2);
            assert!(!decoded(&params, &bytes, count, true).0);
        });
    }

    #[test]
    fn every_machine_has_the_same_state_behind_good_and_damaged_chunks() {
        #[cfg(target_arch = "x86_64")]
        if dispatch::available() {
            all_kinds(|random, params| {
                let count = 1 + random.below(180 * params.width.min(300) as u64);
                let mut bytes = Vec::new();
                encode::<Portable>(&params, &levels(random, &params, count), &mut bytes);
                match random.below(4) {
                    0 => bytes.iter_mut().skip(64).for_each(|byte| *byte = random.next() as u8),
                    1 => bytes.truncate(random.below(bytes.len() as u64)),
                    2 => {
                        let place = random.below(bytes.len() as u64);
                        bytes[place] ^= 1 << random.below(8);
                    }
                    _ => {}
                }
                assert_eq!(decoded(&params, &bytes, count, false), decoded(&params, &bytes, count, true));
            });
        }
    }

    #[test]
    fn every_residual_is_a_symbol_or_an_escape() {
        let params = &Params { chunk_rows: 1000, ..params(&mut Random(3), 0) };
        let extremes = [i32::MIN, i32::MAX, -i32::MAX, 0, 1, -1, 14, 15, 16, -14, -15, -16, 1 << 30, 65_536, 65_535];
        let given: Vec<i32> = (0..100 * params.width).map(|k| extremes[k * 7 % extremes.len()]).collect();
        let mut bytes = Vec::new();
        encode::<Portable>(params, &given, &mut bytes);
        let (good, levels, _) = decoded(params, &bytes, given.len(), true);
        assert!(good && levels == given);
    }

    #[test]
    fn strips_tile_a_chunk() {
        for (width, count) in [(1, 1), (10, 5), (10, 639), (10, 640), (10, 705), (65_536, 1 << 20), (30_000, 140_000)] {
            let params = Params { width, ..params(&mut Random(5), 0) };
            let mut end = 0;
            for strip in strips(&params, count) {
                assert!(strip.start == end && !strip.is_empty());
                end = strip.end;
            }
            assert_eq!(end, count);
        }
    }

    #[test]
    fn frequencies_are_those_of_all_places() {
        let frequencies = Frequencies::with_symbols();
        for set in 0..SETS {
            let mut next = 0;
            for symbol in 0..SYMBOLS {
                let range = frequencies.ranges[SYMBOLS * set + symbol];
                assert!(range & 0xffff == next | (symbol as u32) << BITS && range >> 16 > 0);
                for place in next..next + (range >> 16) {
                    assert_eq!(usize::from(frequencies.symbols()[PLACES * set + place as usize]), symbol);
                }
                next += range >> 16;
            }
            assert_eq!(next as usize, PLACES);
        }
    }
}
