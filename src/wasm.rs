//! What JavaScript calls (`js/src/core.js`): the reader of [`crate::file`], as a WebAssembly module's exports.
//!
//! An instance holds one file's index. A call's input is written to [`dc_room`]; its result lies at [`dc_result`], of
//! [`dc_result_length`] bytes, until the next call. A call returns a status: 0, or what is wrong, with a message as its result.
//! A panic is a trap, after which the instance must not be used again.

#![allow(unsafe_code)]

use std::cell::RefCell;

use crate::file::{self, Dtype, Error, Header, Index, Method, Part, Values, decode};

/// Bytes of room that are kept for the next call.
const KEPT: usize = 16 << 20;

#[derive(Default)]
struct State {
    input: Vec<u8>,
    /// Bytes of it that the last call of [`dc_room`] asked for.
    given: usize,
    result: Vec<u8>,
    index: Option<Index>,
    /// The values that the last result points to.
    values: Vec<Values>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Makes room for so many bytes of input: where they go, or null if there is no memory for them.
#[unsafe(no_mangle)]
pub extern "C" fn dc_room(length: usize) -> *mut u8 {
    STATE.with_borrow_mut(|state| {
        // What former calls left is used again: only what is new is filled with zeros.
        if state.input.len() < length {
            (state.input, state.given) = (Vec::new(), 0);
            if state.input.try_reserve_exact(length).is_err() {
                return std::ptr::null_mut();
            }
            state.input.resize(length, 0);
        }
        state.given = length;
        state.input.as_mut_ptr()
    })
}

/// Where the last call's result is.
#[unsafe(no_mangle)]
pub extern "C" fn dc_result() -> *const u8 {
    STATE.with_borrow(|state| state.result.as_ptr())
}

/// Its bytes.
#[unsafe(no_mangle)]
pub extern "C" fn dc_result_length() -> usize {
    STATE.with_borrow(|state| state.result.len())
}

/// Runs `body` on the input and keeps what comes of it.
fn call(body: impl FnOnce(&[u8], &mut State) -> Result<Vec<u8>, Error>) -> u32 {
    STATE.with_borrow_mut(|state| {
        let input = std::mem::take(&mut state.input);
        let result = body(&input[..std::mem::take(&mut state.given)], state);
        if input.len() <= KEPT {
            state.input = input;
        }
        match result {
            Ok(result) => {
                state.result = result;
                0
            }
            Err(error) => {
                state.result = error.message().as_bytes().to_vec();
                match error {
                    Error::Damaged(_) => 1,
                    Error::WrongKind(_) => 2,
                    Error::Unsupported(_) => 3,
                    Error::Limit(_) => 4,
                }
            }
        }
    })
}

/// Reads a header from the first bytes of a file. Result: u32 CRC, f64 offset and f64 end of the index.
#[unsafe(no_mangle)]
pub extern "C" fn dc_header() -> u32 {
    call(|head, _| {
        let header = Header::read(&head[..head.len().min(file::index::HEADER)])?;
        let mut out = header.crc.to_le_bytes().to_vec();
        out.extend((header.index.start as f64).to_le_bytes());
        out.extend((header.index.end as f64).to_le_bytes());
        Ok(out)
    })
}

/// A header of these values. JavaScript has checked that its numbers are whole and below 2^53.
fn header(crc: u32, start: f64, end: f64) -> Header {
    Header { crc, index: start as u64..end as u64 }
}

/// Decompresses a stored index; a negative `max_bytes` is none. Result: the plain index.
#[unsafe(no_mangle)]
pub extern "C" fn dc_plain(crc: u32, max_bytes: f64) -> u32 {
    call(|stored, _| Index::plain(stored, &header(crc, 0.0, 0.0), (max_bytes >= 0.0).then_some(max_bytes as u64)))
}

/// Parses a plain index, whose payload ends at `start`, and keeps it. Result, all numbers little-endian: kind and extra (u32
/// length, bytes), u32 number of tensors; of each its name (u32 length, bytes), u8 data type, u8 data type of what its elements are parts of or 0, u8 method (0 own values, 1 tied,
/// 2 an update, 3 equal), u8 number of dimensions, f64 each dimension, f64 number of the tensor it is tied to, f64 elements in a chunk,
/// u32 lanes, u32 number of chunks, and of each f64 offset, f64 length.
#[unsafe(no_mangle)]
pub extern "C" fn dc_parse(start: f64) -> u32 {
    call(|plain, state| Ok(described(Index::parse(plain, &header(0, start, start))?, state)))
}

/// Reads levels on their own. Input: all their bytes. Result: as of [`dc_parse`], of one tensor.
#[unsafe(no_mangle)]
pub extern "C" fn dc_levels() -> u32 {
    call(|data, state| {
        let tensors = vec![file::index::read_levels(data)?];
        Ok(described(Index { kind: String::new(), extra: Vec::new(), tensors }, state))
    })
}

/// Keeps an index and describes it.
fn described(index: Index, state: &mut State) -> Vec<u8> {
    let mut out = Vec::new();
    let blob = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    };
    let number = |out: &mut Vec<u8>, number: u64| out.extend((number as f64).to_le_bytes());
    blob(&mut out, index.kind.as_bytes());
    blob(&mut out, &index.extra);
    out.extend((index.tensors.len() as u32).to_le_bytes());
    for tensor in &index.tensors {
        blob(&mut out, tensor.name.as_bytes());
        let (method, tied) = match tensor.method {
            Method::Tied(number) => (1, number),
            Method::Equal(number) => (3, number),
            Method::Update { .. } => (2, 0),
            _ => (0, 0),
        };
        out.extend([tensor.dtype.code(), tensor.whole.map_or(0, Dtype::code), method, tensor.shape.len() as u8]);
        tensor.shape.iter().for_each(|size| number(&mut out, *size));
        number(&mut out, tied as u64);
        number(&mut out, tensor.chunk_size());
        out.extend((tensor.lanes() as u32).to_le_bytes());
        out.extend((tensor.chunks.len() as u32).to_le_bytes());
        for chunk in &tensor.chunks {
            number(&mut out, chunk.offset);
            number(&mut out, chunk.length);
        }
    }
    state.index = Some(index);
    out
}

