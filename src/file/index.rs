//! The header and the index of a file, checked whole. FORMAT.md, 4 and 10.

use std::ops::Range;

use crate::coding::{arithmetic, bytes, changes, codebook};
use crate::cpu::dispatch;
use crate::exact;
use crate::file::error::{Error, bad_index, quoted};
use crate::file::fields::Fields;
use crate::file::tensor::{Chunk, Method, RAW_CHUNK, Tensor, sound};
use crate::file::values::Dtype;
use crate::model::params::Params;

/// What a file begins with.
pub const MAGIC: [u8; 8] = *b"\x89DCB\r\n\x1a\n";
/// The version of the format that is read.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER: usize = 32;
/// Most bytes of an index once decoded.
const MAX_INDEX: u64 = 1 << 28;
/// How many of them there may be beyond the bytes of the file.
const FREE_INDEX: u64 = 1 << 20;
/// A decoded index of so many bytes is read whatever the limit is.
const SMALL_INDEX: u64 = 1 << 16;
const MAX_DIMENSIONS: u8 = 32;
/// Bytes of the digest of a base.
const DIGEST: u64 = 32;

/// Where the index of a file is, and what it must hash to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// CRC-32 of the index as stored.
    pub crc: u32,
    /// Its place, at the end of the file.
    pub index: Range<u64>,
}

impl Header {
    /// Reads it from the first bytes of a file: [`HEADER`] of them, or all if there are fewer.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::WrongKind`], or [`Error::Unsupported`] for another version.
    pub fn read(head: &[u8]) -> Result<Self, Error> {
        let damaged = |what: &str| Error::Damaged(format!("damaged .dcb file: {what}"));
        if head.is_empty() {
            return Err(damaged("it is empty"));
        }
        let begins = &head[..head.len().min(MAGIC.len())];
        if begins != &MAGIC[..begins.len()] {
            if begins.len() >= 4 && begins[1..4] == MAGIC[1..4] {
                return Err(damaged("its first bytes were changed, as by a transfer in text mode"));
            }
            return Err(Error::WrongKind("not a .dcb file: it does not begin like one".into()));
        }
        if head.len() < HEADER {
            return Err(damaged(&format!("it ends after {} bytes", head.len())));
        }
        let mut fields = Fields::new(&head[MAGIC.len()..HEADER]);
        let (version, crc, offset, length) = (fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?);
        if version != VERSION {
            return Err(Error::Unsupported(format!(
                "a .dcb file of format version {version}; this release reads version {VERSION}: update deepcabac"
            )));
        }
        match offset.checked_add(length) {
            Some(end) if offset >= HEADER as u64 => Ok(Self { crc, index: offset..end }),
            _ => Err(damaged("its index lies outside it")),
        }
    }

    /// Checks how many bytes the file has.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn check_size(&self, size: u64) -> Result<(), Error> {
        let expected = self.index.end;
        if size == expected {
            return Ok(());
        }
        Err(Error::Damaged(format!("damaged .dcb file: it should have {expected} bytes and has {size}")))
    }

    /// The place of the index in a file that is in memory.
    ///
    /// # Errors
    /// [`Error::Limit`] if no memory of this machine can hold it.
    pub fn index_range(&self) -> Result<Range<usize>, Error> {
        Chunk { offset: self.index.start, length: self.index.end - self.index.start, refinement: 0, crc: 0 }.range()
    }
}

/// What a file says about itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Index {
    /// Kind of checkpoint that it was made from; empty for arrays.
    pub kind: String,
    /// What such a checkpoint holds besides tensors.
    pub extra: Vec<u8>,
    /// Its tensors.
    pub tensors: Vec<Tensor>,
}

impl Index {
    /// Reads the index from its stored bytes, as [`Self::plain`] and [`Self::parse`].
    ///
    /// # Errors
    /// [`Error::Damaged`], or [`Error::Limit`] if it takes more than `max_bytes`.
    pub fn read(stored: &[u8], header: &Header, max_bytes: Option<u64>) -> Result<Self, Error> {
        Self::parse(&Self::plain(stored, header, max_bytes)?, header)
    }

