//! Tensors of `.dcb` files, with the reader of deepcabac's core: for Rust ([`tensor`]), and for C (`reader.h`).

use std::ffi::{CString, c_char};
use std::ptr;
use std::slice;

use deepcabac_core::file::{Error, Header, Index, Method, Part, decode};

/// What is in a file. With `max_bytes`, no index and no tensor that is larger is read.
///
/// # Errors
/// What is wrong with the file.
pub fn index(file: &[u8], max_bytes: Option<u64>) -> Result<Index, Error> {
    let header = Header::read(file)?;
    header.check_size(file.len() as u64)?;
    Index::read(&file[header.index_range()?], &header, max_bytes)
}

/// The values of a tensor: its elements' bytes, in the machine's order.
///
/// # Errors
/// What is wrong with the tensor; [`Error::Limit`] if it is larger than `max_bytes`.
pub fn tensor(file: &[u8], index: &Index, number: usize, max_bytes: Option<u64>) -> Result<Vec<u8>, Error> {
    let mut tensor = &index.tensors[number];
    if let Method::Tied(other) | Method::Equal(other) = tensor.method {
        tensor = &index.tensors[other];
    }
    if max_bytes.is_some_and(|most| tensor.nbytes() > most) {
        return Err(Error::Limit(format!("{} takes {} bytes", tensor.name, tensor.nbytes())));
    }
    let mut bytes = Vec::new();
    // As many chunks at a time as are decoded in turn on a core.
    let chunks: Vec<usize> = (0..tensor.chunks.len()).collect();
    for together in chunks.chunks(tensor.lanes()) {
        let mut parts = Vec::new();
        for chunk in together {
            parts.push(Part { tensor, chunk: *chunk, code: &file[tensor.chunks[*chunk].range()?] });
        }
        for values in decode(&parts)? {
            bytes.extend_from_slice(values.bytes());
        }
    }
    Ok(bytes)
}

/// An open file, as C has it.
pub struct DcbFile {
    bytes: &'static [u8],
    index: Index,
    max_bytes: u64,
    names: Vec<CString>,
    /// The last tensor that was read, and what was wrong with the last call.
    values: Vec<u8>,
    message: CString,
}

/// A text for C, which ends at the first zero byte.
fn text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Opens a file that is in memory.
///
/// # Safety
/// `bytes` has `length` bytes, which stay as they are until [`dcb_close`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcb_open(bytes: *const u8, length: usize, max_bytes: u64) -> *mut DcbFile {
    // SAFETY: the caller promises it.
    let bytes: &'static [u8] = if length == 0 { &[] } else { unsafe { slice::from_raw_parts(bytes, length) } };
    let empty = Index { kind: String::new(), extra: Vec::new(), tensors: Vec::new() };
    let (index, message) = match index(bytes, Some(max_bytes)) {
        Ok(index) => (index, CString::default()),
        Err(error) => (empty, text(error.message())),
    };
    let names = index.tensors.iter().map(|tensor| text(&tensor.name)).collect();
    Box::into_raw(Box::new(DcbFile { bytes, index, max_bytes, names, values: Vec::new(), message }))
}

/// What was wrong with the last call on this file; an empty text if nothing was.
///
/// # Safety
/// `file` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcb_error(file: *const DcbFile) -> *const c_char {
    // SAFETY: the caller promises it.
    unsafe { (*file).message.as_ptr() }
}

/// The number of tensors.
///
/// # Safety
/// `file` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcb_count(file: *const DcbFile) -> usize {
    // SAFETY: the caller promises it.
    unsafe { (*file).names.len() }
}

/// A tensor's name; null if there is none of this number.
///
/// # Safety
/// `file` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcb_name(file: *const DcbFile, number: usize) -> *const c_char {
    // SAFETY: the caller promises it.
    unsafe { &(*file).names }.get(number).map_or(ptr::null(), |name| name.as_ptr())
}

/// Decodes a tensor: where its values are, until the next call, and how many bytes they take; null if they cannot be had.
///
/// # Safety
/// `file` is open, and `nbytes` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcb_read(file: *mut DcbFile, number: usize, nbytes: *mut usize) -> *const u8 {
    // SAFETY: the caller promises both.
    let (file, nbytes) = unsafe { (&mut *file, &mut *nbytes) };
    (file.values, file.message, *nbytes) = (Vec::new(), CString::default(), 0);
    if number >= file.names.len() {
        file.message = text("there is no tensor of this number");
        return ptr::null();
    }
    match tensor(file.bytes, &file.index, number, Some(file.max_bytes)) {
        Ok(values) => file.values = values,
        Err(error) => {
            file.message = text(error.message());
            return ptr::null();
        }
    }
    *nbytes = file.values.len();
    file.values.as_ptr()
}

/// Closes a file; its names, values and messages are gone.
///
/// # Safety
/// `file` is open, or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dcb_close(file: *mut DcbFile) {
    if !file.is_null() {
        // SAFETY: it came from `dcb_open`, and the caller does not use it again.
        drop(unsafe { Box::from_raw(file) });
    }
}
