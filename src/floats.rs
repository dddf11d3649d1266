//! Floating-point values that come back bit for bit, at the speed of memory. FORMAT.md, section 10.7.
//!
//! The upper bits of a magnitude, its exponent and the first bits of its mantissa, are a symbol (`coding/rans.rs`), counted from
//! the lowest one in use; 0 is an escape, after which the whole pattern is stored. The lower bits and the sign have almost one
//! bit of entropy each and are copied.
//!
//! Rows and columns of a matrix differ in size. A scale for each, in parts of an octave, is added up for a value: whole octaves are
//! taken from its symbol, what remains selects one of a few tables.

use std::cell::Cell;

use crate::coding::bits::{BitReader, BitWriter, ones};
use crate::coding::rans::{self, Decode, Decoder, SYMBOLS, Table};
use crate::exact::{Pattern, precisions};
use crate::model::context::{Machine, Portable, Task};

/// Bits of the mantissa in a symbol. More would find little: within a quarter of an octave densities are almost flat.
const JOINED: u32 = 2;
/// The most that a chunk may have.
const MOST_JOINED: u32 = 7;
/// The symbol of values that have none.
const ESCAPE: u8 = 0;
/// Values that are looked at to place the symbols.
const SAMPLE: usize = 1 << 12;
/// Symbols that are rarer than one in so many become escapes: their share of a table would cost the others more.
const RARE: u32 = 1 << 15;
/// The largest scale of a row or column, and the one of a usual size.
const LAST_SCALE: i32 = 31;
const USUAL_SCALE: i32 = 16;
/// log2 of the number of tables, at most, with scales: parts of an octave.
const MOST_PARTS: u32 = 4;
/// Values from which a chunk is tried with few choices only.
const MANY: usize = 1 << 16;
/// Values that are decoded in turn: a multiple of the lanes.
const BLOCK: usize = 1 << 10;
/// Words of several values' copied bits that are written in turn.
const WORDS: usize = 32;
/// Values among which escapes are looked for one by one, where there are any.
const PART: usize = 64;

/// Scales of rows and columns.
#[derive(Clone, Default)]
struct Scales {
    /// log2 of the parts of an octave, and so of the number of tables.
    parts: u32,
    /// One for each row of the chunk, or one for all.
    rows: Vec<u8>,
    /// One for each column, or one for all.
    columns: Vec<u8>,
}

/// A run of values whose mantissas end in so many zero bits.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Run {
    count: usize,
    zeros: u32,
}

/// What a chunk begins with.
struct Head {
    /// Bits of the mantissa below the symbol.
    low: u32,
    /// Bits of the mantissa in the symbol.
    joined: u32,
    /// What symbol 0 would stand for, less shifts; modulo 2^64.
    base: u64,
    escapes: usize,
    runs: Vec<Run>,
    scales: Option<Scales>,
    tables: Vec<Table>,
}

impl Head {
    /// Bits that are copied, of all values.
    fn raw_bits(&self) -> usize {
        self.runs.iter().map(|run| run.count * raw_width(self.low, run.zeros) as usize).sum()
    }

    fn write<P: Pattern>(&self, bits: &mut BitWriter) {
        bits.put(u64::from(self.low), 6);
        let width = P::BITS - 1 - self.low;
        bits.put_long(self.base & ones(width), width);
        bits.put_number(self.escapes as u32);
        bits.put_number(self.runs.len() as u32 - 1);
        for (number, run) in self.runs.iter().enumerate() {
            bits.put_number(run.zeros);
            if number + 1 < self.runs.len() {
                bits.put_number(run.count as u32 - 1);
            }
        }
        bits.put(u64::from(self.scales.is_some()), 1);
        if let Some(scales) = &self.scales {
            bits.put_number(scales.parts);
            for scales in [&scales.rows, &scales.columns] {
                bits.put(u64::from(scales.len() > 1), 1);
                if scales.len() > 1 {
                    scales.iter().for_each(|scale| bits.put_signed(i32::from(*scale) - USUAL_SCALE));
                }
            }
        }
        self.tables.iter().for_each(|table| table.write(bits));
    }

