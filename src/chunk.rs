//! One chunk, coded: levels or weights in, bytes out.

use std::ops::Range;

use crate::coding::arithmetic::Encoder;
use crate::coding::binarisation::{self, Learner};
use crate::coding::fast;
use crate::coding::sparse;
use crate::model::context::{ContextSet, Task};
use crate::model::params::{Coder, MAX_WIDTH, Params};
use crate::model::rows::{self, Rows, Site, for_kind};
use crate::quantize::feedback::{Coupling, Feedback};
use crate::quantize::greedy::{Coupled, Greedy, Quantizer, Weighted};
use crate::quantize::source::Source;
use crate::quantize::survivors::AddCompareSelect;
use crate::quantize::targets::Weights;
use crate::quantize::trellis::Search;

/// Sums over the weights and levels of a chunk, each in the order of the weights, each term times the weight's importance.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
#[repr(C)]
pub struct Sums {
    /// Sum of w^2.
    pub energy: f64,
    /// Sum of (w - step * q)^2.
    pub error: f64,
    /// Sum of w q.
    pub correlation: f64,
    /// Sum of q^2.
    pub levels: f64,
}

/// Whether these levels can be a chunk: not every sequence is a path through the trellis of two quantisers.
#[must_use]
pub fn has_code(params: &Params, levels: &[i32]) -> bool {
    let Some(states) = params.states else { return true };
    match params.coder {
        Coder::Binary | Coder::Regression | Coder::Sparse { .. } => states.has_path(levels),
        Coder::Fast => fast::strips(params, levels.len()).all(|strip| states.has_path(&levels[strip])),
    }
}

pub(crate) fn encode_on<M: AddCompareSelect>(params: &Params, levels: &[i32], out: &mut Vec<u8>) {
    match params.coder {
        Coder::Binary | Coder::Regression => {
            code::<M, _, _>(params, levels.len(), &mut Given(levels), Encoder::new()).finish(out)
        }
        Coder::Fast => fast::encode::<M>(params, levels, out),
        Coder::Sparse { density_log } => sparse::encode::<M>(params, density_log, levels, out),
    }
}

pub(crate) fn quantize_on<M: AddCompareSelect>(
    params: &Params,
    weights: &[f32],
    quantizer: Quantizer<'_>,
    coupling: Option<Coupling>,
    chosen: Option<&mut [i32]>,
    out: &mut Vec<u8>,
) -> Sums {
    // Levels of either quantiser and parity lie so near to every target.
    let limit = (quantizer.limit - 3).max(0);
    let Quantizer { step, lambda, limit: largest, importance, keeps_zeros } = quantizer;
    let step = f64::from(step);
    let mut room = Vec::new();
    let chosen = if !params.coder.is_binary() && chosen.is_none() {
        room.resize(weights.len(), 0);
        Some(&mut room[..])
    } else {
        chosen
    };
    let outcome = Outcome { weights, importance, step, chosen, sums: Sums::default() };
    let coupled = |coupling| Feedback::new(weights, keeps_zeros, coupling, limit as f32);
    match (params.states, coupling) {
        (None, None) if !importance.is_empty() => outcome.of::<M>(Weighted::new(quantizer, weights), params, out),
        (None, None) => outcome.of::<M>(Greedy::new(quantizer, weights), params, out),
        (None, Some(coupling)) => outcome.of::<M>(Coupled::new(quantizer, weights, coupled(coupling)), params, out),
        (Some(states), None) => {
            let targets = Weights { weights, importance, keeps_zeros, scale: 1.0 / step, limit: f64::from(limit) };
            outcome.of::<M>(Search::new(targets, states, params.width, lambda, largest), params, out)
        }
        (Some(states), Some(coupling)) => {
            let targets = coupled(coupling);
            outcome.of::<M>(Search::new(targets, states, params.width, lambda, largest), params, out)
        }
    }
}

/// Most levels of a block with regression: predictions inside a block are about right only.
const REGRESSED_BLOCK: usize = 512;

struct Given<'a>(&'a [i32]);

impl Source for Given<'_> {
    const DEPENDENT: Option<bool> = None;
    const BLOCK: usize = MAX_WIDTH;

    #[inline(always)]
    fn level<const KIND: u8>(&mut self, _set: &mut ContextSet, _site: Site, index: usize, _column: usize) -> i32 {
        self.0[index]
    }
}

/// Levels that come from a `source`, and what has come of them.
struct Quantized<'a, S> {
    source: S,
    outcome: Outcome<'a>,
}

impl<S: Source> Source for Quantized<'_, S> {
    const DEPENDENT: Option<bool> = S::DEPENDENT;
    const BLOCK: usize = S::BLOCK;

    #[inline(always)]
    fn begin<M: AddCompareSelect, const KIND: u8>(&mut self, rows: &Rows, index: usize, columns: Range<usize>) {
        self.source.begin::<M, KIND>(rows, index, columns);
    }

    #[inline(always)]
    fn level<const KIND: u8>(&mut self, set: &mut ContextSet, site: Site, index: usize, column: usize) -> i32 {
        self.source.level::<KIND>(set, site, index, column)
    }

    #[inline(always)]
    fn end(&mut self, index: usize, levels: &[i32]) {
        self.outcome.add(index, levels);
    }
}

