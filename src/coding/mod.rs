//! From levels and bytes to bits, and back.

pub mod arithmetic;
pub mod binarisation;
#[allow(dead_code)] // as rans
pub(crate) mod bits;
pub mod bytes;
pub mod changes;
pub mod codebook;
pub mod fast;
pub mod lanes;
pub mod output;
#[allow(dead_code)] // used by the next change: exact values and updates
pub(crate) mod rans;
pub mod sparse;