    /// Checks the stored bytes and decompresses them.
    ///
    /// # Errors
    /// [`Error::Damaged`], or [`Error::Limit`] if the plain index takes more than `max_bytes` (and more than 64 KiB).
    pub fn plain(stored: &[u8], header: &Header, max_bytes: Option<u64>) -> Result<Vec<u8>, Error> {
        if !sound(stored, header.crc) {
            return Err(Error::Damaged("damaged .dcb file: the checksum of the index does not match".into()));
        }
        let mut fields = Fields::new(stored);
        let decoded = fields.varint()?;
        let coded = fields.take(fields.left() as u64)?;
        let is_plain = decoded == 0;
        let length = if is_plain { coded.len() as u64 } else { decoded };
        // Decoding is slow.
        let limit = MAX_INDEX.min(FREE_INDEX.saturating_add(header.index.end));
        if length > limit || (!is_plain && length > bytes::most_decoded(coded.len()) as u64) {
            return Err(bad_index(&format!("it claims {length} bytes, more than it can hold")));
        }
        if let Some(max_bytes) = max_bytes.filter(|max_bytes| length > *max_bytes.max(&SMALL_INDEX)) {
            return Err(Error::Limit(format!("the index takes {length} bytes, more than {max_bytes}")));
        }
        if is_plain {
            return Ok(coded.to_vec());
        }
        let mut plain = vec![0; length as usize];
        if !dispatch::decode_bytes(coded, &mut plain) {
            return Err(bad_index("it does not decode"));
        }
        Ok(plain)
    }

    /// Parses a plain index. Its chunks must tile what lies between header and index exactly.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn parse(plain: &[u8], header: &Header) -> Result<Self, Error> {
        if header.index.start < HEADER as u64 {
            return Err(Error::Damaged("damaged .dcb file: its index lies in its header".into()));
        }
        let mut fields = Fields::new(plain);
        let (kind, extra) = (fields.text()?.to_owned(), fields.blob()?.to_vec());
        let count = fields.varint()?;
        if count > fields.left() as u64 / 5 {
            return Err(bad_index(&format!("it claims {count} tensors")));
        }
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut place = Place { offset: HEADER as u64, end: header.index.start };
        let mut equal: Vec<u8> = Vec::new(); // how many tensors equal each
        for _ in 0..count {
            let tensor = read_tensor(&mut fields, &mut place, &tensors)?;
            if let Method::Equal(number) = tensor.method {
                equal[number] += 1;
                if equal[number] > MOST_EQUAL {
                    return Err(bad_index(&format!("more than {MOST_EQUAL} tensors are stored as equal to one")));
                }
            }
            tensors.push(tensor);
            equal.push(0);
        }
        let mut names: Vec<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad_index(&format!("two tensors are called {}", quoted(pair[0]))));
        }
        if tensors.iter().any(|tensor| matches!(tensor.method, Method::Update { .. })) {
            fields.take(DIGEST)?;
            let name = fields.text()?;
            if name == "." || name == ".." || name.contains(['/', '\\', ':', '\0']) {
                return Err(bad_index(&format!("its base is called {}, which is not a file's name", quoted(name))));
            }
        }
        fields.end()?;
        if place.offset != place.end {
            return Err(bad_index(&format!("{} bytes of payload belong to no tensor", place.end - place.offset)));
        }
        Ok(Self { kind, extra, tensors })
    }
}

/// Reads what stands before the chunks of levels on their own, what the Python package's `encode` returns (FORMAT.md, 12): a
/// tensor of int32 without a name, whose chunks' places are those in `data`.
///
/// # Errors
/// [`Error::Damaged`], or [`Error::Unsupported`] for another version.
pub fn read_levels(data: &[u8]) -> Result<Tensor, Error> {
    match data {
        [0xdc, 1, ..] => {}
        [0xdc, version, ..] => {
            return Err(Error::Unsupported(format!(
                "coded levels of format version {version}; this release reads version 1"
            )));
        }
        _ => return Err(Error::Damaged("not coded levels: the data do not begin like them".into())),
    }
    let mut fields = Fields::new(&data[2..]);
    let shape = read_shape(&mut fields)?;
    let method = Method::Bare { params: read_params(&mut fields)? };
    let (name, dtype) = (String::new(), Dtype::INT32);
    let mut tensor = Tensor { name, dtype, shape, whole: None, method, chunks: Vec::new() };
    let mut place = Place { offset: 0, end: data.len() as u64 };
    tensor.chunks = read_chunks(&mut fields, &mut place, &tensor, Parts::Code)?;
    let head = data.len() - fields.left();
    if !sound(&data[..head], fields.u32()?) {
        return Err(bad_index("its checksum does not match"));
    }
    if place.offset != fields.left() as u64 {
        return Err(bad_index("its chunks do not add up to the payload"));
    }
    tensor.chunks.iter_mut().for_each(|chunk| chunk.offset += head as u64 + 4);
    Ok(tensor)
}

