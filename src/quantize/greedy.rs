//! Levels chosen one by one: DeepCABAC's rule, on the contexts as they stand.

use std::ops::Range;

use crate::coding::binarisation::{self, Cost};
use crate::model::context::{COST_BITS, ContextSet, Portable, UNARY};
use crate::model::params::MAX_WIDTH;
use crate::model::rows::{Rows, Site};
use crate::quantize::feedback::Feedback;
use crate::quantize::source::Source;
use crate::quantize::survivors::AddCompareSelect;
use crate::quantize::targets::Targets;

/// Levels that are tried on either side of a weight's nearest, if it matters little enough.
const FARTHEST: i32 = 32;
/// More than any level can save, in units of [`Cost`].
const MOST_WORTH: f64 = (1 << 30) as f64;

/// How a weight becomes a level.
///
/// Weight w becomes the level q that minimises `F (w - q step)^2 + lambda step^2 bits(q)`, bits counted on the contexts as
/// they stand (DeepCABAC's greedy rule). With F = 1 the nearest level is tried and the two after it towards the predicted
/// one: further off both terms grow.
#[derive(Clone, Copy, Debug)]
pub struct Quantizer<'a> {
    /// Distance of two reconstruction values.
    pub step: f32,
    /// Squared steps of error that a bit is worth; 0 is nearest rounding.
    pub lambda: f32,
    /// Largest magnitude of a level.
    pub limit: i32,
    /// F of each weight, finite and not negative; or empty: it is 1.
    pub importance: &'a [f32],
    /// Whether a weight of zero keeps its level: pruned weights stay pruned.
    pub keeps_zeros: bool,
}

impl Quantizer<'_> {
    /// Every weight for itself, and all alike.
    #[must_use]
    pub const fn new(step: f32, lambda: f32, limit: i32) -> Self {
        Self { step, lambda, limit, importance: &[], keeps_zeros: false }
    }
}

/// A quantiser, and what follows from it.
struct Rule<'a> {
    quantizer: Quantizer<'a>,
    step: f64,
    limit: f64,
    /// Squared steps that a unit of [`Cost`] is worth.
    unit: f64,
    /// Units that a squared step is worth.
    units: f64,
    /// No more than what two levels further the squared error is larger by, which is 2 at least, in units (and not all of it,
    /// for floating point may lose some).
    two_worth: i32,
}

impl<'a> Rule<'a> {
    fn new(quantizer: Quantizer<'a>) -> Self {
        let unit = f64::from(quantizer.lambda) / f64::from(1 << COST_BITS);
        let (step, limit) = (f64::from(quantizer.step), f64::from(quantizer.limit));
        Self { quantizer, step, limit, unit, units: 1.0 / unit, two_worth: (1.99 / unit).min(MOST_WORTH) as i32 }
    }

    /// A weight rounded.
    #[inline(always)]
    fn round(&self, weight: f32) -> Rounded {
        let exact = (f64::from(weight) / self.step).max(-self.limit).min(self.limit);
        let nearest = integer(exact);
        let error = exact - f64::from(nearest);
        // One level on, the squared error is larger by `1 -+ 2 error`. Rounded up or down, but not up by a whole unit.
        let worth = [1.0 - 2.0 * error, 1.0 + 2.0 * error].map(|gap| integer((gap * self.units).min(MOST_WORTH)) - 1);
        Rounded { exact, nearest, worth }
    }

