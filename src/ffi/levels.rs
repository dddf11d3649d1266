//! The C boundary of levels and bytes: parameters are fitted, chunks quantised, encoded and decoded.

use super::{DcBuffer, DcStatus, deliver, guarded, input, one, one_mut, optional, output};
use crate::chunk::{self, Sums};
use crate::coding::arithmetic;
use crate::coding::bytes;
use crate::coding::lanes::{self, Job};
use crate::coding::output::Output;
use crate::cpu::dispatch;
use crate::fit::{self, Layout, Preset};
use crate::measure::{self, Measure};
use crate::model::dependent::States;
use crate::model::params::Params;
use crate::quantize::feedback::Coupling;
use crate::quantize::greedy::Quantizer;

/// Some elements of a tensor. Exactly one of `levels` and `weights` is not null.
#[repr(C)]
pub struct DcSample {
    /// Levels, or null.
    pub levels: *const i32,
    /// Weights to be quantised with `step`, or null.
    pub weights: *const f32,
    /// Their number.
    pub count: usize,
    /// Distance of two reconstruction values, used for weights.
    pub step: f32,
}

/// What [`dc_fit`] has to know of a tensor, and what is asked for.
#[repr(C)]
pub struct DcFit {
    /// The tensor's dimensions.
    pub shape: *const u64,
    /// Their number.
    pub dimensions: usize,
    /// 0 for one quantiser, else log2 of the number of states of two.
    pub state_bits: u8,
    /// 0 for the fast coder, 1, or 2 for the smallest size.
    pub preset: u8,
    /// With regression, where there can be.
    pub regression: bool,
}

impl DcFit {
    /// Elements of the tensor, and how they lie.
    ///
    /// # Safety
    /// The pointer is valid for its length.
    pub(super) unsafe fn layout(&self) -> Option<(usize, Layout)> {
        // SAFETY: valid by this function's contract.
        let shape = unsafe { input(self.shape, self.dimensions)? };
        let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size.try_into().ok()?))?;
        Some((count, Layout::of_shape(shape)))
    }

    pub(super) fn preset(&self) -> Option<Preset> {
        [Preset::Fast, Preset::Default, Preset::Small].get(usize::from(self.preset)).copied()
    }
}

/// Chooses coding parameters for a tensor from a sample of its rows.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_fit(given: *const DcFit, sample: *const DcSample, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, sample) = unsafe { (one(given)?, one(sample)?) };
        // SAFETY: as above.
        let (count, layout) = unsafe { given.layout()? };
        let preset = given.preset()?;
        let states = if given.state_bits == 0 { None } else { Some(States::of_bits(given.state_bits)?) };
        let params = if sample.levels.is_null() {
            // SAFETY: as above.
            let weights = unsafe { input(sample.weights, sample.count)? };
            let scale = 1.0 / f64::from(sample.step);
            let element = |i: usize| f64::from(weights[i]) * scale;
            fit::fit(layout, count, sample.count, states, preset, given.regression, element)
        } else {
            // SAFETY: as above.
            let levels = unsafe { input(sample.levels, sample.count)? };
            fit::fit(layout, count, sample.count, states, preset, given.regression, |i| f64::from(levels[i]))
        };
        let mut stored = Vec::new();
        params.write(&mut stored);
        // SAFETY: as above.
        unsafe { deliver(&stored, out) }
    })
}

/// Sets `pays`: whether the first elements of a tensor with these parameters, which are without, take less room with
/// regression.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_try_regression(
    params: *const u8,
    params_length: usize,
    first: *const DcSample,
    pays: *mut bool,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, first, pays) = unsafe { (input(params, params_length)?, one(first)?, one_mut(pays)?) };
        let params = Params::read(params)?;
        *pays = if first.levels.is_null() {
            // SAFETY: as above.
            let weights = unsafe { input(first.weights, first.count)? };
            fit::regression_pays(&params, &fit::indices(&params, weights, first.step))
        } else {
            // SAFETY: as above.
            fit::regression_pays(&params, unsafe { input(first.levels, first.count)? })
        };
        Some(DcStatus::Ok)
    })
}

/// Checks stored parameters: the number of levels in every chunk but the last, or 0 if they are none. Opening a file asks this
/// for each tensor, and [`dc_params`] with its structure takes four times as long.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_chunk_levels(params: *const u8, params_length: usize) -> usize {
    // SAFETY: valid by this function's contract.
    let params = unsafe { input(params, params_length) };
    params.and_then(Params::read).map_or(0, |params| params.chunk_levels())
}

/// What stored parameters say.
#[repr(C)]
pub struct DcParams {
    /// Levels in a row.
    pub width: usize,
    /// Chunks that [`dc_decode`] decodes in turn: it should get a multiple of them.
    pub lanes: usize,
    /// The entropy coder: 0 binary, 1 fast, 2 sparse, 3 binary with regression on the columns before.
    pub coder: u8,
    /// 0 for one quantiser, else log2 of the number of states of two.
    pub state_bits: u8,
}

