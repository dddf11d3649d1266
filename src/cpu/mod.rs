//! What is compiled for a processor's instructions. [`dispatch`] is the one door: it picks the processor's path.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod carryless;
#[cfg(all(any(test, fuzzing), target_arch = "x86_64"))]
pub mod differential;
pub mod dispatch;
#[cfg(target_arch = "x86_64")]
mod join;
#[cfg(target_arch = "x86_64")]
mod quads;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod simd128;
#[cfg(target_arch = "x86_64")]
mod symbols;
#[cfg(target_arch = "x86_64")]
mod vector;
