//! Symbols with stored frequencies: interleaved asymmetric numeral systems, for many symbols at once.
//!
//! A symbol is a byte. Which table its frequency is in, is said for each symbol by another byte, the *table number*, which
//! encoder and decoder know before. A [`Table`] gives each symbol that occurs a share of 2^12 places. It is written in about
//! three bits for each symbol ([`Table::write`]), because neighbouring symbols have similar frequencies.
//!
//! There are [`LANES`] states of 32 bits, or [`FEW_LANES`] of short sequences. Symbol `i` is put into state `i` modulo their
//! number, which grows; words of 16 bits are taken from it before it overflows (Duda 2013, in the form of range variants). All
//! states share one sequence of words, in the order in which a decoder needs them. So a decoder does the same to eight lanes at a
//! time, and an encoder works backwards.
//!
//! To encode: [`count`] symbols, make a [`Table::of`] each table's counts, write it, [`encode`]. To decode: [`Table::read`],
//! [`Decoder::new`], [`Decode::decode`] in pieces of whole rounds of lanes, [`Decoder::finished`].

use std::cell::Cell;

use crate::coding::bits::{BitReader, BitWriter};
use crate::model::context::Portable;

/// log2 of the places that the symbols of a table share.
pub(crate) const BITS: u32 = 12;
/// Places.
pub(crate) const PLACES: usize = 1 << BITS;
/// Symbols of a table, at most.
pub(crate) const SYMBOLS: usize = 256;
/// States, and how many of them sequences of fewer than [`MANY`] symbols have.
pub(crate) const LANES: usize = 32;
pub(crate) const FEW_LANES: usize = 8;
const MANY: usize = 1 << 13;
/// A state at its start in an encoder and its end in a decoder; at rest it is never smaller.
const LEAST_STATE: u32 = 1 << 16;
/// Most tables; a power of two.
pub(crate) const MOST_TABLES: usize = 16;

/// Grades of frequency in an octave, and the weights of those of one octave.
const GRADES: u32 = 8;
pub(crate) const WEIGHTS: [u64; GRADES as usize] = [128, 140, 152, 166, 181, 197, 215, 235];
/// The largest grade. Grade 0 is that of a symbol which does not occur.
const LAST_GRADE: u32 = 16 * GRADES;

/// Lanes of so many symbols.
pub(crate) const fn lanes(count: usize) -> usize {
    if count < MANY { FEW_LANES } else { LANES }
}

/// Frequencies of symbols: for each its places, which add up to [`PLACES`].
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Table {
    /// Grades as they are written, of the symbols up to the last one that occurs.
    grades: Vec<u8>,
    frequencies: Vec<u16>,
}

impl Table {
    /// The table for symbols that were counted so often; of none it is one that no symbol should be coded with.
    pub(crate) fn of(counts: &[u32; SYMBOLS]) -> Self {
        let most = counts.iter().copied().max().unwrap_or(0).max(1);
        let mut grades: Vec<u8> = counts.iter().map(|count| grade(*count, most)).collect();
        // No symbol has all places.
        if grades.iter().filter(|grade| **grade > 0).count() < 2 {
            let only = grades.iter().position(|grade| *grade > 0).unwrap_or(0);
            (grades[only], grades[only ^ 1]) = (LAST_GRADE as u8, 1);
        }
        while grades.last() == Some(&0) {
            grades.pop();
        }
        let frequencies = frequencies(&grades).expect("at least two symbols occur");
        Self { grades, frequencies }
    }

    /// Writes it: the first and the last symbol that occurs, eight bits each, then for each from the one to the other the
    /// difference of its grade to that of the symbol before, the first one's to 0.
    pub(crate) fn write(&self, bits: &mut BitWriter) {
        let first = self.grades.iter().position(|grade| *grade > 0).unwrap_or(0);
        bits.put(first as u64, 8);
        bits.put(self.grades.len() as u64 - 1, 8);
        let mut before = 0;
        for grade in &self.grades[first..] {
            bits.put_signed(i32::from(*grade) - before);
            before = i32::from(*grade);
        }
    }

