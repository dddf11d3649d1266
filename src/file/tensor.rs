//! A tensor of a file: what the index says about it, and its values from its chunks.

use std::ops::Range;

use crate::coding::codebook;
use crate::coding::lanes::{self, Job};
use crate::coding::output::Output;
use crate::cpu::dispatch::{self, crc32};
use crate::exact::{self, Form, Origin, Pattern};
use crate::file::error::{Error, quoted};
use crate::file::round::{factor, rounded};
use crate::file::values::{Dtype, Values};
use crate::model::params::Params;

/// Bytes of a raw chunk, but the last.
pub const RAW_CHUNK: u64 = 1 << 20;

/// Where a chunk of payload lies, and what it must hash to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// First byte, from the beginning of the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// How many of them, at the end, are refinement bits, or steps of groups.
    pub refinement: u64,
    /// Their CRC-32.
    pub crc: u32,
}

impl Chunk {
    /// Its place in a file that is in memory.
    ///
    /// # Errors
    /// [`Error::Limit`] if no memory of this machine can hold it.
    pub fn range(&self) -> Result<Range<usize>, Error> {
        match (usize::try_from(self.offset), usize::try_from(self.offset + self.length)) {
            (Ok(start), Ok(end)) => Ok(start..end),
            _ => Err(Error::Limit(format!("a chunk of {} bytes is more than this machine can address", self.length))),
        }
    }
}

/// How a tensor is stored.
#[derive(Clone, PartialEq, Debug)]
pub enum Method {
    /// Bytes as they are.
    Raw,
    /// Levels, to be multiplied by a step and by factors of rows and columns, if there are any.
    Levels {
        /// Distance of two reconstruction values.
        step: f32,
        /// A scale for each slice of dimension 0, or none.
        rows: Vec<i8>,
        /// A scale for each place of such a slice, or none.
        columns: Vec<i8>,
        /// How levels are coded.
        params: Params,
    },
    /// The tensor of this number under another name.
    Tied(usize),
    /// Equal to the tensor of this number.
    Equal(usize),
    /// Levels and refinement bits of floating-point values.
    Float {
        /// Level 0 is positive zero and nothing else.
        zeros: bool,
        /// log2 of a step in units.
        exponent: u32,
        /// How levels are coded.
        params: Params,
    },
    /// Levels and refinement bits of integers.
    Integers {
        /// log2 of a step.
        exponent: u32,
        /// What is subtracted.
        centre: u64,
        /// How levels are coded.
        params: Params,
    },
    /// Indices of distinct values.
    Codebook {
        /// Their patterns, which ascend.
        entries: Vec<u64>,
        /// The index of the most frequent one.
        usual: u16,
        /// Indices in a row.
        width: usize,
        /// Rows in a chunk.
        rows: usize,
    },
    /// Floating-point values as symbols and copied bits.
    Symbols {
        /// Values in a row.
        width: usize,
        /// Rows in a chunk.
        rows: usize,
    },
    /// Levels, to be multiplied by the steps of their groups, which each chunk has.
    Multiples {
        /// Elements of a group: the chunks' are a multiple of them.
        group: u64,
        /// Level -1 is negative zero, and those below it are one more than they say.
        signed: bool,
        /// How levels are coded.
        params: Params,
    },
    /// Levels on their own: what `read_levels` of `index.rs` reads.
    Bare {
        /// How they are coded.
        params: Params,
    },
    /// A difference to a tensor of another checkpoint, which is not read here.
    Update {
        /// Elements in every chunk but the last.
        chunk: u64,
    },
}

impl Method {
    /// How its levels are coded, if it has any.
    #[must_use]
    pub fn params(&self) -> Option<&Params> {
        match self {
            Self::Levels { params, .. }
            | Self::Float { params, .. }
            | Self::Integers { params, .. }
            | Self::Multiples { params, .. }
            | Self::Bare { params } => Some(params),
            Self::Raw
            | Self::Tied(_)
            | Self::Equal(_)
            | Self::Codebook { .. }
            | Self::Symbols { .. }
            | Self::Update { .. } => None,
        }
    }
}