/// Where the next chunk of payload lies.
struct Place {
    offset: u64,
    end: u64,
}

impl Place {
    fn chunk(&mut self, coded: u64, refinement: u64, crc: u32) -> Result<Chunk, Error> {
        // Both are below 2^63.
        let (offset, length) = (self.offset, coded + refinement);
        if length > self.end - offset {
            return Err(bad_index("a tensor lies outside the file"));
        }
        self.offset += length;
        Ok(Chunk { offset, length, refinement, crc })
    }
}

fn read_tensor(fields: &mut Fields, place: &mut Place, before: &[Tensor]) -> Result<Tensor, Error> {
    let name = fields.text()?.to_owned();
    let code = fields.byte()?;
    let (own, parts) = Dtype::with_parts(code)
        .ok_or_else(|| bad_index(&format!("tensor {} has an unknown data type {code}", quoted(&name))))?;
    let mut shape = read_shape(fields)?;
    shape.extend(parts.map(|(_, count)| count));
    // Of parts there may be 32 times as many as elements.
    if shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size.max(&1))).is_none() {
        return Err(bad_index("it ends early"));
    }
    let (whole, dtype) = parts.map_or((None, own), |(part, _)| (Some(own), part));
    let mut tensor = Tensor { name, dtype, shape, whole, method: Method::Raw, chunks: Vec::new() };
    let number = fields.byte()?;
    if code >= Dtype::PACKED && (STEPS..=QUANTIZED_DIFFERENCE).contains(&number) {
        return Err(bad_index(&format!("tensor {} is a difference of packed codes", quoted(&tensor.name))));
    }
    tensor.method = read_method(number, fields, &tensor, before)?;
    tensor.chunks = match tensor.method {
        Method::Tied(_) | Method::Equal(_) => Vec::new(),
        Method::Raw => read_raw_chunks(fields, place, tensor.nbytes())?,
        Method::Levels { .. } | Method::Bare { .. } => read_chunks(fields, place, &tensor, Parts::Code)?,
        Method::Codebook { .. } | Method::Symbols { .. } => {
            read_chunks(fields, place, &tensor, Parts::Both { refined: false, empty: false })?
        }
        Method::Float { .. } | Method::Integers { .. } | Method::Multiples { .. } => {
            read_chunks(fields, place, &tensor, Parts::Both { refined: true, empty: false })?
        }
        Method::Update { .. } if number == UNCHANGED => Vec::new(),
        Method::Update { .. } if number == CHANGES => read_changed_chunks(fields, place, &tensor)?,
        Method::Update { .. } => {
            let refined = number != QUANTIZED_DIFFERENCE;
            read_chunks(fields, place, &tensor, Parts::Both { refined, empty: true })?
        }
    };
    if !scales_fit(&tensor) {
        return Err(bad_index(&format!("tensor {} has scales that do not fit its shape", quoted(&tensor.name))));
    }
    Ok(tensor)
}

/// Numbers of methods that need a base (FORMAT.md, 13.1).
const STEPS: u8 = 7;
const DIFFERENCES: u8 = 8;
const UNCHANGED: u8 = 9;
const QUANTIZED_DIFFERENCE: u8 = 10;
const CHANGES: u8 = 13;
/// The number of the method after the first of those.
const SYMBOLS: u8 = 11;
const MULTIPLES: u8 = 14;

/// Number of the method of tensors with the values of another one, and how many may have those of one: each takes memory.
const EQUAL: u8 = 12;
const MOST_EQUAL: u8 = 64;

