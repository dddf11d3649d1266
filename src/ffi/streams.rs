//! The C boundary of streams of ISO/IEC 15938-17 and of the software of 2019.

use super::{DcBuffer, DcStatus, deliver, guarded, input, one, optional, output};
use crate::cpu::dispatch;
use crate::nnc::cabac;
use crate::nnc::dc2019;
use crate::nnc::quantize;
use crate::nnc::unit::{self, Tensor, Tools, UnitDecoder, UnitEncoder};

/// A tensor of a unit of ISO/IEC 15938-17 (`src/nnc.rs`).
#[repr(C)]
pub struct DcNncTensor {
    /// Size of dimension 0.
    pub rows: usize,
    /// Levels in a row.
    pub width: usize,
    /// Edge of a block, 0 for none.
    pub block: usize,
    /// Most decisions "greater than k".
    pub unary: usize,
    /// Levels of the base, or null.
    pub base: *const i32,
    /// Whether a position was not zero before (1 or 0), or null.
    pub history: *const u8,
    /// `rows * width` levels, read by the encoder and written by the decoder.
    pub levels: *mut i32,
    /// Entry points.
    pub entries: *mut u64,
    /// Their number: what the tensor has, or 0 if they are not asked for.
    pub entries_count: usize,
    /// Number of the codebook's values, or 0.
    pub codebook_size: u32,
    /// Which of them is level 0.
    pub codebook_zero: u32,
    /// Bits of the quantisation parameter, or 0.
    pub qp_bits: u32,
    /// The quantisation parameter, read by the encoder and written by the decoder.
    pub qp: i32,
    /// Two quantisers take turns.
    pub dependent: bool,
    /// Profile 1.
    pub extended: bool,
    /// An update of another tensor.
    pub update: bool,
    /// For the encoder: rows of zeros may be skipped.
    pub skip_rows: bool,
    /// For the encoder: contexts' settings are chosen.
    pub choose_settings: bool,
    /// For the decoder: `entries` are known.
    pub entries_known: bool,
}

/// A tensor from C, checked.
///
/// # Safety
/// Every pointer is valid for the length that the other fields give it.
unsafe fn nnc_tensor<'a>(given: &DcNncTensor) -> Option<Tensor<'a>> {
    let count = given.rows.checked_mul(given.width)?;
    let valid = (1..=unit::MOST_UNARY).contains(&given.unary)
        && given.qp_bits <= 32
        && (given.codebook_size == 0 || given.codebook_zero < given.codebook_size);
    // SAFETY: valid by this function's contract.
    let (base, history) = unsafe { (optional(given.base, count)?, optional(given.history, count)?) };
    let tensor = Tensor {
        rows: given.rows,
        width: given.width,
        block: given.block,
        dependent: given.dependent,
        unary: given.unary,
        extended: given.extended,
        update: given.update,
        qp_bits: given.qp_bits,
        codebook: (given.codebook_size, given.codebook_zero),
        base,
        history,
    };
    (valid && [0, tensor.entries()].contains(&given.entries_count)).then_some(tensor)
}

/// Encodes the stream of a unit; `Range` if there are levels that a decoder could not give.
///
/// # Safety
/// `tensors` is valid for `count` tensors, every pointer in them for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_nnc_encode(tensors: *const DcNncTensor, count: usize, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let tensors = unsafe { input(tensors, count)? };
        let mut encoder = UnitEncoder::default();
        for given in tensors {
            // SAFETY: as above.
            let tensor = unsafe { nnc_tensor(given)? };
            // SAFETY: as above.
            let levels = unsafe { input(given.levels.cast_const(), tensor.count())? };
            let tools = Tools { settings: given.choose_settings, rows: given.skip_rows };
            if !dispatch::nnc_encode(&mut encoder, &tensor, given.qp, levels, tools) {
                return Some(DcStatus::Range);
            }
        }
        // SAFETY: as above.
        unsafe { deliver(&encoder.finish(), out) }
    })
}

