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

use crate::chunk::Source;
use crate::context::{self, COST_BITS, ContextSet, Machine, Portable, SETS};
use crate::dependent::{self, MAX_STATES, States};
use crate::levels;
use crate::rows::{self, Rows, Site};
use crate::scale;

/// Weights behind a block that are looked at before its levels are decided, at most, and in rows of any width.
const MOST_AHEAD: usize = 32;
const LEAST_AHEAD: usize = 8;
/// Costs are tabulated anew after so many weights at first, and at last.
const FIRST_REFRESH: usize = 32;
const LAST_REFRESH: usize = 512;
/// Levels of a parity that are tried from the nearest one towards the prediction, if a weight matters little enough.
const FARTHEST: i32 = 16;
/// Magnitudes with a cost of their own in a table.
pub(crate) const TABULATED: usize = 32;
/// Entries of a table.
pub(crate) const ENTRIES: usize = 2 * TABULATED;

/// What the survivors are to come close to.
pub(crate) trait Targets {
    /// Whether all survivors always have the same target, whatever row it lies in.
    const SHARED: bool;
    /// Weights whose levels are decided together.
    const BLOCK: usize;
    /// Number of weights.
    fn count(&self) -> usize;
    /// Whether the `index`-th weight is zero, and is to remain so.
    fn is_zero(&self, index: usize) -> bool;
    /// What a squared error of the `index`-th weight counts; None is 1, for all of them.
    #[inline(always)]
    fn importance(&self, _index: usize) -> Option<f32> {
        None
    }
    /// About what the `index`-th weight comes to in steps, whatever the survivors.
    fn rough(&self, index: usize) -> f32;
    /// The search begins again at the `index`-th weight, the levels of all before it being decided.
    #[inline(always)]
    fn begin(&mut self, _index: usize) {}
    /// The level of the `index`-th weight is decided; they are in order.
    #[inline(always)]
    fn decided(&mut self, _index: usize, _level: i32) {}
    /// The target of the `index`-th weight in steps, for each survivor.
    fn targets<const N: usize>(&mut self, index: usize) -> [f32; N];
    /// The survivor in each state came from this state, and has this level at weight `index`.
    #[inline(always)]
    fn follow<const N: usize>(&mut self, _index: usize, _ways: &[(usize, i32); N]) {}
}

/// Weights as they are: all survivors have the same target.
pub(crate) struct Weights<'a> {
    pub weights: &'a [f32],
    /// Of each; or empty: it is 1.
    pub importance: &'a [f32],
    /// Whether a weight of zero stays zero.
    pub keeps_zeros: bool,
    /// Steps in a unit of the weights.
    pub scale: f64,
    /// Largest magnitude of a target.
    pub limit: f64,
}

impl Targets for Weights<'_> {
    const SHARED: bool = true;
    const BLOCK: usize = 512;

    #[inline(always)]
    fn count(&self) -> usize {
        self.weights.len()
    }

    #[inline(always)]
    fn is_zero(&self, index: usize) -> bool {
        self.keeps_zeros && self.weights[index] == 0.0
    }

    #[inline(always)]
    fn importance(&self, index: usize) -> Option<f32> {
        self.importance.get(index).copied()
    }

    #[inline(always)]
    fn rough(&self, index: usize) -> f32 {
        (f64::from(self.weights[index]) * self.scale).clamp(-self.limit, self.limit) as f32
    }

    #[inline(always)]
    fn targets<const N: usize>(&mut self, index: usize) -> [f32; N] {
        [self.rough(index); N]
    }
}

/// Costs of residuals, a table for each context set.
pub(crate) type Costs = [f32; SETS * ENTRIES];

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
        levels::tabulate::<KIND>(&rows.contexts[set], low, leaning, shift, &mut bits);
        let (positive, negative) = self.costs[ENTRIES * set..ENTRIES * (set + 1)].split_at_mut(TABULATED);
        for ((positive, negative), bits) in positive.iter_mut().zip(negative).zip(bits) {
            [*positive, *negative] = bits.map(|bits| bits as f32 * unit);
        }
    }
}