    /// Reads what [`Self::write`] wrote, for `count` values in rows of `width`.
    fn read<P: Pattern>(mantissa: u32, width: usize, count: usize, bits: &mut BitReader) -> Option<Self> {
        let low = bits.take(6) as u32;
        if low > mantissa || mantissa - low > MOST_JOINED {
            return None;
        }
        let base = bits.take_long(P::BITS - 1 - low);
        let escapes = bits.take_number()? as usize;
        let more = bits.take_number()? as usize;
        let (mut runs, mut left) = (Vec::new(), count);
        for number in 0..=more {
            let zeros = bits.take_number()?;
            let count = if number < more { bits.take_number()? as usize + 1 } else { left };
            if zeros > low || count > left || count == 0 {
                return None;
            }
            left -= count;
            runs.push(Run { count, zeros });
        }
        let mut scales = None;
        if bits.take(1) == 1 {
            let parts = bits.take_number()?;
            let mut read = |count: usize| {
                if bits.take(1) == 0 {
                    return Some(vec![USUAL_SCALE as u8]);
                }
                let mut scales = Vec::new();
                for _ in 0..count {
                    let scale = bits.take_signed()?.checked_add(USUAL_SCALE)?;
                    if !(0..=LAST_SCALE).contains(&scale) {
                        return None;
                    }
                    scales.push(scale as u8);
                }
                Some(scales)
            };
            let (rows, columns) = (read(count.div_ceil(width))?, read(width.min(count))?);
            if parts > MOST_PARTS {
                return None;
            }
            scales = Some(Scales { parts, rows, columns });
        }
        let number = scales.as_ref().map_or(1, |scales| 1 << scales.parts);
        let mut tables = Vec::with_capacity(number);
        for _ in 0..number {
            tables.push(Table::read(bits)?);
        }
        Some(Self { low, joined: mantissa - low, base, escapes, runs, scales, tables })
    }
}

/// Copied bits of a value.
const fn raw_width(low: u32, zeros: u32) -> u32 {
    low - zeros + 1
}

/// Adds up scales of `sums.len()` values from number `start` of the chunk on, in rows of `width`.
#[inline(always)]
fn add_scales(scales: &Scales, width: usize, start: usize, sums: &mut [u8]) {
    let (mut row, mut column) = (start / width, start % width);
    let mut rest = sums;
    while !rest.is_empty() {
        let (now, later) = rest.split_at_mut(rest.len().min(width - column));
        let of_row = scales.rows[if scales.rows.len() > 1 { row } else { 0 }];
        if scales.columns.len() > 1 {
            let columns = &scales.columns[column..column + now.len()];
            for index in 0..now.len() {
                now[index] = of_row + columns[index];
            }
        } else {
            now.fill(of_row + scales.columns[0]);
        }
        (row, column, rest) = (row + 1, 0, later);
    }
}

/// The table of each sum of scales, and what is added to its symbol, modulo 256.
#[inline(always)]
fn select(parts: u32, joined: u32, sums: &[u8], numbers: &mut [u8], shifts: &mut [u8]) {
    let count = sums.len();
    let (numbers, shifts) = (&mut numbers[..count], &mut shifts[..count]);
    for index in 0..count {
        numbers[index] = sums[index] & ((1 << parts) - 1);
        shifts[index] = (sums[index] >> parts) << joined;
    }
}

/// Appends the code of a chunk of `patterns` in rows of `width` to `out`: floating-point values with so many bits of mantissa.
/// With `scaled`, scales of rows and columns are used where they save bits.
pub(crate) fn encode_on<M: Machine, P: Pattern>(
    mantissa: u32,
    width: usize,
    scaled: bool,
    patterns: &[P],
    out: &mut Vec<u8>,
) {
    M::apart(Encoding { mantissa, width, scaled, patterns, out });
}

struct Encoding<'a, P> {
    mantissa: u32,
    width: usize,
    scaled: bool,
    patterns: &'a [P],
    out: &'a mut Vec<u8>,
}

impl<M, P: Pattern> Task<M> for Encoding<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { mantissa, width, scaled, patterns, out } = self;
        let joined = JOINED.min(mantissa);
        let low = mantissa - joined;
        let octaves = Octaves::of(mantissa, patterns);
        let mut best = Choice::of(low, joined, octaves.base(joined), width, patterns, None);
        if scaled && octaves.used() {
            for scales in candidates(mantissa, width, patterns, octaves) {
                let shift = ((2 * USUAL_SCALE as u64) >> scales.parts) << joined;
                let base = octaves.base(joined).wrapping_sub(shift);
                let other = Choice::of(low, joined, base, width, patterns, Some(scales));
                let worse = if other.bits < best.bits { std::mem::replace(&mut best, other) } else { other };
                leave(worse.symbols);
                worse.numbers.into_iter().for_each(leave);
            }
        }
        best.finish(mantissa, width, patterns, out);
    }
}

