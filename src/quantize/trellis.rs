//! The search for levels with two quantisers: the path through the trellis that minimises
//! `sum (target - level)^2 + lambda * bits`, errors in steps, by Viterbi's algorithm.
//!
//! A survivor is the best way to arrive in a state. Survivors are followed over a block of weights and a little further
//! (so that where the block ends costs nothing); the best one's levels are coded, and the next block starts from there.
//! Bits come from the coder's own binarisation and contexts, as they stood at some weights before: tabulated by context
//! set, when a set is first needed. What else the model needs inside a block, the running magnitude of the row and the
//! neighbours in a kernel, each survivor has for itself where survivors differ enough to matter (`N` = number of states),
//! and else all have that of the best one; then there are only two sites for each weight, one for each quantiser (`N` = 2).

use std::ops::Range;

use crate::coding::binarisation;
use crate::model::context::{self, COST_BITS, ContextSet, SETS, Task};
use crate::model::dependent::{MAX_STATES, States};
use crate::model::rows::{self, Rows, Site};
use crate::model::scale;
use crate::quantize::source::Source;
use crate::quantize::survivors::{AddCompareSelect, Costs, ENTRIES, Sites, Step, TABULATED};
use crate::quantize::targets::Targets;

/// Weights after a block that are looked at before its levels are decided, at most, and in rows of any width.
const MOST_AHEAD: usize = 32;
const LEAST_AHEAD: usize = 8;
/// Costs are tabulated anew after so many weights at first, and at last.
const FIRST_REFRESH: usize = 32;
const LAST_REFRESH: usize = 512;

/// Costs of residuals by context set, in squared steps.
struct Tables {
    /// Cost of a bit, in squared steps.
    lambda: f32,
    /// By set; magnitudes of positive residuals, then of negative ones.
    costs: Box<Costs>,
    /// By set: how many low bits do not count.
    shifts: [u32; SETS],
    /// When each was made; 0 is never.
    made: [u32; SETS],
    now: u32,
    age: usize,
    refresh: usize,
}

impl Tables {
    fn new(lambda: f32) -> Self {
        let costs = vec![0.0; SETS * ENTRIES].try_into().expect("so many");
        Self { lambda, costs, shifts: [0; SETS], made: [0; SETS], now: 1, age: 0, refresh: FIRST_REFRESH }
    }

    /// So many weights are to be coded.
    fn pass(&mut self, count: usize) {
        if self.age >= self.refresh {
            self.age = 0;
            self.refresh = (2 * self.refresh).min(LAST_REFRESH);
            self.now += 1;
        }
        self.age += count;
    }

    /// Makes sure that there is a table of this set; its magnitudes are shifted by what is returned.
    #[inline(always)]
    fn ready<const KIND: u8>(&mut self, rows: &Rows, set: usize) -> u32 {
        let set = set % SETS;
        if self.made[set] != self.now {
            self.make::<KIND>(rows, set);
        }
        self.shifts[set]
    }

    #[inline(never)]
    fn make<const KIND: u8>(&mut self, rows: &Rows, set: usize) {
        let (class, leaning) = context::class_and_leaning(set);
        let low = u32::from(scale::LOW_BITS[class]);
        // Magnitudes in a class with low bits share an entry: all but the highest low bit are raw.
        let shift = low.saturating_sub(1);
        (self.made[set], self.shifts[set]) = (self.now, shift);
        let unit = self.lambda / (1 << COST_BITS) as f32;
        let mut bits = [[0; 2]; TABULATED];
        binarisation::tabulate::<KIND>(&rows.contexts[set], low, leaning, shift, &mut bits);
        let (positive, negative) = self.costs[ENTRIES * set..ENTRIES * (set + 1)].split_at_mut(TABULATED);
        for ((positive, negative), bits) in positive.iter_mut().zip(negative).zip(bits) {
            [*positive, *negative] = bits.map(|bits| bits as f32 * unit);
        }
    }
}

/// The search in a chunk.
pub(crate) struct Search<T> {
    pub(crate) targets: T,
    tables: Tables,
    states: States,
    limit: i32,
    width: usize,
    /// Levels of the present block, and the index of the first.
    path: Vec<i32>,
    start: usize,
    /// With regression, the predictions of the block's columns and those after it that are looked at, about.
    guesses: Vec<i32>,
}