/// The ways into each state: from a state with an even index and from one with an odd index.
pub(crate) struct Ways<const S: usize>;

impl<const S: usize> Ways<S> {
    pub(crate) const FROM: [[usize; S]; 2] = {
        let taps = States::of_bits(S.ilog2() as u8).expect("a size of the machine").taps();
        let mut from = [[usize::MAX; S]; 2];
        let mut way = 0;
        while way < 2 * S {
            let (state, parity) = (way / 2, way % 2);
            from[parity][taps.next(state as u32, parity as u32) as usize] = state;
            way += 1;
        }
        let mut state = 0;
        while state < S {
            assert!(from[0][state] % 2 == Self::quantizer(state) && from[1][state] % 2 == Self::quantizer(state));
            state += 1;
        }
        from
    };

    /// The quantiser before each state, which is that of either way: the lower half is entered from the first one's states.
    const fn quantizer(state: usize) -> usize {
        2 * state / S
    }
}

/// How the machine lets survivors compete. One implementation is plain Rust, the other SIMD; all give the same bits.
pub(crate) trait Contest: Machine {
    /// Replaces the costs of arriving in each of `S` states by those behind one level more, which costs `metrics` by parity
    /// of its index and by the state or quantiser that it starts from. Returns the states that are entered with an odd
    /// index, as bits, and the first of the cheapest states.
    #[inline(always)]
    fn survive<const S: usize, const N: usize>(costs: &mut [f32; S], metrics: &[[f32; N]; 2]) -> (u64, usize) {
        let ways: [[f32; S]; 2] = metrics.map(|metrics| std::array::from_fn(|s| costs[s] + metrics[s % N]));
        let (mut odd, mut best) = (0, 0);
        for s in 0..S {
            let [even_cost, odd_cost] = [0, 1].map(|parity| ways[parity][Ways::<S>::FROM[parity][s]]);
            costs[s] = if odd_cost < even_cost { odd_cost } else { even_cost };
            odd |= u64::from(odd_cost < even_cost) << s;
            best = if costs[s] < costs[best] { s } else { best };
        }
        (odd, best)
    }

    /// What survivors bring with them: for each state, the value of the state that its survivor came from, those with an odd
    /// index (`odd`, as [`Contest::survive`] gives it) from the second values.
    #[inline(always)]
    fn inherit<const S: usize, const N: usize>(odd: u64, values: [&[i32; N]; 2]) -> [i32; N] {
        std::array::from_fn(|s| {
            let parity = (odd >> s & 1) as usize;
            values[parity][Ways::<S>::FROM[parity][s % S] % N]
        })
    }

    /// By parity of the index and site, the cheapest level and its cost: see [`Sites::choose`].
    #[inline(always)]
    fn choose<const N: usize>(
        sites: &Sites<N>,
        costs: &Costs,
        shifts: &[u32; N],
        targets: &[f32; N],
        limit: i32,
    ) -> ([[f32; N]; 2], [[i32; N]; 2]) {
        let (mut metrics, mut levels) = ([[0.0; N]; 2], [[0; N]; 2]);
        for parity in 0..2 {
            for lane in 0..N {
                let choice = sites.choose(lane, costs, shifts[lane], targets[lane], parity as i32, limit);
                (metrics[parity][lane], levels[parity][lane]) = choice;
            }
        }
        (metrics, levels)
    }

    /// [`Contest::choose`], then [`Contest::survive`]: states entered with an odd index, the cheapest state, and levels.
    #[inline(always)]
    fn advance<const S: usize, const N: usize>(
        costs: &mut [f32; S],
        sites: &Sites<N>,
        costs_of: &Costs,
        shifts: &[u32; N],
        targets: &[f32; N],
        limit: i32,
    ) -> (u64, usize, [[i32; N]; 2]) {
        advance_in_turn::<Self, S, N>(costs, sites, costs_of, shifts, targets, limit)
    }
}

