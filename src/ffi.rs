//! The C boundary. Everything here checks what it is given, catches panics, and returns a status.
//!
//! Callers own all memory: they pass pointers with lengths, and get variable-sized results copied into a buffer of theirs.

#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use crate::chunk::{self, Sums};
use crate::dependent::States;
use crate::exact::{self, Form, Origin, Pattern};
use crate::feedback::Coupling;
use crate::fit::{self, Layout, Level};
use crate::greedy::Quantizer;
use crate::lanes::{self, Job, Output};
use crate::measure::{self, Measure};
use crate::nnc::{self, Tensor, Tools, UnitDecoder, UnitEncoder};
use crate::nnc_quantize;
use crate::params::Params;
use crate::{bytes, codebook, coder, dc2019, mcoder};

/// Success.
pub const DC_OK: i32 = 0;
/// An argument is out of its range (null, misaligned, an impossible length): a bug in the caller.
pub const DC_ARGUMENT: i32 = 1;
/// The bytes are not what an encoder wrote.
pub const DC_DAMAGED: i32 = 2;
/// The result needs more room than the output buffer has; the size needed was stored.
pub const DC_ROOM: i32 = 3;
/// A panic: a bug in the core.
pub const DC_BUG: i32 = 4;

/// A chunk to decode.
#[repr(C)]
pub struct DcJob {
    /// Stored parameters.
    pub params: *const u8,
    /// Their length.
    pub params_length: usize,
    /// The chunk's bytes.
    pub bytes: *const u8,
    /// Their number.
    pub bytes_length: usize,
    /// Levels in the chunk.
    pub count: usize,
    /// Destination of the levels, or null.
    pub levels: *mut i32,
    /// Destination of levels times `step`, used if `levels` is null.
    pub values: *mut f32,
    /// Distance of two reconstruction values.
    pub step: f32,
    /// Set to `DC_OK` or `DC_DAMAGED`.
    pub status: i32,
}

/// A slice from a pointer of a caller; null is empty.
///
/// # Safety
/// If `pointer` is not null, `length` elements behind it are readable and unchanged while the slice lives.
unsafe fn input<'a, T>(pointer: *const T, length: usize) -> Option<&'a [T]> {
    if length == 0 {
        return Some(&[]);
    }
    if pointer.is_null() || !pointer.is_aligned() || length > isize::MAX as usize / size_of::<T>() {
        return None;
    }
    // SAFETY: not null, aligned, not too long; readable by the caller's promise.
    Some(unsafe { slice::from_raw_parts(pointer, length) })
}

/// A mutable slice from a pointer of a caller.
///
/// # Safety
/// As for [`input`], and nothing else touches the elements while the slice lives.
unsafe fn output<'a, T>(pointer: *mut T, length: usize) -> Option<&'a mut [T]> {
    if length == 0 {
        return Some(&mut []);
    }
    if pointer.is_null() || !pointer.is_aligned() || length > isize::MAX as usize / size_of::<T>() {
        return None;
    }
    // SAFETY: not null, aligned, not too long; writable and ours by the caller's promise.
    Some(unsafe { slice::from_raw_parts_mut(pointer, length) })
}

/// Runs `body`, turning a missing argument and a panic into a status.
fn guarded(body: impl FnOnce() -> Option<i32>) -> i32 {
    catch_unwind(AssertUnwindSafe(body)).map_or(DC_BUG, |status| status.unwrap_or(DC_ARGUMENT))
}

/// Copies a result into the caller's buffer and stores its size.
fn deliver(result: &[u8], out: &mut [u8], length: &mut [usize]) -> Option<i32> {
    *length.first_mut()? = result.len();
    match out.get_mut(..result.len()) {
        Some(room) => {
            room.copy_from_slice(result);
            Some(DC_OK)
        }
        None => Some(DC_ROOM),
    }
}

/// Changes whenever a function here does.
#[unsafe(no_mangle)]
pub extern "C" fn dc_interface() -> u32 {
    9
}

