//! The C boundary. Everything here checks what it is given, catches panics, and returns a status.
//!
//! Callers own all memory: they pass pointers with lengths, or structures of them, and get variable-sized results copied into
//! a buffer of theirs.
//!
//! There is no version number: `python/deepcabac/_native_types.py` says what Python expects, and what was built is compared
//! with it, name by name and type by type, whenever it is loaded. A change of meaning must therefore change a name.

#![allow(unsafe_code)]

pub mod changes;
pub mod exact;
pub mod levels;
pub mod streams;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

/// What a call comes to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DcStatus {
    /// Success.
    Ok,
    /// An argument cannot be meant (null, misaligned, an impossible length): a bug in the caller.
    Argument,
    /// The bytes are not what an encoder wrote.
    Damaged,
    /// The result needs more room than the buffer has; the size needed was stored.
    Room,
    /// A value has no code: it is not finite, or too large for the step.
    Range,
    /// A panic: a bug in the core.
    Bug,
}

/// A buffer for a result whose size only the core knows.
#[repr(C)]
pub struct DcBuffer {
    /// Destination.
    pub start: *mut u8,
    /// Bytes that fit.
    pub capacity: usize,
    /// Set to the bytes of the result, whether they fit or not.
    pub length: usize,
}

/// A slice from a pointer of a caller; null if it is empty.
///
/// # Safety
/// If `length` is not 0, as many elements from `pointer` on are readable, and unchanged while the slice lives.
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

/// As [`input`], but null is `Some(None)`.
///
/// # Safety
/// As for [`input`].
unsafe fn optional<'a, T>(pointer: *const T, length: usize) -> Option<Option<&'a [T]>> {
    if pointer.is_null() {
        return Some(None);
    }
    // SAFETY: by this function's contract.
    unsafe { input(pointer, length) }.map(Some)
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

/// The structure that a caller points to.
///
/// # Safety
/// As for [`input`] of one element.
unsafe fn one<'a, T>(pointer: *const T) -> Option<&'a T> {
    // SAFETY: by this function's contract.
    unsafe { input(pointer, 1) }?.first()
}

/// The structure that a caller points to, to be changed.
///
/// # Safety
/// As for [`output`] of one element.
unsafe fn one_mut<'a, T>(pointer: *mut T) -> Option<&'a mut T> {
    // SAFETY: by this function's contract.
    unsafe { output(pointer, 1) }?.first_mut()
}

/// Runs `body`, turning a missing argument and a panic into a status.
fn guarded(body: impl FnOnce() -> Option<DcStatus>) -> DcStatus {
    catch_unwind(AssertUnwindSafe(body)).map_or(DcStatus::Bug, |status| status.unwrap_or(DcStatus::Argument))
}

/// Copies a result into the caller's buffer and stores its size.
///
/// # Safety
/// `buffer` is null or valid, and so are the bytes that it describes; nothing else touches them.
unsafe fn deliver(result: &[u8], buffer: *mut DcBuffer) -> Option<DcStatus> {
    // SAFETY: valid by this function's contract.
    let buffer = unsafe { one_mut(buffer)? };
    // SAFETY: as above.
    let out = unsafe { output(buffer.start, buffer.capacity)? };
    buffer.length = result.len();
    match out.get_mut(..result.len()) {
        Some(room) => {
            room.copy_from_slice(result);
            Some(DcStatus::Ok)
        }
        None => Some(DcStatus::Room),
    }
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let numbers = [1u32, 2, 3];
        // SAFETY: only the last one is followed, and it is valid.
        unsafe {
            assert_eq!(input::<u32>(ptr::null(), 0), Some(&[][..]));
            assert_eq!(input::<u32>(ptr::null(), 1), None);
            assert_eq!(input(numbers.as_ptr().byte_add(1), 1), None);
            assert_eq!(input(numbers.as_ptr(), usize::MAX / 4), None);
            assert_eq!(optional::<u32>(ptr::null(), 1), Some(None));
            assert_eq!(input(numbers.as_ptr(), 3), Some(&numbers[..]));
        }
        assert_eq!(guarded(|| None), DcStatus::Argument);
    }

    #[test]
    fn a_result_that_does_not_fit_says_how_much_room_it_needs() {
        let mut out = [0; 4];
        let mut buffer = DcBuffer { start: out.as_mut_ptr(), capacity: 2, length: 0 };
        // SAFETY: the buffer describes a part of `out`, or all of it.
        unsafe {
            assert_eq!(deliver(&[1, 2, 3], &raw mut buffer), Some(DcStatus::Room));
            buffer.capacity = 4;
            assert_eq!((buffer.length, deliver(&[1, 2, 3], &raw mut buffer)), (3, Some(DcStatus::Ok)));
            assert_eq!(deliver(&[], ptr::null_mut()), None);
        }
        assert_eq!((buffer.length, out), (3, [1, 2, 3, 0]));
    }
}