impl<T: Targets> Source for Search<T> {
    const DEPENDENT: Option<bool> = Some(true);
    const BLOCK: usize = T::BLOCK;

    /// Decides the block's levels.
    #[inline(always)]
    fn begin<M: AddCompareSelect, const KIND: u8>(&mut self, rows: &Rows, index: usize, columns: Range<usize>) {
        let (column, count) = (columns.start, columns.len());
        let left = self.targets.count() - index;
        let ahead = self.width.clamp(LEAST_AHEAD, MOST_AHEAD).min(left - count);
        // The next row's targets may hang on this row's levels.
        let ahead = if T::SHARED { ahead } else { ahead.min(self.width - column - count) };
        self.targets.begin(index);
        self.start = index;
        if rows::regressed(KIND) {
            // Predictions hang on levels that are yet to be chosen: the weights stand for them.
            let columns = column..self.width.min(column + count + ahead);
            let rough = |place| rows::UNIT * self.targets.rough(index + place - column);
            rows.regression.guess(columns, &rows.predictions, rough, &mut self.guesses);
        }
        self.tables.pass(count);
        self.path.clear();
        self.path.resize(count, 0);
        match self.states.bits() {
            3 => self.run::<M, KIND, 8>(rows, index, column, count + ahead),
            4 => self.run::<M, KIND, 16>(rows, index, column, count + ahead),
            5 => self.run::<M, KIND, 32>(rows, index, column, count + ahead),
            _ => self.run::<M, KIND, MAX_STATES>(rows, index, column, count + ahead),
        }
    }

    #[inline(always)]
    fn level<const KIND: u8>(&mut self, _set: &mut ContextSet, _site: Site, index: usize, _column: usize) -> i32 {
        let level = self.path[index - self.start];
        self.targets.decided(index, level);
        level
    }
}

impl<T: Targets> Search<T> {
    /// A search with `lambda` squared steps for a bit and magnitudes of levels up to `limit`.
    pub(crate) fn new(targets: T, states: States, width: usize, lambda: f32, limit: i32) -> Self {
        Self {
            targets,
            tables: Tables::new(lambda),
            states,
            limit,
            width,
            path: Vec::new(),
            start: 0,
            guesses: Vec::new(),
        }
    }

    fn run<M: AddCompareSelect, const KIND: u8, const S: usize>(
        &mut self,
        rows: &Rows,
        index: usize,
        column: usize,
        count: usize,
    ) {
        if const { rows::in_kernels(KIND) || !T::SHARED } {
            M::apart(Follow::<KIND, S, S, T> { search: self, rows, index, column, count });
        } else {
            M::apart(Follow::<KIND, S, 2, T> { search: self, rows, index, column, count });
        }
    }

