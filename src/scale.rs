//! The expected magnitude of the next residual, and its class.
//!
//! Magnitudes are averaged in fixed point with 12 fractional bits, along the row and along the column. Averages are
//! combined as logarithms, in eighths of an octave: a weight's magnitude is modelled as (row) x (column) / (mean), each
//! average damped to the power 7/8 because it is an estimate.

/// Fractional bits of an average.
const FRACTION: u32 = 12;
/// Largest magnitude that enters an average (an average stays below 2^30).
const LARGEST: u32 = (1 << 18) - 1;
/// Logarithm at which the classes start: a mean of 2^-8.
const FIRST_LOG: i32 = 32;
/// Largest logarithm of an average, `log(2^30)`.
pub const LAST_LOG: u8 = 8 * 30;

/// Width of a scale class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolution {
    /// Four classes an octave, for large tensors.
    Fine,
    /// Two classes an octave, for small tensors.
    Coarse,
}

impl Resolution {
    /// log2 of a class's width in eighths of an octave.
    #[inline(always)]
    #[must_use]
    pub fn shift(self) -> u32 {
        match self {
            Self::Fine => 1,
            Self::Coarse => 2,
        }
    }

    /// Number of classes.
    #[must_use]
    pub fn classes(self) -> usize {
        ((i32::from(LAST_LOG) - FIRST_LOG) >> self.shift()) as usize + 1
    }

    /// Logarithm at the lower end of a class.
    #[must_use]
    pub fn lower_log(self, class: usize) -> u8 {
        ((class << self.shift()) as i32 + FIRST_LOG) as u8
    }
}

/// Low bits of a magnitude that are coded apart in this class: as many as leave the rest a mean of 2 to 4.
#[must_use]
pub fn low_bits(resolution: Resolution, class: usize) -> u32 {
    let octave = i32::from(resolution.lower_log(class)) / 8 - FRACTION as i32;
    (octave - 1).max(0) as u32
}

/// A magnitude as it enters an average.
#[inline(always)]
#[must_use]
pub fn fixed(magnitude: u32) -> i32 {
    (magnitude.min(LARGEST) << FRACTION) as i32
}

/// `8 log2(x)`, linear between the eighths: exponent and three bits of mantissa. 0 for x = 0.
#[inline(always)]
#[must_use]
pub fn log(x: i32) -> i32 {
    let x = (x as u32).max(1);
    let zeros = x.leading_zeros();
    let mantissa = (x << zeros) >> 28;
    // 8 * (31 - zeros) + (mantissa - 8)
    (240 - 8 * zeros + mantissa) as i32
}

/// The number whose [`log`] is `log`: the lower end of the eighth, in units of 2^-12.
#[must_use]
pub fn from_log(log: u8) -> u32 {
    let (exponent, mantissa) = (u32::from(log) / 8, u32::from(log) % 8 + 8);
    if exponent >= 3 { mantissa << (exponent - 3) } else { mantissa >> (3 - exponent) }
}

/// A column's share of the class, computed once a row: what [`class`] adds the row's share to.
#[inline(always)]
#[must_use]
pub fn column_share(column: i32, mean_log: i32) -> i32 {
    7 * log(column) - 6 * mean_log - 8 * FIRST_LOG
}

/// The class from a row's average and a column's share.
#[inline(always)]
#[must_use]
pub fn class(row: i32, column_share: i32, resolution: Resolution) -> usize {
    let z = (7 * log(row) + column_share) >> (3 + resolution.shift());
    z.clamp(0, (i32::from(LAST_LOG) - FIRST_LOG) >> resolution.shift()) as usize
}

/// Adaptation shift of a row's average behind its `position`-th weight: the average of all, then of about 32.
#[inline(always)]
#[must_use]
pub fn row_shift(position: usize) -> u32 {
    match position {
        0..8 => 3,
        8..24 => 4,
        _ => 5,
    }
}

/// Adaptation shift of the columns' averages behind a chunk's `row`-th row.
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
        for x in 1..100_000 {
            assert!(log(x) >= last);
            assert!((f64::from(log(x)) / 8.0 - f64::from(x).log2()).abs() < 0.126 + 0.0868);
            last = log(x);
        }
        for l in 24..=LAST_LOG {
            assert_eq!(log(from_log(l) as i32), i32::from(l));
        }
    }

    #[test]
    fn the_class_of_any_averages_exists() {
        for resolution in [Resolution::Fine, Resolution::Coarse] {
            for row in [0, 1, 5, 4096, fixed(u32::MAX)] {
                for column in [0, 77, fixed(u32::MAX)] {
                    for mean_log in [0, 96, i32::from(LAST_LOG)] {
                        assert!(class(row, column_share(column, mean_log), resolution) < resolution.classes());
                    }
                }
            }
            assert_eq!(low_bits(resolution, 0), 0);
            assert_eq!(low_bits(resolution, resolution.classes() - 1), 17);
        }
    }
}
