//! The C boundary. Everything here checks what it is given, catches panics, and returns a status.
//!
//! Callers own all memory: they pass pointers with lengths, and get variable-sized results copied into a buffer of theirs.

#![allow(unsafe_code)]

pub mod exact;
pub mod levels;
pub mod streams;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

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
