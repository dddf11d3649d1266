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
    /// A byte 0 or 1.
    pub const BOOL: Self = Self(15);

    /// The type of this number, if there is one.
    #[must_use]
    pub fn of_code(code: u8) -> Option<Self> {
        (1..=15).contains(&code).then_some(Self(code))
    }

    /// Its number, 1 to 15 (FORMAT.md, 4.5).
    #[must_use]
    pub fn code(self) -> u8 {
        self.0
    }

    /// Its name in numpy.
    #[must_use]
    pub fn name(self) -> &'static str {
        [
            "float64",
            "float32",
            "float16",
            "bfloat16",
            "float8_e4m3fn",
            "float8_e5m2",
            "int64",
            "int32",
            "int16",
            "int8",
            "uint64",
            "uint32",
            "uint16",
            "uint8",
            "bool",
        ][usize::from(self.0) - 1]
    }

    /// Bytes of an element.
    #[must_use]
    pub fn item(self) -> usize {
        [8, 4, 2, 2, 1, 1, 8, 4, 2, 1, 8, 4, 2, 1, 1][usize::from(self.0) - 1]
    }

    /// Bits of the mantissa; 0 for integers.
    #[must_use]
    pub fn mantissa(self) -> u32 {
        [52, 23, 10, 7, 3, 2].get(usize::from(self.0) - 1).copied().unwrap_or(0)
    }
}

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