    /// Reads what [`Self::write`] wrote; `None` if there is no such table.
    pub(crate) fn read(bits: &mut BitReader) -> Option<Self> {
        let (first, last) = (bits.take(8) as usize, bits.take(8) as usize);
        let mut grades = vec![0; first];
        let mut before = 0;
        for _ in first..=last {
            before += bits.take_signed()?;
            if !(0..=LAST_GRADE as i32).contains(&before) {
                return None;
            }
            grades.push(before as u8);
        }
        let frequencies = frequencies(&grades).filter(|_| grades[first] > 0)?;
        Some(Self { grades, frequencies })
    }

    /// Symbols from the first to the last one that occurs.
    pub(crate) fn symbols(&self) -> usize {
        self.grades.iter().skip_while(|grade| **grade == 0).count()
    }

    /// Bits that so many symbols take, without the table itself; those that do not occur in it are left out.
    pub(crate) fn cost(&self, counts: &[u32; SYMBOLS]) -> f64 {
        let pairs = self.frequencies.iter().zip(counts).filter(|(frequency, count)| **frequency > 0 && **count > 0);
        pairs.map(|(frequency, count)| f64::from(*count) * (f64::from(BITS) - f64::from(*frequency).log2())).sum()
    }
}

/// The grade of a symbol that was counted so often, the most frequent one `most` times.
fn grade(count: u32, most: u32) -> u8 {
    if count == 0 {
        return 0;
    }
    // The nearest weight, in proportion to that of the last grade.
    let target = u128::from(count) * u128::from(weight(LAST_GRADE)) / u128::from(most);
    let mut grade = 1;
    while grade < LAST_GRADE && u128::from(weight(grade) + weight(grade + 1)) <= 2 * target {
        grade += 1;
    }
    grade as u8
}

/// What a grade stands for.
const fn weight(grade: u32) -> u64 {
    if grade == 0 { 0 } else { WEIGHTS[((grade - 1) % GRADES) as usize] << ((grade - 1) / GRADES) }
}

/// Places by weight: at least one for each symbol that occurs. The most frequent one makes up for rounding, the first of several:
/// it has what is left over, or gives away what is missing, one by one.
fn frequencies(grades: &[u8]) -> Option<Vec<u16>> {
    let sum: u64 = grades.iter().map(|grade| weight(u32::from(*grade))).sum();
    if grades.iter().filter(|grade| **grade > 0).count() < 2 || grades.last() == Some(&0) {
        return None;
    }
    let share = |grade: &u8| {
        let weight = weight(u32::from(*grade));
        if weight == 0 { 0 } else { (weight * PLACES as u64 / sum).max(1) as u16 }
    };
    let mut frequencies: Vec<u16> = grades.iter().map(share).collect();
    let mut given: usize = frequencies.iter().map(|frequency| usize::from(*frequency)).sum();
    while given != PLACES {
        let most = frequencies.iter().copied().max().unwrap_or(0);
        let first = frequencies.iter().position(|frequency| *frequency == most).unwrap_or(0);
        if given < PLACES {
            frequencies[first] += (PLACES - given) as u16;
            given = PLACES;
        } else {
            frequencies[first] -= 1;
            given -= 1;
        }
    }
    Some(frequencies)
}

/// How often each symbol occurs with each table number; these are below `tables`, or all 0 if none are given.
#[inline(always)]
pub(crate) fn count(tables: usize, numbers: Option<&[u8]>, symbols: &[u8]) -> Vec<[u32; SYMBOLS]> {
    let mut counts = vec![[0; SYMBOLS]; tables];
    match numbers {
        Some(numbers) => {
            for (number, symbol) in numbers.iter().zip(symbols) {
                counts[usize::from(*number)][usize::from(*symbol)] += 1;
            }
        }
        None => {
            // Several in turn: the same symbol twice in a row would wait for itself.
            let mut several = [[0u32; SYMBOLS]; 4];
            let (fours, rest) = symbols.as_chunks::<4>();
            for four in fours {
                for k in 0..4 {
                    several[k][usize::from(four[k])] += 1;
                }
            }
            for symbol in rest {
                several[0][usize::from(*symbol)] += 1;
            }
            for (symbol, count) in counts[0].iter_mut().enumerate() {
                *count = several[0][symbol] + several[1][symbol] + several[2][symbol] + several[3][symbol];
            }
        }
    }
    counts
}