/// Reads stored parameters; `Damaged` if they are none.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_params(params: *const u8, params_length: usize, out: *mut DcParams) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, out) = unsafe { (input(params, params_length)?, one_mut(out)?) };
        let Some(params) = Params::read(params) else { return Some(DcStatus::Damaged) };
        *out = DcParams {
            width: params.width,
            lanes: lanes::in_turn(&params),
            coder: params.coder.code(),
            state_bits: params.states.map_or(0, States::bits),
        };
        Some(DcStatus::Ok)
    })
}

/// What [`dc_measure`] finds.
#[repr(C)]
pub struct DcMeasure {
    /// Sum of w^2.
    pub energy: f64,
    /// The largest |w|.
    pub largest: f64,
    /// Weights that are not finite, which are left out.
    pub special: usize,
}

/// Measures weights.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_measure(weights: *const f32, count: usize, out: *mut DcMeasure) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (weights, out) = unsafe { (input(weights, count)?, one_mut(out)?) };
        let Measure { energy, largest, special } = measure::measure(weights);
        *out = DcMeasure { energy, largest, special };
        Some(DcStatus::Ok)
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
    out: *mut DcBuffer,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, levels) = unsafe { (input(params, params_length)?, input(levels, count)?) };
        let params = Params::read(params).filter(|params| chunk::has_code(params, levels))?;
        let mut coded = Vec::new();
        dispatch::encode(&params, levels, &mut coded);
        // SAFETY: as above.
        unsafe { deliver(&coded, out) }
    })
}

/// Sums over the weights w and levels q of a chunk.
#[repr(C)]
pub struct DcSums {
    /// Of w^2.
    pub energy: f64,
    /// Of (w - step q)^2.
    pub error: f64,
    /// Of w q.
    pub correlation: f64,
    /// Of q^2.
    pub levels: f64,
}

impl From<Sums> for DcSums {
    fn from(Sums { energy, error, correlation, levels }: Sums) -> Self {
        Self { energy, error, correlation, levels }
    }
}

/// A chunk of weights to quantise.
#[repr(C)]
pub struct DcQuantize {
    /// Stored parameters.
    pub params: *const u8,
    /// Their length.
    pub params_length: usize,
    /// The weights.
    pub weights: *const f32,
    /// Their number.
    pub count: usize,
    /// What each squared error counts, finite and not negative; or null: all count 1.
    pub importance: *const f32,
    /// Destination of the levels, or null.
    pub levels: *mut i32,
    /// Distance of two reconstruction values, finite and positive.
    pub step: f32,
    /// What a bit is worth in squared steps, finite and not negative.
    pub rate_weight: f32,
    /// Bounds |level|: 1 to 2^30.
    pub limit: i32,
    /// Weights of zero stay zero.
    pub keeps_zeros: bool,
}

/// Quantises and encodes one chunk of weights. Terms of `sums` are times importance.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_quantize(given: *const DcQuantize, sums: *mut DcSums, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, sums) = unsafe { (one(given)?, one_mut(sums)?) };
        let &DcQuantize { count, step, rate_weight, limit, keeps_zeros, .. } = given;
        // SAFETY: as above.
        let (params, weights) = unsafe { (input(given.params, given.params_length)?, input(given.weights, count)?) };
        // SAFETY: as above.
        let importance = unsafe { optional(given.importance, count)? }.unwrap_or_default();
        // SAFETY: as above.
        let levels = if given.levels.is_null() { None } else { Some(unsafe { output(given.levels, count)? }) };
        let valid = step.is_finite()
            && step > 0.0
            && rate_weight.is_finite()
            && rate_weight >= 0.0
            && (1..=1 << 30).contains(&limit)
            && importance.iter().all(|importance| importance.is_finite() && *importance >= 0.0);
        if !valid {
            return None;
        }
        let mut coded = Vec::new();
        let quantizer = Quantizer { importance, keeps_zeros, ..Quantizer::new(step, rate_weight, limit) };
        *sums = dispatch::quantize(&Params::read(params)?, weights, quantizer, None, levels, &mut coded).into();
        // SAFETY: as above.
        unsafe { deliver(&coded, out) }
    })
}