/// The octaves that values are in, mostly.
#[derive(Clone, Copy)]
struct Octaves {
    first: usize,
    last: usize,
}

impl Octaves {
    fn of<P: Pattern>(mantissa: u32, patterns: &[P]) -> Self {
        let fields = 1usize << (P::BITS - 1 - mantissa);
        let mut counts = vec![0u32; fields];
        for pattern in patterns.iter().step_by(patterns.len().div_ceil(SAMPLE).max(1)) {
            counts[(pattern.wide() >> mantissa) as usize % fields] += 1;
        }
        // Zeros and what is not finite are no size.
        (counts[0], counts[fields - 1]) = (0, 0);
        let reach = ((SYMBOLS - 1) >> JOINED.min(mantissa)).min(fields);
        let mut inside: u32 = counts[..reach].iter().sum();
        let (mut start, mut most) = (0, inside);
        for next in reach..fields {
            inside = inside + counts[next] - counts[next - reach];
            if inside > most {
                (start, most) = (next - reach + 1, inside);
            }
        }
        let window = &counts[start..start + reach];
        let first = window.iter().position(|count| *count > 0).unwrap_or(0);
        let last = window.iter().rposition(|count| *count > 0).unwrap_or(0);
        Self { first: start + first, last: start + last }
    }

    fn used(self) -> bool {
        self.last > 0
    }

    /// Symbol 0's upper bits such that these octaves are in the middle of the others'.
    fn base(self, joined: u32) -> u64 {
        let reach = (SYMBOLS - 1) >> joined;
        let spare = reach.saturating_sub(self.last + 1 - self.first) / 2;
        ((self.first.saturating_sub(spare) as u64) << joined).wrapping_sub(1)
    }
}

thread_local! {
    /// Left by former calls on this thread: fresh memory is slow at first.
    static ROOMS: Cell<Vec<Vec<u8>>> = const { Cell::new(Vec::new()) };
}

/// So many bytes of any value.
fn room(count: usize) -> Vec<u8> {
    let mut rooms = ROOMS.take();
    let mut room = rooms.pop().unwrap_or_default();
    ROOMS.set(rooms);
    room.resize(count, 0);
    room
}

/// Kept for a later call of [`room`], if there are not many.
fn leave(room: Vec<u8>) {
    let mut rooms = ROOMS.take();
    if rooms.len() < 4 {
        rooms.push(room);
    }
    ROOMS.set(rooms);
}

/// Symbols of a chunk, and the bits that they and their tables take.
struct Choice {
    low: u32,
    joined: u32,
    base: u64,
    scales: Option<Scales>,
    symbols: Vec<u8>,
    numbers: Option<Vec<u8>>,
    tables: Vec<Table>,
    bits: f64,
}

impl Choice {
    #[inline(always)]
    fn of<P: Pattern>(low: u32, joined: u32, base: u64, width: usize, patterns: &[P], scales: Option<Scales>) -> Self {
        let count = patterns.len();
        let (mut symbols, mut numbers) = (room(count), None);
        let mut side = 0;
        match &scales {
            None => {
                for (patterns, symbols) in patterns.chunks(BLOCK).zip(symbols.chunks_mut(BLOCK)) {
                    symbols_of(low, base, patterns, None, symbols);
                }
            }
            Some(scales) => {
                let mut tables = room(count);
                let (mut sums, mut shifts) = ([0; BLOCK], [0; BLOCK]);
                let mut start = 0;
                while start < count {
                    let end = count.min(start + BLOCK);
                    let sums = &mut sums[..end - start];
                    add_scales(scales, width, start, sums);
                    select(scales.parts, joined, sums, &mut tables[start..end], &mut shifts);
                    symbols_of(low, base, &patterns[start..end], Some(&shifts), &mut symbols[start..end]);
                    start = end;
                }
                side = 4 * (scales.rows.len() + scales.columns.len());
                numbers = Some(tables);
            }
        }
        let number = scales.as_ref().map_or(1, |scales| 1 << scales.parts);
        if number == 1 {
            numbers = None;
        }
        let mut counts = rans::count(number, numbers.as_deref(), &symbols);
        escape_rare(&mut counts, numbers.as_deref(), &mut symbols);
        let tables: Vec<Table> = counts.iter().map(Table::of).collect();
        let mut bits = side as f64;
        for (table, counts) in tables.iter().zip(&counts) {
            let escapes = f64::from(counts[usize::from(ESCAPE)]) * f64::from(P::BITS);
            bits += table.cost(counts) + escapes + 3.0 * table.symbols() as f64;
        }
        Self { low, joined, base, scales, symbols, numbers, tables, bits }
    }

