//! The C boundary of values that must come back bit for bit.

use super::{DC_DAMAGED, DC_OK, deliver, guarded, input, output};
use crate::chunk;
use crate::coding::arithmetic;
use crate::coding::codebook;
use crate::cpu::dispatch;
use crate::exact::{self, Form, Origin, Pattern};
use crate::model::params::Params;

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
            dispatch::split(form, origin, given.width, values, levels, &mut details);
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
            dispatch::split(form, origin, given.width, values, &mut levels, &mut details);
            if !chunk::has_code(&params, &levels) {
                return None;
            }
            let mut coded = Vec::new();
            dispatch::encode(&params, &levels, &mut coded);
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
        let possible = count <= arithmetic::most_decisions(coded.len());
        let good = possible && codebook::decode(coded, entries, usual, width, numbers);
        Some(if good { DC_OK } else { DC_DAMAGED })
    })
}