    #[inline(always)]
    fn follow<M: AddCompareSelect, const KIND: u8, const S: usize, const N: usize>(
        &mut self,
        rows: &Rows,
        index: usize,
        column: usize,
        count: usize,
    ) {
        let mut steps: Vec<Step<N>> = Vec::with_capacity(count);
        let mut costs = [f32::INFINITY; S];
        let mut best = rows.state as usize % S;
        costs[best] = 0.0;
        let mut row = [rows.row; N];
        let mut neighbours = Neighbours::<N>::new::<KIND>(rows, column);
        let first = column;
        let mut column = column;
        let mut in_row = true;
        for index in index..index + count {
            if column == self.width {
                column = 0;
                row = [rows.mean; N];
                in_row = false;
            }
            // With a limit of zero there is one level: pruned weights stay pruned.
            let zero = self.targets.is_zero(index);
            let (targets, limit) = if zero { ([0.0; N], 0) } else { (self.targets.targets::<N>(index), self.limit) };
            let share = rows.shares[column];
            // After the row's end, predictions still have in them what this row's levels add.
            let above = if !rows::predicts(KIND) || !in_row && (rows::in_kernels(KIND) || rows::regressed(KIND)) {
                0
            } else if rows::regressed(KIND) {
                self.guesses[column - first]
            } else {
                rows.predictions[column]
            };
            let predictions = neighbours.predictions::<KIND>(rows, column, above);
            let sites = Sites::of::<KIND>(rows, share, &row, &predictions);
            let mut shifts = [0; N];
            for (shift, set) in shifts.iter_mut().zip(sites.sets) {
                *shift = self.tables.ready::<KIND>(rows, set as usize);
            }
            let costs_of = &self.tables.costs;
            let (odd, levels);
            (odd, best, levels) = match self.targets.importance(index) {
                Some(importance) => {
                    let (metrics, levels) = sites.choose_weighted(costs_of, &shifts, &targets, limit, importance);
                    let (odd, best) = M::add_compare_select(&mut costs, &metrics);
                    (odd, best, levels)
                }
                None => M::advance(&mut costs, &sites, costs_of, &shifts, &targets, limit),
            };
            let expected = sites.expected;
            let step = Step { odd, levels };
            if N == S {
                let came: [i32; N] = M::inherit::<S, N>(odd, [&step.levels[0], &step.levels[1]]);
                let (before, expected) = (M::inherit::<S, N>(odd, [&row; 2]), M::inherit::<S, N>(odd, [&expected; 2]));
                for s in 0..N {
                    row[s] = row_behind(before[s], came[s], expected[s], share);
                }
                neighbours.follow::<M, KIND, S>(odd, &came);
                if !T::SHARED {
                    let mut ways = [(0, 0); N];
                    for (s, way) in ways.iter_mut().enumerate() {
                        *way = step.back::<S>(s);
                    }
                    self.targets.follow(index, &ways);
                }
            } else {
                let level = step.level::<S>(best);
                row = [row_behind(row[0], level, expected[0], share); N];
            }
            steps.push(step);
            column += 1;
        }
        let mut state = best;
        for (place, step) in steps.iter().enumerate().rev() {
            let (from, level) = step.back::<S>(state);
            if place < self.path.len() {
                self.path[place] = level;
            }
            state = from;
        }
    }
}

/// Viterbi's algorithm over the next `count` weights; the best survivor's levels become the path.
struct Follow<'a, const KIND: u8, const S: usize, const N: usize, T> {
    search: &'a mut Search<T>,
    rows: &'a Rows,
    index: usize,
    column: usize,
    count: usize,
}

impl<M: AddCompareSelect, const KIND: u8, const S: usize, const N: usize, T: Targets> Task<M>
    for Follow<'_, KIND, S, N, T>
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { search, rows, index, column, count } = self;
        search.follow::<M, KIND, S, N>(rows, index, column, count);
    }
}

/// The row's average after this level.
#[inline(always)]
fn row_behind(row: i32, level: i32, expected: i32, share: i32) -> i32 {
    scale::row_average(row, scale::fixed_half((level - expected).unsigned_abs()), share)
}

/// The last levels of each survivor, as far back as a kernel's neighbours lie; the latest first.
struct Neighbours<const N: usize>(Vec<[i32; N]>);

impl<const N: usize> Neighbours<N> {
    #[inline(always)]
    fn new<const KIND: u8>(rows: &Rows, column: usize) -> Self {
        let far = if rows::in_kernels(KIND) { rows.kernel.farthest() } else { 0 };
        Self((1..=far).map(|offset| [rows.kernel.recent(column, offset as u8); N]).collect())
    }

    #[inline(always)]
    fn predictions<const KIND: u8>(&self, rows: &Rows, column: usize, above: i32) -> [i32; N] {
        let mut predictions = [above; N];
        if rows::in_kernels(KIND) {
            for (offset, weight) in rows.kernel.neighbours(column % rows.kernel.size) {
                for (prediction, level) in predictions.iter_mut().zip(&self.0[usize::from(offset) - 1]) {
                    *prediction += weight * level;
                }
            }
        }
        predictions
    }

