//! Raw bits, the first one lowest.

/// `2^count - 1`, for count up to 64.
#[inline(always)]
pub(crate) const fn ones(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// The largest number of [`BitWriter::put_number`].
pub(crate) const MOST_NUMBER: u32 = (1 << 24) - 2;

/// Writes raw bits, the first lowest.
pub(crate) struct BitWriter<'a> {
    /// `written` bytes, and room.
    out: &'a mut Vec<u8>,
    written: usize,
    /// Bits not yet written.
    word: u64,
    /// How many they are: fewer than eight.
    count: u32,
}

impl<'a> BitWriter<'a> {
    /// Writes after what there is. `room` is a guess at the bytes.
    pub(crate) fn after(out: &'a mut Vec<u8>, room: usize) -> Self {
        let written = out.len();
        out.resize(written + room.max(64), 0);
        Self { out, written, word: 0, count: 0 }
    }

    /// Appends bits as [`Self::put`] does, so many of each.
    #[inline(always)]
    pub(crate) fn put_all(&mut self, bits: &[u64], counts: &[u8]) {
        let end = self.written + 8 * (bits.len() + 1);
        if self.out.len() < end {
            self.out.resize(end.max(2 * self.out.len()), 0);
        }
        let out = &mut self.out[..end];
        let (mut written, mut word, mut count) = (self.written, self.word, self.count);
        for (bits, more) in bits.iter().zip(counts) {
            word |= bits << count;
            count += u32::from(*more);
            if let Some(bytes) = out.get_mut(written..).and_then(<[u8]>::first_chunk_mut) {
                *bytes = word.to_le_bytes();
            }
            let whole = count / 8;
            written += whole as usize;
            word >>= 8 * whole;
            count %= 8;
        }
        (self.written, self.word, self.count) = (written, word, count);
    }

    /// Appends bits as [`Self::put`] does, as many of each.
    #[inline(always)]
    pub(crate) fn put_each(&mut self, bits: &[u64], count: u32) {
        let end = self.written + 8 * (bits.len() + 1);
        if self.out.len() < end {
            self.out.resize(end.max(2 * self.out.len()), 0);
        }
        let out = &mut self.out[..end];
        let (mut written, mut word, mut held) = (self.written, self.word, self.count);
        for bits in bits {
            word |= bits << held;
            held += count;
            if let Some(bytes) = out.get_mut(written..).and_then(<[u8]>::first_chunk_mut) {
                *bytes = word.to_le_bytes();
            }
            let whole = held / 8;
            written += whole as usize;
            word >>= 8 * whole;
            held %= 8;
        }
        (self.written, self.word, self.count) = (written, word, held);
    }

    /// Appends `count <= 56` bits.
    #[inline(always)]
    pub(crate) fn put(&mut self, bits: u64, count: u32) {
        self.word |= bits << self.count;
        self.count += count;
        // All eight bytes, of which the next ones overwrite those that do not count.
        match self.out.get_mut(self.written..).and_then(<[u8]>::first_chunk_mut) {
            Some(bytes) => *bytes = self.word.to_le_bytes(),
            None => self.grow(),
        }
        let whole = self.count / 8;
        self.written += whole as usize;
        self.word >>= 8 * whole;
        self.count %= 8;
    }

    /// Appends a number in the way of Elias: as many zeros as it, plus 1, has bits after its first one, then that one, then
    /// those bits. At most [`MOST_NUMBER`].
    pub(crate) fn put_number(&mut self, number: u32) {
        let more = (number + 1).ilog2();
        self.put(1 << more, more + 1);
        self.put(u64::from(number + 1 - (1 << more)), more);
    }

    /// Appends a signed number: 0, -1, 1, -2, ... as 0, 1, 2, 3, ...
    pub(crate) fn put_signed(&mut self, number: i32) {
        self.put_number(((number << 1) ^ (number >> 31)) as u32);
    }

    /// Writes where there was no room.
    #[cold]
    fn grow(&mut self) {
        self.out.resize(2 * self.out.len(), 0);
        self.out[self.written..self.written + 8].copy_from_slice(&self.word.to_le_bytes());
    }

