//! The coding parameters of a tensor: how its levels are laid out, predicted and classed. Stored once a tensor.
//!
//! ```text
//! byte    flags: 1 = row prediction, 2 = kernel prediction, 4 = coarse scale classes, 8 = dependent quantisation; bits 4 and 5:
//!         the coder, 0 binary, 1 fast, 2 sparse (no row prediction), 3 binary with regression (no kernel prediction)
//! byte    logarithm of the mean magnitude of a residual, eighths of an octave, 0..=191 (96 is a mean of 1)
//! varint  width of a row, 1..=65536
//! varint  rows in a chunk, 1..; a chunk holds at most 2^20 levels, with regression 2^22
//! if row prediction:     i8 weight of the level above, i8 weight of the column's mean
//! if kernel prediction:  byte kernel width 1..=64, byte kernel size 1..=128,
//!                        not the sparse coder: 5 x i8 weights of: left, up, up-left, two left, two up
//! if the sparse coder:   byte logarithm of the share of levels that are not zero, 0..=160 (160 is all)
//! if dependent:          byte log2 of the number of states, 3..=6
//! ```
//! Weights are in units of 1/64.

use crate::model::dependent::States;
use crate::model::scale::{LAST_LOG, Resolution};

/// Most columns of a row.
pub const MAX_WIDTH: usize = 1 << 16;
/// Most levels of a chunk.
pub const MAX_CHUNK: usize = 1 << 20;
/// Most levels of a chunk with regression, which learns from the rows before.
pub const MAX_REGRESSED_CHUNK: usize = 1 << 22;
/// Most columns with regression.
pub const MAX_REGRESSED_WIDTH: usize = 1 << 13;
/// The largest logarithm of the share of levels that are not zero: all of them (`sparse.rs`).
pub const LAST_DENSITY_LOG: u8 = 8 * 20;
/// Most positions of a kernel.
pub const MAX_KERNEL: usize = 128;
/// Most columns of a kernel.
pub const MAX_KERNEL_WIDTH: usize = 64;
/// Weights of a kernel's prediction: left, up, up-left, two left, two up.
pub const KERNEL_WEIGHTS: usize = 5;

/// Prediction from the rows above: the level above and the mean of the column.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RowPrediction {
    /// Weight of the level above, in 1/64.
    pub above: i8,
    /// Weight of the column's running mean, in 1/64.
    pub column: i8,
}

/// Prediction inside a convolution kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelPrediction {
    /// Columns of a kernel.
    pub width: usize,
    /// Positions of a kernel; rows of the level matrix are sequences of kernels.
    pub size: usize,
    /// Weights of left, up, up-left, two left, two up, in 1/64.
    pub weights: [i8; KERNEL_WEIGHTS],
}

/// How levels become bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Coder {
    /// Binary decisions, one level after the other (`levels.rs`).
    #[default]
    Binary,
    /// A symbol a level, many levels at once (`fast.rs`).
    Fast,
    /// Zeros apart from the rest (`sparse.rs`).
    Sparse {
        /// Logarithm of the share of levels that are not zero, as `scale.rs` has it, in units of 2^-20.
        density_log: u8,
    },
    /// As binary, with regression on the columns before (`regression.rs`).
    Regression,
}

impl Coder {
    /// Its number in a stored record.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Binary => 0,
            Self::Fast => 1,
            Self::Sparse { .. } => 2,
            Self::Regression => 3,
        }
    }

    /// Whether levels are coded by binary decisions, one after the other.
    #[must_use]
    pub fn is_binary(self) -> bool {
        matches!(self, Self::Binary | Self::Regression)
    }
}

/// See the module's description.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Params {
    /// The entropy coder.
    pub coder: Coder,
    /// Class width.
    pub resolution: Resolution,
    /// Logarithm of the mean magnitude.
    pub mean_log: u8,
    /// Levels in a row.
    pub width: usize,
    /// Rows in a chunk.
    pub chunk_rows: usize,
    /// Prediction from the rows above.
    pub row: Option<RowPrediction>,
    /// Prediction inside kernels.
    pub kernel: Option<KernelPrediction>,
    /// Two quantisers take turns, chosen by a machine of so many states.
    pub states: Option<States>,
}

impl Params {
    /// Levels in every chunk but the last.
    #[must_use]
    pub fn chunk_levels(&self) -> usize {
        self.width * self.chunk_rows
    }

    /// Appends the stored form.
    pub fn write(&self, out: &mut Vec<u8>) {
        let sparse = match self.coder {
            Coder::Sparse { density_log } => Some(density_log),
            _ => None,
        };
        let flags = u8::from(self.row.is_some())
            | u8::from(self.kernel.is_some()) << 1
            | u8::from(self.resolution == Resolution::Coarse) << 2
            | u8::from(self.states.is_some()) << 3
            | self.coder.code() << 4;
        out.extend([flags, self.mean_log]);
        write_varint(out, self.width);
        write_varint(out, self.chunk_rows);
        if let Some(row) = self.row {
            out.extend([row.above as u8, row.column as u8]);
        }
        if let Some(kernel) = self.kernel {
            out.extend([kernel.width as u8, kernel.size as u8]);
            if sparse.is_none() {
                out.extend(kernel.weights.map(|w| w as u8));
            }
        }
        out.extend(sparse);
        out.extend(self.states.map(States::bits));
    }

