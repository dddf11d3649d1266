//! From levels and bytes to bits, and back.

pub mod arithmetic;
pub mod binarisation;
pub mod bytes;
pub mod codebook;
pub mod fast;
pub mod lanes;
pub mod output;
pub mod sparse;
