//! One chunk, coded: levels or weights in, bytes out.

use crate::coder::Encoder;
use crate::context::{COST_BITS, Portable, UNARY};
use crate::fast;
use crate::feedback::{Coupling, Feedback};
use crate::levels::{self, Cost};
use crate::params::{Coder, Params};
use crate::rows::{self, Rows, Site, for_kind};
#[cfg(target_arch = "x86_64")]
use crate::simd;
use crate::sparse;
use crate::trellis::{Contest, Search, Targets, Weights};

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

/// Levels that are tried on either side of a weight's nearest, if it matters little enough.
const FARTHEST: i32 = 32;

/// Whether these levels can be a chunk: not every sequence is a path through the trellis of two quantisers.
#[must_use]
pub fn has_code(params: &Params, levels: &[i32]) -> bool {
    let Some(states) = params.states else { return true };
    match params.coder {
        Coder::Binary | Coder::Sparse { .. } => states.has_path(levels),
        Coder::Fast => fast::strips(params, levels.len()).all(|strip| states.has_path(&levels[strip])),
    }
}

/// Appends the code of `levels` to `out`.
pub fn encode(params: &Params, levels: &[i32], out: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if simd::available() {
        return simd::encode(params, levels, out);
    }
    encode_on::<Portable>(params, levels, out);
}

/// Quantises `weights` and appends their code to `out`. Levels are also written to `chosen` if it is given. With a `coupling`,
/// weights are in steps (the quantiser's step is one), the chunk has whole rows, and levels make up for each other's errors.
pub fn quantize(
    params: &Params,
    weights: &[f32],
    quantizer: Quantizer<'_>,
    coupling: Option<Coupling>,
    chosen: Option<&mut [i32]>,
    out: &mut Vec<u8>,
) -> Sums {
    #[cfg(target_arch = "x86_64")]
    if simd::available() {
        return simd::quantize(params, weights, quantizer, coupling, chosen, out);
    }
    quantize_portable(params, weights, quantizer, coupling, chosen, out)
}

/// [`quantize`] in plain Rust. Not inlined: the search takes long to compile, and tests want it several times.
#[inline(never)]
pub(crate) fn quantize_portable(
    params: &Params,
    weights: &[f32],
    quantizer: Quantizer<'_>,
    coupling: Option<Coupling>,
    chosen: Option<&mut [i32]>,
    out: &mut Vec<u8>,
) -> Sums {
    quantize_on::<Portable>(params, weights, quantizer, coupling, chosen, out)
}

#[inline(always)]
pub(crate) fn encode_on<M: Contest>(params: &Params, levels: &[i32], out: &mut Vec<u8>) {
    match params.coder {
        Coder::Binary => code::<M>(params, levels.len(), out, &mut Given(levels)),
        Coder::Fast => fast::encode(params, levels, out),
        Coder::Sparse { density_log } => sparse::encode::<M>(params, density_log, levels, out),
    }
}

#[inline(always)]
pub(crate) fn quantize_on<M: Contest>(
    params: &Params,
    weights: &[f32],
    quantizer: Quantizer<'_>,
    coupling: Option<Coupling>,
    chosen: Option<&mut [i32]>,
    out: &mut Vec<u8>,
) -> Sums {
    // Levels of either quantiser and parity lie so near to every target.
    let limit = (quantizer.limit - 3).max(0);
    let Quantizer { step, lambda, limit: largest, importance, reach, keeps_zeros } = quantizer;
    let choice = match (params.states, coupling) {
        (None, None) => Choice::Greedy(quantizer),
        (None, Some(coupling)) => {
            Choice::Coupled(quantizer, Feedback::new(weights, keeps_zeros, coupling, limit as f32))
        }
        (Some(states), None) => {
            let scale = 1.0 / f64::from(step);
            let targets = Weights { weights, importance, keeps_zeros, scale, limit: f64::from(limit) };
            Choice::Path(Box::new(Search::new(targets, states, params.width, lambda, reach, largest)))
        }
        (Some(states), Some(coupling)) => {
            let targets = Feedback::new(weights, keeps_zeros, coupling, limit as f32);
            Choice::CoupledPath(Box::new(Search::new(targets, states, params.width, lambda, reach, largest)))
        }
    };
    let mut room = Vec::new();
    let chosen = if params.coder != Coder::Binary && chosen.is_none() {
        room.resize(weights.len(), 0);
        Some(&mut room[..])
    } else {
        chosen
    };
    let step = f64::from(step);
    let mut quantized = Quantized { weights, keeps_zeros, importance, step, choice, chosen, sums: Sums::default() };
    if params.coder == Coder::Binary {
        code::<M>(params, weights.len(), out, &mut quantized);
    } else {
        // Levels are chosen as if the binary coder coded them, whose bits are nearly the same.
        code::<M>(params, weights.len(), &mut Vec::new(), &mut quantized);
        if let Some(levels) = quantized.chosen {
            encode(params, levels, out);
        }
    }
    quantized.sums
}