    /// The nearest level or one of the two after it, for a weight that counts as any other. Few weights move: the rest is
    /// told by integers, with a branch, so that what comes next need not wait.
    #[inline(always)]
    fn choose<const KIND: u8>(&self, set: &mut ContextSet, site: Site, rounded: Rounded) -> i32 {
        let Rounded { exact, nearest, worth } = rounded;
        let residual = site.residual::<KIND>(nearest);
        let magnitude = residual.unsigned_abs();
        if site.low == 0 && magnitude < binarisation::TOGETHER {
            let (saved, more) = binarisation::saving::<KIND>(set, site.leaning, residual < 0, magnitude);
            let stays = saved <= worth[usize::from(nearest > site.predicted)];
            if stays && saved + more <= self.two_worth {
                return nearest;
            }
        } else if magnitude >> site.low > 0 && magnitude >> site.low == (magnitude - 2) >> site.low {
            // All three have the same decisions, and as many raw bits.
            return nearest;
        }
        let (error, toward, unit) = (exact - f64::from(nearest), site.toward(nearest), self.unit);
        nearest + choose_moved::<KIND>(set, site.low, site.leaning, residual, toward, error, unit)
    }

    /// DeepCABAC's rule to the letter: every level is tried from the nearest one downwards, then upwards, as far as the error
    /// alone does not cost more than the best so far; the first of equals wins. A weight that matters little would have
    /// levels without end, so beyond [`FARTHEST`] only zero and the predicted level are looked at.
    #[inline(never)]
    fn choose_weighted<const KIND: u8>(&self, set: &mut ContextSet, site: Site, exact: f64, importance: f64) -> i32 {
        let nearest = exact.round_ties_even() as i32;
        let mut best = (f64::INFINITY, nearest);
        // Whether levels further off may still win.
        let mut attempt = |level: i32| {
            let distance = exact - f64::from(level);
            let error = importance * distance * distance;
            if level != nearest && (error >= best.0 || level.abs() > self.quantizer.limit) {
                return false;
            }
            let bits = cost::<KIND>(set, site.low, site.leaning, site.residual::<KIND>(level));
            let cost = error + self.unit * f64::from(bits);
            if cost < best.0 {
                best = (cost, level);
            }
            true
        };
        let _ = (0..=FARTHEST).all(|distance| attempt(nearest - distance));
        let _ = (1..=FARTHEST).all(|distance| attempt(nearest + distance));
        for level in [0, site.predicted] {
            if level.abs_diff(nearest) > FARTHEST as u32 {
                attempt(level);
            }
        }
        best.1
    }
}

/// A weight in steps, and what of it can be said before the weights before it are known.
#[derive(Clone, Copy)]
struct Rounded {
    /// The weight, within the limit.
    exact: f64,
    /// The nearest level.
    nearest: i32,
    /// No more than what the level above and the one below must save at least, in units of [`Cost`], to be better.
    worth: [i32; 2],
}

/// `number`, which is within 32 bits, rounded to the nearest integer, of two to the even one.
#[inline(always)]
fn integer(number: f64) -> i32 {
    // After so large a number only integers have room; the lowest bits are this one.
    const LARGE: f64 = 1.5 * (1_u64 << 52) as f64;
    (number + LARGE).to_bits() as i32
}

/// How far to go `toward` the predicted level, two levels at most, from a level of this `residual` that lies beside its weight
/// by this `error`.
#[cold]
#[inline(never)]
fn choose_moved<const KIND: u8>(
    set: &mut ContextSet,
    low: u32,
    leaning: bool,
    residual: i32,
    toward: i32,
    error: f64,
    unit: f64,
) -> i32 {
    let magnitude = residual.unsigned_abs();
    if low == 0 && magnitude < UNARY as u32 {
        let [(first, _), (second, _)] = [magnitude, magnitude.saturating_sub(1)]
            .map(|magnitude| binarisation::saving::<KIND>(set, leaning, residual < 0, magnitude));
        let (near, far) = (error - f64::from(toward.signum()), error - f64::from(toward));
        let (near, far) = (near * near - unit * f64::from(first), far * far - unit * f64::from(first + second));
        // Where there is no such level it is the one before, with the same cost.
        let (cost, distance) = if near < error * error { (near, toward.signum()) } else { (error * error, 0) };
        return if far < cost { toward } else { distance };
    }
    let mut best = (f64::INFINITY, 0);
    for distance in 0..=toward.abs() {
        let error = error - f64::from(toward.signum() * distance);
        // Errors grow, and no bits make up for one that alone costs as much as the best.
        if error * error >= best.0 {
            break;
        }
        // What leads to the predicted level takes from the residual.
        let bits = cost::<KIND>(set, low, leaning, residual - residual.signum() * distance);
        let cost = error * error + unit * f64::from(bits);
        if cost < best.0 {
            best = (cost, toward.signum() * distance);
        }
    }
    best.1
}