/// Chooses coding parameters for a tensor of this shape with `count` elements, from a sample of its rows. Exactly one of
/// `levels` and `weights` (to be quantised with `step`) is given, `sampled` of them. `state_bits` is 0 for one quantiser,
/// else log2 of the number of states of two. `level` is 0 for the fast coder, 1, or 2 for the smallest size;
/// `regression` where there can be.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_fit(
    shape: *const u64,
    dimensions: usize,
    count: usize,
    levels: *const i32,
    weights: *const f32,
    sampled: usize,
    step: f32,
    state_bits: u8,
    level: u8,
    regression: bool,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (shape, out, length) = unsafe { (input(shape, dimensions)?, output(out, capacity)?, output(length, 1)?) };
        let layout = Layout::of_shape(shape);
        let level = *[Level::Fast, Level::Default, Level::Small].get(usize::from(level))?;
        let states = if state_bits == 0 { None } else { Some(States::of_bits(state_bits)?) };
        let params = if levels.is_null() {
            // SAFETY: as above.
            let weights = unsafe { input(weights, sampled)? };
            let scale = 1.0 / f64::from(step);
            fit::fit(layout, count, sampled, states, level, regression, |i| f64::from(weights[i]) * scale)
        } else {
            // SAFETY: as above.
            let levels = unsafe { input(levels, sampled)? };
            fit::fit(layout, count, sampled, states, level, regression, |i| f64::from(levels[i]))
        };
        let mut stored = Vec::new();
        params.write(&mut stored);
        deliver(&stored, out, length)
    })
}

/// Whether the first elements of a tensor with these parameters, which are without, take less room with regression: 1 in `pays`,
/// or 0. Exactly one of `levels` and `weights` (to be quantised with `step`) is given, `given` of them.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_try_regression(
    params: *const u8,
    params_length: usize,
    levels: *const i32,
    weights: *const f32,
    given: usize,
    step: f32,
    pays: *mut u8,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, pays) = unsafe { (Params::read(input(params, params_length)?)?, output(pays, 1)?) };
        pays[0] = u8::from(if levels.is_null() {
            // SAFETY: as above.
            let weights = unsafe { input(weights, given)? };
            fit::regression_pays(&params, &fit::indices(&params, weights, step))
        } else {
            // SAFETY: as above.
            fit::regression_pays(&params, unsafe { input(levels, given)? })
        });
        Some(DC_OK)
    })
}

/// Checks stored parameters; the number of levels in a full chunk, or 0 if they are damaged.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_chunk_levels(params: *const u8, params_length: usize) -> usize {
    // SAFETY: valid by this function's contract.
    let params = unsafe { input(params, params_length) };
    params.and_then(Params::read).map_or(0, |params| params.chunk_levels())
}

/// Stores in `out`: the sum of w^2, the largest |w|, and how many weights are not finite (which are left out).
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_measure(weights: *const f32, count: usize, out: *mut f64) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (weights, out) = unsafe { (input(weights, count)?, output(out, 3)?) };
        let Measure { energy, largest, special } = measure::measure(weights);
        out.copy_from_slice(&[energy, largest, special as f64]);
        Some(DC_OK)
    })
}

/// Encodes one chunk of levels. With two quantisers, not every sequence of levels exists; others are refused.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode(
    params: *const u8,
    params_length: usize,
    levels: *const i32,
    count: usize,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, levels) = unsafe { (input(params, params_length)?, input(levels, count)?) };
        // SAFETY: as above.
        let (out, length) = unsafe { (output(out, capacity)?, output(length, 1)?) };
        let params = Params::read(params).filter(|params| chunk::has_code(params, levels))?;
        let mut coded = Vec::new();
        chunk::encode(&params, levels, &mut coded);
        deliver(&coded, out, length)
    })
}

