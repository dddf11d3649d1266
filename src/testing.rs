//! What tests share.

/// A small deterministic generator (xorshift), so that the core needs no crates for its tests either.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> usize {
        (self.next() >> 8) as usize % end as usize
    }
}