#[inline(always)]
fn cost<const KIND: u8>(set: &mut ContextSet, low: u32, leaning: bool, residual: i32) -> u32 {
    let mut cost = Cost::default();
    binarisation::code::<_, Portable, KIND>(&mut cost, set, low, leaning, residual);
    cost.0
}

/// Weights that are rounded together.
const BLOCK: usize = 64;

/// Levels near weights as they are.
pub(crate) struct Greedy<'a> {
    rule: Rule<'a>,
    weights: &'a [f32],
    /// The block's weights, rounded.
    exact: [f64; BLOCK],
    nearest: [i32; BLOCK],
    worth: [[i32; 2]; BLOCK],
}

impl<'a> Greedy<'a> {
    pub(crate) fn new(quantizer: Quantizer<'a>, weights: &'a [f32]) -> Self {
        Self { rule: Rule::new(quantizer), weights, exact: [0.0; BLOCK], nearest: [0; BLOCK], worth: [[0; 2]; BLOCK] }
    }
}

impl Source for Greedy<'_> {
    const DEPENDENT: Option<bool> = Some(false);
    const BLOCK: usize = BLOCK;

    /// All that does not hang on the weights before: the machine does several at once.
    #[inline(always)]
    fn begin<M: AddCompareSelect, const KIND: u8>(&mut self, _rows: &Rows, index: usize, columns: Range<usize>) {
        let weights = &self.weights[index..index + columns.len()];
        let rounded = self.exact.iter_mut().zip(&mut self.nearest).zip(&mut self.worth);
        for (((exact, nearest), worth), weight) in rounded.zip(weights) {
            Rounded { exact: *exact, nearest: *nearest, worth: *worth } = self.rule.round(*weight);
        }
    }

    #[inline(always)]
    fn level<const KIND: u8>(&mut self, set: &mut ContextSet, site: Site, index: usize, column: usize) -> i32 {
        if self.rule.quantizer.keeps_zeros && self.weights[index] == 0.0 {
            return 0;
        }
        let place = column % BLOCK;
        let (exact, nearest, worth) = (self.exact[place], self.nearest[place], self.worth[place]);
        self.rule.choose::<KIND>(set, site, Rounded { exact, nearest, worth })
    }
}

/// Levels near weights of which each has an importance of its own.
pub(crate) struct Weighted<'a> {
    rule: Rule<'a>,
    weights: &'a [f32],
}

impl<'a> Weighted<'a> {
    pub(crate) fn new(quantizer: Quantizer<'a>, weights: &'a [f32]) -> Self {
        Self { rule: Rule::new(quantizer), weights }
    }
}

impl Source for Weighted<'_> {
    const DEPENDENT: Option<bool> = Some(false);
    const BLOCK: usize = MAX_WIDTH;

    #[inline(always)]
    fn level<const KIND: u8>(&mut self, set: &mut ContextSet, site: Site, index: usize, _column: usize) -> i32 {
        let (weight, quantizer) = (self.weights[index], &self.rule.quantizer);
        let Rounded { exact, nearest, .. } = self.rule.round(weight);
        if quantizer.lambda == 0.0 || quantizer.keeps_zeros && weight == 0.0 {
            return nearest;
        }
        self.rule.choose_weighted::<KIND>(set, site, exact, f64::from(quantizer.importance[index]))
    }
}