/// What an entry says between its method's number and its chunks.
fn read_method(number: u8, fields: &mut Fields, tensor: &Tensor, before: &[Tensor]) -> Result<Method, Error> {
    let Tensor { name, dtype, .. } = tensor;
    let is_float = dtype.mantissa() > 0;
    let fits = match number {
        1 | QUANTIZED_DIFFERENCE | MULTIPLES => dtype.has_levels(),
        3 | 4 | DIFFERENCES | SYMBOLS => is_float,
        5 => !is_float,
        _ => number <= QUANTIZED_DIFFERENCE || number == EQUAL || number == CHANGES,
    };
    if !fits {
        let (name, dtype) = (quoted(name), dtype.name());
        return Err(bad_index(&format!("tensor {name} of type {dtype} is stored with method {number}")));
    }
    let chunk = |params: &Params| params.chunk_levels() as u64;
    Ok(match number {
        0 => Method::Raw,
        1 => Method::Levels {
            step: read_step(fields)?,
            rows: read_scales(fields)?,
            columns: read_scales(fields)?,
            params: read_params(fields)?,
        },
        2 => Method::Tied(read_tie(fields, tensor, before)?),
        EQUAL => Method::Equal(read_tie(fields, tensor, before)?),
        3 | 4 => Method::Float { zeros: number == 4, exponent: read_exponent(fields)?, params: read_params(fields)? },
        5 => {
            let exponent = read_exponent(fields)?;
            let mut centre = [0; 8];
            centre[..dtype.item()].copy_from_slice(fields.take(dtype.item() as u64)?);
            Method::Integers { exponent, centre: u64::from_le_bytes(centre), params: read_params(fields)? }
        }
        6 => read_codebook(fields, tensor)?,
        STEPS | DIFFERENCES => {
            read_exponent(fields)?;
            Method::Update { chunk: chunk(&read_params(fields)?) }
        }
        MULTIPLES => read_multiples(fields, tensor)?,
        UNCHANGED => Method::Update { chunk: 0 },
        CHANGES => {
            let (first, codes) = (fields.varint()?, fields.blob()?);
            let exponents = if is_float { 1u64 << (8 * dtype.item() as u32 - 1 - dtype.mantissa()) } else { 1 };
            let within = first.checked_add(codes.len() as u64).is_some_and(|end| end <= exponents);
            if !within || codes.is_empty() || codes.iter().any(|code| usize::from(*code) >= changes::CODES) {
                let (name, dtype) = (quoted(name), dtype.name());
                return Err(bad_index(&format!("tensor {name} has rates of change that do not fit its type {dtype}")));
            }
            Method::Update { chunk: changes::CHUNK as u64 }
        }
        SYMBOLS => {
            let (width, rows) = (fields.varint()?, fields.varint()?);
            if !rows_are_sound(width, rows) {
                return Err(bad_index(&format!("tensor {} has rows of {width}, {rows} in a chunk", quoted(name))));
            }
            Method::Symbols { width: width as usize, rows: rows as usize }
        }
        _ => {
            read_step(fields)?;
            Method::Update { chunk: chunk(&read_params(fields)?) }
        }
    })
}

/// The dimensions, whose product fits 60 bits, zeros aside.
fn read_shape(fields: &mut Fields) -> Result<Vec<u64>, Error> {
    let dimensions = fields.byte()?;
    if dimensions > MAX_DIMENSIONS {
        return Err(bad_index(&format!("a tensor of {dimensions} dimensions")));
    }
    let shape = (0..dimensions).map(|_| fields.varint()).collect::<Result<Vec<u64>, Error>>()?;
    let product = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size.max(&1)));
    if product.is_none_or(|product| product >= 1 << 60) {
        return Err(bad_index("a tensor of 2^60 elements or more"));
    }
    Ok(shape)
}

fn read_step(fields: &mut Fields) -> Result<f32, Error> {
    let step = fields.f32()?;
    if step.is_finite() && step > 0.0 { Ok(step) } else { Err(bad_index("a step size is not finite and positive")) }
}

fn read_scales(fields: &mut Fields) -> Result<Vec<i8>, Error> {
    Ok(fields.blob()?.iter().map(|byte| *byte as i8).collect())
}

