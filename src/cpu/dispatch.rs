//! The one door to the processor's paths: each function here runs the AVX2 build of a loop where the processor has it, else
//! the plain one. Both give the same bits.

#![allow(unsafe_code)]

use crate::checksum;
use crate::chunk::{self, Sums};
use crate::coding::bytes;
use crate::coding::changes::{self, Found, Rates};
use crate::coding::lanes::{self, Job};
#[cfg(test)]
use crate::coding::rans::{self, Decode};
#[cfg(target_arch = "x86_64")]
use crate::cpu::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::cpu::vector::available;
use crate::exact::{self, Form, Origin, Pattern};
use crate::floats;
use crate::model::context::Portable;
use crate::model::params::Params;
use crate::nnc::quantize as nnc_quantize;
use crate::nnc::unit::{self, Tensor, Tools, UnitDecoder, UnitEncoder};
use crate::quantize::feedback::Coupling;
use crate::quantize::greedy::Quantizer;

/// What runs where there is no choice: WebAssembly says at compile time whether it has vectors.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
type Plain = Portable;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
type Plain = crate::cpu::simd128::Simd128;

/// CRC-32 of zlib.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::carryless::available() {
        return checksum::ONES ^ crate::cpu::carryless::update(checksum::ONES, bytes);
    }
    checksum::ONES ^ checksum::update(checksum::ONES, bytes)
}

/// The code of bytes without a model of their own.
#[must_use]
pub fn encode_bytes(plain: &[u8]) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return bytes::encode_on::<Avx2>(plain);
    }
    bytes::encode_on::<Portable>(plain)
}

/// Decodes `coded` into `out`, which says how many bytes there are. False if `coded` is not exactly their code.
#[must_use]
pub fn decode_bytes(coded: &[u8], out: &mut [u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return bytes::decode_on::<Avx2>(coded, out);
    }
    bytes::decode_on::<Portable>(coded, out)
}

/// Decodes all jobs and sets their `good`. A damaged chunk leaves its output in part unwritten.
pub fn decode(jobs: &mut [Job]) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::decode(jobs);
    }
    lanes::decode_on::<Plain>(jobs);
}

/// Decodes the next symbols: see [`Decode::decode`].
#[cfg(test)]
pub(crate) fn symbols(decoder: &mut rans::Decoder, numbers: Option<&[u8]>, symbols: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::symbols(decoder, numbers, symbols);
    }
    Portable::decode(decoder, numbers, symbols);
}

/// Appends the code of `levels` to `out`.
pub fn encode(params: &Params, levels: &[i32], out: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::encode(params, levels, out);
    }
    chunk::encode_on::<Portable>(params, levels, out);
}

/// Quantises `weights` and appends their code to `out`. Levels are also written to `chosen` if it is given. With a `coupling`,
/// weights are in steps (the quantiser's step is one), the chunk has whole rows, and levels make up for each other's errors.
pub fn quantize(
    params: &Params,
    weights: &[f32],
    quantizer: Quantizer<'_>,
    coupling: Option<Coupling>,
    chosen: Option<&mut [i32]>,
    out: &mut Vec<u8>,
) -> Sums {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::quantize(params, weights, quantizer, coupling, chosen, out);
    }
    chunk::quantize_on::<Portable>(params, weights, quantizer, coupling, chosen, out)
}

/// Levels and refinement bits of `patterns`, in rows of `width`. Appends the refinement bits to `out`.
pub fn split<P: Pattern>(
    form: Form,
    origin: Origin<P>,
    width: usize,
    patterns: &[P],
    levels: &mut [i32],
    out: &mut Vec<u8>,
) {
    let Origin::Float { zeros } = origin else {
        return exact::split_differences(form, origin, width, patterns, levels, out);
    };
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::split_floats(form, zeros, width, patterns, levels, out);
    }
    exact::split_floats_on(form, zeros, width, patterns, levels, out);
}

/// Appends the code of a chunk of floating-point values: see [`floats::encode_on`].
pub fn encode_floats<P: Pattern>(mantissa: u32, width: usize, scaled: bool, patterns: &[P], out: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return floats::encode_on::<Avx2, P>(mantissa, width, scaled, patterns, out);
    }
    floats::encode_on::<Portable, P>(mantissa, width, scaled, patterns, out);
}

/// Decodes a chunk of floating-point values: see [`floats::decode_on`].
pub fn decode_floats<P: Pattern>(mantissa: u32, width: usize, bytes: &[u8], patterns: &mut [P]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return floats::decode_on::<Avx2, P>(mantissa, width, bytes, patterns);
    }
    floats::decode_on::<Plain, P>(mantissa, width, bytes, patterns)
}

/// Appends the code of the changes from `base` to `values`, as many, to `out`.
pub fn encode_changes<P: Pattern>(rates: &Rates, base: &[P], values: &[P], out: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::encode_changes(rates, base, values, out);
    }
    changes::encode_on::<P, Portable>(rates, base, values, out);
}

/// Decodes changes: see [`changes::decode_on`].
pub fn decode_changes<P: Pattern>(rates: &Rates, base: &[P], code: &[u8], found: &mut Found<'_, P>) -> bool {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::decode_changes(rates, base, code, found);
    }
    changes::decode_on::<P, Portable>(rates, base, code, found)
}

