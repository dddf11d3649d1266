//! The C boundary of values that must come back bit for bit.

use std::cell::Cell;

use super::{DcBuffer, DcStatus, deliver, guarded, input, one, one_mut, output};
use crate::chunk;
use crate::coding::arithmetic;
use crate::coding::codebook;
use crate::cpu::dispatch;
use crate::exact::{self, Form, Origin, Pattern};
use crate::ffi::levels::DcFit;
use crate::fit;
use crate::model::params::Params;

/// Values, and how they become levels and refinement bits.
#[repr(C)]
pub struct DcExact {
    /// The values' bits: read when they are coded, and written when they are decoded.
    pub values: *mut u8,
    /// The base's values, as many, or null.
    pub base: *const u8,
    /// Their number.
    pub count: usize,
    /// Values in a row.
    pub width: usize,
    /// What integers are counted from.
    pub centre: u64,
    /// log2 of a step in units.
    pub exponent: u32,
    /// The method of FORMAT.md, 13.1. 3: floating-point numbers; 4: with a level for zero alone; 5: integers; 7: differences to a
    /// base in representable numbers; 8: the same, scaled by the base's exponents.
    pub method: u8,
    /// Bits of the mantissa; 0 for integers.
    pub mantissa: u8,
    /// Bytes of a value: 1, 2, 4 or 8.
    pub item: u8,
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
pub(super) use for_item;

/// The form and origin that a caller describes.
///
/// # Safety
/// The base, if there is one, is valid for `count` values.
unsafe fn described<'a, P: Pattern>(given: &DcExact) -> Option<(Form, Origin<'a, P>)> {
    let mantissa = u32::from(given.mantissa);
    let form = Form { mantissa, float: mantissa > 0, exponent: given.exponent };
    // A float has at least one bit of an exponent besides its sign.
    if given.width == 0 || mantissa + 2 > P::BITS || given.exponent > exact::LAST_EXPONENT {
        return None;
    }
    // SAFETY: valid by this function's contract.
    let base = || unsafe { input(given.base.cast::<P>(), given.count) };
    let origin = match given.method {
        3 | 4 if form.float => Origin::Float { zeros: given.method == 4 },
        5 if !form.float => Origin::Integer(P::of(given.centre)),
        7 => Origin::Steps(base()?),
        8 if form.float => Origin::Differences(base()?),
        _ => return None,
    };
    Some((form, origin))
}

/// Splits values: as many levels, and the refinement bits after `refinement`.
///
/// # Safety
/// Every pointer is valid for its length, `levels` for `count`.
unsafe fn split(given: &DcExact, levels: &mut [i32], refinement: &mut Vec<u8>) -> Option<()> {
    for_item!(given.item, P => {
        // SAFETY: valid by this function's contract.
        let (form, origin) = unsafe { described::<P>(given)? };
        // SAFETY: as above.
        let values = unsafe { input(given.values.cast::<P>().cast_const(), given.count)? };
        dispatch::split(form, origin, given.width, values, levels, refinement);
        Some(())
    })
}

/// Splits values into as many levels, and refinement bits.
///
/// # Safety
/// Every pointer is valid for its length, `levels` for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_split(given: *const DcExact, levels: *mut i32, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let given = unsafe { one(given)? };
        // SAFETY: as above.
        let levels = unsafe { output(levels, given.count)? };
        let mut refinement = Vec::new();
        // SAFETY: as above.
        unsafe { split(given, levels, &mut refinement)? };
        // SAFETY: as above.
        unsafe { deliver(&refinement, out) }
    })
}

