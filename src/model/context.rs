//! Adaptive probabilities, the set of contexts that a chunk starts with, and the cost of a decision in bits.
//!
//! A context is one `u32`: the upper 22 bits are the probability of "one" in units of 2^-22, the lower 10 count visits.
//! The coder uses the whole word as the probability (the count is noise below its precision), so nothing is unpacked on
//! the critical path.
//!
//! The counter makes adaptation start fast and slow down, like the average of all visits so far: its upper three bits are
//! the present shift minus one, and each visit adds `128 >> (upper three bits)`, so a shift `s` lasts `2^(s-1)` visits.
//! The last shift, 8, is an average over about 256 visits, and stays.

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use crate::model::scale;

/// Largest number of binary decisions that one step of the coder takes.
pub const GROUP: usize = 4;
/// Decisions "the magnitude is larger than k" with a context of their own, k = 0..15.
pub const UNARY: usize = 16;
/// Context of the sign of magnitude 0, after the first half of those decisions; 15 magnitudes have one.
pub const SIGN: usize = 8;
/// The highest low bit below a magnitude whose upper part is zero.
pub const LOW_BIT: usize = SIGN + 15;

/// First context of a group of decisions. What most levels use lies together, in the first half of a set: one line of
/// the cache.
#[inline(always)]
#[must_use]
pub const fn group_start(index: usize) -> usize {
    GROUP * index + if index < 2 { 0 } else { LOW_BIT + 1 - SIGN }
}

/// Contexts in a set.
pub const SET: usize = 32;

/// All contexts of one scale class and one kind of prediction.
pub type ContextSet = [u32; SET];

/// Room for four sets a class; a power of two, so that an index can be masked instead of checked.
pub const SETS: usize = 512;
const _: () = assert!(4 * scale::CLASSES <= SETS);
/// The sets of a chunk, by [`set`].
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Contexts([ContextSet; SETS]);

impl Deref for Contexts {
    type Target = [ContextSet; SETS];

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Contexts {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// Sets of predictions that lean to one side follow on all others: where none leans, those in use are neighbours.
pub const LEANING_SETS: usize = scale::CLASSES;

/// Sets of levels about zero in the second of two quantisers follow on those.
pub const NARROW_SETS: usize = 2 * scale::CLASSES;

/// Index of a scale class's set.
#[inline(always)]
#[must_use]
pub fn set(class: usize, leaning: bool, narrow: bool) -> usize {
    class + if leaning { LEANING_SETS } else { 0 } + if narrow { NARROW_SETS } else { 0 }
}

/// With regression, sets of levels about zero in the second of two quantisers whose prediction leans more.
pub const STEEP_SETS: usize = 5 * scale::CLASSES;

/// Index of such a set.
#[inline(always)]
#[must_use]
pub fn steep_set(class: usize) -> usize {
    class + STEEP_SETS
}

/// The class of a set, and whether it is of predictions that lean.
#[inline(always)]
#[must_use]
pub fn class_and_leaning(set: usize) -> (usize, bool) {
    (set % scale::CLASSES, set / scale::CLASSES % 2 == 1)
}

/// Initial counter: shift 3, the weight of about six visits.
const START: u32 = 2 << 7;
/// Bounds of the probability in units of 2^-22: 2^-11 and 1 - 2^-11.
const LEAST: u32 = 1 << 11;
/// What stands for `a` in the chance of more than zero in the second of two quantisers, where zero is narrow.
const NARROW_OFFSET: u64 = 80;
const MOST: u32 = (1 << 22) - (1 << 11);

/// What a context moves towards, in units of 2^-30, with ones in the bits that a probability does not have: the distance
/// to a context is then rounded down as if the counter in the context were not there.
pub(crate) const fn target(one: bool) -> i32 {
    ((if one { MOST } else { LEAST }) << 8 | 255) as i32
}

/// What adaptation adds to a context, halved: `2^-shift` of the distance to the target, rounded down to units of the
/// probability, and the visit. The counter stays at its end by itself, where `64 >> 7` is zero.
#[inline(always)]
fn half_step(context: u32, target: i32) -> u32 {
    let stage = context >> 7 & 7;
    let distance = target - (context >> 2) as i32;
    ((distance >> stage & !511) as u32) + (64 >> stage)
}

/// Adapts one context if `used`.
#[inline(always)]
pub fn adapt_if(used: bool, context: &mut u32, one: bool) {
    let half = half_step(*context, target(one)) & u32::from(used).wrapping_neg();
    *context = context.wrapping_add(half << 1);
}

/// What the contexts of a group learn from a run of ones and the zero after it.
#[derive(Clone, Copy)]
pub struct Lesson {
    /// Their targets.
    pub target: [i32; GROUP],
    /// All ones for those contexts that were used, else zero.
    pub used: [u32; GROUP],
}

/// Lessons by the number of ones, 0 to 4; the rest are there so that an index can be masked instead of checked.
static LESSONS: [Lesson; 2 * GROUP] = {
    let mut lessons = [Lesson { target: [target(false); GROUP], used: [0; GROUP] }; 2 * GROUP];
    let mut i = 0;
    while i < 2 * GROUP * GROUP {
        let (ones, k) = (i / GROUP, i % GROUP);
        lessons[ones].target[k] = target(k < ones);
        lessons[ones].used[k] = if k <= ones { u32::MAX } else { 0 };
        i += 1;
    }
    lessons
};

/// The lesson of `ones <= 4`.
#[inline(always)]
#[must_use]
pub fn lesson(ones: usize) -> &'static Lesson {
    &LESSONS[ones % LESSONS.len()]
}

/// How the machine adapts a group. One implementation is plain Rust, the other SIMD; all give the same bits.
pub trait Machine {
    /// Adapts those contexts of a group that a run of `ones <= 4` and the zero after it have used.
    fn adapt_group(contexts: &mut [u32; GROUP], ones: usize);