/// Levels near weights that make up for the errors of those before.
pub(crate) struct Coupled<'a> {
    rule: Rule<'a>,
    weights: &'a [f32],
    feedback: Feedback<'a>,
}

impl<'a> Coupled<'a> {
    pub(crate) fn new(quantizer: Quantizer<'a>, weights: &'a [f32], feedback: Feedback<'a>) -> Self {
        Self { rule: Rule::new(quantizer), weights, feedback }
    }
}

impl Source for Coupled<'_> {
    const DEPENDENT: Option<bool> = Some(false);
    const BLOCK: usize = MAX_WIDTH;

    #[inline(always)]
    fn begin<M: AddCompareSelect, const KIND: u8>(&mut self, _rows: &Rows, index: usize, _columns: Range<usize>) {
        self.feedback.begin(index);
    }

    #[inline(always)]
    fn level<const KIND: u8>(&mut self, set: &mut ContextSet, site: Site, index: usize, _column: usize) -> i32 {
        let rounded = self.rule.round(self.feedback.target(index));
        let zero = self.rule.quantizer.keeps_zeros && self.weights[index] == 0.0;
        let level = if zero { 0 } else { self.rule.choose::<KIND>(set, site, rounded) };
        self.feedback.decided(index, level);
        level
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::context;
    use crate::model::rows::{PLAIN, ROW};
    use crate::testing::Random;

    /// The rule without short cuts.
    fn plainly<const KIND: u8>(rule: &Rule, set: &mut ContextSet, site: Site, rounded: Rounded) -> i32 {
        let Rounded { exact, nearest, .. } = rounded;
        let (residual, toward) = (site.residual::<KIND>(nearest), site.toward(nearest));
        let error = exact - f64::from(nearest);
        nearest + choose_moved::<KIND>(set, site.low, site.leaning, residual, toward, error, rule.unit)
    }

    fn stays_and_moves_as_plainly<const KIND: u8>() {
        let mut random = Random(3);
        let mut moved = 0;
        for round in 0..60_000 {
            let lambda = [0.0, 1e-9, 0.06, 0.1155, 0.4, 3.0, 90.0][round % 7];
            let rule = Rule::new(Quantizer::new(0.25, lambda, 1 << 24));
            let class = random.next() as usize % 60;
            let leaning = KIND == ROW && random.next().is_multiple_of(2);
            let mut set = context::initial()[context::set(class, leaning, false)];
            for context in &mut set {
                *context = (random.next() as u32).clamp(1 << 21, u32::MAX - (1 << 21));
            }
            let prediction = if KIND == ROW { random.next() as i32 % 3000 } else { 0 };
            let site = Site { low: u32::from(crate::model::scale::LOW_BITS[class]), ..Site::default() };
            let site = Site { leaning, ..site.predicted::<KIND>(class, prediction) };
            let spread = [0.1, 1.0, 4.0, 40.0, 900.0][round % 5];
            let rounded = rule.round((f64::from(random.next() as i32) / f64::from(i32::MAX) * spread) as f32);
            let level = rule.choose::<KIND>(&mut set, site, rounded);
            assert_eq!(level, plainly::<KIND>(&rule, &mut set, site, rounded), "{round}");
            moved += usize::from(level != rounded.nearest);
        }
        assert!((1000..30_000).contains(&moved), "{moved} moved");
    }

    #[test]
    fn short_cuts_change_no_level() {
        stays_and_moves_as_plainly::<PLAIN>();
        stays_and_moves_as_plainly::<ROW>();
    }

    #[test]
    fn rounding_is_to_the_nearest_level_and_of_two_to_the_even_one() {
        let rule = Rule::new(Quantizer::new(0.5, 0.1, 1000));
        for (weight, level) in [(0.25, 0), (-0.25, 0), (0.75, 2), (-1.25, -2), (1.26, 3), (9e9, 1000), (-9e9, -1000)] {
            assert_eq!(rule.round(weight).nearest, level);
        }
    }
}
