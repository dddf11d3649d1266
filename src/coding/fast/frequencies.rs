//! How often each symbol is expected in each context set, and where it lies among all 2^12 places.
//!
//! Symbols are counted as they are coded; from time to time the frequencies of sets that have seen enough new ones are
//! made again from the counts. In between nothing changes, so that a step of coding is two look-ups.

use std::sync::OnceLock;

use crate::model::context::GROUP;
use crate::model::context::{self, SETS, UNARY};
use crate::model::scale::CLASSES;

/// log2 of the number of places that the symbols of a set share.
pub(crate) const BITS: u32 = 12;
/// Places.
pub(crate) const PLACES: usize = 1 << BITS;
/// Symbols, each with at least one place.
pub(crate) const SYMBOLS: usize = 16;
/// The last symbol: what is too large for the others.
pub(crate) const ESCAPE: u32 = SYMBOLS as u32 - 1;

/// Sets after these are never in use.
const USED_SETS: usize = 4 * CLASSES;

/// What a symbol adds to its count; the counts of a set start with a sum of [`PLACES`], so with the weight of 16 symbols.
const VISIT: u32 = 256;
/// Symbols until the frequencies are made anew for the first time, and at last.
const FIRST_REFRESH: usize = 256;
const LAST_REFRESH: usize = 4096;

/// Of each set and symbol: its first place, from bit 12 the symbol, and in the upper half how many places it has.
pub(crate) type Ranges = [u32; SETS * SYMBOLS];
/// Of each set and place: the symbol. And three bytes, so that four can be read anywhere.
pub(crate) type Symbols = [u8; SETS * PLACES + 3];

/// See the module's description.
#[derive(Clone)]
#[cfg_attr(test, derive(PartialEq, Debug))]
pub(crate) struct Frequencies {
    counts: Box<Ranges>,
    /// Sums of counts that the frequencies were made from.
    made: [u32; SETS],
    pub(crate) ranges: Box<Ranges>,
    /// Left empty by an encoder.
    symbols: Option<Box<Symbols>>,
    age: usize,
    refresh: usize,
}

fn boxed<T: Copy, const N: usize>(value: T) -> Box<[T; N]> {
    vec![value; N].try_into().ok().expect("so many")
}

impl Frequencies {
    /// Those that every chunk starts with, for an encoder.
    pub(crate) fn new() -> Self {
        initial(false).clone()
    }

    /// The same with symbols by place.
    pub(crate) fn with_symbols() -> Self {
        initial(true).clone()
    }

    fn initial(with_symbols: bool) -> Self {
        let mut frequencies = Self {
            counts: boxed(0),
            made: [PLACES as u32; SETS],
            ranges: boxed(0),
            symbols: with_symbols.then(|| boxed(0)),
            age: 0,
            refresh: FIRST_REFRESH,
        };
        for set in 0..SETS {
            let zigzag = is_zigzag(set);
            frequencies.counts[SYMBOLS * set..SYMBOLS * (set + 1)].copy_from_slice(&first_counts(set, zigzag));
            frequencies.make(set);
        }
        frequencies
    }

    /// Back to the start.
    pub(crate) fn reset(&mut self) {
        let start = initial(true);
        for set in 0..SETS {
            let ranges = SYMBOLS * set..SYMBOLS * (set + 1);
            if self.made[set] != start.made[set] {
                let places = PLACES * set..PLACES * (set + 1);
                self.ranges[ranges.clone()].copy_from_slice(&start.ranges[ranges.clone()]);
                if let (Some(symbols), Some(start)) = (&mut self.symbols, &start.symbols) {
                    symbols[places.clone()].copy_from_slice(&start[places]);
                }
            }
            self.counts[ranges.clone()].copy_from_slice(&start.counts[ranges]);
        }
        (self.made, self.age, self.refresh) = (start.made, start.age, start.refresh);
    }