/// Encodes one chunk of values: the code of their levels, then refinement bits, whose bytes `refinement_length` receives.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_exact(
    params: *const u8,
    params_length: usize,
    given: *const DcExact,
    refinement_length: *mut usize,
    out: *mut DcBuffer,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (params, given) = unsafe { (input(params, params_length)?, one(given)?) };
        // SAFETY: as above.
        let refinement_length = unsafe { one_mut(refinement_length)? };
        let params = Params::read(params)?;
        let (mut levels, mut refinement) = (vec![0; given.count], Vec::new());
        // SAFETY: as above.
        unsafe { split(given, &mut levels, &mut refinement)? };
        if !chunk::has_code(&params, &levels) {
            return None;
        }
        let mut coded = Vec::new();
        dispatch::encode(&params, &levels, &mut coded);
        coded.extend_from_slice(&refinement);
        *refinement_length = refinement.len();
        // SAFETY: as above.
        unsafe { deliver(&coded, out) }
    })
}

/// What [`dc_encode_leveled`] has chosen.
#[repr(C)]
pub struct DcLeveled {
    /// log2 of the step in units.
    pub exponent: u32,
    /// Bytes of the coding parameters, which come first.
    pub params_length: usize,
    /// Bytes of the refinement bits, which come last.
    pub refinement_length: usize,
}

/// Chooses a step, and coding parameters as [`super::levels::dc_fit`] does, for a tensor of that shape from a sample of its values,
/// and encodes the sample as one chunk: parameters, code, refinement bits. Tries as many exponents, from the given one on, and takes
/// the one with the shortest code, the first of several.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_leveled(
    given: *const DcExact,
    tensor: *const DcFit,
    tries: u32,
    chosen: *mut DcLeveled,
    out: *mut DcBuffer,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, tensor, chosen) = unsafe { (one(given)?, one(tensor)?, one_mut(chosen)?) };
        // SAFETY: as above.
        let (count, layout) = unsafe { tensor.layout()? };
        let preset = tensor.preset()?;
        let mut best: Option<(usize, Vec<u8>)> = None;
        let mut levels = vec![0; given.count];
        for exponent in (given.exponent..=exact::LAST_EXPONENT).take(tries as usize) {
            let mut coded = Vec::new();
            let mut refinement = Vec::new();
            let form = DcExact { exponent, ..*given };
            // SAFETY: as above.
            unsafe { split(&form, &mut levels, &mut refinement)? };
            let params = fit::fit(layout, count, levels.len(), None, preset, false, |i| f64::from(levels[i]));
            params.write(&mut coded);
            let params_length = coded.len();
            refinement.clear();
            // SAFETY: as above.
            unsafe { split(&DcExact { width: params.width, ..form }, &mut levels, &mut refinement)? };
            dispatch::encode(&params, &levels, &mut coded);
            coded.extend_from_slice(&refinement);
            let length = coded.len() - params_length;
            if best.as_ref().is_none_or(|(least, _)| length < *least) {
                *chosen = DcLeveled { exponent, params_length, refinement_length: refinement.len() };
                best = Some((length, coded));
            }
        }
        // SAFETY: as above.
        unsafe { deliver(&best?.1, out) }
    })
}

/// Joins as many levels, and refinement bits, to values.
///
/// # Safety
/// Every pointer is valid for its length, `levels` for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_join(
    given: *const DcExact,
    levels: *const i32,
    refinement: *const u8,
    refinement_length: usize,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, refinement) = unsafe { (one(given)?, input(refinement, refinement_length)?) };
        // SAFETY: as above.
        let levels = unsafe { input(levels, given.count)? };
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (form, origin) = unsafe { described::<P>(given)? };
            // SAFETY: as above.
            let values = unsafe { output(given.values.cast::<P>(), given.count)? };
            let good = exact::join(form, origin, given.width, levels, refinement, values);
            Some(if good { DcStatus::Ok } else { DcStatus::Damaged })
        })
    })
}

/// A chunk of floating-point values, to be coded or decoded.
#[repr(C)]
pub struct DcFloats {
    /// The values' bits: read when they are coded, and written when they are decoded.
    pub values: *mut u8,
    /// The chunk's code, to be decoded.
    pub bytes: *const u8,
    /// Its length.
    pub bytes_length: usize,
    /// Number of values.
    pub count: usize,
    /// Values in a row.
    pub width: usize,
    /// Bits of the mantissa.
    pub mantissa: u8,
    /// Bytes of a value: 1, 2, 4 or 8.
    pub item: u8,
    /// Set: whether the bytes were exactly its code.
    pub good: bool,
}

