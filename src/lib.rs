//! The native core of deepcabac: levels and bytes. It knows no files, names or data types.
//!
//! Reading order: [`params`] (what a tensor's header says), [`rows`] (what is known about the next level) on [`scale`],
//! [`levels`] (the binarisation) on [`context`] and [`coder`], then the loops: [`chunk`] encodes what [`greedy`] or the trellis
//! chooses, [`lanes`] decodes.
//! [`fit`] chooses parameters; [`exact`] makes levels and details of values that must come back bit for bit, [`codebook`]
//! codes those of few distinct values; [`bytes`] codes what is not levels; [`ffi`] is what Python calls.

pub mod bytes;
pub mod chunk;
pub mod codebook;
pub mod coder;
pub mod context;
pub mod dc2019;
pub mod dependent;
pub mod exact;
pub mod fast;
pub mod feedback;
pub mod ffi;
pub mod fit;
pub mod greedy;
pub mod lanes;
pub mod levels;
pub mod mcoder;
pub mod measure;
pub mod mlevels;
pub mod nnc;
pub mod nnc_quantize;
mod nnc_settings;
pub mod params;
pub mod regression;
pub mod rows;
pub mod scale;
#[cfg(target_arch = "x86_64")]
mod simd;
pub mod sparse;
#[cfg(test)]
mod testing;
mod trellis;
