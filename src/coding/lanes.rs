//! Decoding several chunks at once on one core.
//!
//! Arithmetic decoding is a chain of dependent steps and leaves most of a core idle. Chunks are independent, so a core
//! works on [`LANES`] of them in turn, one stage of one level each: their chains overlap, and neighbouring instructions
//! are independent, so that a core need not look far ahead. The result does not depend on how chunks are put together.
//!
//! With AVX2 the same is done four lanes at once, in `cpu/quads.rs`; this file stays the definition.

use crate::coding::arithmetic::{self, Decoder};
use crate::coding::binarisation::{self, Magnitude};
use crate::coding::fast::{self, Look};
use crate::coding::output::Output;
use crate::coding::sparse;
use crate::model::context::{Machine, Portable, Task};
use crate::model::params::{self, Params};
use crate::model::rows::{self, DEPENDENT, KERNEL, PLAIN, REGRESSED, ROW, Rows, Site};

/// Chunks decoded in turn on one core.
pub const LANES: usize = 8;

/// The same with regression, where a lane's memory is much of a core's cache.
const REGRESSED_LANES: usize = 1;

/// A chunk to decode.
pub struct Job<'a> {
    /// How it was coded.
    pub params: Params,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Its destination, which also says how many levels it has.
    pub output: Output<'a>,
    /// Set by [`decode_on`]: the bytes were exactly one chunk of that many levels.
    pub good: bool,
}

pub(crate) struct Lane<'j, 'a> {
    pub(crate) job: &'j mut Job<'a>,
    pub(crate) decoder: Decoder,
    pub(crate) rows: Rows,
    pub(crate) done: usize,
    pub(crate) column: usize,
    /// Levels in the present row.
    pub(crate) width: usize,
    /// What is known of the next level.
    pub(crate) site: Site,
    pub(crate) magnitude: Magnitude,
}

impl<'j, 'a> Lane<'j, 'a> {
    pub(crate) fn new(job: &'j mut Job<'a>) -> Self {
        let decoder = Decoder::new(job.bytes);
        let rows = Rows::new(&job.params, job.output.len());
        let width = job.params.width.min(job.output.len());
        let (site, magnitude) = Default::default();
        Self { job, decoder, rows, done: 0, column: 0, width, site, magnitude }
    }

    /// First stage of decoding a level: where it is.
    #[inline(always)]
    pub(crate) fn locate<const KIND: u8>(&mut self) {
        self.site = self.rows.site::<KIND>(self.column);
    }

    /// Second stage: its residual's magnitude.
    #[inline(always)]
    pub(crate) fn read_magnitude<M: Machine>(&mut self) {
        let set = self.rows.contexts(self.site);
        self.magnitude = binarisation::code_magnitude::<_, M>(&mut self.decoder, set, self.site.low, 0);
    }

    /// Third stage: its sign, and with that the level.
    #[inline(always)]
    pub(crate) fn read_sign<const KIND: u8>(&mut self) {
        let (site, magnitude) = (self.site, self.magnitude);
        let set = self.rows.contexts(site);
        let residual = binarisation::code_sign::<_, KIND>(&mut self.decoder, set, site.leaning, magnitude, false);
        self.rows.commit::<KIND>(self.column, site, site.level::<KIND>(residual), magnitude.value);
        self.column += 1;
    }

    /// After the last level of a row: hands it over. False when the chunk is finished or damaged.
    #[inline(always)]
    pub(crate) fn end_row<const KIND: u8>(&mut self) -> bool {
        self.job.output.put(self.done, self.rows.row(self.width));
        self.done += self.width;
        self.column = 0;
        self.width = self.job.params.width.min(self.job.output.len() - self.done);
        if self.width == 0 {
            self.job.good = self.decoder.check();
            return false;
        }
        self.rows.end_row::<KIND>();
        self.decoder.plausible()
    }
}

/// How the machine decodes levels of several lanes. One implementation is plain Rust, the other SIMD; all do the same.
pub(crate) trait Lanes: Machine + Look + Sized {
    /// Decodes the next `count` levels of each lane; so many are left in its row.
    #[inline(always)]
    fn decode<const KIND: u8>(lanes: &mut [Lane], count: usize) {
        decode_in_turn::<Self, KIND>(lanes, count);
    }
}