fn read_params(fields: &mut Fields) -> Result<Params, Error> {
    Params::read(fields.blob()?).ok_or_else(|| bad_index("coding parameters are out of range"))
}

fn read_exponent(fields: &mut Fields) -> Result<u32, Error> {
    let exponent = fields.varint()?;
    if exponent <= u64::from(exact::LAST_EXPONENT) {
        Ok(exponent as u32)
    } else {
        Err(bad_index(&format!("a step of 2^{exponent} units")))
    }
}

fn read_tie(fields: &mut Fields, tensor: &Tensor, before: &[Tensor]) -> Result<usize, Error> {
    let number = fields.varint()?;
    let source = usize::try_from(number).ok().and_then(|number| before.get(number));
    match source {
        Some(source) if matches!(source.method, Method::Tied(_) | Method::Equal(_)) => {}
        Some(source) if source.has_type_of(tensor) => return Ok(number as usize),
        Some(source) => {
            let (name, source) = (quoted(&tensor.name), quoted(&source.name));
            return Err(bad_index(&format!("tensor {name} is tied to {source}, which has another type or shape")));
        }
        None => {}
    }
    let name = quoted(&tensor.name);
    Err(bad_index(&format!("tensor {name} is tied to one that does not come before it")))
}

/// Whether a chunk can have so many rows of so many codebook indices or symbols.
fn rows_are_sound(width: u64, rows: u64) -> bool {
    (1..=codebook::MOST_WIDTH as u64).contains(&width)
        && rows >= 1
        && width.checked_mul(rows).is_some_and(|values| values <= 1 << 20)
}

fn read_multiples(fields: &mut Fields, tensor: &Tensor) -> Result<Method, Error> {
    let (group, signed, params) = (fields.varint()?, fields.byte()?, read_params(fields)?);
    let fits = group > 0 && tensor.size().is_multiple_of(group) && (params.chunk_levels() as u64).is_multiple_of(group);
    if signed > 1 || !fits {
        let name = quoted(&tensor.name);
        return Err(bad_index(&format!("tensor {name} has groups of {group} elements, which do not fit its chunks")));
    }
    Ok(Method::Multiples { group, signed: signed == 1, params })
}

fn read_codebook(fields: &mut Fields, tensor: &Tensor) -> Result<Method, Error> {
    let bad = |what: &str| bad_index(&format!("tensor {} has a codebook {what}", quoted(&tensor.name)));
    let [count, usual, width, rows] = [fields.varint()?, fields.varint()?, fields.varint()?, fields.varint()?];
    let sound = (1..=codebook::MOST_ENTRIES as u64).contains(&count) && usual < count && rows_are_sound(width, rows);
    if !sound {
        return Err(bad(&format!("of {count} entries, rows of {width}, {rows} in a chunk")));
    }
    // The highest bytes of all differences, then the next.
    let item = tensor.dtype.item();
    let planes = fields.take(count * item as u64)?;
    let (mut entries, mut last) = (Vec::with_capacity(count as usize), 0u64);
    for index in 0..count as usize {
        let difference =
            (0..item).fold(0, |value, plane| value << 8 | u64::from(planes[plane * count as usize + index]));
        let entry = last.wrapping_add(difference) & (u64::MAX >> (64 - 8 * item));
        if index > 0 && entry <= last {
            return Err(bad("whose entries do not ascend"));
        }
        entries.push(entry);
        last = entry;
    }
    Ok(Method::Codebook { entries, usual: usual as u16, width: width as usize, rows: rows as usize })
}

fn read_raw_chunks(fields: &mut Fields, place: &mut Place, nbytes: u64) -> Result<Vec<Chunk>, Error> {
    let count = nbytes.div_ceil(RAW_CHUNK);
    if count > fields.left() as u64 / 4 {
        return Err(bad_index("it ends early"));
    }
    (0..count).map(|k| place.chunk(RAW_CHUNK.min(nbytes - k * RAW_CHUNK), 0, fields.u32()?)).collect()
}

/// What an entry says of each chunk, beside its checksum.
#[derive(Clone, Copy)]
enum Parts {
    /// The bytes of its code.
    Code,
    /// Those, and the bytes of its refinement bits.
    Both {
        /// Whether there may be any.
        refined: bool,
        /// Whether a chunk may have neither, and so no checksum.
        empty: bool,
    },
}

