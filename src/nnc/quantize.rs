//! From weights to the levels of an NNC tensor: nearest ones, or those that minimise `(w - w')^2 + lambda bits`.
//!
//! With two quantisers the whole sequence is searched (Viterbi): eight states, from each the two nearest values of its
//! quantiser and zero. With one, level after level is decided. Bits are those of the contexts as they stood some hundred
//! levels ago. The search goes block by block, each with some levels more, by which paths have met.

use crate::nnc::binarisation::{Binarisation, class, code_level};
use crate::nnc::cabac::{Context, Learner};
use crate::nnc::unit::{MOST_DEPENDENT, NEXT, Tensor, around, choose_settings, multiple, scan};

/// Levels decided at once, and those after them that the search looks at.
const BLOCK: usize = 256;
const AHEAD: usize = 48;
/// Likewise where no bits count, so that contexts need not keep up.
const LONG_BLOCK: usize = 4096;
const LONG_AHEAD: usize = 128;
/// Tensors below this many weights are quantised twice: the first time shows how contexts should begin.
const SMALL: usize = 1 << 20;
/// Magnitudes whose cost is tabulated.
const TABULATED: usize = 96;
const STATES: usize = 8;

/// The quantiser.
#[derive(Clone, Copy)]
pub struct NncQuantizer {
    /// Distance of two values, those of both quantisers taken together.
    pub step: f32,
    /// What a bit is worth, in squared steps.
    pub lambda: f64,
    /// The encoder will choose how contexts begin.
    pub settings: bool,
}

/// Fills `levels`, as [`crate::nnc::unit::encode_on`] takes them. False if the step is so small that one does not fit.
#[inline(always)]
pub(crate) fn quantize_on(tensor: &Tensor, weights: &[f32], quantizer: NncQuantizer, levels: &mut [i32]) -> bool {
    let most = if tensor.dependent { 2 * MOST_DEPENDENT - 4 } else { i32::MAX as u32 - 2 };
    let scale = 1.0 / quantizer.step;
    // NaN fits nowhere.
    if !weights.iter().all(|weight| f64::from((weight * scale).abs()) < f64::from(most)) {
        return false;
    }
    if quantizer.lambda == 0.0 && !tensor.dependent {
        for (level, weight) in levels.iter_mut().zip(weights) {
            *level = (weight * scale).round() as i32;
        }
        return true;
    }
    let order: Vec<u32> = if tensor.edge() == 0 || weights.len() > u32::MAX as usize {
        Vec::new()
    } else {
        let mut order = Vec::with_capacity(weights.len());
        scan(tensor, |at| order.push(at as u32));
        order
    };
    let mut search = TensorSearch {
        weights,
        order: &order,
        anew: if tensor.edge() == 0 { usize::MAX } else { tensor.edge() * tensor.width },
        scale: 1.0 / f64::from(quantizer.step),
        lambda: quantizer.lambda,
        form: tensor.binarisation(),
        first: tensor.contexts(),
        contexts: tensor.contexts(),
    };
    let again = quantizer.lambda > 0.0 && quantizer.settings && weights.len() < SMALL;
    for pass in 0..1 + usize::from(again) {
        if pass > 0 {
            search.first = choose_settings(tensor, levels);
            search.contexts.clone_from(&search.first);
        }
        if tensor.dependent {
            search.dependent(levels);
        } else {
            search.scalar(levels);
        }
    }
    true
}

/// Everything but the levels.
struct TensorSearch<'a> {
    weights: &'a [f32],
    /// Places of weights in the order of coding; empty if that is their own.
    order: &'a [u32],
    /// Contexts begin anew after so many levels.
    anew: usize,
    scale: f64,
    lambda: f64,
    form: Binarisation,
    /// Contexts at the beginning.
    first: Vec<Context>,
    contexts: Vec<Context>,
}

/// Costs of decisions in squared steps, as the contexts stand.
struct Costs {
    /// Of being zero or not, by state and by the level before.
    zero: [[[f64; 2]; 3]; STATES],
    /// By the level before.
    sign: [[f64; 2]; 3],
    /// By sign.
    magnitude: [[f64; TABULATED]; 2],
}

/// Bits that a doubling of a large magnitude costs.
const DOUBLING: f64 = 2.0;