/// What is needed to put a symbol into a state.
#[derive(Clone, Copy, Default)]
struct Range {
    /// 2^44 over its frequency, rounded up.
    reciprocal: u64,
    /// From here on the state would overflow.
    limit: u32,
    /// Its first place.
    start: u16,
    /// Places of the others.
    others: u16,
}

impl Range {
    /// That of a symbol with so many places.
    fn new(start: u16, frequency: u16) -> Self {
        let reciprocal = (1u64 << 44).div_ceil(u64::from(frequency));
        let limit = u32::from(frequency) << (32 - BITS);
        Self { reciprocal, limit, start, others: PLACES as u16 - frequency }
    }

    /// The state after the symbol was put into one below the limit.
    ///
    /// With `f` places the limit is `2^20 f` and `f < 2^12`. The reciprocal is `(2^44 + e) / f`, `e < f`. So a product is below
    /// `2^64`, and beyond `x / f` it has less than `1 / f`, `x e / (2^44 f)`: the quotient is exact. With it the state is below
    /// `2^32`, and at least `2^16` if `x >= 2^4 f`, which it is: taking a word from a state of `2^20 f` or more leaves as much.
    #[inline(always)]
    fn put(&self, x: u32) -> u32 {
        let quotient = (u64::from(x).wrapping_mul(self.reciprocal) >> 44) as u32;
        x + u32::from(self.start) + quotient * u32::from(self.others)
    }
}

/// Appends the code of `symbols` to `out`: states, then words. Table numbers as in [`count`]; each symbol occurs in its table.
#[inline(always)]
pub(crate) fn encode(tables: &[Table], numbers: Option<&[u8]>, symbols: &[u8], out: &mut Vec<u8>) {
    let mut ranges = vec![[Range::default(); SYMBOLS]; tables.len()];
    for (ranges, table) in ranges.iter_mut().zip(tables) {
        let mut start = 0;
        for (range, frequency) in ranges.iter_mut().zip(&table.frequencies) {
            if *frequency > 0 {
                *range = Range::new(start, *frequency);
            }
            start += frequency;
        }
    }
    if lanes(symbols.len()) == LANES {
        encode_lanes::<LANES>(&ranges, numbers, symbols, out);
    } else {
        encode_lanes::<FEW_LANES>(&ranges, numbers, symbols, out);
    }
}

thread_local! {
    /// Left by the last call on this thread: fresh memory is slow at first.
    static WORDS: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
}

#[inline(always)]
fn encode_lanes<const N: usize>(
    ranges: &[[Range; SYMBOLS]],
    numbers: Option<&[u8]>,
    symbols: &[u8],
    out: &mut Vec<u8>,
) {
    let mut states = [LEAST_STATE; N];
    // At most one for each symbol. A word is written whether it counts or not, and if not, overwritten: there is no branch.
    let mut words = WORDS.take();
    words.resize(words.len().max(symbols.len() + 1), 0);
    let mut first = symbols.len();
    let mut put = |state: &mut u32, range: &Range| {
        words[first] = *state as u16;
        let large = *state >= range.limit;
        first -= usize::from(large);
        let x = if large { *state >> 16 } else { *state };
        *state = range.put(x);
    };
    let (rounds, rest) = symbols.as_chunks::<N>();
    let whole = N * rounds.len();
    match numbers {
        None => {
            let ranges = &ranges[0];
            for (k, symbol) in rest.iter().enumerate().rev() {
                put(&mut states[k], &ranges[usize::from(*symbol)]);
            }
            for round in rounds.iter().rev() {
                for k in (0..N).rev() {
                    put(&mut states[k], &ranges[usize::from(round[k])]);
                }
            }
        }
        Some(numbers) => {
            for (k, symbol) in rest.iter().enumerate().rev() {
                put(&mut states[k], &ranges[usize::from(numbers[whole + k])][usize::from(*symbol)]);
            }
            for (round, numbers) in rounds.iter().zip(numbers.as_chunks::<N>().0).rev() {
                for k in (0..N).rev() {
                    put(&mut states[k], &ranges[usize::from(numbers[k])][usize::from(round[k])]);
                }
            }
        }
    }
    for state in states {
        out.extend_from_slice(&state.to_le_bytes());
    }
    let taken = &words[first + 1..=symbols.len()];
    let end = out.len();
    out.resize(end + 2 * taken.len(), 0);
    for (bytes, word) in out[end..].as_chunks_mut::<2>().0.iter_mut().zip(taken) {
        *bytes = word.to_le_bytes();
    }
    WORDS.set(words);
}

