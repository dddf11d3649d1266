//! Exact values as levels and refinement bits.
//!
//! A level is a value rounded to a multiple of a step, 2^k, and coded as any level is, with its contexts and predictions.
//! The refinement bits are raw and say which of the values that round to this level it is. They are close to equiprobable:
//! inside a step a distribution of weights is almost flat, so a model would find nothing in them. FORMAT.md, sections 10 and 11.
//!
//! Everything here is on *patterns*, the bits of a value as an unsigned integer. The unit of a floating-point format is its
//! smallest subnormal number, so every finite magnitude is an integer `V << E`, `V` having one bit more than the mantissa.

use crate::coding::bits::{BitReader, BitWriter, ones};

/// Magnitude of a level that says: the refinement bits hold the whole pattern.
const ESCAPE: u32 = 1 << 24;
/// Half steps in a magnitude are fewer, unless it is escaped.
const MOST_HALVES: u64 = 1 << 24;
/// Zero bits that may precede the first one of a magnitude below half a step; with more the whole pattern follows.
const MOST_ZEROS: i32 = 16;
/// First byte of the refinement bits if every row has its own precision; else it is that of all rows.
const BY_ROW: u8 = 255;
/// Bits of a row's precision.
const ROW_BITS: u32 = 6;
/// The largest k: 2^k is then beyond the largest float64, in units of its smallest.
pub const LAST_EXPONENT: u32 = 2200;