/// A tensor of a file.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    /// Its name, unique in the file.
    pub name: String,
    /// Type of its elements; if they are stored as parts, of these.
    pub dtype: Dtype,
    /// Its dimensions; of parts, the last one is their number in an element.
    pub shape: Vec<u64>,
    /// Its own type, if its elements are stored as parts: complex numbers, and integers that hold packed codes.
    pub whole: Option<Dtype>,
    /// How it is stored.
    pub method: Method,
    /// Its chunks, in order.
    pub chunks: Vec<Chunk>,
}

impl Tensor {
    /// Whether another tensor's elements and dimensions are of the same kind.
    pub(crate) fn has_type_of(&self, other: &Self) -> bool {
        (self.dtype, self.whole, &self.shape) == (other.dtype, other.whole, &other.shape)
    }

    /// Number of elements: below 2^61.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of the decoded tensor: below 2^64.
    #[must_use]
    pub fn nbytes(&self) -> u64 {
        self.size() * self.dtype.item() as u64
    }

    /// Elements in every chunk but the last.
    #[must_use]
    pub fn chunk_size(&self) -> u64 {
        match &self.method {
            Method::Raw => RAW_CHUNK / self.dtype.item() as u64,
            Method::Codebook { width, rows, .. } | Method::Symbols { width, rows } => *width as u64 * *rows as u64,
            Method::Update { chunk } => *chunk,
            _ => self.method.params().map_or(0, |params| params.chunk_levels() as u64),
        }
    }

    /// The elements that a chunk holds.
    #[must_use]
    pub fn elements(&self, chunk: usize) -> Range<u64> {
        let start = chunk as u64 * self.chunk_size();
        start..(start + self.chunk_size()).min(self.size())
    }

    /// Chunks that [`decode`] decodes in turn: it should get a multiple of them.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.method.params().map_or(1, lanes::in_turn)
    }

    pub(crate) fn damaged(&self, what: &str) -> Error {
        Error::Damaged(format!("tensor {} is damaged: {what}", quoted(&self.name)))
    }

    /// Values from patterns.
    fn checked(&self, values: Values) -> Result<Values, Error> {
        if self.dtype.item() == 1 && values.bytes().iter().any(|byte| !self.dtype.allows(*byte)) {
            return Err(self.damaged(&format!("a byte is no {}", self.dtype.name())));
        }
        Ok(values)
    }

    /// Multiplies values by the factors of their rows, then of their columns.
    fn scale(&self, values: &mut [f32], first: u64, rows: &[i8], columns: &[i8]) {
        let width = self.shape[1..].iter().product::<u64>() as usize;
        let first = (first / width as u64) as usize;
        let factors: Vec<f32> = columns.iter().map(|scale| factor(*scale)).collect();
        for (number, row) in values.chunks_mut(width).enumerate() {
            if let Some(scale) = rows.get(first + number) {
                let factor = factor(*scale);
                row.iter_mut().for_each(|value| *value *= factor);
            }
            for (value, factor) in row.iter_mut().zip(&factors) {
                *value *= factor;
            }
        }
    }
}

/// A chunk of a tensor, to be decoded.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Its tensor.
    pub tensor: &'a Tensor,
    /// Its number.
    pub chunk: usize,
    /// Its bytes.
    pub code: &'a [u8],
}