    #[inline(always)]
    fn finish<P: Pattern>(self, mantissa: u32, width: usize, patterns: &[P], out: &mut Vec<u8>) {
        let Self { low, joined, base, scales, symbols, numbers, tables, .. } = self;
        let mut escaped = Vec::new();
        for (symbols, patterns) in symbols.chunks(PART).zip(patterns.chunks(PART)) {
            if escapes_any(symbols) {
                let pairs = symbols.iter().zip(patterns);
                escaped.extend(pairs.filter(|(symbol, _)| **symbol == ESCAPE).map(|(_, pattern)| *pattern));
            }
        }
        let runs = runs(mantissa, low, width, patterns);
        let head = Head { low, joined, base, escapes: escaped.len(), runs, scales, tables };
        let mut bits = BitWriter::after(out, head.raw_bits() / 8 + 1024);
        head.write::<P>(&mut bits);
        bits.finish();
        let mut bits = BitWriter::after(out, head.raw_bits() / 8 + 64);
        let mut start = 0;
        for run in &head.runs {
            put_raw(low, run.zeros, &patterns[start..start + run.count], &mut bits);
            start += run.count;
        }
        bits.finish();
        for pattern in &escaped {
            out.extend_from_slice(&pattern.wide().to_le_bytes()[..P::BITS as usize / 8]);
        }
        rans::encode(&head.tables, numbers.as_deref(), &symbols, out);
        leave(symbols);
        numbers.into_iter().for_each(leave);
    }
}

/// The symbols of values, or [`ESCAPE`].
#[inline(always)]
fn symbols_of<P: Pattern>(low: u32, base: u64, patterns: &[P], shifts: Option<&[u8]>, symbols: &mut [u8]) {
    let count = symbols.len();
    let patterns = &patterns[..count];
    // Numbers as short as they can be, for vectors.
    if P::BITS <= 32 {
        let (mask, base) = (ones(P::BITS - 1) as u32, base as u32);
        let of = |pattern: P| ((pattern.wide() as u32 & mask) >> low).wrapping_sub(base);
        match shifts {
            None => {
                for index in 0..count {
                    let upper = of(patterns[index]);
                    symbols[index] = if upper < SYMBOLS as u32 { upper as u8 } else { ESCAPE };
                }
            }
            Some(shifts) => {
                let shifts = &shifts[..count];
                for index in 0..count {
                    let upper = of(patterns[index]).wrapping_sub(u32::from(shifts[index]));
                    symbols[index] = if upper < SYMBOLS as u32 { upper as u8 } else { ESCAPE };
                }
            }
        }
    } else {
        for index in 0..count {
            let upper = (patterns[index].wide() & ones(P::BITS - 1)) >> low;
            let upper = upper.wrapping_sub(base).wrapping_sub(shifts.map_or(0, |shifts| u64::from(shifts[index])));
            symbols[index] = if upper < SYMBOLS as u64 { upper as u8 } else { ESCAPE };
        }
    }
}

/// Makes rare symbols escapes.
#[inline(always)]
fn escape_rare(counts: &mut [[u32; SYMBOLS]], numbers: Option<&[u8]>, symbols: &mut [u8]) {
    let mut kept = vec![[true; SYMBOLS]; counts.len()];
    let mut all = true;
    for (kept, counts) in kept.iter_mut().zip(counts.iter_mut()) {
        let least = counts.iter().sum::<u32>() / RARE;
        for symbol in 1..SYMBOLS {
            if counts[symbol] > 0 && counts[symbol] <= least {
                counts[usize::from(ESCAPE)] += counts[symbol];
                (kept[symbol], counts[symbol], all) = (false, 0, false);
            }
        }
    }
    if all {
        return;
    }
    // They are the smallest and the largest, mostly: what is between is passed by quickly.
    let (mut first, mut last) = (1, SYMBOLS - 1);
    for counts in counts.iter() {
        first = (1..SYMBOLS).find(|symbol| counts[*symbol] > 0).unwrap_or(SYMBOLS).max(first);
        last = (1..SYMBOLS).rfind(|symbol| counts[*symbol] > 0).unwrap_or(0).min(last);
    }
    let passed = first <= last && kept.iter().all(|kept| kept[first..=last].iter().all(|kept| *kept));
    let (first, reach) = if passed { (first as u8, (last - first) as u8) } else { (ESCAPE, 0) };
    let mut start = 0;
    for symbols in symbols.chunks_mut(PART) {
        let mut beyond = false;
        for symbol in symbols.iter() {
            beyond |= symbol.wrapping_sub(first) > reach;
        }
        if beyond {
            let zeros = [0; PART];
            let numbers = numbers.map_or(&zeros[..], |numbers| &numbers[start..]);
            for (symbol, number) in symbols.iter_mut().zip(numbers) {
                *symbol = if kept[usize::from(*number)][usize::from(*symbol)] { *symbol } else { ESCAPE };
            }
        }
        start += symbols.len();
    }
}