/// Quantises and encodes one chunk of weights. `step` and `lambda` are finite, `step` is positive, `lambda` is not
/// negative and in squared steps per bit, `limit` bounds |level|. `importance` says what each squared error counts, or is
/// null; `reach` is positive ([`Quantizer::reach`]); with `keeps_zeros` weights of zero stay zero. `levels` may be null; `sums` receives four numbers: sum of w^2,
/// of (w - step q)^2, of w q, of q^2, terms times importance.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_quantize(
    params: *const u8,
    params_length: usize,
    weights: *const f32,
    count: usize,
    importance: *const f32,
    step: f32,
    lambda: f32,
    reach: f32,
    limit: i32,
    keeps_zeros: bool,
    levels: *mut i32,
    sums: *mut f64,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, weights) = unsafe { (input(params, params_length)?, input(weights, count)?) };
        // SAFETY: as above.
        let importance = if importance.is_null() { &[] } else { unsafe { input(importance, count)? } };
        if reach.is_nan()
            || reach <= 0.0
            || importance.iter().any(|importance| !(importance.is_finite() && *importance >= 0.0))
        {
            return None;
        }
        // SAFETY: as above.
        let (out, length, sums) = unsafe { (output(out, capacity)?, output(length, 1)?, output(sums, 4)?) };
        // SAFETY: as above.
        let levels = if levels.is_null() { None } else { Some(unsafe { output(levels, count)? }) };
        let valid = step.is_finite() && step > 0.0 && lambda.is_finite() && lambda >= 0.0;
        if !valid || !(1..=1 << 30).contains(&limit) {
            return None;
        }
        let mut coded = Vec::new();
        let quantizer = Quantizer { importance, reach, keeps_zeros, ..Quantizer::new(step, lambda, limit) };
        let Sums { energy, error, correlation, levels: squares } =
            chunk::quantize(&Params::read(params)?, weights, quantizer, None, levels, &mut coded);
        sums.copy_from_slice(&[energy, error, correlation, squares]);
        deliver(&coded, out, length)
    })
}

/// Quantises and encodes the rows of a matrix from `first_row` on, `count` weights in steps, with error feedback. The matrix
/// has `height` rows of `width`, the parameters' width. `columns` holds the unit upper triangular factor, `[width][width]`,
/// for each group of `group_rows` rows. `rows` is that of the rows, `[height][height]`, or null: rows are independent.
/// `errors`, `[height][width]`, is null without it, else kept from call to call, which are in the order of the rows.
/// `lambda`, `limit`, `keeps_zeros`, `levels` and `sums` are as for [`dc_quantize`] with a step of one.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_quantize_coupled(
    params: *const u8,
    params_length: usize,
    weights: *const f32,
    count: usize,
    height: usize,
    width: usize,
    first_row: usize,
    columns: *const f32,
    group_rows: usize,
    rows: *const f32,
    errors: *mut f32,
    lambda: f32,
    limit: i32,
    keeps_zeros: bool,
    levels: *mut i32,
    sums: *mut f64,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, weights) = unsafe { (input(params, params_length)?, input(weights, count)?) };
        // SAFETY: as above.
        let (out, length, sums) = unsafe { (output(out, capacity)?, output(length, 1)?, output(sums, 4)?) };
        // SAFETY: as above.
        let levels = unsafe { output(levels, count)? };
        let params = Params::read(params)?;
        let inside = width > 0 && count.is_multiple_of(width) && count / width <= height.checked_sub(first_row)?;
        if !inside || params.width != width || group_rows == 0 || !height.is_multiple_of(group_rows) {
            return None;
        }
        let (square, matrix) = (height.checked_mul(height)?, height.checked_mul(width)?);
        let factors = (height / group_rows).checked_mul(width.checked_mul(width)?)?;
        // SAFETY: as above.
        let columns = unsafe { input(columns, factors)? };
        // SAFETY: as above.
        let rows = if rows.is_null() { &[] } else { unsafe { input(rows, square)? } };
        // SAFETY: as above.
        let errors = if rows.is_empty() { &mut [] } else { unsafe { output(errors, matrix)? } };
        if !(lambda.is_finite() && lambda >= 0.0 && (8..=1 << 24).contains(&limit)) {
            return None;
        }
        let mut coded = Vec::new();
        let quantizer = Quantizer { keeps_zeros, ..Quantizer::new(1.0, lambda, limit) };
        let coupling = Coupling { width, columns, group_rows, rows, first_row, errors };
        let Sums { energy, error, correlation, levels: squares } =
            chunk::quantize(&params, weights, quantizer, Some(coupling), Some(levels), &mut coded);
        sums.copy_from_slice(&[energy, error, correlation, squares]);
        deliver(&coded, out, length)
    })
}