/// What comes of quantising, beside bytes.
struct Outcome<'a> {
    weights: &'a [f32],
    importance: &'a [f32],
    step: f64,
    chosen: Option<&'a mut [i32]>,
    sums: Sums,
}

impl Outcome<'_> {
    /// Codes the levels that the source chooses.
    fn of<M: AddCompareSelect>(self, source: impl Source, params: &Params, out: &mut Vec<u8>) -> Sums {
        let count = self.weights.len();
        let mut quantized = Quantized { source, outcome: self };
        if params.coder.is_binary() {
            code::<M, _, _>(params, count, &mut quantized, Encoder::new()).finish(out);
            return quantized.outcome.sums;
        }
        // Levels are chosen as if the binary coder coded them, whose bits are nearly the same.
        code::<M, _, _>(params, count, &mut quantized, Learner);
        if let Some(levels) = quantized.outcome.chosen {
            encode_on::<M>(params, levels, out);
        }
        quantized.outcome.sums
    }

    #[inline(always)]
    fn add(&mut self, index: usize, levels: &[i32]) {
        let range = index..index + levels.len();
        if let Some(chosen) = &mut self.chosen {
            chosen[range.clone()].copy_from_slice(levels);
        }
        let (mut sums, step) = (self.sums, self.step);
        let pairs = self.weights[range.clone()].iter().zip(levels);
        if self.importance.is_empty() {
            pairs.for_each(|(weight, level)| sums.add(*weight, *level, step, 1.0));
        } else {
            let counts = self.importance[range].iter();
            pairs.zip(counts).for_each(|((w, q), counts)| sums.add(*w, *q, step, f64::from(*counts)));
        }
        self.sums = sums;
    }
}

impl Sums {
    #[inline(always)]
    fn add(&mut self, weight: f32, level: i32, step: f64, counts: f64) {
        let (weight, value) = (f64::from(weight), f64::from(level));
        let error = weight - value * step;
        self.energy += counts * weight * weight;
        self.error += counts * error * error;
        self.correlation += counts * weight * value;
        self.levels += counts * value * value;
    }
}

fn code<M: AddCompareSelect, S: Source, C: binarisation::BinCoder>(
    params: &Params,
    count: usize,
    source: &mut S,
    coder: C,
) -> C {
    for_kind!(params, code_kind::<KIND, M, S, C>(params, count, source, coder))
}

fn code_kind<const KIND: u8, M: AddCompareSelect, S: Source, C: binarisation::BinCoder>(
    params: &Params,
    count: usize,
    source: &mut S,
    coder: C,
) -> C {
    // What never occurs is not compiled: an `if` without `const` would not keep it out.
    if const { occurs::<S, C>(KIND) } {
        M::apart(Coding::<KIND, S, C> { params, count, source, coder })
    } else {
        unreachable!("no tensor of this kind has such levels")
    }
}

/// Whether levels of such a source are ever coded so, in tensors of this kind.
const fn occurs<S: Source, C: binarisation::BinCoder>(kind: u8) -> bool {
    let has_source = match S::DEPENDENT {
        Some(dependent) => dependent == rows::dependent(kind),
        None => true,
    };
    // Regression is of the binary coder alone.
    has_source && (C::WRITES || !rows::regressed(kind))
}

/// The loop over a chunk's levels.
struct Coding<'a, const KIND: u8, S, C> {
    params: &'a Params,
    count: usize,
    source: &'a mut S,
    coder: C,
}

impl<const KIND: u8, M: AddCompareSelect, S: Source, C: binarisation::BinCoder> Task<M> for Coding<'_, KIND, S, C> {
    type Output = C;

    #[inline(always)]
    fn run(self) -> C {
        let Self { params, count, source, mut coder } = self;
        let mut rows = Rows::new(params, count);
        let mut strips = fast::strips(params, count).map(|strip| strip.start).peekable();
        let mut start = 0;
        while start < count {
            if params.coder == Coder::Fast && strips.next_if_eq(&start).is_some() {
                rows.state = 0;
            }
            let width = params.width.min(count - start);
            let block = if rows::regressed(KIND) { S::BLOCK.min(REGRESSED_BLOCK) } else { S::BLOCK };
            for first in (0..width).step_by(block) {
                let columns = first..width.min(first + block);
                source.begin::<M, KIND>(&rows, start + first, columns.clone());
                for column in columns.clone() {
                    let site = rows.site::<KIND>(column);
                    let set = rows.contexts(site);
                    let level = source.level::<KIND>(set, site, start + column, column);
                    let residual = site.residual::<KIND>(level);
                    binarisation::code::<_, M, KIND>(&mut coder, set, site.low, site.leaning, residual);
                    rows.commit::<KIND>(column, site, level, residual.unsigned_abs());
                }
                source.end(start + first, &rows.row(width)[columns]);
            }
            rows.end_row::<KIND>();
            start += width;
        }
        coder
    }
}