/// [`Contest::advance`] as it is defined.
#[inline(always)]
pub(crate) fn advance_in_turn<M: Contest + ?Sized, const S: usize, const N: usize>(
    costs: &mut [f32; S],
    sites: &Sites<N>,
    costs_of: &Costs,
    shifts: &[u32; N],
    targets: &[f32; N],
    limit: i32,
) -> (u64, usize, [[i32; N]; 2]) {
    let (metrics, levels) = M::choose(sites, costs_of, shifts, targets, limit);
    let (odd, best) = M::survive(costs, &metrics);
    (odd, best, levels)
}

impl Contest for Portable {}

/// The decisions at one weight.
#[derive(Clone, Copy)]
struct Step<const N: usize> {
    /// Bit s: the survivor in state s came with an odd index.
    odd: u64,
    /// Levels by parity of the index, and by state or quantiser that they start from.
    levels: [[i32; N]; 2],
}

/// The search in a chunk.
pub(crate) struct Search<T> {
    pub(crate) targets: T,
    tables: Tables,
    states: States,
    /// See [`crate::greedy::Quantizer::reach`].
    reach: f32,
    limit: i32,
    width: usize,
    /// Levels of the present block, and the index of the first.
    path: Vec<i32>,
    start: usize,
    /// With regression, the predictions of the block's columns and those behind it that are looked at, about.
    guesses: Vec<i32>,
}

impl<T: Targets> Source for Search<T> {
    const BLOCK: usize = T::BLOCK;

