//! The decoders' two builds, portable and AVX2, on the same bytes: they must agree on every level and on all that they know
//! afterwards, damaged or not. For tests and the fuzzer (`fuzz/`); each function panics where they differ.

use std::cell::Cell;

use crate::checksum;
use crate::coding::bytes;
use crate::coding::changes::{self, Found, Rates};
use crate::coding::fast;
use crate::coding::lanes::{self, Job, Lane, decode_in_turn};
use crate::coding::output::Output;
use crate::cpu::avx2::Avx2;
use crate::cpu::dispatch::{self, avx2};
use crate::cpu::vector;
use crate::exact::Pattern;
use crate::floats;
use crate::model::context::Portable;
use crate::model::params::{Coder, Params};
use crate::model::rows::for_kind;
use crate::nnc::unit::{self, Tensor, UnitDecoder};

/// A chunk's code and how many levels it has, one or more.
pub type Chunk<'a> = (&'a [u8], usize);

/// Whether there are two builds here: else nothing below may be called.
#[must_use]
pub fn available() -> bool {
    vector::available()
}

/// Chunks with these parameters, which are all of one kind: levels, and whether they are good.
pub fn chunks(params: &[Params], chunks: &[Chunk]) -> Vec<Option<Vec<i32>>> {
    if params[0].coder == Coder::Fast {
        params.iter().zip(chunks).for_each(|(params, chunk)| in_strips(params, *chunk));
    } else if params[0].coder.is_binary() {
        for_kind!(&params[0], step_by_step::<KIND>(params, chunks));
    }
    let decoded = |decode: fn(&mut [Job])| {
        let mut outputs: Vec<Vec<i32>> = chunks.iter().map(|chunk| vec![0; chunk.1]).collect();
        let mut jobs = jobs(params, chunks, &mut outputs);
        decode(&mut jobs);
        let good: Vec<bool> = jobs.iter().map(|job| job.good).collect();
        (good, outputs)
    };
    let (good, outputs) = decoded(avx2::decode);
    let in_turn = decoded(lanes::decode_on::<Portable>);
    assert!((&good, &outputs) == (&in_turn.0, &in_turn.1), "quads and lanes in turn differ");
    good.into_iter().zip(outputs).map(|(good, levels)| good.then_some(levels)).collect()
}