/// Words that are read at once, in bytes.
const AHEAD: usize = 16;

/// The words of a sequence; zeros after its end.
pub(crate) struct Words<'a> {
    bytes: &'a [u8],
    /// Index of the next word's first byte.
    next: usize,
}

impl Words<'_> {
    /// The next eight words, low bytes first.
    #[inline(always)]
    pub(crate) fn eight(&self) -> [u8; AHEAD] {
        match self.bytes.get(self.next..).and_then(<[u8]>::first_chunk) {
            Some(bytes) => *bytes,
            None => self.last(),
        }
    }

    #[cold]
    #[inline(never)]
    fn last(&self) -> [u8; AHEAD] {
        let mut bytes = [0; AHEAD];
        let rest = self.bytes.get(self.next..).unwrap_or(&[]);
        bytes[..rest.len()].copy_from_slice(rest);
        bytes
    }

    /// So many words were taken.
    #[inline(always)]
    pub(crate) fn pass(&mut self, count: usize) {
        self.next += 2 * count;
    }

    #[inline(always)]
    fn take(&mut self) -> u32 {
        let [low, high, ..] = self.eight();
        self.pass(1);
        u32::from(low) | u32::from(high) << 8
    }
}

/// Decodes a sequence of symbols, in pieces.
pub(crate) struct Decoder<'a> {
    /// Of each table and place: the symbol, the place's number among the symbol's (from bit 8), the symbol's frequency (from bit
    /// 20). As many tables as there are, or more: a power of two.
    pub(crate) places: Vec<u32>,
    pub(crate) states: [u32; LANES],
    pub(crate) words: Words<'a>,
    /// Lanes in use.
    pub(crate) lanes: usize,
}

impl<'a> Decoder<'a> {
    /// For the code of `count` symbols; `None` if `bytes` are too few.
    pub(crate) fn new(tables: &[Table], count: usize, bytes: &'a [u8]) -> Option<Self> {
        let lanes = lanes(count);
        if bytes.len() < 4 * lanes || tables.is_empty() || tables.len() > MOST_TABLES {
            return None;
        }
        let mut places = vec![0; PLACES * tables.len().next_power_of_two()];
        for (places, table) in places.chunks_exact_mut(PLACES).zip(tables) {
            let mut start = 0;
            for (symbol, frequency) in table.frequencies.iter().enumerate() {
                let end = start + usize::from(*frequency);
                let mut entry = u32::from(*frequency) << 20 | symbol as u32;
                for place in &mut places[start..end] {
                    *place = entry;
                    entry += 1 << 8;
                }
                start = end;
            }
        }
        let mut states = [LEAST_STATE; LANES];
        for (state, bytes) in states.iter_mut().zip(bytes.as_chunks::<4>().0).take(lanes) {
            *state = u32::from_le_bytes(*bytes);
        }
        Some(Self { places, states, words: Words { bytes, next: 4 * lanes }, lanes })
    }

    /// After the last symbol: whether `bytes` were exactly its code.
    pub(crate) fn finished(&self) -> bool {
        self.words.next == self.words.bytes.len() && self.states.iter().all(|state| *state == LEAST_STATE)
    }

    /// The next symbol of a lane.
    #[inline(always)]
    fn symbol(&mut self, lane: usize, number: u8) -> u8 {
        let state = self.states[lane];
        let index = (usize::from(number) << BITS) + state as usize % PLACES;
        let entry = self.places[index & (self.places.len() - 1)];
        let state = (entry >> 20).wrapping_mul(state >> BITS).wrapping_add(entry >> 8 & (PLACES - 1) as u32);
        self.states[lane] = if state < LEAST_STATE { state << 16 | self.words.take() } else { state };
        entry as u8
    }
}

/// How the machine decodes symbols. One implementation is plain Rust, the other SIMD; both do the same.
pub(crate) trait Decode {
    /// Decodes the next symbols: whole rounds of lanes, but for the last piece. Without table numbers all are 0; else there are as
    /// many.
    #[inline(always)]
    fn decode(decoder: &mut Decoder, numbers: Option<&[u8]>, symbols: &mut [u8]) {
        decode_in_turn(decoder, numbers, symbols);
    }
}

impl Decode for Portable {}

