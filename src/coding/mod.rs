//! From levels and bytes to bits, and back.

pub mod arithmetic;
pub mod binarisation;
pub(crate) mod bits;
pub mod bytes;
pub mod changes;
pub mod codebook;
pub mod fast;
pub mod lanes;
pub mod output;
pub(crate) mod rans;
pub mod sparse;