/// Runs of values with as many zero bits at the end of their mantissas.
fn runs<P: Pattern>(mantissa: u32, low: u32, width: usize, patterns: &[P]) -> Vec<Run> {
    let (common, rows) = precisions(mantissa, width, patterns);
    let Some(rows) = rows else { return vec![Run { count: patterns.len(), zeros: common.min(low) }] };
    let mut runs: Vec<Run> = Vec::new();
    for (zeros, row) in rows.into_iter().zip(patterns.chunks(width)) {
        let zeros = zeros.min(low);
        match runs.last_mut() {
            Some(run) if run.zeros == zeros => run.count += row.len(),
            _ => runs.push(Run { count: row.len(), zeros }),
        }
    }
    runs
}

/// Appends what is copied of values.
#[inline(always)]
fn put_raw<P: Pattern>(low: u32, zeros: u32, patterns: &[P], bits: &mut BitWriter) {
    let (width, sign) = (raw_width(low, zeros), low - zeros);
    let mask = ones(low);
    let field = |pattern: P| (pattern.wide() & mask) >> zeros | pattern.wide() >> (P::BITS - 1) << sign;
    let mut rest = patterns;
    // Several at once as far as they fit.
    if P::BITS == 16 && width <= 14 {
        let mut done = 0;
        for block in patterns.chunks_exact(4 * WORDS) {
            let mut words = [0; WORDS];
            for (word, [a, b, c, d]) in words.iter_mut().zip(block.as_chunks::<4>().0) {
                let four = a.wide() | b.wide() << 16 | c.wide() << 32 | d.wide() << 48;
                // A field in each quarter, then two in each half, then all together.
                let each = (four & (mask * 0x0001_0001_0001_0001)) >> zeros;
                let each = each | (four >> 15 & 0x0001_0001_0001_0001) << sign;
                let two = each & 0x0000_ffff_0000_ffff | (each >> 16 & 0x0000_ffff_0000_ffff) << width;
                *word = two & 0xffff_ffff | two >> 32 << (2 * width);
            }
            bits.put_each(&words, 4 * width);
            done += block.len();
        }
        rest = &patterns[done..];
    } else if P::BITS == 32 && width <= 28 {
        let mut done = 0;
        for block in patterns.chunks_exact(2 * WORDS) {
            let mut words = [0; WORDS];
            for (word, [a, b]) in words.iter_mut().zip(block.as_chunks::<2>().0) {
                *word = field(*a) | field(*b) << width;
            }
            bits.put_each(&words, 2 * width);
            done += block.len();
        }
        rest = &patterns[done..];
    }
    for pattern in rest {
        bits.put(field(*pattern), width);
    }
}

