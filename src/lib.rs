//! The native core of deepcabac: levels and bytes, and what reads a `.dcb` file ([`file`], for Rust and WebAssembly).
//!
//! Reading order:
//!
//! 1. [`model`]: what is known about the next level. `params` (what a tensor's header says), `scale`, `context`, `rows`.
//! 2. [`coding`]: from levels to bits. `arithmetic` (the range coder), `binarisation` (levels as decisions, written once for
//!    encoding, decoding and counting), then the loops: `lanes` decodes; `fast` and `sparse` are the other coders.
//! 3. [`quantize`]: from weights to levels. `greedy` (one by one), `trellis` (all together), `feedback` (with a curvature).
//! 4. [`chunk`] joins the three: a chunk of levels or weights in, bytes out. [`fit`] chooses parameters, [`exact`] makes levels
//!    and refinement bits of values that must come back bit for bit, `floats` codes those fast, [`measure`] sums up errors.
//! 5. [`cpu`]: the same loops compiled for a processor's vectors, and the one place that picks between them.
//! 6. [`nnc`]: streams of the standard. [`file`]: `.dcb` files, read. `ffi`: what Python calls; `wasm`: what JavaScript calls.
//!
//! No module imports one that imports it; `tests/test_layout.py` checks that.

mod checksum;
pub mod chunk;
pub mod coding;
pub mod cpu;
pub mod exact;
#[cfg(not(target_family = "wasm"))]
pub mod ffi;
pub mod file;
pub mod fit;
pub(crate) mod floats;
pub mod measure;
pub mod model;
pub mod nnc;
pub mod quantize;
#[cfg(test)]
mod testing;
/// cbindgen:ignore
#[cfg(target_family = "wasm")]
pub mod wasm;
