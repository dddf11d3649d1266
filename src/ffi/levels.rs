//! The C boundary of levels and bytes: parameters are fitted, chunks quantised, encoded and decoded.

use super::{DC_DAMAGED, DC_OK, deliver, guarded, input, output};
use crate::chunk::{self, Sums};
use crate::coding::arithmetic;
use crate::coding::bytes;
use crate::coding::lanes::Job;
use crate::coding::output::Output;
use crate::cpu::dispatch;
use crate::fit::{self, Layout, Level};
use crate::measure::{self, Measure};
use crate::model::dependent::States;
use crate::model::params::Params;
use crate::quantize::feedback::Coupling;
use crate::quantize::greedy::Quantizer;

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
        dispatch::encode(&params, levels, &mut coded);
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
            dispatch::quantize(&Params::read(params)?, weights, quantizer, None, levels, &mut coded);
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
            dispatch::quantize(&params, weights, quantizer, Some(coupling), Some(levels), &mut coded);
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
        dispatch::decode(&mut jobs);
        for (given, job) in given.iter_mut().zip(&jobs) {
            given.status = if job.good { DC_OK } else { DC_DAMAGED };
        }
        Some(DC_OK)
    })
}

/// Most levels that a chunk of so many bytes can hold.
#[unsafe(no_mangle)]
pub extern "C" fn dc_most_levels(bytes_length: usize) -> usize {
    arithmetic::most_decisions(bytes_length)
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