/// Scales that might save bits.
#[inline(always)]
fn candidates<P: Pattern>(mantissa: u32, width: usize, patterns: &[P], octaves: Octaves) -> Vec<Scales> {
    let count = patterns.len();
    let (height, width) = (count.div_ceil(width), width.min(count));
    if height < 2 && width < 2 {
        return Vec::new();
    }
    // Sums of magnitudes, with as many bits as sums leave: octaves far below the last one count as one.
    let joined = JOINED.min(mantissa);
    let lowest = octaves.last.saturating_sub(15).max(1) as u32;
    let of = |pattern: P| {
        let upper = ((pattern.wide() & ones(P::BITS - 1)) >> (mantissa - joined)) as u32;
        let octave = (upper >> joined).clamp(lowest, lowest + 17) - lowest;
        (upper & ((1 << joined) - 1) | 1 << joined) << octave
    };
    let mut columns = vec![0u64; width];
    let mut rows = Vec::with_capacity(height);
    let mut values = vec![0u32; width];
    for row in patterns.chunks(width) {
        for (value, pattern) in values.iter_mut().zip(row) {
            *value = of(*pattern);
        }
        let values = &values[..row.len()];
        let mut sum = 0u64;
        for value in values {
            sum += u64::from(*value);
        }
        rows.push(eighths(sum * width as u64 / row.len() as u64));
        // Each row counts as much.
        let octave = rows[rows.len() - 1] / 8;
        for (column, value) in columns.iter_mut().zip(values) {
            *column += (u64::from(*value) << 24) >> octave.min(40);
        }
    }
    let columns: Vec<i32> = columns.into_iter().map(eighths).collect();
    let scaled = |parts: u32, eighths: &[i32]| {
        let mut sorted = eighths.to_vec();
        sorted.sort_unstable();
        let (usual, each) = (sorted[sorted.len() / 2], 8 >> parts);
        let scale = |one: &i32| USUAL_SCALE + (one - usual + each / 2).div_euclid(each);
        eighths.iter().map(|one| scale(one).clamp(0, LAST_SCALE) as u8).collect()
    };
    let one = || vec![USUAL_SCALE as u8];
    let mut found = Vec::new();
    for parts in if count < MANY { 0..3 } else { 2..3 } {
        if height > 1 && width > 1 {
            found.push(Scales { parts, rows: scaled(parts, &rows), columns: scaled(parts, &columns) });
        }
        if count < MANY && height > 1 {
            found.push(Scales { parts, rows: scaled(parts, &rows), columns: one() });
        }
        if count < MANY && width > 1 {
            found.push(Scales { parts, rows: one(), columns: scaled(parts, &columns) });
        }
    }
    found
}

/// log2 in eighths of an octave, rounded down.
fn eighths(x: u64) -> i32 {
    let x = x.max(1);
    let octave = x.ilog2();
    let leading = (x << (63 - octave) >> 56) as u8;
    8 * octave as i32 + rans::WEIGHTS.iter().filter(|weight| u64::from(leading) >= **weight).count() as i32 - 1
}

/// How upper bits and copied ones become patterns.
#[derive(Clone, Copy)]
pub(crate) struct Joint {
    pub(crate) low: u32,
    pub(crate) zeros: u32,
    pub(crate) base: u64,
}

/// How the machine joins values. One implementation is plain Rust, the other SIMD; both do the same.
pub(crate) trait Join {
    /// Fills `patterns` from as many symbols, what is added to these, and raw bits.
    #[inline(always)]
    fn join<P: Pattern>(joint: Joint, symbols: &[u8], shifts: &[u8], raw: &mut BitReader, patterns: &mut [P]) {
        join_in_turn(joint, symbols, shifts, raw, patterns);
    }
}

impl Join for Portable {}

/// [`Join::join`] as it is defined.
#[inline(always)]
pub(crate) fn join_in_turn<P: Pattern>(
    joint: Joint,
    symbols: &[u8],
    shifts: &[u8],
    raw: &mut BitReader,
    patterns: &mut [P],
) {
    let Joint { low, zeros, base } = joint;
    let width = raw_width(low, zeros);
    for ((pattern, symbol), shift) in patterns.iter_mut().zip(symbols).zip(shifts) {
        let upper = base.wrapping_add(u64::from(*symbol)).wrapping_add(u64::from(*shift));
        let field = raw.take(width);
        let magnitude = (upper << low | (field & ones(low - zeros)) << zeros) & ones(P::BITS - 1);
        *pattern = P::of(magnitude | field >> (low - zeros) << (P::BITS - 1));
    }
}

/// Decodes a chunk of as many values as there are `patterns`; false if `bytes` are not exactly its code.
pub(crate) fn decode_on<M: Machine + Decode + Join, P: Pattern>(
    mantissa: u32,
    width: usize,
    bytes: &[u8],
    patterns: &mut [P],
) -> bool {
    M::apart(Decoding { mantissa, width, bytes, patterns }).is_some()
}

struct Decoding<'a, P> {
    mantissa: u32,
    width: usize,
    bytes: &'a [u8],
    patterns: &'a mut [P],
}