fn jobs<'a>(params: &[Params], chunks: &[Chunk<'a>], outputs: &'a mut [Vec<i32>]) -> Vec<Job<'a>> {
    let parts = params.iter().zip(chunks).zip(outputs);
    let job = |((params, chunk), output): ((&Params, &Chunk<'a>), &'a mut Vec<i32>)| Job {
        params: params.clone(),
        bytes: chunk.0,
        output: Output::Levels(output),
        good: false,
    };
    parts.map(job).collect()
}

/// All that a lane knows, without its contexts.
fn state(lane: &Lane) -> impl PartialEq + std::fmt::Debug + use<> {
    let (decoder, rows) = (&lane.decoder, &lane.rows);
    (
        (decoder.code, decoder.range, decoder.next, decoder.raw_bits, lane.column),
        (rows.row, rows.state, rows.levels.clone(), rows.predictions.clone()),
    )
}

/// All lanes at once, until the first one is at its end; damaged ones go on until then.
fn step_by_step<const KIND: u8>(params: &[Params], chunks: &[Chunk]) {
    let mut outputs = [(); 2].map(|()| chunks.iter().map(|chunk| vec![0; chunk.1]).collect::<Vec<_>>());
    let [first, second] = &mut outputs;
    let (mut first, mut second) = (jobs(params, chunks, first), jobs(params, chunks, second));
    let mut quads: Vec<Lane> = first.iter_mut().map(Lane::new).collect();
    let mut in_turn: Vec<Lane> = second.iter_mut().map(Lane::new).collect();
    while in_turn.iter().all(|lane| lane.width > 0) {
        let steps = in_turn.iter().map(|lane| lane.width - lane.column).min().unwrap_or(0);
        avx2::decode_lanes::<KIND>(&mut quads, steps);
        decode_in_turn::<Portable, KIND>(&mut in_turn, steps);
        for (quad, lane) in quads.iter().zip(&in_turn) {
            assert_eq!(state(quad), state(lane));
        }
        for lane in quads.iter_mut().chain(&mut in_turn) {
            if lane.column == lane.width {
                lane.end_row::<KIND>();
            }
        }
    }
    for (quad, lane) in quads.iter().zip(&in_turn) {
        assert!(**quad.rows.contexts == **lane.rows.contexts);
    }
}

thread_local! {
    static OTHER: Cell<Option<Box<fast::Decoder>>> = const { Cell::new(None) };
}

/// A chunk of the fast coder.
fn in_strips(params: &Params, (bytes, count): Chunk) {
    // One that this thread keeps, and another.
    let mut decoders = [OTHER.take().unwrap_or_else(fast::Decoder::take), fast::Decoder::take()];
    let mut outputs = [vec![0; count], vec![0; count]];
    let [one, other] = &mut outputs;
    let good = decoders[0].decode::<Portable>(params, bytes, &mut Output::Levels(one));
    assert_eq!(good, avx2::decode_fast(&mut decoders[1], params, bytes, &mut Output::Levels(other)));
    assert!(one == other && decoders[0].agrees(&decoders[1]), "the fast coder's builds differ");
    let [one, other] = decoders;
    OTHER.set(Some(one));
    other.leave();
}

/// A chunk of floating-point values; what they are if it is good.
pub fn floats<P: Pattern>(mantissa: u32, width: usize, (bytes, count): Chunk) -> Option<Vec<P>> {
    let (mut plain, mut fast) = (vec![P::default(); count], vec![P::default(); count]);
    let good = floats::decode_on::<Portable, P>(mantissa, width, bytes, &mut plain);
    assert_eq!(good, floats::decode_on::<Avx2, P>(mantissa, width, bytes, &mut fast));
    assert!(plain.iter().map(|one| one.wide()).eq(fast.iter().map(|one| one.wide())));
    good.then_some(plain)
}

/// Bytes without a model of their own, and the checksum of their code.
pub fn bytes((code, count): Chunk) -> bool {
    let (mut plain, mut fast) = (vec![0; count], vec![0; count]);
    let good = bytes::decode_on::<Portable>(code, &mut plain);
    assert_eq!(good, bytes::decode_on::<Avx2>(code, &mut fast));
    assert!(plain == fast, "the builds for bytes differ");
    assert_eq!(checksum::ONES ^ checksum::update(checksum::ONES, code), dispatch::crc32(code));
    good
}

/// A chunk of changes.
pub fn changes<P: Pattern>(rates: &Rates, base: &[P], code: &[u8]) -> bool {
    let (mut plain, mut fast) = (base.to_vec(), base.to_vec());
    let good = changes::decode_on::<P, Portable>(rates, base, code, &mut Found::Values(&mut plain));
    assert_eq!(good, avx2::decode_changes(rates, base, code, &mut Found::Values(&mut fast)));
    assert!(plain.iter().map(|one| one.wide()).eq(fast.iter().map(|one| one.wide())));
    good
}

/// A unit of ISO/IEC 15938-17.
pub fn nnc(tensors: &[Tensor], bytes: &[u8]) -> bool {
    let (mut plain, mut fast) = (UnitDecoder::new(bytes), UnitDecoder::new(bytes));
    for tensor in tensors {
        let room = || (vec![0; tensor.count()], vec![0; tensor.entries()]);
        let ((mut levels, mut entries), (mut levels_fast, mut entries_fast)) = (room(), room());
        let found = unit::decode_on(&mut plain, tensor, &mut levels, &mut entries, false);
        assert_eq!(found, avx2::nnc_decode(&mut fast, tensor, &mut levels_fast, &mut entries_fast, false));
        assert!(levels == levels_fast && entries == entries_fast && plain == fast);
        if found.is_none() {
            return false;
        }
    }
    plain.finish() == Some(bytes.len())
}