/// What the values are differences to, or where they are counted from.
#[derive(Clone, Copy)]
pub enum Origin<'a, P> {
    /// Floating-point numbers by themselves.
    Float {
        /// Level 0 is positive zero and nothing else.
        zeros: bool,
    },
    /// Integers, less this one (modulo their width).
    Integer(P),
    /// Differences to these patterns, counted in representable numbers.
    Steps(&'a [P]),
    /// The same, each times the distance of representable numbers at its base: differences of values, nearly.
    Differences(&'a [P]),
}

/// How patterns become levels.
#[derive(Clone, Copy)]
pub struct Form {
    /// Bits of the mantissa; 0 for integers.
    pub mantissa: u32,
    /// Whether the patterns are of floating-point numbers.
    pub float: bool,
    /// k: a step is 2^k units.
    pub exponent: u32,
}

/// A pattern's integer type.
pub trait Pattern: Copy + Default {
    /// Its width.
    const BITS: u32;
    /// As 64 bits.
    fn wide(self) -> u64;
    /// The low bits of 64.
    fn of(wide: u64) -> Self;
    /// Bits that are set in one of both.
    fn or(self, other: Self) -> Self;
}

macro_rules! pattern {
    ($($type:ty)*) => {$(
        impl Pattern for $type {
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn wide(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn of(wide: u64) -> Self {
                wide as $type
            }
            #[inline(always)]
            fn or(self, other: Self) -> Self {
                self | other
            }
        }
    )*};
}
pattern!(u8 u16 u32 u64);

/// Bits of a number.
#[inline(always)]
const fn length(x: u64) -> i32 {
    64 - x.leading_zeros() as i32
}

/// `value << by`, or `>>` if negative; by any amount.
#[inline(always)]
const fn shifted(value: u64, by: i32) -> u64 {
    if by >= 64 || by <= -64 {
        0
    } else if by >= 0 {
        value << by
    } else {
        value >> -by
    }
}

/// Values whose refinement bits are put in turn.
const BLOCK: usize = 128;

/// The level of a magnitude of so many half steps, and the bit that says which half (none for k = 0: steps are units).
#[inline(always)]
fn halves_to_level(form: Form, halves: u64) -> (u64, u64, u32) {
    if form.exponent == 0 { (halves, 0, 0) } else { ((halves + 1) >> 1, halves & 1, 1) }
}

/// The magnitude in half steps of a level with this bit.
#[inline(always)]
fn level_to_halves(form: Form, level: u64, bit: u64) -> u64 {
    if form.exponent == 0 { level } else { 2 * level - bit }
}

/// The position of a half step, in bits above a unit.
#[inline(always)]
fn half(form: Form) -> i32 {
    form.exponent.saturating_sub(1) as i32
}

/// Whole half steps in a magnitude that has `rest` bits below one (or ends so many above), at most about 2^25.
#[inline(always)]
fn half_steps(v: u64, rest: i32) -> u64 {
    if v != 0 && length(v) - rest > 25 { MOST_HALVES } else { shifted(v, -rest) }
}

/// A magnitude's `V` and `E`.
#[inline(always)]
fn unpack(magnitude: u64, mantissa: u32) -> (u64, i32) {
    let field = (magnitude >> mantissa) as i32;
    let exponent = (field - 1).max(0);
    (magnitude - ((exponent as u64) << mantissa), exponent)
}

/// Orders floating-point patterns as two's complement integers; negative zero lies below positive zero.
#[inline(always)]
fn ordered<P: Pattern>(form: Form, pattern: u64) -> u64 {
    let negative = form.float && pattern >> (P::BITS - 1) != 0;
    if negative { pattern ^ ones(P::BITS - 1) } else { pattern }
}

/// The exponent that scales a difference to this base.
#[inline(always)]
fn base_exponent<P: Pattern>(form: Form, base: u64) -> i32 {
    unpack(base & ones(P::BITS - 1), form.mantissa).1
}

/// `value` as two's complement of the pattern's width, as sign and magnitude.
#[inline(always)]
fn magnitude<P: Pattern>(value: u64) -> (bool, u64) {
    let signed = ((value << (64 - P::BITS)) as i64) >> (64 - P::BITS);
    (signed < 0, signed.unsigned_abs())
}

/// Levels and refinement bits of `patterns`, in rows of `width`. Appends the refinement bits to `out`.
pub(crate) fn split_differences<P: Pattern>(
    form: Form,
    origin: Origin<P>,
    width: usize,
    patterns: &[P],
    levels: &mut [i32],
    out: &mut Vec<u8>,
) {
    let mut bits = BitWriter::after(out, size_of_val(patterns));
    for (number, (row, levels)) in patterns.chunks(width).zip(levels.chunks_mut(width)).enumerate() {
        let start = number * width;
        let value = |index: usize| {
            let (reference, exponent) = reference(form, origin, start + index);
            (magnitude::<P>(ordered::<P>(form, row[index].wide()).wrapping_sub(reference)), exponent)
        };
        let moved = (0..row.len()).any(|index| value(index).0.1 != 0);
        bits.put(u64::from(moved), 1);
        if !moved {
            levels.fill(0);
            continue;
        }
        for (index, level) in levels.iter_mut().enumerate() {
            let ((negative, v), exponent) = value(index);
            let rest = half(form) - exponent;
            let halves = half_steps(v, rest);
            let escaped = halves >= MOST_HALVES;
            let (size, bit, has_bit) = halves_to_level(form, halves);
            let size = if escaped { i64::from(ESCAPE) } else { size as i64 };
            *level = (if negative { -size } else { size }) as i32;
            let rest = rest.clamp(0, 64) as u32;
            if escaped {
                bits.put_long(v, P::BITS);
            } else if size == 0 {
                bits.put_long(v, rest);
                bits.put(u64::from(negative), u32::from(v != 0));
            } else {
                bits.put(bit, has_bit);
                bits.put_long(v & ones(rest), rest);
            }
        }
    }
    bits.finish();
}

/// What a pattern is counted from, and the exponent of its units.
#[inline(always)]
fn reference<P: Pattern>(form: Form, origin: Origin<P>, index: usize) -> (u64, i32) {
    match origin {
        Origin::Float { .. } => (0, 0),
        Origin::Integer(centre) => (centre.wide(), 0),
        Origin::Steps(base) => (ordered::<P>(form, base[index].wide()), 0),
        Origin::Differences(base) => {
            let base = base[index].wide();
            (ordered::<P>(form, base), base_exponent::<P>(form, base))
        }
    }
}

/// Trailing zero bits of the mantissa in common: of each row if that saves bits, else of all rows.
pub(crate) fn precisions<P: Pattern>(mantissa: u32, width: usize, patterns: &[P]) -> (u32, Option<Vec<u32>>) {
    let zeros = |any: P| (any.wide() | 1 << mantissa).trailing_zeros();
    // Most tensors have a value in each row whose last bit is set, and then nothing has to be known about the others.
    if patterns.chunks(width).all(|row| row.iter().take(64).any(|pattern| pattern.wide() & 1 != 0)) {
        return (0, None);
    }
    let rows: Vec<u32> =
        patterns.chunks(width).map(|row| zeros(row.iter().fold(P::default(), |a, b| a.or(*b)))).collect();
    let common = rows.iter().copied().min().unwrap_or(0);
    let saved: u64 = rows.iter().map(|row| u64::from(row - common) * width as u64).sum();
    (common, (saved > u64::from(ROW_BITS) * rows.len() as u64).then_some(rows))
}

/// What values of one exponent have in common. `V` has its highest bit set, so its length is known; level and refinement bits
/// are bits of it, moved.
#[derive(Clone, Copy, Default)]
struct Binade {
    /// Half steps are `V << left >> right`.
    left: u8,
    right: u8,
    /// The level is `half steps + up >> has_bit`.
    up: u8,
    /// Number of low bits of `V` in the refinement bits, and how many bits are before them.
    kept: u8,
    before: u8,
    /// Where the refinement bits begin with the sign, or the lowest bit of the half steps: 1, else 0.
    sign: u8,
    bit: u8,
    /// Whether not all these values are alike, or have too many refinement bits: then the rest says nothing.
    unusual: bool,
    /// Those refinement bits that are always the same.
    fixed: u32,
}

/// Bits that are put at once.
const MOST_PUT: u8 = 56;

impl Binade {
    /// Of values with this field for an exponent.
    fn of(form: Form, zeros: bool, field: usize) -> Self {
        let (half, mantissa, has_bit) = (half(form), form.mantissa as i32, u8::from(form.exponent > 0));
        let rest = half - (field as i32 - 1);
        let halves = mantissa + 1 - rest; // how many bits they have
        let mut binade = Self { up: has_bit, ..Self::default() };
        if field == 0 || halves > MOST_HALVES.ilog2() as i32 || halves <= -MOST_ZEROS {
            binade.unusual = true;
            return binade;
        }
        binade.left = (-rest).max(0) as u8;
        binade.right = rest.clamp(0, mantissa + 1) as u8;
        binade.kept = binade.right;
        if halves <= 0 {
            // What says that it is less than half a step, zeros, and a one in place of the one at the head of `V`.
            let first = if zeros { 1 + has_bit } else { 1 };
            let one = first + halves.unsigned_abs() as u8;
            binade.fixed = 1 << one | if zeros { u32::from(has_bit) << 1 | 1 } else { 0 };
            binade.up = if zeros { 1 << has_bit } else { has_bit };
            binade.sign = u8::from(!zeros);
            (binade.kept, binade.before) = (mantissa as u8, one + 1);
        } else if zeros && halves == 1 {
            // Level 1 stands for less than half a step, too.
            (binade.before, binade.fixed) = (1 + has_bit, u32::from(has_bit));
        } else {
            (binade.before, binade.bit) = (has_bit, has_bit);
        }
        binade.unusual = binade.kept + binade.before > MOST_PUT;
        binade
    }
}

/// [`split`] of floating-point numbers.
#[inline(always)]
pub(crate) fn split_floats_on<P: Pattern>(
    form: Form,
    zeros: bool,
    width: usize,
    patterns: &[P],
    levels: &mut [i32],
    out: &mut Vec<u8>,
) {
    let (common, rows) = precisions(form.mantissa, width, patterns);
    out.push(if rows.is_some() { BY_ROW } else { common as u8 });
    let binades: Vec<_> = (0..1 << (P::BITS - 1 - form.mantissa)).map(|field| Binade::of(form, zeros, field)).collect();
    let mut bits = BitWriter::after(out, size_of_val(patterns));
    // Rows follow each other unless they begin with something.
    let width = if rows.is_some() { width } else { patterns.len().max(1) };
    for (number, (row, levels)) in patterns.chunks(width).zip(levels.chunks_mut(width)).enumerate() {
        let precision = rows.as_ref().map_or(common, |rows| rows[number]);
        if rows.is_some() {
            bits.put(u64::from(precision), ROW_BITS);
        }
        for (patterns, levels) in row.chunks(BLOCK).zip(levels.chunks_mut(BLOCK)) {
            split_block(form, zeros, precision, &binades, patterns, levels, &mut bits);
        }
    }
    bits.finish();
}

/// Splits at most [`BLOCK`] values whose `precision` low bits are zeros.
#[inline(always)]
fn split_block<P: Pattern>(
    form: Form,
    zeros: bool,
    precision: u32,
    binades: &[Binade],
    patterns: &[P],
    levels: &mut [i32],
    bits: &mut BitWriter,
) {
    let has_bit = u32::from(form.exponent > 0);
    let (mut refinement, mut counts, mut unusual) = ([0; BLOCK], [0; BLOCK], false);
    for (((pattern, level), refinement), count) in
        patterns.iter().zip(&mut *levels).zip(&mut refinement).zip(&mut counts)
    {
        let size = pattern.wide() & ones(P::BITS - 1);
        let binade = &binades[(size >> form.mantissa) as usize];
        let v = size & ones(form.mantissa) | 1 << form.mantissa;
        let halves = v << binade.left >> binade.right;
        let negative = pattern.wide() >> (P::BITS - 1);
        let signed = -(negative as i32);
        // Of an unusual value it may be anything, and is replaced.
        *level = (((halves + u64::from(binade.up)) >> has_bit) as i32 ^ signed).wrapping_sub(signed);
        let kept = (v & ones(u32::from(binade.kept))) >> precision;
        let first = negative & u64::from(binade.sign) | halves & u64::from(binade.bit);
        *refinement = kept << binade.before | u64::from(binade.fixed) | first;
        *count = binade.kept.saturating_sub(precision as u8) + binade.before;
        unusual |= binade.unusual;
    }
    if !unusual {
        bits.put_all(&refinement[..patterns.len()], &counts[..patterns.len()]);
        return;
    }
    for (index, (pattern, level)) in patterns.iter().zip(levels).enumerate() {
        let field = (pattern.wide() & ones(P::BITS - 1)) >> form.mantissa;
        if binades[field as usize].unusual {
            *level = split_unusual::<P>(form, zeros, precision, pattern.wide(), bits);
        } else {
            bits.put(refinement[index], u32::from(counts[index]));
        }
    }
}

/// The level of any value, and its refinement bits into `bits`.
#[inline(never)]
fn split_unusual<P: Pattern>(form: Form, zeros: bool, precision: u32, pattern: u64, bits: &mut BitWriter) -> i32 {
    let mantissa = form.mantissa - precision;
    let half = half(form) - precision as i32;
    let has_bit = u32::from(form.exponent > 0);
    // Half steps whose level stands for nothing below.
    let first_plain = if zeros { 3 - u64::from(has_bit == 0) } else { 1 };
    let size = (pattern & ones(P::BITS - 1)) >> precision;
    let negative = pattern >> (P::BITS - 1) != 0;
    let (v, exponent) = unpack(size, mantissa);
    let rest = half - exponent;
    let halves = half_steps(v, rest);
    let signed = |level: u32| if negative { -(level as i32) } else { level as i32 };
    let whole = P::BITS - 1 - precision;
    if (first_plain..MOST_HALVES).contains(&halves) {
        let (size, bit, has_bit) = halves_to_level(form, halves);
        let rest = rest.max(0) as u32;
        bits.put(bit | (v & ones(rest)) << has_bit, rest + has_bit);
        signed(size as u32)
    } else if halves == 0 {
        if zeros && pattern == 0 {
            return 0;
        }
        if zeros {
            bits.put(u64::from(has_bit) << 1 | 1, 1 + has_bit);
        } else {
            bits.put(u64::from(negative), 1);
        }
        let places = half.max(0);
        let leading = places - length(v) - if v == 0 { 0 } else { exponent };
        let most = places.min(MOST_ZEROS);
        bits.put(0, leading.min(most) as u32);
        if leading < most {
            let rest = (length(v) - 1) as u32;
            bits.put(1, 1);
            bits.put(v & ones(rest), rest);
        } else if most < places {
            bits.put_long(size, whole);
        }
        if zeros { signed(1) } else { 0 }
    } else if halves >= MOST_HALVES {
        bits.put_long(size, whole);
        signed(ESCAPE)
    } else {
        // Level 1 stands for less than half a step, too, if level 0 is zero alone.
        let (size, bit, _) = halves_to_level(form, halves);
        let rest = rest.max(0) as u32;
        bits.put(bit, 1 + bit as u32);
        bits.put(v & ones(rest), rest);
        signed(size as u32)
    }
}

/// The patterns that [`split`] made of these levels and refinement bits. False if no patterns did.
#[must_use]
pub fn join<P: Pattern>(
    form: Form,
    origin: Origin<P>,
    width: usize,
    levels: &[i32],
    refinement: &[u8],
    patterns: &mut [P],
) -> bool {
    let mut bits = BitReader::new(refinement);
    if let Origin::Float { zeros } = origin {
        return join_floats(form, zeros, width, levels, &mut bits, patterns) && bits.finished();
    }
    for (number, (row, levels)) in patterns.chunks_mut(width).zip(levels.chunks(width)).enumerate() {
        let start = number * width;
        let moved = bits.take(1) != 0;
        if !moved && levels.iter().any(|level| *level != 0) {
            return false;
        }
        for (index, (pattern, level)) in row.iter_mut().zip(levels).enumerate() {
            let (reference, exponent) = reference(form, origin, start + index);
            let places = half(form) - exponent;
            let rest = places.clamp(0, 64) as u32;
            let (mut negative, size) = (*level < 0, level.unsigned_abs());
            let v = if !moved {
                0
            } else if size == 0 {
                let v = bits.take_long(rest);
                negative = v != 0 && bits.take(1) != 0;
                v
            } else if size == ESCAPE {
                bits.take_long(P::BITS)
            } else {
                let bit = if form.exponent == 0 { 0 } else { bits.take(1) };
                let halves = level_to_halves(form, u64::from(size), bit);
                shifted(halves, places) | bits.take_long(rest)
            };
            let difference = if negative { v.wrapping_neg() } else { v };
            *pattern = P::of(ordered::<P>(form, reference.wrapping_add(difference) & ones(P::BITS)));
        }
    }
    bits.finished()
}

/// The magnitude of a weight whose level says less than usual: zero, the first one above it if zero has a level of its own,
/// and an escape. Sets the sign where the level has none.
#[expect(clippy::too_many_arguments)]
#[inline(never)]
fn unusual(
    form: Form,
    zeros: bool,
    half: i32,
    mantissa: u32,
    whole: u32,
    size: u32,
    negative: &mut bool,
    bits: &mut BitReader,
) -> u64 {
    let has_bit = form.exponent > 0;
    let mut halves = 0;
    if size == ESCAPE {
        return bits.take_long(whole);
    } else if size > ESCAPE {
        halves = level_to_halves(form, u64::from(size), bits.take(u32::from(has_bit)));
    } else if size == 0 && zeros {
        return 0;
    } else if size == 0 {
        *negative = bits.take(1) != 0;
    } else if bits.take(1) == 0 {
        halves = 1 + u64::from(has_bit);
    } else if has_bit {
        halves = 1 - bits.take(1);
    }
    if halves != 0 {
        let top = half + length(halves) - 1;
        let exponent = (top - mantissa as i32).max(0);
        let places = half - exponent;
        let v = shifted(halves, places) | bits.take(places.max(0) as u32);
        return ((exponent as u64) << mantissa).wrapping_add(v);
    }
    let places = half.max(0);
    let most = places.min(MOST_ZEROS);
    let leading = (bits.peek().trailing_zeros() as i32).min(most);
    bits.skip(leading as usize);
    if leading < most {
        bits.skip(1);
        let top = places - 1 - leading;
        let exponent = (top - mantissa as i32).max(0);
        let rest = (top - exponent) as u32;
        ((exponent as u64) << mantissa) + (1 << rest | bits.take(rest))
    } else if most < places {
        bits.take_long(whole)
    } else {
        0
    }
}

fn join_floats<P: Pattern>(
    form: Form,
    zeros: bool,
    width: usize,
    levels: &[i32],
    bits: &mut BitReader,
    patterns: &mut [P],
) -> bool {
    let first = bits.take(8) as u8;
    let by_row = first == BY_ROW;
    if !by_row && u32::from(first) > form.mantissa {
        return false;
    }
    for (levels, patterns) in levels.chunks(width).zip(patterns.chunks_mut(width)) {
        let precision = if by_row { bits.take(ROW_BITS) as u32 } else { u32::from(first) };
        if precision > form.mantissa {
            return false;
        }
        let mantissa = form.mantissa - precision;
        let half = half(form) - precision as i32;
        let whole = P::BITS - 1 - precision;
        let has_bit = u32::from(form.exponent > 0);
        let first_plain = 1 + u32::from(zeros);
        for (pattern, level) in patterns.iter_mut().zip(levels) {
            let size = level.unsigned_abs();
            let mut negative = *level < 0;
            let magnitude = if size.wrapping_sub(first_plain) < ESCAPE - first_plain {
                // The place of the next weight's bits depends on this one's first bit only where that moves the
                // magnitude across a power of two: so the processor need not wait for it.
                let word = bits.peek();
                let bit = word & u64::from(has_bit);
                let doubled = u64::from(size) << has_bit;
                let across = bit & u64::from(size.is_power_of_two());
                let places = half.min(mantissa as i32 + 1 - length(doubled) + across as i32);
                let rest = places.max(0) as u32;
                bits.skip((has_bit + rest) as usize);
                let v = shifted(doubled - bit, places) | (word >> has_bit & ones(rest));
                (((half - places) as u64) << mantissa).wrapping_add(v)
            } else {
                unusual(form, zeros, half, mantissa, whole, size, &mut negative, bits)
            };
            let magnitude = (magnitude & ones(whole)) << precision;
            *pattern = P::of(magnitude | u64::from(negative) << (P::BITS - 1));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::dispatch::split;
    use crate::testing::Random;

    fn floats<P: Pattern>(mantissa: u32, seed: u64) {
        let mut random = Random(seed);
        for exponent in [0, 1, 2, 5, 20, 100, 125, 900, LAST_EXPONENT] {
            for zeros in [false, true] {
                for width in [1, 7, 100] {
                    // Anything, small differences in the exponent, few mantissa bits, zeros.
                    let patterns: Vec<P> = (0..300)
                        .map(|index| {
                            let any = random.next();
                            P::of(match (index / width) % 4 {
                                0 => any,
                                1 => any >> 3 & !ones(mantissa / 2),
                                2 => any & ones(mantissa + 3),
                                _ => (any % 2) << (P::BITS - 1),
                            })
                        })
                        .collect();
                    let form = Form { mantissa, float: true, exponent };
                    check(form, Origin::Float { zeros }, width, &patterns);
                    let base: Vec<P> = patterns.iter().map(|p| P::of(p.wide() ^ random.next() >> 60)).collect();
                    check(form, Origin::Steps(&base), width, &patterns);
                    check(form, Origin::Differences(&base), width, &patterns);
                    check(Form { float: false, mantissa: 0, exponent }, Origin::Integer(base[0]), width, &patterns);
                    check(Form { float: false, mantissa: 0, exponent }, Origin::Steps(&base), width, &patterns);
                }
            }
        }
    }

    fn check<P: Pattern>(form: Form, origin: Origin<P>, width: usize, patterns: &[P]) {
        let (mut levels, mut refinement) = (vec![0; patterns.len()], Vec::new());
        split(form, origin, width, patterns, &mut levels, &mut refinement);
        let mut back = vec![P::default(); patterns.len()];
        assert!(join(form, origin, width, &levels, &refinement, &mut back));
        for (one, other) in patterns.iter().zip(&back) {
            assert_eq!(one.wide(), other.wide(), "{} {} {}", form.mantissa, form.exponent, P::BITS);
        }
        // One byte less or more is damage.
        if let Some((_, less)) = refinement.split_last() {
            assert!(!join(form, origin, width, &levels, less, &mut back));
        }
        refinement.push(0);
        assert!(!join(form, origin, width, &levels, &refinement, &mut back));
    }

    #[test]
    fn every_pattern_comes_back() {
        floats::<u64>(52, 1);
        floats::<u32>(23, 2);
        floats::<u16>(10, 3);
        floats::<u16>(7, 4);
        floats::<u8>(3, 5);
        floats::<u8>(2, 6);
    }

    #[test]
    fn all_patterns_of_16_bits_come_back() {
        let patterns: Vec<u16> = (0..=u16::MAX).collect();
        for exponent in [0, 1, 3, 15, 30, 120, 250] {
            for (mantissa, zeros) in [(7, false), (10, true)] {
                let form = Form { mantissa, float: true, exponent };
                check(form, Origin::Float { zeros }, 256, &patterns);
            }
            check(Form { mantissa: 0, float: false, exponent }, Origin::Integer(77), 256, &patterns);
        }
    }

    #[test]
    fn any_levels_and_refinement_give_something_without_a_panic() {
        let mut random = Random(9);
        for round in 0..2000 {
            let levels: Vec<i32> = (0..50)
                .map(|_| match random.next() % 4 {
                    0 => random.next() as i32,
                    1 => ESCAPE as i32,
                    _ => (random.next() % 7) as i32 - 3,
                })
                .collect();
            let refinement: Vec<u8> = (0..random.next() % 600).map(|_| random.next() as u8).collect();
            let exponent = random.next() as u32 % (LAST_EXPONENT + 1);
            let (mantissa, zeros) = ([0, 2, 7, 10, 23, 52][round % 6], round % 2 == 0);
            let base = [random.next(); 50];
            for float in [false, true] {
                let form = Form { mantissa, float, exponent };
                for origin in [
                    Origin::Float { zeros },
                    Origin::Integer(base[0]),
                    Origin::Steps(&base),
                    Origin::Differences(&base),
                ] {
                    let _ = join(form, origin, 7, &levels, &refinement, &mut [0u64; 50]);
                }
            }
        }
    }
}
