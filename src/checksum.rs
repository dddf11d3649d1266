//! CRC-32 as of zlib: what the index has of each chunk.
//!
//! A state is what is left of all bits so far, divided by a polynomial; bits of low order come first. It starts as all ones, and
//! is inverted at the end.

use std::sync::OnceLock;

/// The polynomial, without its highest term; that of x^31 is the lowest bit.
pub(crate) const POLYNOMIAL: u32 = 0xedb8_8320;
/// The state at the start, and what is added at the end.
pub(crate) const ONES: u32 = !0;

/// Bytes that [`update`] looks at together.
const STRIDE: usize = 16;

/// The state of a CRC after more `bytes`, many at a time.
pub(crate) fn update(mut crc: u32, bytes: &[u8]) -> u32 {
    let tables = tables();
    let (blocks, rest) = bytes.as_chunks::<STRIDE>();
    for block in blocks {
        let mut mixed = *block;
        for (byte, before) in mixed.iter_mut().zip(crc.to_le_bytes()) {
            *byte ^= before;
        }
        crc = 0;
        for (byte, table) in mixed.iter().zip(tables.iter().rev()) {
            crc ^= table[usize::from(*byte)];
        }
    }
    for byte in rest {
        crc = crc >> 8 ^ tables[0][usize::from(crc as u8 ^ byte)];
    }
    crc
}

/// What a byte that so many others follow does to a CRC. Made when it is needed: it would be 16 kB of a WebAssembly module, which do
/// not get smaller on the way.
fn tables() -> &'static [[u32; 256]; STRIDE] {
    static TABLES: OnceLock<[[u32; 256]; STRIDE]> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut tables = [[0; 256]; STRIDE];
        for byte in 0..=255u8 {
            let mut crc = u32::from(byte);
            for table in &mut tables {
                for _ in 0..8 {
                    crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
                }
                table[usize::from(byte)] = crc;
            }
        }
        tables
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::dispatch;

    #[test]
    fn the_checksum_is_that_of_zlib_at_every_length() {
        assert_eq!(dispatch::crc32(b"123456789"), 0xcbf4_3926);
        let bytes: Vec<u8> = (0..700u32).map(|index| ((index * index) >> 3) as u8).collect();
        let table = tables()[0];
        for length in 0..bytes.len() {
            let plain =
                bytes[..length].iter().fold(ONES, |crc: u32, byte| crc >> 8 ^ table[usize::from(crc as u8 ^ byte)]);
            assert_eq!(update(ONES, &bytes[..length]), plain);
            assert_eq!(dispatch::crc32(&bytes[..length]), !plain);
        }
    }
}