impl<M: Decode + Join, P: Pattern> Task<M> for Decoding<'_, P> {
    type Output = Option<()>;

    #[inline(always)]
    fn run(self) -> Option<()> {
        let Self { mantissa, width, bytes, patterns } = self;
        let count = patterns.len();
        let mut bits = BitReader::new(bytes);
        let head = Head::read::<P>(mantissa, width, count, &mut bits)?;
        let (_, rest) = bytes.split_at_checked(bits.end_of_byte()?)?;
        let (raw, rest) = rest.split_at_checked(head.raw_bits().div_ceil(8))?;
        let item = P::BITS as usize / 8;
        let (escapes, rest) = rest.split_at_checked(item * head.escapes)?;
        let mut decoder = Decoder::new(&head.tables, count, rest)?;
        let (mut raw, mut escapes) = (BitReader::new(raw), escapes.chunks_exact(item));
        let (mut symbols, mut numbers, mut sums, mut shifts) = ([0; BLOCK], [0; BLOCK], [0; BLOCK], [0; BLOCK]);
        let mut runs = head.runs.iter();
        let mut run = *runs.next()?;
        let mut start = 0;
        for patterns in patterns.chunks_mut(BLOCK) {
            let symbols = &mut symbols[..patterns.len()];
            let numbers = match &head.scales {
                None => None,
                Some(scales) => {
                    let sums = &mut sums[..patterns.len()];
                    add_scales(scales, width, start, sums);
                    select(scales.parts, head.joined, sums, &mut numbers, &mut shifts);
                    (scales.parts > 0).then_some(&numbers[..patterns.len()])
                }
            };
            M::decode(&mut decoder, numbers, symbols);
            let mut done = 0;
            while done < patterns.len() {
                while run.count == 0 {
                    run = *runs.next()?;
                }
                let end = patterns.len().min(done + run.count);
                let joint = Joint { low: head.low, zeros: run.zeros, base: head.base };
                M::join(joint, &symbols[done..end], &shifts[done..end], &mut raw, &mut patterns[done..end]);
                run.count -= end - done;
                done = end;
            }
            for (symbols, patterns) in symbols.chunks(PART).zip(patterns.chunks_mut(PART)) {
                if escapes_any(symbols) {
                    restore(symbols, &mut escapes, patterns)?;
                }
            }
            start += patterns.len();
        }
        (decoder.finished() && raw.finished() && escapes.next().is_none()).then_some(())
    }
}

/// Whether any of these values is escaped.
#[inline(always)]
fn escapes_any(symbols: &[u8]) -> bool {
    let mut any = false;
    for symbol in symbols {
        any |= *symbol == ESCAPE;
    }
    any
}

