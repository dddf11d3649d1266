//! The expected magnitude of the next residual, and its class.
//!
//! Magnitudes are averaged in fixed point with 12 fractional bits, along the row and along the column. Averages are
//! combined as logarithms, in eighths of an octave: a weight's magnitude is modelled as (row) x (column) / (mean), each
//! average damped to the power 7/8 because it is an estimate.

/// Fractional bits of an average.
pub(crate) const FRACTION: u32 = 12;
/// Largest magnitude that enters an average: averages stay below 2^24, where [`log`] is exact.
pub(crate) const LARGEST: u32 = (1 << 12) - 1;
/// Logarithm at which the classes start: a mean of 2^-8.
const FIRST_LOG: i32 = 32;
/// Largest logarithm of an average.
pub const LAST_LOG: u8 = 8 * 24 - 1;

/// Number of classes: four an octave.
pub const CLASSES: usize = ((LAST_LOG as usize - FIRST_LOG as usize) >> CLASS_SHIFT) + 1;
/// log2 of a class's width in eighths of an octave.
const CLASS_SHIFT: u32 = 1;

/// Which classes are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Four classes an octave, for large tensors.
    Fine,
    /// Two classes an octave, for small tensors: those with even numbers.
    Coarse,
}

impl Resolution {
    /// What a class is masked with.
    #[must_use]
    pub fn mask(self) -> usize {
        match self {
            Self::Fine => !0,
            Self::Coarse => !1,
        }
    }
}

/// Logarithm at the lower end of a class.
#[must_use]
pub const fn lower_log(class: usize) -> u8 {
    ((class << CLASS_SHIFT) as i32 + FIRST_LOG) as u8
}

/// Low bits of a magnitude that are coded apart, by class: as many as leave the rest a mean of 2 to 4.
pub static LOW_BITS: [u8; CLASSES] = {
    let mut table = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        table[class] = (lower_log(class) / 8).saturating_sub(FRACTION as u8 + 1);
        class += 1;
    }
    table
};

/// A magnitude as it enters an average.
#[inline(always)]
#[must_use]
pub fn fixed(magnitude: u32) -> i32 {
    (magnitude.min(LARGEST) << FRACTION) as i32
}

/// Half a magnitude as it enters an average: with two quantisers, whose indices are half as large as their levels.
#[inline(always)]
#[must_use]
pub fn fixed_half(magnitude: u32) -> i32 {
    (magnitude.min(2 * LARGEST + 1) << (FRACTION - 1)) as i32
}

/// `8 log2(x)` rounded down to the eighths of a linear mantissa, for `0 <= x < 2^24` with its lowest bit taken as one.
///
/// That is exponent and three bits of mantissa of x as a float: the conversion is exact below 2^24, and vectorises.
#[inline(always)]
#[must_use]
pub fn log(x: i32) -> i32 {
    (((x | 1) as f32).to_bits() >> 20) as i32 - (127 << 3)
}

/// [`log`], faster for one number.
#[inline(always)]
pub(crate) fn log_of_one(x: i32) -> i32 {
    let zeros = ((x | 1) as u32).leading_zeros();
    let eighths = ((x | 1) as u32) << zeros >> 28;
    eighths as i32 - 8 * zeros as i32 + 8 * 30
}

/// The number whose [`log`] is `log`: the lower end of the eighth, in units of 2^-12.
#[must_use]
pub fn from_log(log: u8) -> u32 {
    let (exponent, mantissa) = (u32::from(log) / 8, u32::from(log) % 8 + 8);
    if exponent >= 3 { mantissa << (exponent - 3) } else { mantissa >> (3 - exponent) }
}

/// Bits below a column's share that hold the row's adaptation shift.
pub(crate) const SHIFT_BITS: u32 = 3;

/// The part of a column's share that never changes: the weight of the tensor's mean, and in its three lowest bits the
/// shift by which the row's average adapts after this column: the average of all, then of about 32.
#[inline(always)]
#[must_use]
pub fn column_base(column: usize, mean_log: i32) -> i32 {
    ((-6 * mean_log - 8 * FIRST_LOG) << SHIFT_BITS) | row_shift(column)
}

/// Adaptation shift of an average after so many magnitudes.
#[inline(always)]
#[must_use]
pub fn row_shift(count: usize) -> i32 {
    3 + i32::from(count >= 8) + i32::from(count >= 24)
}

/// What a column of this average contributes to the class, in units of 1/64 of an octave's eighth, with its adaptation
/// shift; computed once a row.
#[inline(always)]
#[must_use]
pub fn column_share(column: i32, base: i32) -> i32 {
    (7 << SHIFT_BITS) * log(column) + base
}

/// Weight of a row's average in the class, in the units of a share.
pub(crate) const ROW_WEIGHT: i32 = 7 << SHIFT_BITS;
/// Bits of the sum of weighted logarithms below the class.
pub(crate) const SUM_BITS: u32 = SHIFT_BITS + 3 + CLASS_SHIFT;

/// The class from a row's average and a column's share, before masking.
#[inline(always)]
#[must_use]
pub fn class(row: i32, column_share: i32) -> usize {
    class_of_log(log_of_one(row), column_share)
}

/// The class from the logarithm of a row's average and a column's share, before masking.
#[inline(always)]
#[must_use]
pub fn class_of_log(row: i32, column_share: i32) -> usize {
    // The shift in the lowest bits never reaches the result.
    let z = (ROW_WEIGHT * row + column_share) >> SUM_BITS;
    z.clamp(0, CLASSES as i32 - 1) as usize
}

/// The class of an average by itself, before masking.
#[inline(always)]
#[must_use]
pub fn class_of_average(average: i32) -> usize {
    ((log_of_one(average) - FIRST_LOG) >> CLASS_SHIFT).max(0) as usize
}

/// The row's average after a level of this magnitude, in a column of this share.
#[inline(always)]
#[must_use]
pub fn row_average(row: i32, magnitude: i32, column_share: i32) -> i32 {
    row + ((magnitude - row) >> (column_share & ((1 << SHIFT_BITS) - 1)))
}

/// Adaptation shift of the columns' averages after a chunk's `row`-th row.
#[inline(always)]
#[must_use]
pub fn column_shift(row: usize) -> u32 {
    match row {
        0..4 => 3,
        4..12 => 4,
        12..40 => 5,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_monotonic_and_inverted_by_from_log() {
        let mut last = 0;
        for x in (0..1 << 24).step_by(7) {
            let exact = f64::from(x | 1).log2();
            assert!(log(x) >= last);
            assert_eq!(log_of_one(x), log(x));
            assert!((f64::from(log(x)) / 8.0 - exact).abs() < 0.126 + 0.0868, "{x}");
            last = log(x);
        }
        assert_eq!(log((1 << 24) - 1), i32::from(LAST_LOG));
        for l in 32..=LAST_LOG {
            assert_eq!(log(from_log(l) as i32), i32::from(l));
        }
    }

    #[test]
    fn the_class_of_any_averages_exists() {
        for row in [0, 1, 5, 4096, fixed(u32::MAX)] {
            for column in [0, 77, fixed(u32::MAX)] {
                for mean_log in [0, 96, i32::from(LAST_LOG)] {
                    assert!(class(row, column_share(column, column_base(30, mean_log))) < CLASSES);
                }
            }
        }
        assert_eq!((LOW_BITS[39], LOW_BITS[40], LOW_BITS[CLASSES - 1]), (0, 1, 10));
    }
}