/// Decodes some chunks. Input: u32 number of chunks, of each u32 tensor and u32 number, then the bytes of all, one after the
/// other. Result: of each u32 place and u32 length of its values, valid until the next call.
#[unsafe(no_mangle)]
pub extern "C" fn dc_decode() -> u32 {
    call(|input, state| {
        let (words, _) = input.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word)) as usize;
        let index = state.index.as_ref().ok_or_else(|| Error::Damaged("no index was parsed".into()))?;
        let count = word(0);
        let mut start = 4 + 8 * count;
        let mut parts = Vec::with_capacity(count);
        for k in 0..count {
            let (tensor, chunk) = (index.tensors.get(word(1 + 2 * k)), word(2 + 2 * k));
            let place = tensor.and_then(|tensor| Some((tensor, tensor.chunks.get(chunk)?)));
            let Some((tensor, Ok(length))) = place.map(|(tensor, place)| (tensor, usize::try_from(place.length)))
            else {
                return Err(Error::Damaged("there is no such chunk".into()));
            };
            let code = input.get(start..start.saturating_add(length));
            let code = code.ok_or_else(|| Error::Damaged("a chunk's bytes are missing".into()))?;
            parts.push(Part { tensor, chunk, code });
            start += length;
        }
        // Freed only now, so that the next values find room where these were.
        state.values = Vec::new();
        state.values = decode(&parts)?;
        let places = state.values.iter().map(|values| values.bytes());
        Ok(places.flat_map(|bytes| [bytes.as_ptr() as u32, bytes.len() as u32]).flat_map(u32::to_le_bytes).collect())
    })
}