/// [`Decode::decode`] as it is defined.
#[inline(always)]
pub(crate) fn decode_in_turn(decoder: &mut Decoder, numbers: Option<&[u8]>, symbols: &mut [u8]) {
    let lanes = decoder.lanes;
    for (index, symbol) in symbols.iter_mut().enumerate() {
        *symbol = decoder.symbol(index % lanes, numbers.map_or(0, |numbers| numbers[index]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::dispatch;
    use crate::testing::Random;

    /// Symbols about as frequent as those of weights, with their table numbers.
    fn sequence(random: &mut Random, tables: usize, count: usize) -> (Vec<u8>, Vec<u8>) {
        let numbers: Vec<u8> = (0..count).map(|_| random.below(tables as u64) as u8).collect();
        let most = 1 << random.below(9);
        let symbols = numbers
            .iter()
            .map(|number| {
                let one = random.below(most).min(random.below(most)).min(random.below(most));
                ((one + 3 * usize::from(*number)) % SYMBOLS) as u8
            })
            .collect();
        (numbers, symbols)
    }

    fn coded(tables: usize, numbers: &[u8], symbols: &[u8]) -> (Vec<Table>, Vec<u8>) {
        let counts = count(tables, Some(numbers), symbols);
        let tables: Vec<Table> = counts.iter().map(Table::of).collect();
        let mut out = Vec::new();
        encode(&tables, Some(numbers), symbols, &mut out);
        (tables, out)
    }

    /// What became of it, in pieces, with the decoder's state.
    fn decoded(
        tables: &[Table],
        numbers: Option<&[u8]>,
        bytes: &[u8],
        count: usize,
        plain: bool,
    ) -> Option<(bool, Vec<u8>, Vec<u32>)> {
        let mut decoder = Decoder::new(tables, count, bytes)?;
        let mut symbols = vec![0; count];
        for (piece, symbols) in symbols.chunks_mut(256).enumerate() {
            let numbers = numbers.map(|numbers| &numbers[256 * piece..][..symbols.len()]);
            if plain {
                Portable::decode(&mut decoder, numbers, symbols);
            } else {
                dispatch::symbols(&mut decoder, numbers, symbols);
            }
        }
        Some((decoder.finished(), symbols, [&decoder.states[..], &[decoder.words.next as u32]].concat()))
    }

    /// A decoder's step and the encoder's, with every frequency, from the smallest and the largest states and those where
    /// quotients change.
    #[test]
    fn states_stay_in_their_range_and_steps_are_undone() {
        for frequency in 1..PLACES as u16 {
            let f = u32::from(frequency);
            for start in [0, PLACES as u16 - frequency] {
                let range = Range::new(start, frequency);
                let largest = ((u64::from(f) << 20) - 1) as u32;
                assert_eq!(range.limit, largest.wrapping_add(1));
                assert!(u128::from(largest) * u128::from(range.reciprocal) < 1 << 64);
                for x in [f << 4, (f << 4) + f - 1, (f << 4) + f, 1234 * f, largest / 2, largest - f, largest] {
                    let state = range.put(x);
                    assert_eq!(u64::from(x / f) << 12 | u64::from(u32::from(start) + x % f), u64::from(state));
                    assert!(state >= LEAST_STATE);
                    // What `Decoder::symbol` computes, before it takes a word.
                    let offset = state % PLACES as u32 - u32::from(start);
                    assert_eq!(f * (state >> BITS) + offset, x);
                }
                // A state that may not take the symbol gives up a word, and may then; a decoder gets it back.
                for state in [LEAST_STATE, largest, range.limit.max(LEAST_STATE), u32::MAX] {
                    let x = if state >= range.limit { state >> 16 } else { state };
                    assert!(x >> 4 >= f || state < range.limit, "{frequency} {state:#x}");
                    assert!(x < range.limit && range.put(x) >= LEAST_STATE);
                    assert_eq!(x < LEAST_STATE, state >= range.limit);
                }
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_and_the_length_is_exact() {
        for seed in 1..200 {
            let random = &mut Random(seed * 7919);
            let tables = 1 + random.below(16);
            let count = random.below(20_000);
            let (numbers, symbols) = sequence(random, tables, count);
            let (tables, mut bytes) = coded(tables, &numbers, &symbols);
            for plain in [false, true] {
                let (good, back, _) = decoded(&tables, Some(&numbers), &bytes, count, plain).expect("states");
                assert!(good && back == symbols);
            }
            bytes.push(0);
            assert!(!decoded(&tables, Some(&numbers), &bytes, count, true).expect("states").0);
            bytes.truncate(bytes.len() - 2);
            assert!(decoded(&tables, Some(&numbers), &bytes, count, true).is_none_or(|found| !found.0));
        }
    }

    #[test]
    fn one_table_needs_no_numbers() {
        let random = &mut Random(5);
        let (_, symbols) = sequence(random, 1, 30_000);
        let zeros = vec![0; symbols.len()];
        let (tables, bytes) = coded(1, &zeros, &symbols);
        let mut same = Vec::new();
        encode(&tables, None, &symbols, &mut same);
        assert_eq!(same, bytes);
        assert_eq!(count(1, None, &symbols), count(1, Some(&zeros), &symbols));
        for plain in [false, true] {
            assert_eq!(decoded(&tables, None, &bytes, symbols.len(), plain).expect("states").1, symbols);
        }
    }

    #[test]
    fn every_machine_has_the_same_state_after_damage() {
        for seed in 1..200 {
            let random = &mut Random(seed * 104_729);
            let count = random.below(20_000);
            let (mut numbers, symbols) = sequence(random, 3, count);
            let (tables, mut bytes) = coded(3, &numbers, &symbols);
            match random.below(4) {
                0 => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
                1 => bytes.truncate(random.below(bytes.len() as u64)),
                2 => numbers.iter_mut().for_each(|number| *number = random.next() as u8),
                _ => {
                    let place = random.below(bytes.len() as u64);
                    bytes[place] ^= 1 << random.below(8);
                }
            }
            let both = [false, true].map(|plain| decoded(&tables, Some(&numbers), &bytes, count, plain));
            assert_eq!(both[0], both[1]);
        }
    }

    #[test]
    fn tables_come_back_and_fit_their_counts() {
        for seed in 1..300 {
            let random = &mut Random(seed);
            let mut counts = [0; SYMBOLS];
            for _ in 0..random.below(300) {
                counts[random.below(256)] = random.next() as u32 >> random.below(32);
            }
            let table = Table::of(&counts);
            let given = table.frequencies.iter().map(|frequency| u32::from(*frequency)).sum::<u32>();
            assert_eq!(given as usize, PLACES);
            let occurs = |symbol: usize| table.frequencies.get(symbol).is_some_and(|frequency| *frequency > 0);
            assert!((0..SYMBOLS).all(|symbol| counts[symbol] == 0 || occurs(symbol)));
            assert!(table.frequencies.iter().all(|frequency| usize::from(*frequency) < PLACES));
            let mut bytes = Vec::new();
            let mut bits = BitWriter::after(&mut bytes, 0);
            table.write(&mut bits);
            bits.finish();
            let mut bits = BitReader::new(&bytes);
            assert_eq!(Table::read(&mut bits).as_ref(), Some(&table));
            assert!(bits.finished());
        }
    }

    #[test]
    fn a_table_costs_about_the_entropy() {
        let mut counts = [0; SYMBOLS];
        for (symbol, count) in counts.iter_mut().enumerate().take(60) {
            let distance = symbol as f64 - 45.0;
            *count = (1e6 * (-distance * distance / 300.0).exp()) as u32;
        }
        let total: f64 = counts.iter().map(|count| f64::from(*count)).sum();
        let entropy: f64 = counts
            .iter()
            .filter(|count| **count > 0)
            .map(|count| f64::from(*count) * (total / f64::from(*count)).log2())
            .sum();
        assert!(Table::of(&counts).cost(&counts) < 1.001 * entropy);
    }

    #[test]
    fn any_bits_are_a_table_or_none() {
        let random = &mut Random(11);
        for _ in 0..20_000 {
            let mut bytes: Vec<u8> = (0..random.below(80)).map(|_| (random.next() | random.next()) as u8).collect();
            bytes.insert(0, random.below(30) as u8);
            if let Some(table) = Table::read(&mut BitReader::new(&bytes)) {
                assert_eq!(table.frequencies.iter().map(|frequency| usize::from(*frequency)).sum::<usize>(), PLACES);
            }
        }
    }
}
