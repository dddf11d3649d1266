//! From float32 to a tensor's floating-point type. FORMAT.md, 6.1 and 6.2.

use crate::file::values::{Dtype, Values};

/// 2^0, 2^(1/4), 2^(1/2) and 2^(3/4) as float32, by their bits.
const ROOTS: [u32; 4] = [0x3f80_0000, 0x3f98_37f0, 0x3fb5_04f3, 0x3fd7_44fd];

/// 2^(scale / 4).
pub(crate) fn factor(scale: i8) -> f32 {
    // All are normal numbers: a power of two is added to the exponent.
    f32::from_bits(ROOTS[usize::from(scale as u8 & 3)].wrapping_add_signed(i32::from(scale >> 2) << 23))
}

/// A floating-point type of 8 or 16 bits.
struct Narrow {
    mantissa: u32,
    /// What is added to an exponent.
    bias: u32,
    /// The largest finite pattern, and what stands for anything larger.
    last: u32,
    over: u32,
}

const FLOAT16: Narrow = Narrow { mantissa: 10, bias: 15, last: 0x7bff, over: 0x7c00 };
const BFLOAT16: Narrow = Narrow { mantissa: 7, bias: 127, last: 0x7f7f, over: 0x7f80 };
const FLOAT8_E4M3: Narrow = Narrow { mantissa: 3, bias: 7, last: 0x7e, over: 0x7f };
const FLOAT8_E5M2: Narrow = Narrow { mantissa: 2, bias: 15, last: 0x7b, over: 0x7c };

impl Narrow {
    /// The pattern of a magnitude that is not NaN, given by its float32 bits: nearest, ties to even.
    fn magnitude(&self, bits: u32) -> u32 {
        let shift = 23 - self.mantissa;
        let exponent = bits >> 23;
        let rounded = if exponent + self.bias > 127 {
            half_even(bits - ((127 - self.bias) << 23), shift)
        } else if self.bias == 127 {
            half_even(bits, shift)
        } else {
            // Subnormal: below all of these types' numbers if it is subnormal as float32.
            half_even(bits & 0x7f_ffff | 1 << 23, (shift + 128 - self.bias - exponent).min(31))
        };
        if rounded > self.last { self.over } else { rounded }
    }

    fn pattern(&self, value: f32, sign: u32) -> u32 {
        let bits = value.to_bits();
        self.magnitude(bits & 0x7fff_ffff) | (bits >> 31) << sign
    }
}

/// `bits / 2^shift`, rounded.
fn half_even(bits: u32, shift: u32) -> u32 {
    (bits + (1 << (shift - 1)) - 1 + (bits >> shift & 1)) >> shift
}

/// Values in a tensor's floating-point type.
pub(crate) fn rounded(values: Vec<f32>, dtype: Dtype) -> Values {
    let narrow = match dtype {
        Dtype::FLOAT16 => &FLOAT16,
        Dtype::BFLOAT16 => &BFLOAT16,
        Dtype::FLOAT8_E4M3 => &FLOAT8_E4M3,
        Dtype::FLOAT8_E5M2 => &FLOAT8_E5M2,
        Dtype::FLOAT64 => return Values::Bits64(values.into_iter().map(|value| f64::from(value).to_bits()).collect()),
        _ => return Values::Float32(values),
    };
    if dtype.item() == 1 {
        Values::Bits8(values.into_iter().map(|value| narrow.pattern(value, 7) as u8).collect())
    } else {
        Values::Bits16(values.into_iter().map(|value| narrow.pattern(value, 15) as u16).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number that a pattern stands for.
    fn value(narrow: &Narrow, pattern: u32) -> f64 {
        let field = pattern >> narrow.mantissa;
        let rest = f64::from(pattern & ((1 << narrow.mantissa) - 1)) / f64::from(1u32 << narrow.mantissa);
        let exponent = field.max(1) as i32 - narrow.bias as i32;
        (rest + if field > 0 { 1.0 } else { 0.0 }) * f64::from(exponent).exp2()
    }

    #[test]
    fn numbers_come_back_and_what_lies_between_goes_to_the_nearer() {
        for (narrow, sign) in [(FLOAT16, 15), (BFLOAT16, 15), (FLOAT8_E4M3, 7), (FLOAT8_E5M2, 7)] {
            let rounded = |number: f64| narrow.pattern(number as f32, sign);
            for pattern in 0..=narrow.last {
                let here = value(&narrow, pattern);
                assert_eq!(rounded(here), pattern);
                assert_eq!(rounded(-here), pattern | 1 << sign);
                let next = if pattern == narrow.last { narrow.over } else { pattern + 1 };
                let middle = (here + value(&narrow, pattern + 1)) / 2.0;
                assert_eq!(rounded(middle), if pattern % 2 == 0 { pattern } else { next });
                assert_eq!(narrow.magnitude((middle as f32).to_bits() + 1), next);
                assert_eq!(narrow.magnitude((middle as f32).to_bits() - 1), pattern);
            }
            assert_eq!(narrow.pattern(f32::INFINITY, sign), narrow.over);
            assert_eq!(narrow.pattern(f32::MIN, sign), narrow.over | 1 << sign);
            assert_eq!(narrow.pattern(1e-45, sign), 0);
        }
    }

    #[test]
    fn four_quarters_are_an_octave() {
        for scale in -128..=123 {
            assert_eq!(2.0 * factor(scale), factor(scale + 4));
            assert!((f64::from(factor(scale)).log2() - f64::from(scale) / 4.0).abs() < 1e-7);
        }
    }
}