/// Decodes `count` jobs, several at a time, and sets the status of each.
///
/// # Safety
/// `jobs` is valid for `count` jobs, every pointer in them for its length, and destinations do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode(jobs: *mut DcJob, count: usize) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let given = unsafe { output(jobs, count)? };
        let mut jobs = Vec::with_capacity(given.len());
        for job in given.iter() {
            // SAFETY: as above.
            let (params, bytes) =
                unsafe { (input(job.params, job.params_length)?, input(job.bytes, job.bytes_length)?) };
            // SAFETY: as above, and destinations do not overlap.
            let output = if job.levels.is_null() {
                Output::Values(unsafe { output(job.values, job.count)? }, job.step)
            } else {
                Output::Levels(unsafe { output(job.levels, job.count)? })
            };
            let params = Params::read(params)?;
            if job.count > params.chunk_levels() {
                return None;
            }
            jobs.push(Job { params, bytes, output, good: false });
        }
        lanes::decode(&mut jobs);
        for (given, job) in given.iter_mut().zip(&jobs) {
            given.status = if job.good { DC_OK } else { DC_DAMAGED };
        }
        Some(DC_OK)
    })
}

/// Most levels that a chunk of so many bytes can hold.
#[unsafe(no_mangle)]
pub extern "C" fn dc_most_levels(bytes_length: usize) -> usize {
    coder::most_decisions(bytes_length)
}

/// Encodes bytes.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_bytes(
    bytes: *const u8,
    count: usize,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (bytes, out, length) = unsafe { (input(bytes, count)?, output(out, capacity)?, output(length, 1)?) };
        deliver(&bytes::encode(bytes), out, length)
    })
}

/// Decodes `capacity` bytes.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode_bytes(coded: *const u8, count: usize, out: *mut u8, capacity: usize) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (coded, out) = unsafe { (input(coded, count)?, output(out, capacity)?) };
        if out.len() > bytes::most_decoded(coded.len()) || !bytes::decode(coded, out) {
            return Some(DC_DAMAGED);
        }
        Some(DC_OK)
    })
}

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
    /// For the encoder: contexts' settings are chosen. For the decoder: `entries` are known.
    pub chosen: bool,
}

/// A tensor from C, checked.
///
/// # Safety
/// Every pointer is valid for the length that the other fields give it.
unsafe fn nnc_tensor<'a>(given: &DcNncTensor) -> Option<Tensor<'a>> {
    let count = given.rows.checked_mul(given.width)?;
    let valid = (1..=nnc::MOST_UNARY).contains(&given.unary)
        && given.qp_bits <= 32
        && (given.codebook_size == 0 || given.codebook_zero < given.codebook_size);
    // SAFETY: valid by this function's contract.
    let base = if given.base.is_null() { None } else { Some(unsafe { input(given.base, count)? }) };
    // SAFETY: as above.
    let history = if given.history.is_null() { None } else { Some(unsafe { input(given.history, count)? }) };
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

/// Encodes the stream of a unit.
///
/// # Safety
/// `tensors` is valid for `count` tensors, every pointer in them for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_nnc_encode(
    tensors: *const DcNncTensor,
    count: usize,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (tensors, out, length) = unsafe { (input(tensors, count)?, output(out, capacity)?, output(length, 1)?) };
        let mut encoder = UnitEncoder::default();
        for given in tensors {
            // SAFETY: as above.
            let tensor = unsafe { nnc_tensor(given)? };
            // SAFETY: as above.
            let levels = unsafe { input(given.levels.cast_const(), tensor.count())? };
            let tools = Tools { settings: given.chosen, rows: given.skip_rows };
            encoder.encode(&tensor, given.qp, levels, tools).then_some(())?;
        }
        deliver(&encoder.finish(), out, length)
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
) -> i32 {
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
            let (entries, known) = if known.is_empty() { (&mut found[..], false) } else { (known, given.chosen) };
            match decoder.decode(&tensor, levels, entries, known) {
                Some(qp) => given.qp = qp,
                None => return Some(DC_DAMAGED),
            }
        }
        Some(if decoder.finish() == Some(bytes.len()) { DC_OK } else { DC_DAMAGED })
    })
}

/// Most decisions with contexts that a stream of ISO/IEC 15938-17 or of the software of 2019 can hold in so many bytes.
#[unsafe(no_mangle)]
pub extern "C" fn dc_most_bins(bytes_length: usize) -> usize {
    mcoder::most_bins(bytes_length)
}