/// Decodes the stream of a unit, which must end where `bytes` end.
///
/// # Safety
/// `tensors` is valid for `count` tensors, every pointer in them for its length, and destinations do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_nnc_decode(
    bytes: *const u8,
    bytes_length: usize,
    tensors: *mut DcNncTensor,
    count: usize,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (bytes, tensors) = unsafe { (input(bytes, bytes_length)?, output(tensors, count)?) };
        let mut decoder = UnitDecoder::new(bytes);
        for given in tensors {
            // SAFETY: as above.
            let tensor = unsafe { nnc_tensor(given)? };
            // SAFETY: as above, and destinations do not overlap.
            let (levels, known) =
                unsafe { (output(given.levels, tensor.count())?, output(given.entries, given.entries_count)?) };
            let mut found = vec![0; tensor.entries()];
            let (entries, known) =
                if known.is_empty() { (&mut found[..], false) } else { (known, given.entries_known) };
            match dispatch::nnc_decode(&mut decoder, &tensor, levels, entries, known) {
                Some(qp) => given.qp = qp,
                None => return Some(DcStatus::Damaged),
            }
        }
        Some(if decoder.finish() == Some(bytes.len()) { DcStatus::Ok } else { DcStatus::Damaged })
    })
}

/// Most decisions with contexts that a stream of ISO/IEC 15938-17 or of the software of 2019 can hold in so many bytes.
#[unsafe(no_mangle)]
pub extern "C" fn dc_most_bins(bytes_length: usize) -> usize {
    cabac::most_bins(bytes_length)
}

/// Quantises the weights of a tensor, as many as it has levels. `step` is finite and positive, `rate_weight` finite, not
/// negative, and in squared steps per bit. `Range` if the step is too small for 32 bits, or a weight is not finite.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_nnc_quantize(
    given: *const DcNncTensor,
    weights: *const f32,
    count: usize,
    step: f32,
    rate_weight: f64,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, weights) = unsafe { (one(given)?, input(weights, count)?) };
        // SAFETY: as above.
        let (tensor, levels) = unsafe { (nnc_tensor(given)?, output(given.levels, count)?) };
        let positive = step.is_normal() && step > 0.0 && rate_weight.is_finite() && rate_weight >= 0.0;
        if !positive || count != tensor.count() {
            return None;
        }
        let quantizer = quantize::NncQuantizer { step, lambda: rate_weight, settings: given.choose_settings };
        let done = dispatch::nnc_quantize(&tensor, weights, quantizer, levels);
        Some(if done { DcStatus::Ok } else { DcStatus::Range })
    })
}

/// A layer of a stream of 2019.
#[repr(C)]
pub struct DcLayer {
    /// Its dimensions: one, two or four, each below 2^16.
    pub shape: *const u64,
    /// Their number.
    pub dimensions: usize,
    /// As many as the shape says.
    pub weights: *const f32,
    /// Standard deviations of the weights.
    pub intervals: *const f32,
    /// As many, or one for all.
    pub intervals_count: usize,
    /// Distance of two values.
    pub step: f32,
    /// What a bit is worth.
    pub rate_weight: f32,
}

/// Quantises and encodes layers as the software of 2019 does; `Range` if a level does not fit 32 bits.
///
/// # Safety
/// `layers` is valid for `count` layers, every pointer in them for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_dc2019_encode(layers: *const DcLayer, count: usize, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let given = unsafe { input(layers, count)? };
        let mut layers = Vec::with_capacity(given.len());
        for layer in given {
            // SAFETY: as above.
            let shape = unsafe { input(layer.shape, layer.dimensions)? };
            let valid = [1, 2, 4].contains(&shape.len()) && shape.iter().all(|&size| size < 1 << 16);
            let weights = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size as usize))?;
            if !valid || ![1, weights].contains(&layer.intervals_count) {
                return None;
            }
            // SAFETY: as above.
            let (weights, intervals) =
                unsafe { (input(layer.weights, weights)?, input(layer.intervals, layer.intervals_count)?) };
            layers.push(dc2019::Layer { shape, weights, intervals, step: layer.step, lambda: layer.rate_weight });
        }
        match dc2019::encode(&layers) {
            // SAFETY: as above.
            Some(code) => unsafe { deliver(&code, out) },
            None => Some(DcStatus::Range),
        }
    })
}

/// Decodes a stream of 2019 to numbers of four bytes: for each layer the number of dimensions, the dimensions, the bits of the
/// step, the levels.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_dc2019_decode(bytes: *const u8, bytes_length: usize, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let bytes = unsafe { input(bytes, bytes_length)? };
        let Some(layers) = dc2019::decode(bytes) else { return Some(DcStatus::Damaged) };
        let mut numbers = Vec::new();
        for layer in layers {
            numbers.extend((layer.shape.len() as u32).to_le_bytes());
            numbers.extend(layer.shape.iter().flat_map(|size| size.to_le_bytes()));
            numbers.extend(layer.step.to_le_bytes());
            numbers.extend(layer.levels.iter().flat_map(|level| level.to_le_bytes()));
        }
        // SAFETY: as above.
        unsafe { deliver(&numbers, out) }
    })
}