impl Costs {
    fn none() -> Costs {
        Costs { zero: [[[0.0; 2]; 3]; STATES], sign: [[0.0; 2]; 3], magnitude: [[0.0; TABULATED]; 2] }
    }

    fn of(contexts: &mut [Context], form: &Binarisation, lambda: f64) -> Costs {
        let unit = lambda / f64::from(1 << crate::nnc::cabac::COST_BITS);
        let mut costs = Costs::none();
        for class in 0..3 {
            for (state, zero) in costs.zero.iter_mut().enumerate() {
                let context = contexts[around(state as u8, class).zero];
                zero[class] = [false, true].map(|one| unit * f64::from(context.cost(one)));
            }
            let context = contexts[around(0, class).sign];
            costs.sign[class] = [false, true].map(|one| unit * f64::from(context.cost(one)));
        }
        let place = around(0, 0);
        for (negative, table) in costs.magnitude.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (k, cost) in table.iter_mut().enumerate().skip(1) {
                let Some(k) = (k - 1 < form.unary).then_some(k - 1) else {
                    let mut rate = crate::nnc::cabac::Cost::default();
                    let level = if negative == 1 { -(k as i32) } else { k as i32 };
                    code_level::<_, true>(&mut rate, contexts, form, &place, level);
                    let context = |number: usize, one: bool| f64::from(contexts[number].cost(one));
                    *cost = unit * (rate.0 as f64 - context(place.zero, true) - context(place.sign, negative == 1));
                    continue;
                };
                let context = contexts[place.greater + 2 * k + negative];
                *cost = sum + unit * f64::from(context.cost(false));
                sum += unit * f64::from(context.cost(true));
            }
        }
        costs
    }

    #[inline(always)]
    fn magnitude(&self, negative: bool, magnitude: u32, lambda: f64) -> f64 {
        let table = &self.magnitude[usize::from(negative)];
        match table.get(magnitude as usize) {
            Some(cost) => *cost,
            None => table[TABULATED - 1] + lambda * DOUBLING * (f64::from(magnitude) / (TABULATED - 1) as f64).log2(),
        }
    }
}

/// The state before that leads to a state by an even and by an odd level.
const BEFORE: [[usize; 2]; STATES] = {
    let mut before = [[0; 2]; STATES];
    let mut state = 0;
    while state < STATES {
        before[NEXT[state][0] as usize][0] = state;
        before[NEXT[state][1] as usize][1] = state;
        state += 1;
    }
    before
};

/// What led to a state: a value of the state before with an even level, zero, or one with an odd level.
const EVEN: u8 = 0;
const NOTHING: u8 = 1;
const ODD: u8 = 2;

/// A weight as the two quantisers see it.
struct Candidates {
    negative: bool,
    /// The first of four multiples of the step about the weight; the others follow.
    first: u32,
}

impl Candidates {
    #[inline(always)]
    fn of(weight: f32, scale: f64) -> (Candidates, f64) {
        let place = scale * f64::from(weight.abs());
        (Candidates { negative: weight < 0.0, first: ((place as i64) - 1).max(1) as u32 }, place)
    }

    /// The candidate whose remainder modulo four is this.
    #[inline(always)]
    fn multiple(&self, remainder: u32) -> u32 {
        self.first + (remainder.wrapping_sub(self.first) & 3)
    }

    /// The level that a choice in the state before it stands for.
    #[inline(always)]
    fn level(&self, choice: u8, state: usize) -> i32 {
        let second = (state & 1) as u32;
        let multiple = match choice {
            EVEN => self.multiple(3 * second),
            ODD => self.multiple(2 - second),
            _ => return 0,
        };
        let magnitude = multiple.div_ceil(2) as i32;
        if self.negative { -magnitude } else { magnitude }
    }
}

