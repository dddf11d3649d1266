//! Data types, and values of one.

#![allow(unsafe_code)]

use std::slice;

/// A data type, by its number in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dtype(u8);

impl Dtype {
    /// IEEE binary64.
    pub const FLOAT64: Self = Self(1);
    /// IEEE binary32.
    pub const FLOAT32: Self = Self(2);
    /// IEEE binary16.
    pub const FLOAT16: Self = Self(3);
    /// The upper half of a float32.
    pub const BFLOAT16: Self = Self(4);
    /// float8 with four bits of exponent and no infinities.
    pub const FLOAT8_E4M3: Self = Self(5);
    /// float8 with five bits of exponent.
    pub const FLOAT8_E5M2: Self = Self(6);
    /// Signed integers of 32 bits.
    pub const INT32: Self = Self(8);

    /// The type of this number, if there is one.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        (code >= 1 && usize::from(code) <= TYPES.len()).then_some(Self(code))
    }

    /// Its number (FORMAT.md, 4.5).
    #[must_use]
    pub fn code(self) -> u8 {
        self.0
    }

    fn facts(self) -> &'static Type {
        &TYPES[usize::from(self.0) - 1]
    }

    /// Its name in numpy and ml_dtypes.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Bytes of an element.
    #[must_use]
    pub fn item(self) -> usize {
        self.facts().item
    }

    /// Bits of the mantissa of a floating-point type that has a sign and a byte or more; else 0.
    #[must_use]
    pub fn mantissa(self) -> u32 {
        self.facts().mantissa
    }

    /// The least number of integers that hold packed codes.
    pub const PACKED: u8 = 32;

    /// The type of this number and, if its elements are stored as parts, the type of these and how many an element has.
    #[must_use]
    pub fn with_parts(code: u8) -> Option<(Self, Option<(Self, u64)>)> {
        let (part, bits) = match code {
            16 => return Some((Self(code), Some((Self::FLOAT32, 2)))),
            17 => return Some((Self(code), Some((Self::FLOAT64, 2)))),
            39..=46 => (Self(28), 4),
            55..=62 => (Self(30), 2),
            71..=78 => (Self(14), 8),
            _ => return Self::of_code(code).map(|dtype| (dtype, None)),
        };
        let whole = Self(code % 16);
        let own = 8 * whole.item() as u64;
        (bits < own).then_some((whole, Some((part, own / bits))))
    }

    /// Whether levels can be made of such values.
    #[must_use]
    pub fn has_levels(self) -> bool {
        self.0 <= 6
    }

    /// Whether elements may have this byte, in types of a byte.
    #[must_use]
    pub fn allows(self, byte: u8) -> bool {
        let Type { count, lowest, .. } = self.facts();
        *count == 0 || byte.wrapping_sub(*lowest as u8) < *count
    }
}

struct Type {
    name: &'static str,
    item: usize,
    mantissa: u32,
    /// How many bytes elements may have, from `lowest` on; 0 for all.
    count: u8,
    lowest: i8,
}

const fn of(name: &'static str, item: usize, mantissa: u32) -> Type {
    Type { name, item, mantissa, count: 0, lowest: 0 }
}

const fn narrow(name: &'static str, count: u8, lowest: i8) -> Type {
    Type { name, item: 1, mantissa: 0, count, lowest }
}

/// By number, less one.
static TYPES: [Type; 30] = [
    of("float64", 8, 52),
    of("float32", 4, 23),
    of("float16", 2, 10),
    of("bfloat16", 2, 7),
    of("float8_e4m3fn", 1, 3),
    of("float8_e5m2", 1, 2),
    of("int64", 8, 0),
    of("int32", 4, 0),
    of("int16", 2, 0),
    of("int8", 1, 0),
    of("uint64", 8, 0),
    of("uint32", 4, 0),
    of("uint16", 2, 0),
    of("uint8", 1, 0),
    narrow("bool", 2, 0),
    of("complex64", 8, 0),
    of("complex128", 16, 0),
    of("float8_e4m3fnuz", 1, 3),
    of("float8_e5m2fnuz", 1, 2),
    of("float8_e4m3b11fnuz", 1, 3),
    of("float8_e4m3", 1, 3),
    of("float8_e3m4", 1, 4),
    of("float8_e8m0fnu", 1, 0),
    narrow("float6_e2m3fn", 64, 0),
    narrow("float6_e3m2fn", 64, 0),
    narrow("float4_e2m1fn", 16, 0),
    narrow("int4", 16, -8),
    narrow("uint4", 16, 0),
    narrow("int2", 4, -2),
    narrow("uint2", 4, 0),
];

/// Values of a tensor: its elements, or where the type is not here, their bits.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// float32.
    Float32(Vec<f32>),
    /// Levels on their own, int32.
    Levels(Vec<i32>),
    /// Patterns of 8 bits, or raw bytes of any type.
    Bits8(Vec<u8>),
    /// Patterns of 16 bits.
    Bits16(Vec<u16>),
    /// Patterns of 32 bits.
    Bits32(Vec<u32>),
    /// Patterns of 64 bits.
    Bits64(Vec<u64>),
}

impl Values {
    /// The elements' bytes, in the machine's order.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        fn bytes<T: Copy>(values: &[T]) -> &[u8] {
            // SAFETY: the integers and floats below have no padding, and any byte may be read.
            unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
        }
        match self {
            Self::Float32(values) => bytes(values),
            Self::Levels(values) => bytes(values),
            Self::Bits8(values) => values,
            Self::Bits16(values) => bytes(values),
            Self::Bits32(values) => bytes(values),
            Self::Bits64(values) => bytes(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_types_have_the_bytes_that_they_can_have() {
        let allowed = |code| (0..=255).filter(|byte| Dtype(code).allows(*byte)).collect::<Vec<u8>>();
        assert_eq!(allowed(15), [0, 1]);
        assert_eq!(allowed(29), [0, 1, 254, 255]);
        assert_eq!(allowed(28), (0..16).collect::<Vec<u8>>());
        assert_eq!((allowed(14).len(), allowed(27).len(), allowed(24).len()), (256, 16, 64));
        assert_eq!((Dtype::of_code(0), Dtype::of_code(31), Dtype(17).item()), (None, None, 16));
    }
}
