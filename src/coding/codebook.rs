//! Codebook indices, coded: tensors of few distinct values, in any order of magnitude.
//!
//! One entry, the *usual* one (zero, in a pruned tensor), has a decision of its own, with the density of other entries along
//! the row and the column as context. The rest is a binary tree over the bits of the index, with a context for each node.

use crate::coding::arithmetic::{Decoder, Encoder};
use crate::model::context::adapt_if;

/// Most entries of a codebook.
pub const MOST_ENTRIES: usize = 1 << 12;
/// Most columns of a row.
pub const MOST_WIDTH: usize = 1 << 16;
/// Probability one half, visited as often as a context's first shift of 3 says.
const FRESH: u32 = 0x8000_0100;
/// Densities are in units of 2^-16.
const ONE: i32 = 1 << 16;
/// log2 of the classes of a density.
const CLASS_BITS: u32 = 3;

/// What is known about the next entry.
struct Model {
    usual: u16,
    /// Bits of an index.
    bits: u32,
    /// Of "not the usual one", by class of the row's density, of the column's, and whether the entry to the left is usual.
    flags: Vec<u32>,
    /// By the bits of the index so far, after a one.
    nodes: Vec<u32>,
    columns: Vec<i32>,
    row: i32,
    left: usize,
}

impl Model {
    fn new(entries: usize, usual: u16, width: usize, count: usize) -> Self {
        let bits = entries.next_power_of_two().trailing_zeros();
        Self {
            usual,
            bits,
            flags: vec![FRESH; 2 << (2 * CLASS_BITS)],
            nodes: vec![FRESH; 1 << bits],
            columns: vec![ONE / 2; width.min(count)],
            row: ONE / 2,
            left: 0,
        }
    }

    /// Codes one index with `bit(probability of one, which bit of the index; none: is it another than the usual)`.
    #[inline(always)]
    fn code(&mut self, column: usize, mut bit: impl FnMut(u32, Option<u32>) -> bool) -> u16 {
        if column == 0 {
            (self.row, self.left) = (ONE / 2, 0);
        }
        let density = &mut self.columns[column];
        let class = |density: i32| (density >> (16 - CLASS_BITS)).min((1 << CLASS_BITS) - 1) as usize;
        let flag = &mut self.flags[(class(self.row) << CLASS_BITS | class(*density)) << 1 | self.left];
        let other = bit(*flag, None);
        adapt_if(true, flag, other);
        let target = if other { ONE } else { 0 };
        self.row += (target - self.row) >> 4;
        *density += (target - *density) >> 4;
        self.left = usize::from(other);
        if !other {
            return self.usual;
        }
        let mut node = 1;
        for place in (0..self.bits).rev() {
            let context = &mut self.nodes[node];
            let one = bit(*context, Some(place));
            adapt_if(true, context, one);
            node = node << 1 | usize::from(one);
        }
        (node - (1 << self.bits)) as u16
    }
}

/// Appends the code of `indices`, each below `entries`, in rows of `width`.
pub fn encode(indices: &[u16], entries: usize, usual: u16, width: usize, out: &mut Vec<u8>) {
    let mut encoder = Encoder::new();
    let mut model = Model::new(entries, usual, width, indices.len());
    for row in indices.chunks(width) {
        for (column, index) in row.iter().enumerate() {
            model.code(column, |p, place| {
                let one = place.map_or(*index != usual, |place| index >> place & 1 != 0);
                encoder.bit(p, one);
                one
            });
        }
    }
    encoder.finish(out);
}

/// Decodes into `indices`, which says how many there are. False if `code` is not exactly their code, or an index is not
/// below `entries`.
#[must_use]
pub fn decode(code: &[u8], entries: usize, usual: u16, width: usize, indices: &mut [u16]) -> bool {
    let mut decoder = Decoder::new(code);
    let mut model = Model::new(entries, usual, width, indices.len());
    for row in indices.chunks_mut(width) {
        if !decoder.plausible() {
            return false;
        }
        for (column, index) in row.iter_mut().enumerate() {
            *index = model.code(column, |p, _| decoder.bit_if(true, p));
            if usize::from(*index) >= entries {
                return false;
            }
        }
    }
    decoder.check()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn indices_come_back_and_other_lengths_do_not() {
        let mut random = Random(3);
        for (entries, count, width) in [(1, 10, 3), (2, 1000, 10), (3, 100, 1), (256, 5000, 77), (4096, 3000, 4000)] {
            let usual = (entries / 2) as u16;
            let indices: Vec<u16> = (0..count)
                .map(|_| if random.next().is_multiple_of(3) { random.below(entries) as u16 } else { usual })
                .collect();
            let mut code = Vec::new();
            encode(&indices, entries as usize, usual, width, &mut code);
            let mut back = vec![0; count];
            assert!(decode(&code, entries as usize, usual, width, &mut back));
            assert_eq!(back, indices);
            assert!(!decode(&code[..code.len() - 1], entries as usize, usual, width, &mut back));
            code.push(0);
            assert!(!decode(&code, entries as usize, usual, width, &mut back));
        }
    }

    #[test]
    fn damage_is_not_a_panic() {
        let mut random = Random(5);
        for _ in 0..500 {
            let code: Vec<u8> = (0..random.next() % 40).map(|_| random.next() as u8).collect();
            let _ = decode(&code, 200, 7, 9, &mut [0; 100]);
        }
    }
}