/// The better ways to four states: from `one` by an even level or by zero, or from `other` by an odd level, which add
/// `costs`; of equal ways that from `one`, or that from `other` where it comes `first`. With what was chosen.
#[inline(always)]
fn better(one: [f64; 4], other: [f64; 4], costs: [f64; 3], first: [u8; 4]) -> ([f64; 4], [u8; 4]) {
    let [even, nothing, odd] = costs;
    let a = one.map(|total| total + even);
    let z = one.map(|total| total + nothing);
    let b = other.map(|total| total + odd);
    // Minima first, then how they came about, without a branch: vectors and masks.
    let least = |a: f64, b: f64| if a < b { a } else { b };
    let from_one: [f64; 4] = std::array::from_fn(|lane| least(z[lane], a[lane]));
    let best = std::array::from_fn(|lane| least(b[lane], from_one[lane]));
    let choice = std::array::from_fn(|lane| {
        let is_odd = u8::from(b[lane] < from_one[lane]) | (u8::from(b[lane] == from_one[lane]) & first[lane]);
        let zero = u8::from(z[lane] < a[lane]) & (1 - is_odd);
        (is_odd * ODD) | (zero * NOTHING)
    });
    (best, choice)
}

impl TensorSearch<'_> {
    #[inline(always)]
    fn place(&self, at: usize) -> usize {
        if self.order.is_empty() { at } else { self.order[at] as usize }
    }

    fn costs(&mut self) -> Costs {
        if self.lambda == 0.0 { Costs::none() } else { Costs::of(&mut self.contexts, &self.form, self.lambda) }
    }

    /// Lets contexts learn a level. Returns it as the one before the next.
    #[inline(always)]
    fn learn(&mut self, at: usize, state: u8, before: i32, level: i32) -> i32 {
        if at > 0 && at.is_multiple_of(self.anew) {
            self.contexts.copy_from_slice(&self.first);
        }
        code_level::<_, true>(&mut Learner, &mut self.contexts, &self.form, &around(state, class(before)), level)
            .unwrap_or(0)
    }

    /// Two quantisers: fills in multiples of the step.
    #[inline(always)]
    fn dependent(&mut self, levels: &mut [i32]) {
        let count = self.weights.len();
        let (block, ahead) = if self.lambda == 0.0 { (LONG_BLOCK, LONG_AHEAD) } else { (BLOCK, AHEAD) };
        let mut choices = vec![[0u8; STATES]; block + ahead];
        let mut path = vec![0i32; block];
        let (mut state, mut before, mut start) = (0usize, 0, 0);
        while start < count {
            let end = if start + block + ahead < count { start + block + ahead } else { count };
            let decided = (end - start).min(block);
            let costs = self.costs();
            let mut last = if self.lambda == 0.0 {
                self.survive_unrated(state, start..end, &mut choices)
            } else {
                self.add_compare_select(&costs, state, before, start..end, &mut choices)
            };
            for at in (start..end).rev() {
                let choice = choices[at - start][last];
                last = BEFORE[last][usize::from(choice == ODD)];
                if at - start < decided {
                    let weight = self.weights[self.place(at)];
                    path[at - start] = Candidates::of(weight, self.scale).0.level(choice, last);
                }
            }
            for (offset, &level) in path[..decided].iter().enumerate() {
                let at = start + offset;
                if self.lambda > 0.0 {
                    if at.is_multiple_of(self.anew) {
                        before = 0;
                    }
                    before = self.learn(at, state as u8, before, level);
                }
                levels[self.place(at)] = multiple(level, state as u8);
                state = usize::from(NEXT[state][(level & 1) as usize]);
            }
            start += decided;
        }
    }

    /// Finds the best path to each state after `places`; the state where the best of all ends.
    #[inline(always)]
    fn add_compare_select(
        &self,
        costs: &Costs,
        state: usize,
        before: i32,
        places: std::ops::Range<usize>,
        choices: &mut [[u8; STATES]],
    ) -> usize {
        let mut total = [f64::MAX / 4.0; STATES];
        total[state] = 0.0;
        let mut classes = [class(before); STATES];
        for at in places.clone() {
            if at.is_multiple_of(self.anew) {
                classes = [0; STATES];
            }
            let (candidates, place) = Candidates::of(self.weights[self.place(at)], self.scale);
            let negative = candidates.negative;
            let value: [f64; 4] = std::array::from_fn(|remainder| {
                let multiple = candidates.multiple(remainder as u32);
                let distance = place - f64::from(multiple);
                distance * distance + costs.magnitude(negative, multiple.div_ceil(2), self.lambda)
            });
            let mut nothing = [0.0; STATES];
            let mut something = [0.0; STATES];
            for state in 0..STATES {
                nothing[state] = total[state] + place * place;
                something[state] = total[state];
                let zero = &costs.zero[state][classes[state]];
                nothing[state] += zero[0];
                something[state] += zero[1] + costs.sign[classes[state]][usize::from(negative)];
            }
            let mut next = [0.0; STATES];
            let mut next_classes = [0; STATES];
            let choice = &mut choices[at - places.start];
            let nonzero = 2 - usize::from(negative);
            for state in 0..STATES {
                let [even, odd] = BEFORE[state];
                let a = something[even] + value[3 * (even & 1)];
                let z = nothing[even];
                let b = something[odd] + value[2 - (odd & 1)];
                // The first of equal ones, by state before.
                let (mut best, mut chosen) = if z < a { (z, NOTHING) } else { (a, EVEN) };
                if if even < odd { b < best } else { b <= best } {
                    (best, chosen) = (b, ODD);
                }
                next[state] = best;
                next_classes[state] = if chosen == NOTHING { 0 } else { nonzero };
                choice[state] = chosen;
            }
            total = next;
            classes = next_classes;
        }
        (0..STATES).fold(0, |best, state| if total[state] < total[best] { state } else { best })
    }

    /// The same where no bits count: the same sums, four states to a vector. Of its own also because the other loop is faster
    /// without this case.
    #[inline(always)]
    fn survive_unrated(&self, state: usize, places: std::ops::Range<usize>, choices: &mut [[u8; STATES]]) -> usize {
        let start = |number: usize| if number == state { 0.0 } else { f64::MAX / 4.0 };
        let (mut evens, mut odds) = ([0, 2, 4, 6].map(start), [1, 3, 5, 7].map(start));
        for (at, choice) in places.zip(choices) {
            let (candidates, place) = Candidates::of(self.weights[self.place(at)], self.scale);
            let value: [f64; 4] = std::array::from_fn(|remainder| {
                let distance = place - f64::from(candidates.multiple(remainder as u32));
                distance * distance
            });
            let nothing = place * place;
            // States 0 to 3 come from even ones, 4 to 7 from odd ones: see BEFORE.
            let [a, b, c, d] = evens;
            let (low, chosen_low) = better([a, b, c, d], [c, d, a, b], [value[0], nothing, value[2]], [0, 0, 1, 1]);
            let [a, b, c, d] = odds;
            let (high, chosen_high) = better([d, c, b, a], [b, a, d, c], [value[3], nothing, value[1]], [1, 1, 0, 0]);
            evens = [low[0], low[2], high[0], high[2]];
            odds = [low[1], low[3], high[1], high[3]];
            choice[..4].copy_from_slice(&chosen_low);
            choice[4..].copy_from_slice(&chosen_high);
        }
        let total: [f64; STATES] = std::array::from_fn(|state| [evens, odds][state % 2][state / 2]);
        (0..STATES).fold(0, |best, state| if total[state] < total[best] { state } else { best })
    }

    /// One quantiser.
    #[inline(always)]
    fn scalar(&mut self, levels: &mut [i32]) {
        let mut costs = self.costs();
        let mut before = 0;
        for at in 0..self.weights.len() {
            if at % BLOCK == 0 || (at < BLOCK && at % 16 == 0) {
                costs = self.costs();
            }
            if at.is_multiple_of(self.anew) {
                before = 0;
            }
            let place = self.place(at);
            let weight = self.weights[place];
            let (negative, target) = (weight < 0.0, self.scale * f64::from(weight.abs()));
            let [zero, other] = costs.zero[0][class(before)];
            let mut best = (target * target + zero, 0);
            let nearest = target.round() as u32;
            for magnitude in nearest.saturating_sub(1).max(1)..=nearest {
                let distance = target - f64::from(magnitude);
                let sign = costs.sign[class(before)][usize::from(negative)];
                let cost = distance * distance + other + sign + costs.magnitude(negative, magnitude, self.lambda);
                if cost < best.0 {
                    best = (cost, magnitude);
                }
            }
            let level = if negative { -(best.1 as i32) } else { best.1 as i32 };
            before = self.learn(at, 0, before, level);
            levels[place] = level;
        }
    }
}
