//! The C boundary of updates of which few values changed.

use super::exact::for_item;
use super::{DcBuffer, DcStatus, deliver, guarded, input, one, one_mut, output};
use crate::coding::changes::{self, CHUNK, Found, Rates};
use crate::cpu::dispatch;
use crate::exact::Pattern;

/// Values of a base, and the rates at which they change.
#[repr(C)]
pub struct DcChanges {
    /// The base's values, as bits.
    pub base: *const u8,
    /// Their number, at most that of a chunk but for [`dc_fit_changes`].
    pub count: usize,
    /// Codes of rates: of the exponents from `first` on.
    pub codes: *const u8,
    /// Their number.
    pub codes_length: usize,
    /// The exponent of the first code.
    pub first: usize,
    /// Bits of the mantissa; 0 for integers.
    pub mantissa: u8,
    /// Bytes of a value: 1, 2, 4 or 8.
    pub item: u8,
}

impl DcChanges {
    /// The bits of the mantissa, if the type can have so many.
    fn mantissa<P: Pattern>(&self) -> Option<u32> {
        let mantissa = u32::from(self.mantissa);
        // A float has at least one bit of an exponent besides its sign, and at most eleven.
        let exponents = P::BITS.checked_sub(mantissa + 1)?;
        (mantissa == 0 || (1..=11).contains(&exponents)).then_some(mantissa)
    }

    /// What the rates are, and the base.
    ///
    /// # Safety
    /// The pointers are valid for their lengths.
    unsafe fn described<'a, P: Pattern>(&self) -> Option<(Rates, &'a [P])> {
        // SAFETY: valid by this function's contract.
        let (codes, base) =
            unsafe { (input(self.codes, self.codes_length)?, input(self.base.cast::<P>(), self.count)?) };
        let rates = Rates::new::<P>(self.mantissa::<P>()?, self.first, codes)?;
        (base.len() <= CHUNK).then_some((rates, base))
    }
}

/// Values in every chunk but the last.
#[unsafe(no_mangle)]
pub extern "C" fn dc_change_chunk() -> usize {
    CHUNK
}

/// Codes of rates that suit the change to `values`, as many as the base has; `first` receives the exponent of the first one.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_fit_changes(
    given: *const DcChanges,
    values: *const u8,
    first: *mut usize,
    out: *mut DcBuffer,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, first) = unsafe { (one(given)?, one_mut(first)?) };
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (base, values) = unsafe { (input(given.base.cast::<P>(), given.count)?, input(values.cast::<P>(), given.count)?) };
            let (from, codes) = changes::fit(given.mantissa::<P>()?, base, values);
            *first = from;
            // SAFETY: as above.
            unsafe { deliver(&codes, out) }
        })
    })
}

/// Encodes the change of a chunk to `values`, as many as the base has.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_encode_changes(given: *const DcChanges, values: *const u8, out: *mut DcBuffer) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let given = unsafe { one(given)? };
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (rates, base) = unsafe { given.described::<P>()? };
            // SAFETY: as above.
            let values = unsafe { input(values.cast::<P>(), given.count)? };
            let mut coded = Vec::new();
            dispatch::encode_changes(&rates, base, values, &mut coded);
            // SAFETY: as above.
            unsafe { deliver(&coded, out) }
        })
    })
}

/// Decodes the change of a chunk into `values`, as many as the base has.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_decode_changes(
    given: *const DcChanges,
    coded: *const u8,
    coded_length: usize,
    values: *mut u8,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, coded) = unsafe { (one(given)?, input(coded, coded_length)?) };
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (rates, base) = unsafe { given.described::<P>()? };
            // SAFETY: as above.
            let values = unsafe { output(values.cast::<P>(), given.count)? };
            values.copy_from_slice(base);
            let good = dispatch::decode_changes(&rates, base, coded, &mut Found::Values(values));
            Some(if good { DcStatus::Ok } else { DcStatus::Damaged })
        })
    })
}

/// Decodes the change of a chunk as a list: `found` receives how many values changed, `places` where they are in the chunk, and
/// `values` what they become. Both have room for as many as the base has.
///
/// # Safety
/// Every pointer is valid for its length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dc_list_changes(
    given: *const DcChanges,
    coded: *const u8,
    coded_length: usize,
    places: *mut u32,
    values: *mut u8,
    found: *mut usize,
) -> DcStatus {
    guarded(|| {
        // SAFETY: valid by this function's contract.
        let (given, coded, found) = unsafe { (one(given)?, input(coded, coded_length)?, one_mut(found)?) };
        // SAFETY: as above.
        let places = unsafe { output(places, given.count)? };
        for_item!(given.item, P => {
            // SAFETY: as above.
            let (rates, base) = unsafe { given.described::<P>()? };
            // SAFETY: as above.
            let values = unsafe { output(values.cast::<P>(), given.count)? };
            let (mut listed, mut after) = (Vec::new(), Vec::new());
            let good = dispatch::decode_changes(&rates, base, coded, &mut Found::List(&mut listed, &mut after));
            *found = listed.len();
            places[..listed.len()].copy_from_slice(&listed);
            values[..after.len()].copy_from_slice(&after);
            Some(if good { DcStatus::Ok } else { DcStatus::Damaged })
        })
    })
}