impl DcFloats {
    /// Whether there are such values.
    fn is_valid(&self) -> bool {
        let bits = 8 * u32::from(self.item);
        (1..=codebook::MOST_WIDTH).contains(&self.width) && self.mantissa > 0 && u32::from(self.mantissa) + 2 <= bits
    }
}

thread_local! {
    /// Left by the last call on this thread: fresh memory is slow at first.
    static CODED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Encodes one chunk of floating-point values, with scales of rows and columns if they are to be looked for.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_floats(given: *const DcFloats, scaled: bool, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let given = unsafe { one(given)? };
        let (mantissa, mut coded) = (u32::from(given.mantissa), CODED.take());
        coded.clear();
        if !given.is_valid() || given.count == 0 {
            return None;
        }
        for_item!(given.item, P => {
            // SAFETY: as above.
            let values = unsafe { input(given.values.cast::<P>().cast_const(), given.count)? };
            dispatch::encode_floats(mantissa, given.width, scaled, values, &mut coded);
            Some(())
        })?;
        // SAFETY: as above.
        let status = unsafe { deliver(&coded, out) };
        CODED.set(coded);
        status
    })
}

/// Decodes chunks of floating-point values, and sets their `good`.
///
/// # Safety
/// `jobs` is valid for `count` chunks, and each chunk's pointers for their lengths.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode_floats(jobs: *mut DcFloats, count: usize) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        for job in unsafe { output(jobs, count)? } {
            // SAFETY: as above.
            let bytes = unsafe { input(job.bytes, job.bytes_length)? };
            if !job.is_valid() {
                return None;
            }
            let mantissa = u32::from(job.mantissa);
            job.good = for_item!(job.item, P => {
                // SAFETY: as above.
                let values = unsafe { output(job.values.cast::<P>(), job.count)? };
                Some(dispatch::decode_floats(mantissa, job.width, bytes, values))
            })?;
        }
        Some(DcStatus::Ok)
    })
}

/// A codebook, as far as its indices' code depends on it.
#[repr(C)]
pub struct DcCodebook {
    /// Its number of entries.
    pub entries: usize,
    /// Indices in a row.
    pub width: usize,
    /// The index of the usual entry.
    pub usual: u16,
}

impl DcCodebook {
    /// Whether indices can be coded with it.
    fn is_valid(&self) -> bool {
        (1..=codebook::MOST_ENTRIES).contains(&self.entries)
            && usize::from(self.usual) < self.entries
            && (1..=codebook::MOST_WIDTH).contains(&self.width)
    }
}

/// Encodes codebook indices.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_indices(
    book: *const DcCodebook,
    indices: *const u16,
    count: usize,
    out: *mut DcBuffer,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (book, indices) = unsafe { (one(book)?, input(indices, count)?) };
        if !book.is_valid() || indices.iter().any(|&index| usize::from(index) >= book.entries) {
            return None;
        }
        let mut coded = Vec::new();
        codebook::encode(indices, book.entries, book.usual, book.width, &mut coded);
        // SAFETY: as above.
        unsafe { deliver(&coded, out) }
    })
}

/// Decodes `count` codebook indices.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode_indices(
    book: *const DcCodebook,
    coded: *const u8,
    coded_length: usize,
    indices: *mut u16,
    count: usize,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (book, coded) = unsafe { (one(book)?, input(coded, coded_length)?) };
        // SAFETY: as above.
        let indices = unsafe { output(indices, count)? };
        if !book.is_valid() {
            return None;
        }
        let possible = count <= arithmetic::most_decisions(coded.len());
        let good = possible && codebook::decode(coded, book.entries, book.usual, book.width, indices);
        Some(if good { DcStatus::Ok } else { DcStatus::Damaged })
    })
}