    /// Runs a task in a function of its own, compiled for this machine and never inlined.
    fn apart<T: Task<Self>>(task: T) -> T::Output;
}

/// A loop that is a function of its own on each machine.
///
/// [`Task::run`] is `#[inline(always)]`, and so is what it calls where speed matters: what is not inlined is compiled without
/// the machine's features. The same is true of closures that go to functions of the standard library, `map` of an array among
/// them, so loops in tasks are written out. Loops are kept apart because a compiler's time grows faster than the size of a
/// function; `tests/test_build.py` has the largest size allowed.
pub trait Task<M: ?Sized> {
    /// What comes of it.
    type Output;

    /// The loop.
    fn run(self) -> Self::Output;
}

/// Plain Rust.
pub struct Portable;

impl Machine for Portable {
    #[inline(always)]
    fn adapt_group(contexts: &mut [u32; GROUP], ones: usize) {
        let lesson = lesson(ones);
        for ((context, target), used) in contexts.iter_mut().zip(lesson.target).zip(lesson.used) {
            let half = half_step(*context, target) & used;
            *context = context.wrapping_add(half << 1);
        }
    }

    #[inline(never)]
    fn apart<T: Task<Self>>(task: T) -> T::Output {
        task.run()
    }
}

/// A context at its start, of this probability in units of 2^-22, as far as the bounds allow.
#[must_use]
pub fn starting(probability: u32) -> u32 {
    probability.clamp(LEAST, MOST) << 10 | START
}

/// The contexts of a chunk at its start: two sets (0: no prediction, 1: predicted) for each scale class.
///
/// With mean magnitude m (after removal of the low bits) the chance that a magnitude exceeds k, given that it reached k,
/// starts at `m / (m + a + 0.7 k)`, `a = 0.3 + 0.7 / (1 + 2 m)`: close to a Gaussian's and a Laplacian's rounded values
/// for m from 0.01 to 4.
#[must_use]
pub fn initial() -> &'static Contexts {
    static INITIAL: OnceLock<Box<Contexts>> = OnceLock::new();
    INITIAL.get_or_init(|| {
        let mut contexts = Box::new(Contexts([[0x8000_0000 | START; SET]; SETS]));
        for class in 0..scale::CLASSES {
            // mean in units of 2^-12
            let mean = u64::from(scale::from_log(scale::lower_log(class)) >> scale::LOW_BITS[class]);
            let offset = 1229 + (2867 << 12) / (4096 + 2 * mean);
            for k in 0..UNARY {
                let index = group_start(k / GROUP) + k % GROUP;
                for narrow in [false, true] {
                    let offset = if narrow && k == 0 { NARROW_OFFSET } else { offset + 2867 * k as u64 };
                    let p = (mean << 22) / (mean + offset);
                    for leaning in [false, true] {
                        contexts[set(class, leaning, narrow)][index] = starting(p.min(1 << 22) as u32);
                    }
                    if narrow {
                        contexts[steep_set(class)][index] = starting(p.min(1 << 22) as u32);
                    }
                }
            }
        }
        contexts
    })
}

/// Fixed-point bits: the cost tables count in units of 2^-COST_BITS bits.
pub const COST_BITS: u32 = 11;
const COST_INDEX_BITS: u32 = 12;

/// No decision costs more: the upper 12 bits of a probability are not zero, nor all one.
pub const MOST_COST: i32 = 12 << COST_BITS;

/// Cost of a decision of value one, by the upper 12 bits of its probability; in units of 2^-11 bits.
pub struct CostTable([u16; 1 << COST_INDEX_BITS]);

impl CostTable {
    /// `-log2((i + 0.5) / 4096)` in integer arithmetic, so that every machine takes the same decisions.
    #[must_use]
    pub const fn new() -> Self {
        let mut table = [0; 1 << COST_INDEX_BITS];
        let mut i = 0;
        while i < table.len() {
            table[i] = ((COST_INDEX_BITS + 1) << COST_BITS) as u16 - log2(2 * i as u32 + 1) as u16;
            i += 1;
        }
        Self(table)
    }

