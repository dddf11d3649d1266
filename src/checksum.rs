//! CRC-32 as of zlib: what the index has of each chunk.
//!
//! A state is what is left of all bits so far, divided by a polynomial; bits of low order come first. It starts as all ones, and
//! is inverted at the end.

/// The polynomial, without its highest term; that of x^31 is the lowest bit.
pub(crate) const POLYNOMIAL: u32 = 0xedb8_8320;
/// The state at the start, and what is added at the end.
pub(crate) const ONES: u32 = !0;

/// The state of a CRC after more `bytes`, eight at a time.
pub(crate) fn update(mut crc: u32, bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<8>();
    for block in blocks {
        let [a, b, c, d, e, f, g, h] = (u64::from_le_bytes(*block) ^ u64::from(crc)).to_le_bytes();
        crc = [a, b, c, d, e, f, g, h]
            .into_iter()
            .zip(TABLES.iter().rev())
            .fold(0, |crc, (byte, table)| crc ^ table[usize::from(byte)]);
    }
    for byte in rest {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)];
    }
    crc
}

/// What a byte that so many others follow does to a CRC.
static TABLES: [[u32; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut following = 1;
    while following < 8 {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[following - 1][byte];
            tables[following][byte] = crc >> 8 ^ tables[0][(crc & 255) as usize];
            byte += 1;
        }
        following += 1;
    }
    tables
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::dispatch;

    #[test]
    fn the_checksum_is_that_of_zlib_at_every_length() {
        assert_eq!(dispatch::crc32(b"123456789"), 0xcbf4_3926);
        let bytes: Vec<u8> = (0..700u32).map(|index| ((index * index) >> 3) as u8).collect();
        for length in 0..bytes.len() {
            let plain =
                bytes[..length].iter().fold(ONES, |crc: u32, byte| crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)]);
            assert_eq!(update(ONES, &bytes[..length]), plain);
            assert_eq!(dispatch::crc32(&bytes[..length]), !plain);
        }
    }
}