/// Decodes chunks, several at a time: the values of each, in order.
///
/// Memory is taken for all of them at once, so ask [`Tensor::elements`] first.
///
/// # Errors
/// [`Error::Damaged`] if a chunk is not what the index says, [`Error::Unsupported`] if one is of an update.
pub fn decode(parts: &[Part]) -> Result<Vec<Values>, Error> {
    let mut rooms = Vec::with_capacity(parts.len());
    for part in parts {
        let chunk = &part.tensor.chunks[part.chunk];
        if part.code.len() as u64 != chunk.length || !sound(part.code, chunk.crc) {
            return Err(part.tensor.damaged(&format!("the checksum at byte {} does not match", chunk.offset)));
        }
        rooms.push(Room::of(part)?);
    }
    let mut jobs: Vec<Job> = parts.iter().zip(&mut rooms).filter_map(|(part, room)| room.job(part)).collect();
    dispatch::decode(&mut jobs);
    let good: Vec<bool> = jobs.into_iter().map(|job| job.good).collect();
    let mut good = good.into_iter();
    parts
        .iter()
        .zip(rooms)
        .map(|(part, room)| {
            let good = matches!(room, Room::Done(_)) || good.next() == Some(true);
            good.then(|| room.finish(part)).flatten().unwrap_or_else(|| Err(not_its_code(part)))
        })
        .collect()
}

fn not_its_code(part: &Part) -> Error {
    part.tensor.damaged("a chunk does not decode")
}

/// Where a chunk's levels go.
enum Room {
    /// Nowhere: these are its values.
    Done(Values),
    Levels(Vec<i32>),
    Values(Vec<f32>),
}

impl Room {
    fn of(part: &Part) -> Result<Self, Error> {
        let tensor = part.tensor;
        let elements = tensor.elements(part.chunk);
        // A chunk has at most 2^22 elements.
        let count = (elements.end - elements.start) as usize;
        match &tensor.method {
            Method::Raw => Ok(Self::Done(tensor.checked(Values::Bits8(part.code.to_vec()))?)),
            Method::Levels { .. } | Method::Multiples { .. } => Ok(Self::Values(vec![0.0; count])),
            Method::Float { .. } | Method::Integers { .. } | Method::Bare { .. } => Ok(Self::Levels(vec![0; count])),
            Method::Codebook { entries, usual, width, .. } => {
                let mut indices = vec![0; count];
                if !codebook::decode(part.code, entries.len(), *usual, *width, &mut indices) {
                    return Err(not_its_code(part));
                }
                let patterns = indices.into_iter().map(|index| entries[usize::from(index)]);
                let values = match tensor.dtype.item() {
                    1 => Values::Bits8(patterns.map(|pattern| pattern as u8).collect()),
                    2 => Values::Bits16(patterns.map(|pattern| pattern as u16).collect()),
                    4 => Values::Bits32(patterns.map(|pattern| pattern as u32).collect()),
                    _ => Values::Bits64(patterns.collect()),
                };
                Ok(Self::Done(tensor.checked(values)?))
            }
            Method::Symbols { width, .. } => {
                let values = match tensor.dtype.item() {
                    1 => from_symbols(part, *width, count).map(Values::Bits8),
                    2 => from_symbols(part, *width, count).map(Values::Bits16),
                    4 => from_symbols(part, *width, count).map(Values::Bits32),
                    _ => from_symbols(part, *width, count).map(Values::Bits64),
                };
                Ok(Self::Done(values.ok_or_else(|| not_its_code(part))?))
            }
            Method::Update { .. } | Method::Tied(_) | Method::Equal(_) => {
                Err(Error::Unsupported(format!("tensor {} has no values of its own", quoted(&tensor.name))))
            }
        }
    }

    fn job<'a>(&'a mut self, part: &Part<'a>) -> Option<Job<'a>> {
        let params = part.tensor.method.params()?;
        let output = match (self, &part.tensor.method) {
            (Self::Levels(levels), _) => Output::Levels(levels),
            (Self::Values(values), Method::Levels { step, .. }) => Output::Values(values, *step),
            (Self::Values(values), _) => Output::Values(values, 1.0),
            _ => return None,
        };
        let coded = part.code.len() - part.tensor.chunks[part.chunk].refinement as usize;
        Some(Job { params: params.clone(), bytes: &part.code[..coded], output, good: false })
    }