/// Quantises the weights of a tensor, as many as it has levels. `step` is finite and positive, `lambda` finite, not negative
/// and in squared steps a bit. The status is `DC_DAMAGED` if the step is too small for 32 bits, or a weight is not finite.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_nnc_quantize(
    given: *const DcNncTensor,
    weights: *const f32,
    count: usize,
    step: f32,
    lambda: f64,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, weights) = unsafe { (input(given, 1)?.first()?, input(weights, count)?) };
        // SAFETY: as above.
        let (tensor, levels) = unsafe { (nnc_tensor(given)?, output(given.levels, count)?) };
        let valid = step.is_normal() && step > 0.0 && lambda.is_finite() && lambda >= 0.0 && count == tensor.count();
        let quantizer = nnc_quantize::Quantizer { step, lambda, settings: given.chosen };
        let done = valid.then(|| nnc_quantize::quantize(&tensor, weights, quantizer, levels))?;
        Some(if done { DC_OK } else { DC_DAMAGED })
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

/// Quantises and encodes layers as the software of 2019 does. The status is `DC_DAMAGED` if a level does not fit.
///
/// # Safety
/// `layers` is valid for `count` layers, every pointer in them for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_dc2019_encode(
    layers: *const DcLayer,
    count: usize,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, out, length) = unsafe { (input(layers, count)?, output(out, capacity)?, output(length, 1)?) };
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
            Some(code) => deliver(&code, out, length),
            None => Some(DC_DAMAGED),
        }
    })
}

/// Decodes a stream of 2019 to numbers of four bytes: for each layer the number of dimensions, the dimensions, the bits of the
/// step, the levels.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_dc2019_decode(
    bytes: *const u8,
    bytes_length: usize,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (bytes, out, length) = unsafe { (input(bytes, bytes_length)?, output(out, capacity)?, output(length, 1)?) };
        let Some(layers) = dc2019::decode(bytes) else { return Some(DC_DAMAGED) };
        let mut numbers = Vec::new();
        for layer in layers {
            numbers.extend((layer.shape.len() as u32).to_le_bytes());
            numbers.extend(layer.shape.iter().flat_map(|size| size.to_le_bytes()));
            numbers.extend(layer.step.to_le_bytes());
            numbers.extend(layer.levels.iter().flat_map(|level| level.to_le_bytes()));
        }
        deliver(&numbers, out, length)
    })
}

/// How exact values become levels and details.
#[repr(C)]
pub struct DcExact {
    /// 0: floating-point numbers; 1: with a level for zero alone; 2: integers; 3: differences to a base in representable
    /// numbers; 4: the same, scaled by the base's exponents.
    pub kind: u8,
    /// Bits of the mantissa; 0 for integers.
    pub mantissa: u8,
    /// Bytes of a value: 1, 2, 4 or 8.
    pub item: u8,
    /// log2 of a step in units.
    pub exponent: u32,
    /// What integers are counted from.
    pub centre: u64,
    /// Values in a row.
    pub width: usize,
    /// The base's values, as many as there are levels, or null.
    pub base: *const u8,
}

/// Calls `$body` with the pattern type of so many bytes.
macro_rules! for_item {
    ($item:expr, $pattern:ident => $body:expr) => {
        match $item {
            1 => {
                type $pattern = u8;
                $body
            }
            2 => {
                type $pattern = u16;
                $body
            }
            4 => {
                type $pattern = u32;
                $body
            }
            8 => {
                type $pattern = u64;
                $body
            }
            _ => None,
        }
    };
}

/// The form and origin that a caller describes, for `count` values.
///
/// # Safety
/// The base, if there is one, is valid for `count` values.
unsafe fn described<'a, P: Pattern>(given: &DcExact, count: usize) -> Option<(Form, Origin<'a, P>)> {
    let mantissa = u32::from(given.mantissa);
    let form = Form { mantissa, float: mantissa > 0, exponent: given.exponent };
    // A float has at least one bit of an exponent besides its sign.
    if given.width == 0 || mantissa + 2 > P::BITS || given.exponent > exact::LAST_EXPONENT {
        return None;
    }
    // SAFETY: valid by this function's contract.
    let base = || unsafe { input(given.base.cast::<P>(), count) };
    let origin = match given.kind {
        0 | 1 if form.float => Origin::Float { zeros: given.kind == 1 },
        2 if !form.float => Origin::Integer(P::of(given.centre)),
        3 => Origin::Steps(base()?),
        4 if form.float => Origin::Differences(base()?),
        _ => return None,
    };
    Some((form, origin))
}