/// Where the levels to code come from. A trait, because closures cannot be told to be inlined, and what is not inlined is
/// compiled without the machine's features.
trait Source {
    /// Called before the level of the `index`-th weight, in this column.
    #[inline(always)]
    fn look_ahead<M: Contest, const KIND: u8>(&mut self, _rows: &Rows, _index: usize, _column: usize) {}

    /// The `index`-th level of the chunk, at this site.
    fn level<const KIND: u8>(&mut self, rows: &mut Rows, site: Site, index: usize, column: usize) -> i32;
}

struct Given<'a>(&'a [i32]);

impl Source for Given<'_> {
    #[inline(always)]
    fn level<const KIND: u8>(&mut self, _rows: &mut Rows, _site: Site, index: usize, _column: usize) -> i32 {
        self.0[index]
    }
}

struct Quantized<'a> {
    weights: &'a [f32],
    keeps_zeros: bool,
    importance: &'a [f32],
    step: f64,
    choice: Choice<'a>,
    chosen: Option<&'a mut [i32]>,
    sums: Sums,
}

/// How levels are chosen.
enum Choice<'a> {
    /// One by one.
    Greedy(Quantizer<'a>),
    /// As a path through the trellis of two quantisers.
    Path(Box<Search<Weights<'a>>>),
    /// One by one, with error feedback.
    Coupled(Quantizer<'a>, Feedback<'a>),
    /// As a path, with error feedback.
    CoupledPath(Box<Search<Feedback<'a>>>),
}

impl Source for Quantized<'_> {
    #[inline(always)]
    fn look_ahead<M: Contest, const KIND: u8>(&mut self, rows: &Rows, index: usize, column: usize) {
        match &mut self.choice {
            Choice::Path(search) if rows::dependent(KIND) && column.is_multiple_of(Weights::BLOCK) => {
                search.decide::<M, KIND>(rows, index, column);
            }
            Choice::CoupledPath(search) if rows::dependent(KIND) && column.is_multiple_of(Feedback::BLOCK) => {
                search.decide::<M, KIND>(rows, index, column);
            }
            Choice::Coupled(_, feedback) if column == 0 => feedback.begin(index),
            _ => {}
        }
    }

    #[inline(always)]
    fn level<const KIND: u8>(&mut self, rows: &mut Rows, site: Site, index: usize, column: usize) -> i32 {
        let weight = f64::from(self.weights[index]);
        let zero = self.keeps_zeros && weight == 0.0;
        let level = match &mut self.choice {
            Choice::Greedy(_) if zero => 0,
            Choice::Greedy(quantizer) => quantizer.choose::<KIND>(rows, site, weight, index),
            Choice::Path(search) => search.level(column),
            Choice::Coupled(quantizer, feedback) => {
                let target = f64::from(feedback.target(index));
                let level = if zero { 0 } else { quantizer.choose::<KIND>(rows, site, target, index) };
                feedback.decided(index, level);
                level
            }
            Choice::CoupledPath(search) => {
                let level = search.level(column);
                search.targets.decided(index, level);
                level
            }
        };
        let value = f64::from(level);
        let error = weight - value * self.step;
        let counts = self.importance.get(index).map_or(1.0, |importance| f64::from(*importance));
        self.sums.energy += counts * weight * weight;
        self.sums.error += counts * error * error;
        self.sums.correlation += counts * weight * value;
        self.sums.levels += counts * value * value;
        if let Some(chosen) = &mut self.chosen {
            chosen[index] = level;
        }
        level
    }
}

/// How a weight becomes a level.
///
/// Weight w becomes the level q that minimises `F (w - q step)^2 + lambda step^2 bits(q)`, bits counted on the contexts as
/// they stand (DeepCABAC's greedy rule). With F = 1 the nearest level is tried and the two behind it towards the predicted
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
    /// Levels but the nearest have at most this `F (w / step - q)^2`.
    pub reach: f32,
    /// Whether a weight of zero keeps its level: pruned weights stay pruned.
    pub keeps_zeros: bool,
}