    /// The values; `None` if refinement bits are not those of the levels.
    fn finish(self, part: &Part) -> Option<Result<Values, Error>> {
        let tensor = part.tensor;
        let refinement = &part.code[part.code.len() - tensor.chunks[part.chunk].refinement as usize..];
        match (self, &tensor.method) {
            (Self::Done(values), _) => Some(Ok(values)),
            (Self::Values(mut values), Method::Levels { rows, columns, .. }) => {
                if !rows.is_empty() || !columns.is_empty() {
                    tensor.scale(&mut values, tensor.elements(part.chunk).start, rows, columns);
                }
                Some(Ok(rounded(values, tensor.dtype)))
            }
            (Self::Values(mut values), Method::Multiples { group, signed, .. }) => {
                // A chunk holds whole groups, and so as many elements as one, or none.
                let steps = steps_of(refinement, values.len() / *group as usize)?;
                for (values, step) in values.chunks_exact_mut(*group as usize).zip(steps) {
                    values.iter_mut().for_each(|value| *value = multiple(*value, *signed) * step);
                }
                Some(Ok(rounded(values, tensor.dtype)))
            }
            (Self::Levels(levels), Method::Bare { .. }) => Some(Ok(Values::Levels(levels))),
            (Self::Levels(levels), _) => {
                let values = match tensor.dtype.item() {
                    1 => Values::Bits8(joined(tensor, &levels, refinement)?),
                    2 => Values::Bits16(joined(tensor, &levels, refinement)?),
                    4 => Values::Bits32(joined(tensor, &levels, refinement)?),
                    _ => Values::Bits64(joined(tensor, &levels, refinement)?),
                };
                Some(tensor.checked(values))
            }
            (Self::Values(_), _) => None,
        }
    }
}

/// The patterns of a chunk of symbols.
fn from_symbols<P: Pattern>(part: &Part, width: usize, count: usize) -> Option<Vec<P>> {
    let mut patterns = vec![P::default(); count];
    dispatch::decode_floats(part.tensor.dtype.mantissa(), width, part.code, &mut patterns).then_some(patterns)
}

/// The steps of a chunk's groups; `None` if `code` is not theirs.
fn steps_of(code: &[u8], count: usize) -> Option<Vec<f32>> {
    let mut patterns = vec![0u32; count];
    let mantissa = Dtype::FLOAT32.mantissa();
    let good = dispatch::decode_floats(mantissa, codebook::MOST_WIDTH, code, &mut patterns);
    let steps: Vec<f32> = patterns.into_iter().map(f32::from_bits).collect();
    (good && steps.iter().all(|step| step.is_finite() && *step > 0.0)).then_some(steps)
}

/// What a step is multiplied by, for a level.
fn multiple(level: f32, signed: bool) -> f32 {
    if signed && level < 0.0 { -(-level - 1.0) } else { level }
}

/// The patterns of levels and refinement bits.
fn joined<P: Pattern>(tensor: &Tensor, levels: &[i32], refinement: &[u8]) -> Option<Vec<P>> {
    let mantissa = tensor.dtype.mantissa();
    let (exponent, width, origin) = match &tensor.method {
        Method::Float { zeros, exponent, params } => (*exponent, params.width, Origin::Float { zeros: *zeros }),
        Method::Integers { exponent, centre, params } => (*exponent, params.width, Origin::Integer(P::of(*centre))),
        _ => return None,
    };
    let form = Form { mantissa, float: mantissa > 0, exponent };
    let mut patterns = vec![P::default(); levels.len()];
    exact::join(form, origin, width, levels, refinement, &mut patterns).then_some(patterns)
}

/// Whether bytes have this checksum. To the fuzzer all have: else it would get past none.
pub(crate) fn sound(bytes: &[u8], crc: u32) -> bool {
    cfg!(fuzzing) || crc32(bytes) == crc
}
