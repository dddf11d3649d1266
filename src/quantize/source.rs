//! Where the levels of a chunk come from: what the coding loop asks, and every quantiser answers.

use std::ops::Range;

use crate::model::context::ContextSet;
use crate::model::rows::{Rows, Site};
use crate::quantize::survivors::AddCompareSelect;

/// Where the levels to code come from. A trait, because closures cannot be told to be inlined, and what is not inlined is
/// compiled without the machine's features.
pub(crate) trait Source {
    /// Whether it is for tensors with two quantisers; None is for all.
    const DEPENDENT: Option<bool>;
    /// Levels come in blocks of so many, or fewer at the end of a row.
    const BLOCK: usize;

    /// Called before a block in these columns that starts with the chunk's `index`-th level.
    #[inline(always)]
    fn begin<M: AddCompareSelect, const KIND: u8>(&mut self, _rows: &Rows, _index: usize, _columns: Range<usize>) {}

    /// The chunk's `index`-th level, in this column, at a site with these contexts.
    fn level<const KIND: u8>(&mut self, set: &mut ContextSet, site: Site, index: usize, column: usize) -> i32;

    /// Called after a block of these levels that started with the `index`-th.
    #[inline(always)]
    fn end(&mut self, _index: usize, _levels: &[i32]) {}
}