/// Splits `count` values into levels and details.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_split(
    form: *const DcExact,
    values: *const u8,
    count: usize,
    levels: *mut i32,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, levels) = unsafe { (input(form, 1)?.first()?, output(levels, count)?) };
        // SAFETY: as above.
        let (out, length) = unsafe { (output(out, capacity)?, output(length, 1)?) };
        let mut details = Vec::new();
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (values, (form, origin)) = unsafe { (input(values.cast::<P>(), count)?, described::<P>(given, count)?) };
            exact::split(form, origin, given.width, values, levels, &mut details);
            deliver(&details, out, length)
        })
    })
}

/// Encodes one chunk of `count` values: the code of their levels, then details. `lengths` receives the bytes of both
/// together and of the details.
///
/// # Safety
/// Every pointer is valid for its length, `lengths` for two.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_exact(
    params: *const u8,
    params_length: usize,
    form: *const DcExact,
    values: *const u8,
    count: usize,
    out: *mut u8,
    capacity: usize,
    lengths: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, given) = unsafe { (input(params, params_length)?, input(form, 1)?.first()?) };
        // SAFETY: as above.
        let (out, lengths) = unsafe { (output(out, capacity)?, output(lengths, 2)?) };
        let params = Params::read(params)?;
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (values, (form, origin)) = unsafe { (input(values.cast::<P>(), count)?, described::<P>(given, count)?) };
            let (mut levels, mut details) = (vec![0; count], Vec::new());
            exact::split(form, origin, given.width, values, &mut levels, &mut details);
            if !chunk::has_code(&params, &levels) {
                return None;
            }
            let mut coded = Vec::new();
            chunk::encode(&params, &levels, &mut coded);
            coded.extend_from_slice(&details);
            lengths[1] = details.len();
            deliver(&coded, out, lengths)
        })
    })
}

/// Joins levels and details to `count` values.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_join(
    form: *const DcExact,
    levels: *const i32,
    count: usize,
    details: *const u8,
    details_length: usize,
    values: *mut u8,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, levels) = unsafe { (input(form, 1)?.first()?, input(levels, count)?) };
        // SAFETY: as above.
        let details = unsafe { input(details, details_length)? };
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (values, (form, origin)) = unsafe { (output(values.cast::<P>(), count)?, described::<P>(given, count)?) };
            let good = exact::join(form, origin, given.width, levels, details, values);
            Some(if good { DC_OK } else { DC_DAMAGED })
        })
    })
}

/// Whether numbers of a codebook's entries can be coded with these parameters.
fn codebook_is_valid(entries: usize, usual: u16, width: usize) -> bool {
    let known = (1..=codebook::MOST_ENTRIES).contains(&entries) && usize::from(usual) < entries;
    known && (1..=codebook::MOST_WIDTH).contains(&width)
}

/// Encodes numbers of a codebook's entries.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_numbers(
    numbers: *const u16,
    count: usize,
    entries: usize,
    usual: u16,
    width: usize,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (numbers, out, length) = unsafe { (input(numbers, count)?, output(out, capacity)?, output(length, 1)?) };
        let known = codebook_is_valid(entries, usual, width) && numbers.iter().all(|n| usize::from(*n) < entries);
        if !known {
            return None;
        }
        let mut coded = Vec::new();
        codebook::encode(numbers, entries, usual, width, &mut coded);
        deliver(&coded, out, length)
    })
}

/// Decodes `count` numbers of a codebook's entries.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode_numbers(
    coded: *const u8,
    coded_length: usize,
    entries: usize,
    usual: u16,
    width: usize,
    numbers: *mut u16,
    count: usize,
) -> i32 {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (coded, numbers) = unsafe { (input(coded, coded_length)?, output(numbers, count)?) };
        if !codebook_is_valid(entries, usual, width) {
            return None;
        }
        let possible = count <= coder::most_decisions(coded.len());
        let good = possible && codebook::decode(coded, entries, usual, width, numbers);
        Some(if good { DC_OK } else { DC_DAMAGED })
    })
}