/// Decodes the next tensor of a unit of the standard: see [`unit::decode_on`].
pub fn nnc_decode(
    decoder: &mut UnitDecoder,
    tensor: &Tensor,
    levels: &mut [i32],
    entries: &mut [u64],
    known: bool,
) -> Option<i32> {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::nnc_decode(decoder, tensor, levels, entries, known);
    }
    unit::decode_on(decoder, tensor, levels, entries, known)
}

/// Encodes the next tensor of a unit of the standard: see [`unit::encode_on`].
pub fn nnc_encode(encoder: &mut UnitEncoder, tensor: &Tensor, qp: i32, levels: &[i32], tools: Tools) -> bool {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::nnc_encode(encoder, tensor, qp, levels, tools);
    }
    unit::encode_on(encoder, tensor, qp, levels, tools)
}

/// Quantises weights as levels of the standard: see [`nnc_quantize::quantize_on`].
pub fn nnc_quantize(
    tensor: &Tensor,
    weights: &[f32],
    quantizer: nnc_quantize::NncQuantizer,
    levels: &mut [i32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if available() {
        return avx2::nnc_quantize(tensor, weights, quantizer, levels);
    }
    nnc_quantize::quantize_on(tensor, weights, quantizer, levels)
}

/// The loops compiled with the features of [`available`].
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2 {
    use super::*;

    macro_rules! with_features {
        (
            $(#[$doc:meta])* $name:ident $(<$of:ident: $bound:path>)?, $inner:ident, $call:path,
            ($($argument:ident: $type:ty),*) $(-> $result:ty)?
        ) => {
            $(#[$doc])*
            pub(crate) fn $name$(<$of: $bound>)?($($argument: $type),*) $(-> $result)? {
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
                fn $inner$(<$of: $bound>)?($($argument: $type),*) $(-> $result)? {
                    $call($($argument),*)
                }
                assert!(available(), "called on a processor without AVX2");
                // SAFETY: the features were just checked.
                unsafe { $inner($($argument),*) }
            }
        };
    }

    with_features!(
        /// [`lanes::decode_on`] on this machine.
        decode, decode_avx2, lanes::decode_on::<Avx2>, (jobs: &mut [Job])
    );
    with_features!(
        /// [`Decode::decode`] with vectors.
        #[cfg(test)]
        symbols, symbols_avx2, crate::cpu::symbols::decode,
        (decoder: &mut rans::Decoder, numbers: Option<&[u8]>, symbols: &mut [u8])
    );
    with_features!(
        /// [`chunk::encode_on`] on this machine.
        encode, encode_avx2, chunk::encode_on::<Avx2>, (params: &Params, levels: &[i32], out: &mut Vec<u8>)
    );
    with_features!(
        /// [`chunk::quantize_on`] on this machine.
        quantize, quantize_avx2, chunk::quantize_on::<Avx2>,
        (
            params: &Params, weights: &[f32], quantizer: Quantizer, coupling: Option<Coupling>, chosen: Option<&mut [i32]>,
            out: &mut Vec<u8>
        ) -> Sums
    );
    with_features!(
        /// [`exact::split_floats_on`] on this machine.
        split_floats<P: exact::Pattern>, split_floats_avx2, exact::split_floats_on,
        (
            form: exact::Form, zeros: bool, width: usize, patterns: &[P], levels: &mut [i32], out: &mut Vec<u8>
        )
    );
    with_features!(
        /// [`changes::encode_on`] on this machine.
        encode_changes<P: exact::Pattern>, encode_changes_avx2, changes::encode_on::<_, Avx2>,
        (rates: &Rates, base: &[P], values: &[P], out: &mut Vec<u8>)
    );
    with_features!(
        /// [`changes::decode_on`] on this machine.
        decode_changes<P: exact::Pattern>, decode_changes_avx2, changes::decode_on::<_, Avx2>,
        (rates: &Rates, base: &[P], code: &[u8], found: &mut Found<'_, P>) -> bool
    );
    with_features!(
        /// [`unit::decode_on`] on this machine.
        nnc_decode, nnc_decode_avx2, unit::decode_on,
        (decoder: &mut UnitDecoder, tensor: &Tensor, levels: &mut [i32], entries: &mut [u64], known: bool) -> Option<i32>
    );
    with_features!(
        /// [`unit::encode_on`] on this machine.
        nnc_encode, nnc_encode_avx2, unit::encode_on,
        (encoder: &mut UnitEncoder, tensor: &Tensor, qp: i32, levels: &[i32], tools: Tools) -> bool
    );
    with_features!(
        /// [`nnc_quantize::quantize_on`] on this machine.
        nnc_quantize, nnc_quantize_avx2, nnc_quantize::quantize_on,
        (tensor: &Tensor, weights: &[f32], quantizer: nnc_quantize::NncQuantizer, levels: &mut [i32]) -> bool
    );

    with_features!(
        /// [`crate::coding::fast::Decoder::decode`] on this machine.
        #[cfg(any(test, fuzzing))]
        decode_fast, decode_fast_avx2, crate::coding::fast::Decoder::decode::<Avx2>,
        (decoder: &mut crate::coding::fast::Decoder, params: &Params, bytes: &[u8], output: &mut crate::coding::output::Output) -> bool
    );

    /// [`lanes::Lanes::decode`] on this machine.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn decode_lanes<const KIND: u8>(lanes: &mut [lanes::Lane], count: usize) {
        assert!(available(), "called on a processor without AVX2");
        <Avx2 as lanes::Lanes>::decode::<KIND>(lanes, count);
    }
}