/// Rows of a matrix to quantise with error feedback.
#[repr(C)]
pub struct DcQuantizeCoupled {
    /// Stored parameters, whose rows are the matrix's.
    pub params: *const u8,
    /// Their length.
    pub params_length: usize,
    /// The rows' weights in steps.
    pub weights: *const f32,
    /// Their number.
    pub count: usize,
    /// Rows of the matrix.
    pub height: usize,
    /// Columns of the matrix.
    pub width: usize,
    /// Columns of a block of the columns' factor; `width` if that is given whole.
    pub block: usize,
    /// Which row is the first of these.
    pub first_row: usize,
    /// Blocks of the unit upper triangular factor of the columns, `[width / block][block][block]`, for each group of rows.
    pub columns: *const f32,
    /// What the factor has beside its blocks, `[width]`, or null: zeros.
    pub common: *const f32,
    /// Rows in a group.
    pub group_rows: usize,
    /// The same of the rows, `[height][height]`, or null: rows are independent.
    pub rows: *const f32,
    /// `[height][width]`, kept from call to call, which are in the order of the rows; null without `rows`.
    pub errors: *mut f32,
    /// Destination of the levels.
    pub levels: *mut i32,
    /// What a bit is worth in squared steps, finite and not negative.
    pub rate_weight: f32,
    /// Bounds |level|: 8 to 2^24.
    pub limit: i32,
    /// Weights of zero stay zero.
    pub keeps_zeros: bool,
}

/// Quantises and encodes one chunk of a matrix. `sums` are those of a step of one.
///
/// # Safety
/// Every pointer is valid for its length, and destinations do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_quantize_coupled(
    given: *const DcQuantizeCoupled,
    sums: *mut DcSums,
    out: *mut DcBuffer,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, sums) = unsafe { (one(given)?, one_mut(sums)?) };
        let &DcQuantizeCoupled { count, height, width, block, first_row, group_rows, rate_weight, limit, .. } = given;
        // SAFETY: as above.
        let (params, weights) = unsafe { (input(given.params, given.params_length)?, input(given.weights, count)?) };
        // SAFETY: as above.
        let levels = unsafe { output(given.levels, count)? };
        let params = Params::read(params)?;
        let inside = width > 0 && count.is_multiple_of(width) && count / width <= height.checked_sub(first_row)?;
        let blocks = block > 0 && width.is_multiple_of(block);
        if !inside || !blocks || params.width != width || group_rows == 0 || !height.is_multiple_of(group_rows) {
            return None;
        }
        let (square, matrix) = (height.checked_mul(height)?, height.checked_mul(width)?);
        let factors = (height / group_rows).checked_mul(width.checked_mul(block)?)?;
        // SAFETY: as above.
        let columns = unsafe { input(given.columns, factors)? };
        // SAFETY: as above.
        let common = unsafe { optional(given.common, width)? }.unwrap_or_default();
        // SAFETY: as above.
        let rows = unsafe { optional(given.rows, square)? }.unwrap_or_default();
        // SAFETY: as above.
        let errors = if rows.is_empty() { &mut [] } else { unsafe { output(given.errors, matrix)? } };
        if !(rate_weight.is_finite() && rate_weight >= 0.0 && (8..=1 << 24).contains(&limit)) {
            return None;
        }
        let mut coded = Vec::new();
        let quantizer = Quantizer { keeps_zeros: given.keeps_zeros, ..Quantizer::new(1.0, rate_weight, limit) };
        let coupling = Coupling { width, block, columns, common, group_rows, rows, first_row, errors };
        *sums = dispatch::quantize(&params, weights, quantizer, Some(coupling), Some(levels), &mut coded).into();
        // SAFETY: as above.
        unsafe { deliver(&coded, out) }
    })
}

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
    /// Set: whether the bytes were exactly the code of so many levels.
    pub good: bool,
}

/// Decodes `count` jobs, several at a time.
///
/// # Safety
/// `jobs` is valid for `count` jobs, every pointer in them for its length, and destinations do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode(jobs: *mut DcJob, count: usize) -> DcStatus {
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
            given.good = job.good;
        }
        Some(DcStatus::Ok)
    })
}

/// Most levels that a chunk of so many bytes can hold.
#[unsafe(no_mangle)]
pub extern "C" fn dc_most_levels(bytes_length: usize) -> usize {
    arithmetic::most_decisions(bytes_length)
}

/// CRC-32 of bytes, as of zlib; 0 if the pointer is null.
///
/// # Safety
/// The pointer is valid for the length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_crc32(bytes: *const u8, count: usize) -> u32 {
    // SAFETY: valid by this function's contract.
    unsafe { input(bytes, count) }.map_or(0, dispatch::crc32)
}

/// Encodes bytes.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_bytes(bytes: *const u8, count: usize, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let bytes = unsafe { input(bytes, count)? };
        // SAFETY: as above.
        unsafe { deliver(&dispatch::encode_bytes(bytes), out) }
    })
}

/// Decodes `count` bytes.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode_bytes(
    coded: *const u8,
    coded_length: usize,
    bytes: *mut u8,
    count: usize,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (coded, bytes) = unsafe { (input(coded, coded_length)?, output(bytes, count)?) };
        let good = bytes.len() <= bytes::most_decoded(coded.len()) && dispatch::decode_bytes(coded, bytes);
        Some(if good { DcStatus::Ok } else { DcStatus::Damaged })
    })
}