    /// Decides the block's levels.
    #[inline(always)]
    fn begin<M: Contest, const KIND: u8>(&mut self, rows: &Rows, index: usize, columns: Range<usize>) {
        if !rows::dependent(KIND) {
            return;
        }
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
    pub(crate) fn new(targets: T, states: States, width: usize, lambda: f32, reach: f32, limit: i32) -> Self {
        Self {
            targets,
            tables: Tables::new(lambda),
            states,
            reach,
            limit,
            width,
            path: Vec::new(),
            start: 0,
            guesses: Vec::new(),
        }
    }

    #[inline(always)]
    fn run<M: Contest, const KIND: u8, const S: usize>(
        &mut self,
        rows: &Rows,
        index: usize,
        column: usize,
        count: usize,
    ) {
        if rows::in_kernels(KIND) || !T::SHARED {
            self.follow::<M, KIND, S, S>(rows, index, column, count);
        } else {
            self.follow::<M, KIND, S, 2>(rows, index, column, count);
        }
    }

    /// Viterbi's algorithm over the next `count` weights; the best survivor's levels become the path.
    #[inline(always)]
    fn follow<M: Contest, const KIND: u8, const S: usize, const N: usize>(
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
            // Behind the row's end, predictions still have in them what this row's levels add.
            let above = if !rows::predicts(KIND) || !in_row && (rows::in_kernels(KIND) || rows::regressed(KIND)) {
                0
            } else if rows::regressed(KIND) {
                self.guesses[column - first]
            } else {
                rows.predictions[column]
            };
            let predictions = neighbours.predictions::<KIND>(rows, column, above);
            let sites = Sites::of::<KIND>(rows, share, &row, &predictions);
            let shifts = sites.sets.map(|set| self.tables.ready::<KIND>(rows, set as usize));
            let costs_of = &self.tables.costs;
            let (odd, levels);
            (odd, best, levels) = match self.targets.importance(index) {
                Some(importance) => {
                    let (metrics, levels) =
                        sites.choose_weighted(costs_of, &shifts, &targets, limit, importance, self.reach);
                    let (odd, best) = M::survive(&mut costs, &metrics);
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
                    let ways: [(usize, i32); N] = std::array::from_fn(|s| step.back::<S>(s));
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

/// The row's average behind this level.
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
    fn follow<M: Contest, const KIND: u8, const S: usize>(&mut self, odd: u64, levels: &[i32; N]) {
        if rows::in_kernels(KIND) {
            for place in (1..self.0.len()).rev() {
                self.0[place] = M::inherit::<S, N>(odd, [&self.0[place - 1]; 2]);
            }
            if let Some(last) = self.0.first_mut() {
                *last = levels.map(rows::clamped);
            }
        }
    }
}

impl<const N: usize> Step<N> {
    /// The level of the survivor in this state, with two sites.
    #[inline(always)]
    fn level<const S: usize>(&self, state: usize) -> i32 {
        let parity = (self.odd >> state & 1) as usize;
        self.levels[parity][Ways::<S>::quantizer(state)]
    }

    /// Where the survivor in this state came from, and its level.
    #[inline(always)]
    fn back<const S: usize>(&self, state: usize) -> (usize, i32) {
        let parity = (self.odd >> state & 1) as usize;
        let from = Ways::<S>::FROM[parity][state];
        (from, self.levels[parity][from % N])
    }
}

/// What is known about the next level, by state or quantiser: [`Site`], each field by itself.
pub(crate) struct Sites<const N: usize> {
    pub sets: [u32; N],
    pub predicted: [i32; N],
    pub expected: [i32; N],
    /// -1 where the prediction leans down, else 0.
    pub down: [i32; N],
}

impl<const N: usize> Sites<N> {
    #[inline(always)]
    fn of<const KIND: u8>(rows: &Rows, share: i32, row: &[i32; N], predictions: &[i32; N]) -> Self {
        let mut sites = Self { sets: [0; N], predicted: [0; N], expected: [0; N], down: [0; N] };
        // For each its own, or that which all have.
        let mut logs = [scale::log_of_one(row[0]); N];
        if N != 2 {
            for (log, row) in logs.iter_mut().zip(row) {
                *log = scale::log(*row);
            }
        }
        for lane in 0..N {
            let class = scale::class_of_log(logs[lane], share) & rows.class_mask;
            let site = Site { odd: lane as i32 & 1, ..Site::default() }.predicted::<KIND>(class, predictions[lane]);
            sites.sets[lane] = site.set as u32;
            (sites.predicted[lane], sites.expected[lane]) = (site.predicted, site.expected);
            sites.down[lane] = -i32::from(site.down);
        }
        sites
    }

    /// The better of two levels whose index has this parity, with its cost: the nearest, and the next one towards the
    /// prediction.
    #[inline(always)]
    fn choose(&self, lane: usize, costs: &Costs, shift: u32, target: f32, parity: i32, limit: i32) -> (f32, i32) {
        let (predicted, down, odd) = (self.predicted[lane], self.down[lane], lane as i32 & 1);
        let table = self.sets[lane] as usize * ENTRIES;
        // In units of two indices: levels of the same parity are that far apart.
        let exact = 0.25 * (target + if target < 0.0 { -odd as f32 } else { odd as f32 });
        let nearest = if parity == 0 { 2 * exact.round_ties_even() as i32 } else { 2 * exact.floor() as i32 + 1 };
        let cost = |index: i32| {
            let level = dependent::level(index, odd);
            let error = target - level as f32;
            let residual = (index.wrapping_sub(predicted) ^ down).wrapping_sub(down);
            let magnitude = (residual.unsigned_abs() >> shift).min(TABULATED as u32 - 1);
            let entry = table + magnitude as usize + if residual < 0 { TABULATED } else { 0 };
            let cost = error * error + costs[entry % (SETS * ENTRIES)];
            (if level.abs() > limit { f32::INFINITY } else { cost }, level)
        };
        let (first, second) = (cost(nearest), cost(nearest + 2 * (predicted - nearest).signum()));
        if second.0 < first.0 { second } else { first }
    }

    /// By parity and site as [`Contest::choose`], errors counting `importance`: the nearest, and all on the way to the
    /// prediction ([`FARTHEST`] at most, and then that itself) whose error is within reach.
    #[inline(never)]
    fn choose_weighted(
        &self,
        costs: &Costs,
        shifts: &[u32; N],
        targets: &[f32; N],
        limit: i32,
        importance: f32,
        reach: f32,
    ) -> ([[f32; N]; 2], [[i32; N]; 2]) {
        let (mut metrics, mut levels) = ([[f32::INFINITY; N]; 2], [[0; N]; 2]);
        for parity in 0..2 {
            for lane in 0..N {
                let (predicted, down, odd) = (self.predicted[lane], self.down[lane], lane as i32 & 1);
                let (best, chosen) = (&mut metrics[parity][lane], &mut levels[parity][lane]);
                let (target, parity) = (targets[lane], parity as i32);
                let exact = 0.25 * (target + if target < 0.0 { -odd as f32 } else { odd as f32 });
                let nearest =
                    if parity == 0 { 2 * exact.round_ties_even() as i32 } else { 2 * exact.floor() as i32 + 1 };
                let way = predicted - nearest;
                // The last of this parity before the prediction, or it.
                let steps = way.abs() / 2;
                for step in (0..=steps.min(FARTHEST)).chain((steps > FARTHEST).then_some(steps)) {
                    let index = nearest + 2 * step * way.signum();
                    let level = dependent::level(index, odd);
                    let error = target - level as f32;
                    let error = importance * error * error;
                    if step > 0 && (error >= *best || error > reach) {
                        break;
                    }
                    let residual = ((index - predicted) ^ down) - down;
                    let magnitude = (residual.unsigned_abs() >> shifts[lane]).min(TABULATED as u32 - 1);
                    let entry = magnitude as usize + if residual < 0 { TABULATED } else { 0 };
                    let cost = error + costs[(self.sets[lane] as usize * ENTRIES + entry) % (SETS * ENTRIES)];
                    if cost < *best && level.abs() <= limit {
                        (*best, *chosen) = (cost, level);
                    }
                }
            }
        }
        (metrics, levels)
    }
}

#[cfg(test)]
mod tests {
    use crate::chunk::{Sums, quantize, quantize_portable};
    use crate::dependent::States;
    use crate::greedy::Quantizer;
    use crate::lanes::{self, Job, Output};
    use crate::params::{Coder, KernelPrediction, Params, RowPrediction};
    use crate::scale::Resolution;
    use crate::testing::Random;

    /// Parameters of all kinds of tensors, with rows shorter and longer than a block.
    fn params() -> Vec<Params> {
        let row = Some(RowPrediction { above: 20, column: 10 });
        let kernel = Some(KernelPrediction { width: 3, size: 9, weights: [20, 20, -10, 3, 3] });
        let mut all = Vec::new();
        for bits in 3..=6 {
            for width in [1, 7, 90, 1300] {
                for (row, kernel, regression) in [
                    (None, None, None),
                    (row, None, None),
                    (row, kernel, None),
                    (None, None, Some(4)),
                    (row, None, Some(9)),
                ] {
                    let (resolution, states) = (Resolution::Fine, States::of_bits(bits));
                    all.push(Params {
                        coder: Coder::Binary,
                        resolution,
                        mean_log: 96,
                        width,
                        chunk_rows: 500,
                        row,
                        kernel,
                        states,
                        regression,
                    });
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
                assert_eq!(quantize_portable(&params, &weights, quantizer, None, None, &mut again), sums);
                assert_eq!(bytes, again);
                assert!(params.states.is_some_and(|states| states.has_path(&levels)));
                assert!(levels.iter().all(|level| level.abs() <= limit));
                let output = Output::Levels(&mut decoded);
                let mut jobs = [Job { params: params.clone(), bytes: &bytes, output, good: false }];
                lanes::decode(&mut jobs);
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