    /// Each survivor came from a state and has a level more.
    #[inline(always)]
    fn follow<M: AddCompareSelect, const KIND: u8, const S: usize>(&mut self, odd: u64, levels: &[i32; N]) {
        if rows::in_kernels(KIND) {
            for place in (1..self.0.len()).rev() {
                self.0[place] = M::inherit::<S, N>(odd, [&self.0[place - 1]; 2]);
            }
            if let Some(last) = self.0.first_mut() {
                for (last, level) in last.iter_mut().zip(levels) {
                    *last = rows::clamped(*level);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::chunk::{Sums, quantize_on};
    use crate::coding::lanes::Job;
    use crate::coding::output::Output;
    use crate::cpu::dispatch::{self, quantize};
    use crate::model::context::Portable;
    use crate::model::dependent::States;
    use crate::model::params::{Coder, KernelPrediction, Params, RowPrediction};
    use crate::model::scale::Resolution;
    use crate::quantize::greedy::Quantizer;
    use crate::testing::Random;

    /// Parameters of all kinds of tensors, with rows shorter and longer than a block.
    fn params() -> Vec<Params> {
        let row = Some(RowPrediction { above: 20, column: 10 });
        let kernel = Some(KernelPrediction { width: 3, size: 9, weights: [20, 20, -10, 3, 3] });
        let mut all = Vec::new();
        for bits in 3..=6 {
            for width in [1, 7, 90, 1300] {
                for (row, kernel, coder) in [
                    (None, None, Coder::Binary),
                    (row, None, Coder::Binary),
                    (row, kernel, Coder::Binary),
                    (None, None, Coder::Regression),
                    (row, None, Coder::Regression),
                ] {
                    let (resolution, states) = (Resolution::Fine, States::of_bits(bits));
                    all.push(Params { coder, resolution, mean_log: 96, width, chunk_rows: 500, row, kernel, states });
                }
            }
        }
        all
    }

    /// Numbers of about this size, bell-shaped.
    fn weights(random: &mut Random, count: usize, size: f32) -> Vec<f32> {
        let number =
            |random: &mut Random| (0..4).map(|_| random.below(1000) as f32 - 499.5).sum::<f32>() * size / 577.0;
        (0..count).map(|_| number(random)).collect()
    }

    #[test]
    fn the_levels_found_are_a_path_and_the_same_on_every_machine() {
        let random = &mut Random(5);
        for params in params() {
            for (size, limit) in [(0.3, 1 << 24), (4.0, 1 << 24), (60.0, 1 << 24), (30.0, 20), (1e9, 1 << 24), (4.0, 1)]
            {
                let weights = weights(random, 900.min(500 * params.width), size);
                let quantizer = Quantizer::new(1.0, 0.36, limit);
                let (mut bytes, mut again) = (Vec::new(), Vec::new());
                let (mut levels, mut decoded) = (vec![0; weights.len()], vec![0; weights.len()]);
                let sums = quantize(&params, &weights, quantizer, None, Some(&mut levels), &mut bytes);
                assert_eq!(quantize_on::<Portable>(&params, &weights, quantizer, None, None, &mut again), sums);
                assert_eq!(bytes, again);
                assert!(params.states.is_some_and(|states| states.has_path(&levels)));
                assert!(levels.iter().all(|level| level.abs() <= limit));
                let output = Output::Levels(&mut decoded);
                let mut jobs = [Job { params: params.clone(), bytes: &bytes, output, good: false }];
                dispatch::decode(&mut jobs);
                assert!(jobs[0].good);
                assert_eq!(decoded, levels);
            }
        }
    }

    #[test]
    fn errors_are_those_of_a_trellis_and_bits_are_saved_where_they_are_worth_more() {
        let random = &mut Random(6);
        for params in params().into_iter().filter(|params| params.row.is_none()) {
            let weights = weights(random, 500 * params.width.min(90), 8.0);
            let coded = |lambda| -> (Sums, usize) {
                let mut bytes = Vec::new();
                let quantizer = Quantizer::new(1.0, lambda, 1 << 24);
                (quantize(&params, &weights, quantizer, None, None, &mut bytes), bytes.len())
            };
            let ((near, long), (far, short)) = (coded(0.0), coded(0.36));
            let noise = near.error / weights.len() as f64;
            // Two quantisers without a trellis would have 1 / 3; blocks that end in narrow rows cost a little.
            assert!((0.2..0.29).contains(&noise), "{noise} {params:?}");
            assert!(far.error > near.error && short < long);
        }
    }
}
