//! `.dcb` files, read: what is in one, and its tensors. FORMAT.md is the definition.
//!
//! The Python package has an index parser of its own (`dcb/container.py`), which also writes; this one is for programs
//! in Rust and for WebAssembly. Both refuse the same files: the tests of `js/` compare them.
//!
//! `examples/reader` is a small program that does so, with a library and a header for C.
//!
//! Nothing is read from disk here, so that bytes may come from anywhere. [`Header::read`] says where the index is,
//! [`Index::read`] what the tensors are and where their chunks lie, and [`decode`] makes values of chunks, in any order:
//!
//! ```no_run
//! use deepcabac_core::file::{Error, Header, Index, Part, decode};
//!
//! fn tensor(file: &[u8], number: usize) -> Result<Vec<u8>, Error> {
//!     let header = Header::read(file)?;
//!     header.check_size(file.len() as u64)?;
//!     let index = Index::read(&file[header.index_range()?], &header, None)?;
//!     let tensor = &index.tensors[number];
//!     let mut bytes = Vec::new();
//!     for chunk in 0..tensor.chunks.len() {
//!         let code = &file[tensor.chunks[chunk].range()?];
//!         for values in decode(&[Part { tensor, chunk, code }])? {
//!             bytes.extend_from_slice(values.bytes());
//!         }
//!     }
//!     Ok(bytes)
//! }
//! ```

pub mod error;
pub mod fields;
pub mod index;
pub mod round;
pub mod tensor;
pub mod values;

pub use error::Error;
pub use index::{Header, Index};
pub use tensor::{Chunk, Method, Part, Tensor, decode};
pub use values::{Dtype, Values};