    /// Appends `count <= 64` bits.
    #[inline(always)]
    pub(crate) fn put_long(&mut self, bits: u64, count: u32) {
        if count > 48 {
            self.put(bits & ones(32), 32);
            self.put(bits >> 32, count - 32);
        } else {
            self.put(bits, count);
        }
    }

    pub(crate) fn finish(self) {
        // The last word is there, as far as it counts.
        self.out.truncate(self.written + usize::from(self.count > 0));
    }
}

/// Reads raw bits; after the end they are zeros.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Number of the first byte of which nothing was read; `None` if bits before it that fill the last one are not zeros.
    pub(crate) fn end_of_byte(&self) -> Option<usize> {
        let rest = self.at.wrapping_neg() as u32 % 8;
        (self.peek() & ones(rest) == 0).then_some(self.at.div_ceil(8))
    }

    /// All bytes, and the number of bits that were read; for vectors.
    #[cfg(any(target_arch = "x86_64", target_feature = "simd128"))]
    pub(crate) fn parts(&self) -> (&'a [u8], usize) {
        (self.bytes, self.at)
    }

    /// Goes on after so many bits.
    #[inline(always)]
    pub(crate) fn skip(&mut self, count: usize) {
        self.at += count;
    }

    /// At least 57 bits, the next one lowest.
    #[inline(always)]
    pub(crate) fn peek(&self) -> u64 {
        let index = self.at / 8;
        let word = match self.bytes.get(index..index + 8).and_then(<[u8]>::first_chunk) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => self.tail(index),
        };
        word >> (self.at % 8)
    }

    #[cold]
    fn tail(&self, index: usize) -> u64 {
        let rest = self.bytes.get(index..).unwrap_or(&[]);
        rest.iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    /// Reads `count <= 56` bits.
    #[inline(always)]
    pub(crate) fn take(&mut self, count: u32) -> u64 {
        let bits = self.peek() & ones(count);
        self.at += count as usize;
        bits
    }

    /// Reads `count <= 64` bits.
    #[inline(always)]
    pub(crate) fn take_long(&mut self, count: u32) -> u64 {
        if count > 48 {
            let low = self.take(32);
            low | self.take(count - 32) << 32
        } else {
            self.take(count)
        }
    }

    /// What [`BitWriter::put_number`] appended; `None` if it would be too large.
    pub(crate) fn take_number(&mut self) -> Option<u32> {
        let more = self.peek().trailing_zeros();
        if more > MOST_NUMBER.ilog2() {
            return None;
        }
        self.skip(more as usize + 1);
        Some((1 << more) - 1 + self.take(more) as u32)
    }

    /// What [`BitWriter::put_signed`] appended.
    pub(crate) fn take_signed(&mut self) -> Option<i32> {
        self.take_number().map(|number| (number >> 1) as i32 ^ -((number & 1) as i32))
    }

    /// Whether exactly everything was read, and the bits that fill the last byte are zeros.
    pub(crate) fn finished(&self) -> bool {
        self.at.div_ceil(8) == self.bytes.len() && (self.at.is_multiple_of(8) || self.peek() & ones(7) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn numbers_come_back() {
        let random = &mut Random(3);
        let given: Vec<u32> = (0..1000).map(|_| (random.next() as u32 >> random.below(32)).min(MOST_NUMBER)).collect();
        let mut bytes = Vec::new();
        let mut bits = BitWriter::after(&mut bytes, 0);
        for number in &given {
            bits.put_number(*number);
            bits.put_signed(-(*number as i32 >> 2));
        }
        bits.finish();
        let mut bits = BitReader::new(&bytes);
        for number in &given {
            assert_eq!(bits.take_number(), Some(*number));
            assert_eq!(bits.take_signed(), Some(-(*number as i32 >> 2)));
        }
        assert!(bits.finished());
        assert_eq!(bits.take_number(), None);
        assert_eq!(BitReader::new(&[0, 0, 0, 1, 255, 255, 255]).take_number(), None);
    }
}