    /// Cost of coding `one` in `context`, in units of 2^-11 bits.
    #[inline(always)]
    #[must_use]
    pub fn of(&self, context: u32, one: bool) -> u32 {
        let index = if one { context } else { !context } >> (32 - COST_INDEX_BITS);
        u32::from(self.0[index as usize])
    }
}

impl Default for CostTable {
    fn default() -> Self {
        Self::new()
    }
}

/// `floor(2^11 * log2(x))` for x >= 1, by repeated squaring.
#[must_use]
pub const fn log2(x: u32) -> u32 {
    let integer = x.ilog2();
    let mut result = integer;
    // mantissa in [1, 2) with 31 fractional bits
    let mut m = (x as u64) << (31 - integer);
    let mut i = 0;
    while i < COST_BITS {
        m = (m * m) >> 31;
        result <<= 1;
        if m >= 1 << 32 {
            result |= 1;
            m >>= 1;
        }
        i += 1;
    }
    result
}

/// The one cost table.
pub static COSTS: CostTable = CostTable::new();

#[cfg(test)]
mod tests {
    use super::*;

    /// What the coder relies on.
    const BOUNDS: std::ops::RangeInclusive<u32> = 1 << 21..=u32::MAX - (1 << 21) + (1 << 10);

    #[test]
    fn a_probability_stays_within_the_bounds_that_the_coder_relies_on() {
        for one in [false, true] {
            let mut context = 0x8000_0000 | START;
            for _ in 0..100_000 {
                adapt_if(true, &mut context, one);
                assert!(BOUNDS.contains(&context));
            }
            let p = f64::from(context) / 4_294_967_296.0;
            assert!((if one { 1.0 - p } else { p }) < 0.0006);
        }
    }

    #[test]
    fn every_probability_within_the_bounds_stays_there_at_every_stage() {
        for p in LEAST..=MOST {
            for stage in 0..8 {
                for one in [false, true] {
                    // A stage's first count and its last one, whose noise is largest.
                    for count in [stage << 7, stage << 7 | if stage < 7 { 127 } else { 0 }] {
                        let mut context = p << 10 | count;
                        adapt_if(true, &mut context, one);
                        let after = context >> 10;
                        assert!((LEAST..=MOST).contains(&after) && BOUNDS.contains(&context), "{p} {count} {one}");
                        assert!(if one { after >= p } else { after <= p }, "{p} {count} {one}");
                        // The largest is never reached: see `arithmetic::most_decisions`.
                        assert!(p == MOST || after < MOST, "{p} {count} {one}");
                    }
                }
            }
        }
    }

    #[test]
    fn adaptation_is_a_step_towards_the_target_rounded_down() {
        let mut context = 0x8000_0000 | START;
        for visit in 0..10_000 {
            let one = visit % 7 < visit % 5;
            let (p, count) = (i64::from(context >> 10), context & 1023);
            let target = i64::from(if one { MOST } else { LEAST });
            adapt_if(true, &mut context, one);
            assert_eq!(i64::from(context >> 10), p + ((target - p) >> ((count >> 7) + 1)));
            assert_eq!(context & 1023, (count + (128 >> (count >> 7))).min(7 << 7));
        }
    }

    #[test]
    fn a_group_adapts_exactly_the_contexts_it_used() {
        let start = [0x4000_0100, 0x8000_0200, 0xc000_0380, 0x2000_0000];
        for ones in 0..=4 {
            let mut group = start;
            Portable::adapt_group(&mut group, ones);
            for k in 0..4 {
                let mut expected = start[k];
                adapt_if(k <= ones, &mut expected, k < ones);
                assert_eq!(group[k], expected);
            }
        }
    }

    #[test]
    fn costs_are_the_logarithm_of_the_probability() {
        for p in [1u32 << 21, 1 << 28, 1 << 30, 1 << 31, 3 << 30] {
            for one in [false, true] {
                let probability = f64::from(if one { p } else { !p }) / 4_294_967_296.0;
                let cost = f64::from(COSTS.of(p, one)) / 2048.0;
                assert!((cost + probability.log2()).abs() < 0.75 / (probability * 4096.0) + 0.002, "{p} {one} {cost}");
            }
        }
    }

    #[test]
    fn no_decision_costs_more_than_is_said() {
        for p in [BOUNDS.start(), BOUNDS.end()] {
            assert!([false, true].into_iter().all(|one| COSTS.of(*p, one) as i32 <= MOST_COST));
        }
    }

    #[test]
    fn every_initial_context_is_within_bounds() {
        for context in initial().iter().flatten() {
            assert!(BOUNDS.contains(context) && *context >> 10 < MOST);
        }
    }
}