impl Quantizer<'_> {
    /// Every weight for itself, and all alike.
    #[must_use]
    pub const fn new(step: f32, lambda: f32, limit: i32) -> Self {
        Self { step, lambda, limit, importance: &[], reach: f32::INFINITY, keeps_zeros: false }
    }

    #[inline(always)]
    fn choose<const KIND: u8>(&self, rows: &mut Rows, site: Site, weight: f64, index: usize) -> i32 {
        // `as` saturates; the limit keeps every candidate inside i32.
        let limit = f64::from(self.limit);
        let exact = (weight / f64::from(self.step)).clamp(-limit, limit);
        let nearest = exact.round_ties_even() as i32;
        if self.lambda == 0.0 {
            return nearest;
        }
        if let Some(importance) = self.importance.get(index) {
            return self.choose_weighted::<KIND>(rows, site, exact, f64::from(*importance));
        }
        let lambda = f64::from(self.lambda) / f64::from(1 << COST_BITS);
        let residual = site.residual::<KIND>(nearest);
        let magnitude = residual.unsigned_abs();
        let toward = (i64::from(site.predicted) - i64::from(nearest)).clamp(-2, 2) as i32;
        if site.low == 0 && magnitude < UNARY as u32 {
            let [first, second] = levels::savings::<KIND>(rows.contexts(site), site.leaning, residual < 0, magnitude);
            let error = exact - f64::from(nearest);
            let (near, far) = (error - f64::from(toward.signum()), error - f64::from(toward));
            let (near, far) = (near * near - lambda * f64::from(first), far * far - lambda * f64::from(first + second));
            // Where there is no such level it is the one before, with the same cost.
            let (cost, distance) = if near < error * error { (near, toward.signum()) } else { (error * error, 0) };
            return nearest + if far < cost { toward } else { distance };
        }
        if toward == 0 {
            return nearest;
        }
        let mut best = (f64::INFINITY, nearest);
        for distance in 0..=toward.abs() {
            let level = nearest + toward.signum() * distance;
            let error = exact - f64::from(level);
            // Errors grow, and no bits make up for one that alone costs as much as the best.
            if error * error >= best.0 {
                break;
            }
            let cost = error * error + lambda * f64::from(self.cost::<KIND>(rows, site, level));
            if cost < best.0 {
                best = (cost, level);
            }
        }
        best.1
    }

    /// DeepCABAC's rule to the letter: every level is tried from the nearest one downwards, then upwards, as far as the error
    /// alone does not cost more than the best so far; the first of equals wins. A weight that matters little would have
    /// levels without end, so beyond [`FARTHEST`] only zero and the predicted level are looked at.
    #[inline(never)]
    fn choose_weighted<const KIND: u8>(&self, rows: &mut Rows, site: Site, exact: f64, importance: f64) -> i32 {
        let lambda = f64::from(self.lambda) / f64::from(1 << COST_BITS);
        let nearest = exact.round_ties_even() as i32;
        let mut best = (f64::INFINITY, nearest);
        // Whether levels further off may still win.
        let mut attempt = |level: i32| {
            let distance = exact - f64::from(level);
            let error = importance * distance * distance;
            if level != nearest && (error >= best.0 || error > f64::from(self.reach) || level.abs() > self.limit) {
                return false;
            }
            let cost = error + lambda * f64::from(self.cost::<KIND>(rows, site, level));
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

    #[inline(always)]
    fn cost<const KIND: u8>(&self, rows: &mut Rows, site: Site, level: i32) -> u32 {
        let mut cost = Cost::default();
        levels::code::<_, Portable, KIND>(
            &mut cost,
            rows.contexts(site),
            site.low,
            site.leaning,
            site.residual::<KIND>(level),
        );
        cost.0
    }
}

#[inline(always)]
fn code<M: Contest>(params: &Params, count: usize, out: &mut Vec<u8>, source: &mut impl Source) {
    for_kind!(params, code_kind::<M, KIND>(params, count, out, source));
}

#[inline(always)]
fn code_kind<M: Contest, const KIND: u8>(params: &Params, count: usize, out: &mut Vec<u8>, source: &mut impl Source) {
    let mut encoder = Encoder::new();
    let mut rows = Rows::new(params, count);
    let mut strips = fast::strips(params, count).map(|strip| strip.start).peekable();
    let mut start = 0;
    while start < count {
        if params.coder == Coder::Fast && strips.next_if_eq(&start).is_some() {
            rows.state = 0;
        }
        let width = params.width.min(count - start);
        for column in 0..width {
            source.look_ahead::<M, KIND>(&rows, start + column, column);
            let site = rows.site::<KIND>(column);
            let level = source.level::<KIND>(&mut rows, site, start + column, column);
            let residual = site.residual::<KIND>(level);
            levels::code::<_, M, KIND>(&mut encoder, rows.contexts(site), site.low, site.leaning, residual);
            rows.commit::<KIND>(column, site, level, residual.unsigned_abs());
        }
        rows.end_row::<KIND>();
        start += width;
    }
    encoder.finish(out);
}