    /// Reads the stored form; `None` if it is not exactly one, with every value in its range.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let flags = reader.byte()?;
        let mean_log = reader.byte()?;
        let width = reader.varint()?;
        let chunk_rows = reader.varint()?;
        if flags > 63 || mean_log > LAST_LOG || width == 0 || width > MAX_WIDTH || chunk_rows == 0 {
            return None;
        }
        let (sparse, regressed) = (flags >> 4 == 2, flags >> 4 == 3);
        if sparse && flags & 1 != 0 || regressed && (flags & 2 != 0 || width > MAX_REGRESSED_WIDTH) {
            return None;
        }
        if width.checked_mul(chunk_rows)? > if regressed { MAX_REGRESSED_CHUNK } else { MAX_CHUNK } {
            return None;
        }
        let row = if flags & 1 != 0 {
            Some(RowPrediction { above: reader.byte()? as i8, column: reader.byte()? as i8 })
        } else {
            None
        };
        let kernel = if flags & 2 != 0 {
            let (width, size) = (usize::from(reader.byte()?), usize::from(reader.byte()?));
            if width == 0 || width > MAX_KERNEL_WIDTH || size == 0 || size > MAX_KERNEL {
                return None;
            }
            let mut weights = [0; KERNEL_WEIGHTS];
            if !sparse {
                for weight in &mut weights {
                    *weight = reader.byte()? as i8;
                }
            }
            Some(KernelPrediction { width, size, weights })
        } else {
            None
        };
        let resolution = if flags & 4 != 0 { Resolution::Coarse } else { Resolution::Fine };
        let coder = match flags >> 4 {
            0 => Coder::Binary,
            1 => Coder::Fast,
            2 => Coder::Sparse { density_log: reader.byte().filter(|log| *log <= LAST_DENSITY_LOG)? },
            _ => Coder::Regression,
        };
        let states = if flags & 8 != 0 { Some(States::of_bits(reader.byte()?)?) } else { None };
        let rest = reader.0;
        let params = Self { coder, resolution, mean_log, width, chunk_rows, row, kernel, states };
        rest.is_empty().then_some(params)
    }
}

/// Appends `value`, seven bits a byte, least significant first.
fn write_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// At most three bytes, and no more than needed: one number has one form.
    fn varint(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in [0, 7, 14] {
            let byte = self.byte()?;
            value |= usize::from(byte & 127) << shift;
            if byte < 128 {
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Params {
        Params {
            coder: Coder::Binary,
            resolution: Resolution::Coarse,
            mean_log: 100,
            width: 576,
            chunk_rows: 200,
            row: Some(RowPrediction { above: -3, column: 64 }),
            kernel: Some(KernelPrediction { width: 3, size: 9, weights: [1, -2, 3, -128, 127] }),
            states: States::of_bits(5),
        }
    }

    #[test]
    fn the_stored_form_is_read_back() {
        let variants = [
            example(),
            Params { row: None, ..example() },
            Params { coder: Coder::Fast, ..example() },
            Params { states: None, ..example() },
            Params {
                coder: Coder::Sparse { density_log: LAST_DENSITY_LOG },
                row: None,
                kernel: Some(KernelPrediction { width: 3, size: 9, weights: [0; KERNEL_WEIGHTS] }),
                ..example()
            },
            Params { coder: Coder::Sparse { density_log: 0 }, row: None, kernel: None, states: None, ..example() },
            Params { kernel: None, resolution: Resolution::Fine, width: MAX_WIDTH, chunk_rows: 16, ..example() },
            Params { kernel: None, width: MAX_REGRESSED_WIDTH, chunk_rows: 512, coder: Coder::Regression, ..example() },
            Params { row: None, kernel: None, states: None, coder: Coder::Regression, ..example() },
            Params {
                row: None,
                kernel: None,
                width: 1,
                chunk_rows: MAX_CHUNK,
                states: States::of_bits(3),
                ..example()
            },
        ];
        for params in variants {
            let mut bytes = Vec::new();
            params.write(&mut bytes);
            assert_eq!(Params::read(&bytes), Some(params));
        }
    }

    #[test]
    fn anything_out_of_range_is_refused() {
        let mut bytes = Vec::new();
        example().write(&mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(Params::read(&bytes[..length]), None);
        }
        assert_eq!(Params::read(&[&bytes[..], &[0]].concat()), None);
        for (position, value) in [(0, 64), (0, 128), (0, 255), (1, 241)] {
            let mut bad = bytes.clone();
            bad[position] = value;
            assert_eq!(Params::read(&bad), None);
        }
        for bad in [
            &[0, 0, 0, 1][..],                    // width 0
            &[0, 0, 1, 0],                        // no rows
            &[0, 0, 0x81, 0x80, 0x04, 1],         // width 65537
            &[0, 0, 0x80, 0x80, 0x04, 17],        // chunk of more than 2^20
            &[0, 0, 0x81, 0x00, 1],               // a number in more bytes than it needs
            &[0, 0, 0x81, 0x81, 0x81, 0x01, 1],   // a number in four bytes
            &[2, 0, 1, 1, 0, 9, 0, 0, 0, 0, 0],   // kernel width 0
            &[2, 0, 1, 1, 65, 9, 0, 0, 0, 0, 0],  // kernel width 65
            &[2, 0, 1, 1, 3, 129, 0, 0, 0, 0, 0], // kernel size 129
            &[8, 0, 1, 1],                        // no number of states
            &[8, 0, 1, 1, 2],                     // 4 states
            &[8, 0, 1, 1, 7],                     // 128 states
            &[32, 0, 1, 1],                       // no density
            &[32, 0, 1, 1, 161],                  // a density above one
            &[33, 0, 1, 1, 0, 0, 100],            // row prediction with the sparse coder
            &[48, 0, 0x81, 0x40, 1],              // width 8193 with regression
            &[48, 0, 0x80, 0x20, 0x81, 0x08],     // chunk of more than 2^22
            &[50, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0],  // regression and kernel prediction
        ] {
            assert_eq!(Params::read(bad), None, "{bad:?}");
        }
    }
}
