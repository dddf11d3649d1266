//! The add-compare-select step of Viterbi's algorithm: survivor paths are extended by one level, and the cheaper of the two
//! that enter each state survives.

use crate::model::context::{Machine, Portable, SETS};
use crate::model::dependent::{self, States};
use crate::model::rows::{Rows, Site};
use crate::model::scale;

/// Levels of a parity that are tried from the nearest one towards the prediction, if a weight matters little enough.
const FARTHEST: i32 = 16;
/// Magnitudes with a cost of their own in a table.
pub(crate) const TABULATED: usize = 32;
/// Entries of a table.
pub(crate) const ENTRIES: usize = 2 * TABULATED;
/// Costs of residuals, a table for each context set.
pub(crate) type Costs = [f32; SETS * ENTRIES];

/// The ways into each state: from a state with an even index and from one with an odd index.
pub(crate) struct Predecessors<const S: usize>;

impl<const S: usize> Predecessors<S> {
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
pub(crate) trait AddCompareSelect: Machine {
    /// Replaces the costs of arriving in each of `S` states by those after one level more, which costs `metrics` by parity
    /// of its index and by the state or quantiser that it starts from. Returns the states that are entered with an odd
    /// index, as bits, and the first of the cheapest states.
    #[inline(always)]
    fn add_compare_select<const S: usize, const N: usize>(
        costs: &mut [f32; S],
        metrics: &[[f32; N]; 2],
    ) -> (u64, usize) {
        let mut ways = [[0.0; S]; 2];
        for (ways, metrics) in ways.iter_mut().zip(metrics) {
            for (s, way) in ways.iter_mut().enumerate() {
                *way = costs[s] + metrics[s % N];
            }
        }
        let (mut odd, mut best) = (0, 0);
        for s in 0..S {
            let even_cost = ways[0][Predecessors::<S>::FROM[0][s]];
            let odd_cost = ways[1][Predecessors::<S>::FROM[1][s]];
            costs[s] = if odd_cost < even_cost { odd_cost } else { even_cost };
            odd |= u64::from(odd_cost < even_cost) << s;
            best = if costs[s] < costs[best] { s } else { best };
        }
        (odd, best)
    }

    /// What survivors bring with them: for each state, the value of the state that its survivor came from, those with an odd
    /// index (`odd`, as [`AddCompareSelect::add_compare_select`] gives it) from the second values.
    #[inline(always)]
    fn inherit<const S: usize, const N: usize>(odd: u64, values: [&[i32; N]; 2]) -> [i32; N] {
        let mut inherited = [0; N];
        for (s, inherited) in inherited.iter_mut().enumerate() {
            let parity = (odd >> s & 1) as usize;
            *inherited = values[parity][Predecessors::<S>::FROM[parity][s % S] % N];
        }
        inherited
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

    /// [`AddCompareSelect::choose`], then [`AddCompareSelect::add_compare_select`]: states entered with an odd index, the cheapest state, and levels.
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

/// [`AddCompareSelect::advance`] as it is defined.
#[inline(always)]
pub(crate) fn advance_in_turn<M: AddCompareSelect + ?Sized, const S: usize, const N: usize>(
    costs: &mut [f32; S],
    sites: &Sites<N>,
    costs_of: &Costs,
    shifts: &[u32; N],
    targets: &[f32; N],
    limit: i32,
) -> (u64, usize, [[i32; N]; 2]) {
    let (metrics, levels) = M::choose(sites, costs_of, shifts, targets, limit);
    let (odd, best) = M::add_compare_select(costs, &metrics);
    (odd, best, levels)
}

impl AddCompareSelect for Portable {}

/// The decisions at one weight.
#[derive(Clone, Copy)]
pub(crate) struct Step<const N: usize> {
    /// Bit s: the survivor in state s came with an odd index.
    pub odd: u64,
    /// Levels by parity of the index, and by state or quantiser that they start from.
    pub levels: [[i32; N]; 2],
}

impl<const N: usize> Step<N> {
    /// The level of the survivor in this state, with two sites.
    #[inline(always)]
    pub(crate) fn level<const S: usize>(&self, state: usize) -> i32 {
        let parity = (self.odd >> state & 1) as usize;
        self.levels[parity][Predecessors::<S>::quantizer(state)]
    }

    /// Where the survivor in this state came from, and its level.
    #[inline(always)]
    pub(crate) fn back<const S: usize>(&self, state: usize) -> (usize, i32) {
        let parity = (self.odd >> state & 1) as usize;
        let from = Predecessors::<S>::FROM[parity][state];
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
    pub(crate) fn of<const KIND: u8>(rows: &Rows, share: i32, row: &[i32; N], predictions: &[i32; N]) -> Self {
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

    /// By parity and site as [`AddCompareSelect::choose`], errors counting `importance`: the nearest, and all on the way to the
    /// prediction ([`FARTHEST`] at most, and then that itself) that may still be better.
    #[inline(never)]
    pub(crate) fn choose_weighted(
        &self,
        costs: &Costs,
        shifts: &[u32; N],
        targets: &[f32; N],
        limit: i32,
        importance: f32,
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
                    if step > 0 && error >= *best {
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