/// Puts escaped values in their places.
#[cold]
#[inline(never)]
fn restore<P: Pattern>(symbols: &[u8], escapes: &mut std::slice::ChunksExact<u8>, patterns: &mut [P]) -> Option<()> {
    for (symbol, pattern) in symbols.iter().zip(patterns) {
        if *symbol == ESCAPE {
            let mut bytes = [0; 8];
            let stored = escapes.next()?;
            bytes[..stored.len()].copy_from_slice(stored);
            *pattern = P::of(u64::from_le_bytes(bytes));
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::dispatch;
    use crate::testing::Random;

    fn gaussian(random: &mut Random) -> f64 {
        (0..12).map(|_| (random.next() >> 11) as f64 / (1u64 << 53) as f64).sum::<f64>() - 6.0
    }

    /// Patterns of weights, of rows and columns of many sizes, and here and there of anything.
    fn patterns<P: Pattern>(mantissa: u32, width: usize, count: usize, random: &mut Random) -> Vec<P> {
        let columns: Vec<f64> = (0..width).map(|_| gaussian(random).exp2()).collect();
        let strange = random.below(3) * random.below(3);
        let precise = random.below(3) > 0;
        let mut scale = 1.0;
        (0..count)
            .map(|index| {
                if index % width == 0 {
                    scale = gaussian(random).exp2() / 10.0;
                }
                // The nearest double, its exponent moved to that of the type, and the rest of its mantissa cut off.
                let exponents = P::BITS - 1 - mantissa;
                let bits = (gaussian(random) * scale * columns[index % width]).to_bits();
                let exponent = (bits >> 52 & 2047) as i64 - 1023 + (1 << (exponents - 1)) - 1;
                let exponent = exponent.clamp(0, (1 << exponents) - 2) as u64;
                let low = if precise || !(index / width).is_multiple_of(3) { 0 } else { ones(mantissa / 2) };
                let magnitude = exponent << mantissa | (bits & ones(52)) >> (52 - mantissa) & !low;
                let one = random.below(1000);
                if one < 10 * strange {
                    P::of(if one.is_multiple_of(2) { random.next() } else { 0 })
                } else {
                    P::of(magnitude | bits >> 63 << (P::BITS - 1))
                }
            })
            .collect()
    }

    fn encoded<P: Pattern>(mantissa: u32, width: usize, scaled: bool, patterns: &[P]) -> Vec<u8> {
        let (mut plain, mut fast) = (Vec::new(), Vec::new());
        encode_on::<Portable, P>(mantissa, width, scaled, patterns, &mut plain);
        dispatch::encode_floats(mantissa, width, scaled, patterns, &mut fast);
        assert!(plain == fast);
        fast
    }

    /// What became of a chunk on either machine.
    fn decoded<P: Pattern>(mantissa: u32, width: usize, bytes: &[u8], count: usize) -> Option<Vec<u64>> {
        let (mut plain, mut fast) = (vec![P::default(); count], vec![P::default(); count]);
        let good = decode_on::<Portable, P>(mantissa, width, bytes, &mut plain);
        assert_eq!(good, dispatch::decode_floats(mantissa, width, bytes, &mut fast));
        let wide = |patterns: Vec<P>| patterns.into_iter().map(P::wide).collect::<Vec<u64>>();
        let (plain, fast) = (wide(plain), wide(fast));
        assert!(plain == fast);
        good.then_some(plain)
    }

    fn all_types(check: impl Fn(u64, &mut Random) + Copy) {
        for seed in 1..120 {
            check(seed, &mut Random(seed * 7919));
        }
    }

    fn comes_back<P: Pattern>(mantissa: u32, random: &mut Random) {
        let (many, wide) = (random.below(4) == 0, random.below(4) == 0);
        let width = 1 + random.below(if wide { 3000 } else { 60 });
        let count = 1 + random.below(if many { 100_000 } else { 3000 });
        let given: Vec<P> = patterns(mantissa, width, count, random);
        let wide: Vec<u64> = given.iter().map(|one| one.wide()).collect();
        let mut bytes = encoded(mantissa, width, random.below(2) == 0, &given);
        assert!(decoded::<P>(mantissa, width, &bytes, count).as_ref() == Some(&wide));
        bytes.push(0);
        assert!(decoded::<P>(mantissa, width, &bytes, count).is_none());
        bytes.truncate(bytes.len() - 2);
        assert!(decoded::<P>(mantissa, width, &bytes, count).is_none());
    }

    #[test]
    fn every_value_comes_back_on_every_machine() {
        all_types(|seed, random| match seed % 6 {
            0 => comes_back::<u64>(52, random),
            1 => comes_back::<u32>(23, random),
            2 => comes_back::<u16>(10, random),
            3 => comes_back::<u16>(7, random),
            4 => comes_back::<u8>(3, random),
            _ => comes_back::<u8>(2, random),
        });
    }

    #[test]
    fn damage_is_the_same_on_every_machine() {
        all_types(|seed, random| {
            let (width, count) = (1 + random.below(60), 1 + random.below(3000));
            let given: Vec<u16> = patterns(7, width, count, random);
            let mut bytes = encoded(7, width, seed % 2 == 0, &given);
            for _ in 0..30 {
                match random.below(4) {
                    0 => bytes.truncate(random.below(bytes.len() as u64 + 1)),
                    1 => bytes.iter_mut().take(random.below(60)).for_each(|byte| *byte = random.next() as u8),
                    _ if bytes.is_empty() => {}
                    _ => {
                        let place = random.below(bytes.len() as u64);
                        bytes[place] ^= 1 << random.below(8);
                    }
                }
                decoded::<u16>(7, width, &bytes, count);
                decoded::<u32>(23, width + 1, &bytes, count / 2 + 1);
                decoded::<u64>(52, width, &bytes, count);
                decoded::<u8>(2, width, &bytes, count);
            }
        });
    }

    #[test]
    fn all_patterns_of_16_bits_come_back() {
        let given: Vec<u16> = (0..=u16::MAX).collect();
        let wide: Vec<u64> = given.iter().map(|one| one.wide()).collect();
        for mantissa in [7, 10] {
            let bytes = encoded(mantissa, 256, true, &given);
            assert!(decoded::<u16>(mantissa, 256, &bytes, given.len()).as_ref() == Some(&wide));
        }
    }

    #[test]
    fn scales_of_rows_and_columns_and_short_mantissas_save_bits() {
        let random = &mut Random(77);
        let width = 300;
        let mut given: Vec<u32> = Vec::new();
        for row in 0..400 {
            let size = (row % 7) as f64;
            for column in 0..width {
                let value = gaussian(random) * (size + (column % 5) as f64).exp2();
                given.push((value as f32).to_bits() & if row < 100 { !0x1fff } else { !0 });
            }
        }
        let plain = encoded(23, width, false, &given).len();
        let all = 4 * given.len();
        // A quarter of the rows has 13 bits less.
        assert!(plain < all * 100 / 115);
        assert!(encoded(23, width, true, &given).len() < plain - given.len() / 12);
    }
}