fn read_chunks(fields: &mut Fields, place: &mut Place, tensor: &Tensor, parts: Parts) -> Result<Vec<Chunk>, Error> {
    let count = tensor.size().div_ceil(tensor.chunk_size());
    let least = if matches!(parts, Parts::Code) { 5 } else { 2 };
    if count > fields.left() as u64 / least {
        return Err(bad_index("it ends early"));
    }
    let mut chunks = Vec::with_capacity(count as usize);
    for number in 0..count as usize {
        let coded = fields.varint()?;
        let refinement = if matches!(parts, Parts::Both { .. }) { fields.varint()? } else { 0 };
        if matches!(parts, Parts::Both { empty: true, .. }) && coded == 0 && refinement == 0 {
            chunks.push(place.chunk(0, 0, 0)?);
            continue;
        }
        if coded == 0 {
            return Err(bad_index("a chunk has no bytes"));
        }
        let elements = tensor.elements(number);
        let most = match tensor.method {
            // A symbol comes with at least one bit that is copied.
            Method::Symbols { .. } => coded.saturating_mul(8),
            _ => arithmetic::most_decisions(usize::try_from(coded).unwrap_or(usize::MAX)) as u64,
        };
        if elements.end - elements.start > most {
            return Err(bad_index(&format!("{coded} bytes cannot hold {} levels", elements.end - elements.start)));
        }
        if let Method::Multiples { group, .. } = tensor.method
            && (elements.end - elements.start) / group > refinement.saturating_mul(8)
        {
            return Err(bad_index(&format!("{refinement} bytes cannot hold the steps of a chunk")));
        }
        if refinement > 0 && matches!(parts, Parts::Both { refined: false, .. }) {
            return Err(bad_index("a chunk has refinement bits that its method does not have"));
        }
        chunks.push(place.chunk(coded, refinement, fields.u32()?)?);
    }
    Ok(chunks)
}

/// Chunks of changes (FORMAT.md, 11.4): a few bytes can say that little of many values changed.
fn read_changed_chunks(fields: &mut Fields, place: &mut Place, tensor: &Tensor) -> Result<Vec<Chunk>, Error> {
    let count = tensor.size().div_ceil(tensor.chunk_size());
    if count > fields.left() as u64 {
        return Err(bad_index("it ends early"));
    }
    let mut chunks = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let coded = fields.varint()?;
        let crc = if coded > 0 { fields.u32()? } else { 0 };
        chunks.push(place.chunk(coded, 0, crc)?);
    }
    Ok(chunks)
}

/// Whether scales are those of the rows and columns of a tensor of this shape, and chunks hold whole rows.
fn scales_fit(tensor: &Tensor) -> bool {
    let Method::Levels { rows, columns, .. } = &tensor.method else { return true };
    if rows.is_empty() && columns.is_empty() {
        return true;
    }
    if tensor.size() == 0 || tensor.shape.is_empty() {
        return false;
    }
    let (height, width) = (tensor.shape[0], tensor.shape[1..].iter().product::<u64>());
    (rows.is_empty() || rows.len() as u64 == height)
        && (columns.is_empty() || columns.len() as u64 == width)
        && tensor.chunk_size().is_multiple_of(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(plain: &[u8], start: u64) -> Result<Index, Error> {
        Index::parse(plain, &Header { crc: 0, index: start..start })
    }

    #[test]
    fn parts_of_a_tensor_are_counted_with_all_their_bits() {
        // No kind, nothing else, one tensor "a", integers of 64 bits that hold codes of two: one dimension, stored as it is.
        let index = |size: &[u8]| [&[0, 0, 1, 1, b'a', 48 + 7, 1], size, &[0]].concat();
        assert!(parsed(&index(&[0]), 32).is_ok());
        let numbers = [&[0x80; 8][..], &[0x08]].concat(); // 2^59, and 2^64 codes
        assert!(parsed(&index(&numbers), 32).is_err());
    }

    #[test]
    fn an_index_does_not_lie_in_the_header() {
        assert!(parsed(&[0, 0, 0], 32).is_ok());
        assert!((0..32).all(|start| parsed(&[0, 0, 0], start).is_err()));
    }
}