    /// Whether both are the same, but for symbols by place, which follow from the ranges.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn agree(&self, other: &Self) -> bool {
        (&self.counts, self.made, &self.ranges) == (&other.counts, other.made, &other.ranges)
            && (self.age, self.refresh) == (other.age, other.refresh)
    }

    /// Symbols by place; only a decoder has them.
    #[inline(always)]
    pub(crate) fn symbols(&self) -> &Symbols {
        self.symbols.as_ref().expect("a decoder has them")
    }

    /// Counts symbols; an entry is `SYMBOLS * set + symbol`.
    #[inline(always)]
    pub(crate) fn count<const N: usize>(&mut self, entries: &[u32; N]) {
        let counts = &mut *self.counts;
        for entry in entries {
            let count = &mut counts[*entry as usize % (SETS * SYMBOLS)];
            *count = count.wrapping_add(VISIT);
        }
    }

    /// So many symbols were coded since the last call: makes frequencies anew if it is time.
    #[inline(always)]
    pub(crate) fn pass(&mut self, count: usize) {
        self.age += count;
        if self.age >= self.refresh {
            self.age = 0;
            self.refresh = (2 * self.refresh).min(LAST_REFRESH);
            self.renew();
        }
    }

    #[inline(never)]
    fn renew(&mut self) {
        for set in 0..USED_SETS {
            let sum: u32 = self.counts[SYMBOLS * set..SYMBOLS * (set + 1)].iter().sum();
            if 4 * u64::from(sum - self.made[set]) >= u64::from(self.made[set]) {
                self.made[set] = sum;
                self.make(set);
            }
        }
    }

    /// Frequencies of a set from its counts: a place for each symbol, and the rest in proportion; what rounding leaves goes
    /// to the most frequent, the first of several.
    fn make(&mut self, set: usize) {
        let counts: &[u32; SYMBOLS] = self.counts[SYMBOLS * set..SYMBOLS * (set + 1)].try_into().expect("so many");
        let spare = (PLACES - SYMBOLS) as u64;
        let scale = (spare << 32) / u64::from(self.made[set]);
        let mut frequencies = counts.map(|count| 1 + ((u64::from(count) * scale) >> 32) as u32);
        let mut most = 0;
        for symbol in 1..SYMBOLS {
            most = if counts[symbol] > counts[most] { symbol } else { most };
        }
        frequencies[most] += PLACES as u32 - frequencies.iter().sum::<u32>();
        let mut start = 0;
        for (symbol, frequency) in frequencies.into_iter().enumerate() {
            self.ranges[SYMBOLS * set + symbol] = start | (symbol as u32) << BITS | frequency << 16;
            if let Some(symbols) = &mut self.symbols {
                symbols[PLACES * set + start as usize..][..frequency as usize].fill(symbol as u8);
            }
            start += frequency;
        }
    }
}

/// Whether a set's symbols are residuals 0, 1, -1, 2, -2, ... instead of magnitudes: where the prediction leans, the sign is
/// worth knowing, unless magnitudes are large.
fn is_zigzag(set: usize) -> bool {
    let (class, leaning) = context::class_and_leaning(set);
    leaning && crate::model::scale::LOW_BITS[class] == 0
}

fn initial(with_symbols: bool) -> &'static Frequencies {
    static INITIAL: [OnceLock<Frequencies>; 2] = [const { OnceLock::new() }; 2];
    INITIAL[usize::from(with_symbols)].get_or_init(|| Frequencies::initial(with_symbols))
}

/// Counts at the start, from the chances of the binary decisions (`context.rs`).
fn first_counts(set: usize, zigzag: bool) -> [u32; SYMBOLS] {
    let contexts = &context::initial()[set];
    let mut counts = [0; SYMBOLS];
    // The chance of a magnitude of at least k, in units of 2^-22.
    let mut left = 1u64 << 22;
    for k in 0..UNARY {
        let more = (left * u64::from(contexts[context::group_start(k / GROUP) + k % GROUP] >> 10)) >> 22;
        let here = ((left - more) >> (22 - BITS)) as u32;
        if !zigzag {
            counts[k.min(SYMBOLS - 1)] += here;
        } else if k == 0 {
            counts[0] = here;
        } else {
            counts[(2 * k - 1).min(SYMBOLS - 1)] += here - here / 2;
            counts[(2 * k).min(SYMBOLS - 1)] += here / 2;
        }
        left = more;
    }
    // What is left, and what was rounded down.
    counts[SYMBOLS - 1] += PLACES as u32 - counts.iter().sum::<u32>();
    counts
}