impl Lanes for Portable {}

/// [`Lanes::decode`] as it is defined.
#[inline(always)]
pub(crate) fn decode_in_turn<M: Machine, const KIND: u8>(lanes: &mut [Lane], count: usize) {
    for _ in 0..count {
        for lane in &mut *lanes {
            lane.locate::<KIND>();
        }
        for lane in &mut *lanes {
            lane.read_magnitude::<M>();
        }
        for lane in &mut *lanes {
            lane.read_sign::<KIND>();
        }
    }
}

/// Chunks with these parameters that [`decode`] decodes in turn.
#[must_use]
pub fn in_turn(params: &Params) -> usize {
    match params.coder {
        params::Coder::Regression => REGRESSED_LANES,
        params::Coder::Binary => LANES,
        // The fast coder has lanes inside a chunk.
        params::Coder::Fast | params::Coder::Sparse { .. } => 1,
    }
}

/// Decodes all jobs and sets their `good`. A damaged chunk leaves its output in part unwritten.
pub(crate) fn decode_on<M: Lanes>(jobs: &mut [Job]) {
    let mut kinds = [const { Vec::new() }; (DEPENDENT + REGRESSED) as usize + 1];
    let mut fast = None;
    // Longest first, from the end, so that the lanes finish together.
    let mut jobs: Vec<&mut Job> = jobs.iter_mut().collect();
    jobs.sort_by_key(|job| job.output.len());
    for job in jobs {
        job.good = false;
        if job.output.len() == 0 {
            job.good = job.bytes.is_empty();
        } else if job.output.len() <= arithmetic::most_decisions(job.bytes.len()) {
            match job.params.coder {
                params::Coder::Binary | params::Coder::Regression => {
                    kinds[usize::from(rows::kind(&job.params))].push(job)
                }
                params::Coder::Fast => {
                    let decoder = fast.get_or_insert_with(fast::Decoder::take);
                    job.good = decoder.decode::<M>(&job.params, job.bytes, &mut job.output);
                }
                params::Coder::Sparse { density_log } => {
                    job.good = sparse::decode::<M>(&job.params, density_log, job.bytes, &mut job.output);
                }
            }
        }
    }
    if let Some(decoder) = fast {
        decoder.leave();
    }
    let [plain, row, kernel, regressed, dependent_plain, dependent_row, dependent_kernel, dependent_regressed] = kinds;
    M::apart(Decoding::<PLAIN>(plain));
    M::apart(Decoding::<ROW>(row));
    M::apart(Decoding::<KERNEL>(kernel));
    M::apart(Decoding::<REGRESSED>(regressed));
    M::apart(Decoding::<{ DEPENDENT + PLAIN }>(dependent_plain));
    M::apart(Decoding::<{ DEPENDENT + ROW }>(dependent_row));
    M::apart(Decoding::<{ DEPENDENT + KERNEL }>(dependent_kernel));
    M::apart(Decoding::<{ DEPENDENT + REGRESSED }>(dependent_regressed));
}

/// Jobs of one kind, the longest last.
struct Decoding<'j, 'a, const KIND: u8>(Vec<&'j mut Job<'a>>);

impl<M: Lanes, const KIND: u8> Task<M> for Decoding<'_, '_, KIND> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut jobs = self.0;
        let mut next = || jobs.pop().map(Lane::new);
        let most = if rows::regressed(KIND) { REGRESSED_LANES } else { LANES };
        let mut lanes: Vec<Lane> = (0..most).map_while(|_| next()).collect();
        while !lanes.is_empty() {
            let steps = lanes.iter().map(|lane| lane.width - lane.column).min().unwrap_or(0);
            M::decode::<KIND>(&mut lanes, steps);
            let mut index = 0;
            while index < lanes.len() {
                let lane = &mut lanes[index];
                if lane.column < lane.width || lane.end_row::<KIND>() {
                    index += 1;
                } else if let Some(lane) = next() {
                    lanes[index] = lane;
                    index += 1;
                } else {
                    lanes.swap_remove(index);
                }
            }
        }
    }
}
