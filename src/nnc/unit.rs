//! Levels of tensors in streams of ISO/IEC 15938-17 (NNC): contexts, binarisation, scan, dependent quantisation, skipped rows
//! and signalled context settings, written once for encoder, decoder and what lies between.
//!
//! A unit's stream holds one tensor or more, each with contexts of its own:
//!
//! 1. the quantisation parameter, if the tensor has one, raw;
//! 2. if it has several rows of several levels: raw, whether positions' history counts (updates only) and whether rows may be
//!    skipped; then, if so, a decision for each row;
//! 3. for each context whether it has another setting than the first, and then which, three bits raw;
//! 4. the levels that are not in skipped rows, block by block (in one block without block scan). Every row of blocks but the
//!    first is an entry point: contexts begin anew.

use std::mem::take;

use crate::nnc::binarisation::{self, Around, Binarisation, PREFIXES, code_level};
use crate::nnc::cabac::{Bins, COST_BITS, Context, Decoder, Encoder, Learner, SETTINGS, Tally};
use crate::nnc::settings::Trials;

/// Most decisions "greater than k" of a level.
pub const MOST_UNARY: usize = 256;

/// Transitions of the eight states of dependent quantisation, by the parity of the level.
pub const NEXT: [[u8; 2]; 8] = [[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]];

/// Largest magnitude of a level of dependent quantisation: its multiple of the step fits 32 bits.
pub(crate) const MOST_DEPENDENT: u32 = (1 << 30) - 1;

// The first of each kind of context.
const ZERO: usize = 0;
const ZERO_TEMPORAL: usize = 24;
const ZERO_HISTORY: usize = 40;
const SIGN: usize = 48;
const SIGN_TEMPORAL: usize = 51;
const GREATER: usize = 53;

/// Everything about a tensor but its levels.
#[derive(Clone, Copy, Default)]
pub struct Tensor<'a> {
    /// Size of dimension 0, at least 1 of a tensor with levels.
    pub rows: usize,
    /// Levels in a row.
    pub width: usize,
    /// Edge of a block, or 0 for no blocks.
    pub block: usize,
    /// Two quantisers take turns.
    pub dependent: bool,
    /// Most decisions "greater than k", 1 to [`MOST_UNARY`].
    pub unary: usize,
    /// Profile 1: rows may be skipped, codebooks and bases count.
    pub extended: bool,
    /// The unit belongs to an update of another tensor.
    pub update: bool,
    /// Bits of the quantisation parameter, 0 if there is none, at most 32.
    pub qp_bits: u32,
    /// Number of values of the codebook and which of them is level 0, or two zeros without one.
    pub codebook: (u32, u32),
    /// Levels of the base, as many as the tensor has.
    pub base: Option<&'a [i32]>,
    /// Whether a position was not zero in an earlier update, as many as the tensor has levels.
    pub history: Option<&'a [u8]>,
}

impl Tensor<'_> {
    /// Number of levels.
    pub fn count(&self) -> usize {
        self.rows * self.width
    }

    /// Whether there are flags about rows and positions.
    fn has_row_flags(&self) -> bool {
        self.extended && self.width > 1 && self.rows > 1 && self.codebook.0 != 1
    }

    /// Edge of a block, and 0 where the scan makes no difference.
    pub(crate) fn edge(&self) -> usize {
        if self.width == 1 || self.rows == 1 { 0 } else { self.block }
    }

    /// Entry points inside the tensor.
    pub fn entries(&self) -> usize {
        match self.edge() {
            0 => 0,
            edge => self.rows.div_ceil(edge).saturating_sub(1),
        }
    }

    /// How its levels become decisions.
    pub(crate) fn binarisation(&self) -> Binarisation {
        let (size, zero) = self.codebook;
        let book = self.extended && size > 0;
        Binarisation {
            unary: self.unary,
            prefix: self.prefix(),
            most: if self.dependent { MOST_DEPENDENT } else { i32::MAX as u32 },
            limits: if book { [size - zero - 1, zero] } else { [u32::MAX; 2] },
            only_sign: (book && (zero == 0 || zero == size - 1)).then_some(zero != 0),
        }
    }

    fn prefix(&self) -> usize {
        GREATER + 4 * self.unary
    }

    fn setting_context(&self) -> usize {
        self.prefix() + PREFIXES + 3
    }

    fn row_context(&self) -> usize {
        self.prefix() + PREFIXES + 5
    }

    /// Fresh contexts.
    pub fn contexts(&self) -> Vec<Context> {
        vec![Context::new(0); self.row_context() + 1]
    }

    /// Contexts whose setting is signalled, in order.
    fn signalled(&self, history: bool) -> impl Iterator<Item = usize> {
        let states = if self.dependent { 8 } else { 1 };
        let temporal = self.base.is_some();
        let (size, zero) = if self.extended { self.codebook } else { (0, 0) };
        let most = if size > 0 { u64::from(zero.max(size - 1 - zero)) } else { u64::MAX };
        let unary = self.unary as u64;
        let group = |on: bool, first: usize, count: usize| if on { first..first + count } else { 0..0 };
        let greater = (2 * self.unary).min(usize::try_from(most.saturating_mul(2)).unwrap_or(usize::MAX));
        let greater_temporal =
            (2 * self.unary).min(usize::try_from(most.saturating_sub(1).saturating_mul(2)).unwrap_or(usize::MAX));
        let prefixes = (0..PREFIXES as u32).take_while(|a| most == u64::MAX || unary + (2 << a) - 2 < most).count();
        group(size != 1, ZERO, 3 * states)
            .chain(group(size != 1 && temporal, ZERO_TEMPORAL, 2 * states))
            .chain(group(size != 1 && history, ZERO_HISTORY, states))
            .chain(group(size != 1 && self.binarisation().only_sign.is_none(), SIGN, if temporal { 5 } else { 3 }))
            .chain(group(true, GREATER, greater))
            .chain(group(temporal, GREATER + 2 * self.unary, greater_temporal))
            .chain(group(true, self.prefix(), prefixes))
    }
}

/// Where levels come from or go to.
trait Levels {
    /// The level, or anything if it is not yet known.
    fn get(&self, at: usize) -> i32;
    fn put(&mut self, at: usize, level: i32);
}

struct Given<'a>(&'a [i32]);

impl Levels for Given<'_> {
    #[inline(always)]
    fn get(&self, at: usize) -> i32 {
        self.0[at]
    }

    #[inline(always)]
    fn put(&mut self, _at: usize, _level: i32) {}
}

struct Wanted<'a>(&'a mut [i32]);

impl Levels for Wanted<'_> {
    #[inline(always)]
    fn get(&self, _at: usize) -> i32 {
        0
    }

    #[inline(always)]
    fn put(&mut self, at: usize, level: i32) {
        self.0[at] = level;
    }
}

/// What else happens at certain places of the stream.
trait Follower<B: Bins> {
    /// At the beginning of every row of blocks but the first.
    fn enter(&mut self, bins: &mut B, state: u8) -> bool;
    /// Now and then: false ends it.
    fn go_on(&self, bins: &B) -> bool;
}

/// Contexts of a level without a base, after one of this class, in this state.
#[inline(always)]
pub(crate) fn around(state: u8, class: usize) -> Around {
    Around { zero: ZERO + 3 * usize::from(state) + class, sign: SIGN + class, greater: GREATER, base: 0 }
}

/// [`NEXT`], four bits for each: a shift in a register is sooner done than a load.
const FOLLOWING: u64 = {
    let (mut following, mut at) = (0, 0);
    while at < 16 {
        following |= (NEXT[at / 2][at % 2] as u64) << (4 * at);
        at += 1;
    }
    following
};

/// The states after this one, for even and odd levels.
#[inline(always)]
fn following(state: u8) -> [u8; 2] {
    let both = FOLLOWING >> (8 * (state & 7));
    [both as u8 & 7, (both >> 4) as u8 & 7]
}

/// The integer multiple of the step that a level of dependent quantisation stands for.
#[inline(always)]
pub(crate) fn multiple(level: i32, state: u8) -> i32 {
    level.wrapping_mul(2).wrapping_sub(level.signum() * i32::from(state & 1))
}

/// Codes the levels of `tensor` block by block, in rows that are not skipped. `skipped` is empty or has a flag for each row.
/// None if something does not fit.
#[inline(always)]
fn code_levels<B: Bins, L: Levels, F: Follower<B>, const PLAIN: bool, const DEPENDENT: bool>(
    bins: &mut B,
    contexts: &mut [Context],
    tensor: &Tensor,
    skipped: &[bool],
    history: bool,
    levels: &mut L,
    follower: &mut F,
) -> Option<()> {
    let (rows, width) = if tensor.width == 1 { (1, tensor.rows) } else { (tensor.rows, tensor.width) };
    if rows == 0 || width == 0 {
        return Some(());
    }
    let (high, wide) = match tensor.edge() {
        0 => (rows, width),
        edge => (edge, edge),
    };
    let form = tensor.binarisation();
    let (mut state, mut class) = (0, 0);
    for top in (0..rows).step_by(high) {
        if top > 0 {
            contexts.iter_mut().for_each(Context::reset);
            class = 0;
            follower.enter(bins, state).then_some(())?;
        }
        for left in (0..width).step_by(wide) {
            for row in top..(top + high).min(rows) {
                follower.go_on(bins).then_some(())?;
                if skipped.get(row) == Some(&true) {
                    if DEPENDENT {
                        // Zeros lead back after four steps. The whole row's width counts, whatever the block's.
                        (0..width % 4).for_each(|_| [state, _] = following(state));
                    }
                    continue;
                }
                for at in row * width + left..row * width + (left + wide).min(width) {
                    let given = levels.get(at);
                    let level = if DEPENDENT { (given + given.signum() * i32::from(state & 1)) >> 1 } else { given };
                    // Known before the level is.
                    let [even, odd] = if DEPENDENT { following(state) } else { [0; 2] };
                    let mut around = around(state, class);
                    if !PLAIN {
                        if let Some(base) = tensor.base.map(|base| base[at]).filter(|&base| base != 0) {
                            around = Around {
                                zero: ZERO_TEMPORAL + 2 * usize::from(state) + usize::from(base.unsigned_abs() > 1),
                                sign: SIGN_TEMPORAL + usize::from(base > 0),
                                greater: GREATER + 2 * tensor.unary,
                                base: base.unsigned_abs(),
                            };
                        }
                        if history && tensor.history.is_some_and(|history| history[at] == 1) {
                            around.zero = ZERO_HISTORY + usize::from(state);
                        }
                    }
                    let level = code_level::<B, PLAIN>(bins, contexts, &form, &around, level)?;
                    class = binarisation::class(level);
                    if DEPENDENT {
                        levels.put(at, multiple(level, state));
                        state = if level & 1 == 0 { even } else { odd };
                    } else {
                        levels.put(at, level);
                    }
                }
            }
        }
    }
    Some(())
}

/// [`code_levels`], compiled for what the tensor needs.
#[inline(always)]
fn code_any<B: Bins, L: Levels, F: Follower<B>>(
    bins: &mut B,
    contexts: &mut [Context],
    tensor: &Tensor,
    skipped: &[bool],
    history: bool,
    levels: &mut L,
    follower: &mut F,
) -> Option<()> {
    let (size, _) = tensor.codebook;
    if tensor.extended && size == 1 {
        (0..tensor.count()).for_each(|at| levels.put(at, 0));
        // No decisions, but entry points all the same.
        return (0..tensor.entries()).all(|_| follower.enter(bins, 0)).then_some(());
    }
    let plain = tensor.base.is_none() && !history && !(tensor.extended && size > 0);
    match (plain, tensor.dependent) {
        (true, false) => {
            code_levels::<B, L, F, true, false>(bins, contexts, tensor, skipped, history, levels, follower)
        }
        (true, true) => code_levels::<B, L, F, true, true>(bins, contexts, tensor, skipped, history, levels, follower),
        (false, false) => {
            code_levels::<B, L, F, false, false>(bins, contexts, tensor, skipped, history, levels, follower)
        }
        (false, true) => {
            code_levels::<B, L, F, false, true>(bins, contexts, tensor, skipped, history, levels, follower)
        }
    }
}

/// Codes what comes before the levels: point 2 for `skipped` (empty: no rows are skipped) and `history`. They are returned.
fn code_flags<B: Bins>(
    bins: &mut B,
    contexts: &mut [Context],
    tensor: &Tensor,
    skipped: Vec<bool>,
    history: bool,
) -> (Vec<bool>, bool) {
    if !tensor.has_row_flags() {
        return (Vec::new(), false);
    }
    let history = tensor.update && bins.bypass(u32::from(history), 1) == 1;
    if bins.bypass(u32::from(!skipped.is_empty()), 1) == 0 {
        return (Vec::new(), history);
    }
    let number = tensor.row_context();
    let skipped = (0..tensor.rows).map(|row| bins.bin(contexts, number, skipped.get(row) == Some(&true))).collect();
    (skipped, history)
}

/// Codes point 3. `choose` says which setting a context shall have; a decoder ignores it.
fn code_settings<B: Bins>(
    bins: &mut B,
    contexts: &mut [Context],
    tensor: &Tensor,
    history: bool,
    mut choose: impl FnMut(usize) -> usize,
) {
    let flag = tensor.setting_context();
    for number in tensor.signalled(history) {
        let wanted = choose(number);
        let other = bins.bin(contexts, flag, wanted != 0);
        let setting = if other { 1 + bins.bypass(wanted.wrapping_sub(1) as u32 & 7, 3) as usize } else { 0 };
        contexts[number] = Context::new(setting.min(SETTINGS - 1));
    }
}

/// What it may cost to say that a context has another setting than the first, in eighths of a bit: flags share a context, so
/// many are cheaper than few.
const PENALTIES: [u64; 5] = [0, 4, 8, 16, 32];

/// The penalty with which everything costs least.
fn best_penalty(tensor: &Tensor, history: bool, tried: &Trials) -> u64 {
    let cost = |penalty: u64| {
        let (mut flags, mut decisions) = (Tally::default(), 0);
        code_settings(&mut flags, &mut tensor.contexts(), tensor, history, |number| {
            let (setting, cost) = tried.best(number, penalty);
            decisions += cost;
            setting
        });
        flags.0 + decisions
    };
    PENALTIES.map(|eighths| eighths << (COST_BITS - 3)).into_iter().min_by_key(|&penalty| cost(penalty)).unwrap_or(0)
}

/// What a decoder does on the way: remembers or compares entry points.
struct Entries<'a> {
    entries: &'a mut [u64],
    next: usize,
    known: bool,
    last: u64,
}

impl<'b> Follower<Decoder<'b>> for Entries<'_> {
    #[inline(always)]
    fn enter(&mut self, bins: &mut Decoder<'b>, state: u8) -> bool {
        bins.entry_point();
        let position = bins.position();
        let found = (position - self.last) << 11 | u64::from(bins.entry_value()) << 3 | u64::from(state);
        self.last = position;
        let Some(entry) = self.entries.get_mut(self.next) else { return false };
        self.next += 1;
        if self.known {
            return *entry == found;
        }
        *entry = found;
        true
    }

    #[inline(always)]
    fn go_on(&self, bins: &Decoder<'b>) -> bool {
        bins.inside()
    }
}

/// What an encoder does on the way.
struct Marks;

impl Follower<Encoder> for Marks {
    #[inline(always)]
    fn enter(&mut self, bins: &mut Encoder, _state: u8) -> bool {
        bins.entry_point();
        true
    }

    #[inline(always)]
    fn go_on(&self, _bins: &Encoder) -> bool {
        true
    }
}

impl Follower<Trials> for Marks {
    #[inline(always)]
    fn enter(&mut self, bins: &mut Trials, _state: u8) -> bool {
        bins.reset();
        true
    }

    #[inline(always)]
    fn go_on(&self, _bins: &Trials) -> bool {
        true
    }
}

impl Follower<Tally> for Marks {
    #[inline(always)]
    fn enter(&mut self, _bins: &mut Tally, _state: u8) -> bool {
        true
    }

    #[inline(always)]
    fn go_on(&self, _bins: &Tally) -> bool {
        true
    }
}

/// A unit's stream being decoded, tensor after tensor.
#[cfg_attr(any(test, fuzzing), derive(PartialEq, Debug))]
pub struct UnitDecoder<'a>(Decoder<'a>);

impl<'a> UnitDecoder<'a> {
    /// At the beginning of the stream.
    pub fn new(bytes: &'a [u8]) -> Self {
        UnitDecoder(Decoder::new(bytes))
    }

    /// Bytes that the stream takes if it ends here, None if it does not.
    pub fn finish(&self) -> Option<usize> {
        self.0.finish()
    }
}

/// Decodes the next tensor's quantisation parameter and levels; the multiples of the step with dependent quantisation.
/// `entries` has [`Tensor::entries`] elements: entry points, compared if they are `known`, else filled in.
/// None if the stream is damaged.
#[inline(always)]
pub(crate) fn decode_on(
    decoder: &mut UnitDecoder,
    tensor: &Tensor,
    levels: &mut [i32],
    entries: &mut [u64],
    known: bool,
) -> Option<i32> {
    let bins = &mut decoder.0;
    let qp = match tensor.qp_bits {
        0 => 0,
        bits => (bins.bypass(0, bits) << (32 - bits)) as i32 >> (32 - bits),
    };
    let contexts = &mut tensor.contexts()[..];
    let (skipped, history) = code_flags(bins, contexts, tensor, Vec::new(), false);
    if history && tensor.history.is_none() {
        return None;
    }
    code_settings(bins, contexts, tensor, history, |_| 0);
    if skipped.contains(&true) {
        levels.fill(0);
    }
    if tensor.entries() > 0 {
        bins.entry_point();
    }
    let last = bins.position();
    let mut follower = Entries { entries, next: 0, known, last };
    // A copy, which nothing else points to, so that its state can stay in registers.
    let mut local = bins.clone();
    code_any(&mut local, contexts, tensor, &skipped, history, &mut Wanted(levels), &mut follower)?;
    *bins = local;
    bins.inside().then_some(qp)
}

/// A unit's stream being encoded, tensor after tensor.
#[derive(Default)]
pub struct UnitEncoder(Encoder);

/// What an encoder may use.
#[derive(Clone, Copy)]
pub struct Tools {
    /// Choose how each context begins and adapts.
    pub settings: bool,
    /// Skip rows of zeros where it pays.
    pub rows: bool,
}

impl UnitEncoder {
    /// The stream's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish()
    }
}

/// Encodes the next tensor. False if `levels` are none that a decoder could give, or there are not enough.
#[inline(always)]
pub(crate) fn encode_on(encoder: &mut UnitEncoder, tensor: &Tensor, qp: i32, levels: &[i32], tools: Tools) -> bool {
    if levels.len() != tensor.count() || !valid(tensor, levels) {
        return false;
    }
    let history = tensor.history.is_some() && tensor.has_row_flags() && tensor.update;
    let skipped = if tools.rows { zero_rows(tensor, levels, history) } else { Vec::new() };
    let bins = &mut encoder.0;
    if tensor.qp_bits > 0 {
        bins.bypass(qp as u32 & (u32::MAX >> (32 - tensor.qp_bits)), tensor.qp_bits);
    }
    let contexts = &mut tensor.contexts()[..];
    let (skipped, history) = code_flags(bins, contexts, tensor, skipped, history);
    if tools.settings {
        let tried = try_settings(tensor, &skipped, history, levels);
        let penalty = best_penalty(tensor, history, &tried);
        code_settings(bins, contexts, tensor, history, |number| tried.best(number, penalty).0);
    } else {
        code_settings(bins, contexts, tensor, history, |_| 0);
    }
    if tensor.entries() > 0 {
        bins.entry_point();
    }
    // Its own, so that its state can stay in registers.
    let mut local = take(bins);
    let coded = code_any(&mut local, contexts, tensor, &skipped, history, &mut Given(levels), &mut Marks);
    *bins = local;
    coded.is_some()
}

/// Tries all settings of all contexts on these levels.
#[inline(always)]
fn try_settings(tensor: &Tensor, skipped: &[bool], history: bool, levels: &[i32]) -> Trials {
    let mut trials = Trials::new(tensor.contexts().len());
    code_any(&mut trials, &mut tensor.contexts(), tensor, skipped, history, &mut Given(levels), &mut Marks);
    trials.finish();
    trials
}

/// Contexts that begin as suits these levels, but for skipped rows and history.
pub(crate) fn choose_settings(tensor: &Tensor, levels: &[i32]) -> Vec<Context> {
    let tried = try_settings(tensor, &[], false, levels);
    let penalty = best_penalty(tensor, false, &tried);
    let mut contexts = tensor.contexts();
    code_settings(&mut Learner, &mut contexts, tensor, false, |number| tried.best(number, penalty).0);
    contexts
}

/// Whether a decoder could give these levels.
fn valid(tensor: &Tensor, levels: &[i32]) -> bool {
    let form = tensor.binarisation();
    let fits = |level: i32| level.unsigned_abs() <= form.limits[usize::from(level < 0)].min(form.most - 2);
    if !tensor.dependent {
        return levels.iter().all(|&level| fits(level));
    }
    let mut path = Path { state: 0, good: true, levels };
    scan(tensor, |at| path.step(at));
    path.good && levels.iter().all(|&level| level.unsigned_abs() < 2 * MOST_DEPENDENT)
}

/// Follows a sequence of multiples through the states.
struct Path<'a> {
    state: u8,
    good: bool,
    levels: &'a [i32],
}

impl Path<'_> {
    #[inline(always)]
    fn step(&mut self, at: usize) {
        let given = self.levels[at];
        let odd = i32::from(self.state & 1);
        self.good &= given == 0 || (given & 1) == odd;
        let level = (given.wrapping_add(given.signum() * odd)) >> 1;
        self.state = NEXT[self.state as usize][(level & 1) as usize];
    }
}

/// Calls `visit` with every position in the order of coding.
#[inline(always)]
pub(crate) fn scan(tensor: &Tensor, mut visit: impl FnMut(usize)) {
    let (rows, width) = (tensor.rows, tensor.width);
    match tensor.edge() {
        0 => (0..rows * width).for_each(visit),
        edge => {
            for top in (0..rows).step_by(edge) {
                for left in (0..width).step_by(edge) {
                    for row in top..(top + edge).min(rows) {
                        (row * width + left..row * width + (left + edge).min(width)).for_each(&mut visit);
                    }
                }
            }
        }
    }
}

/// Flags of the rows that are zero, empty if skipping them does not pay.
fn zero_rows(tensor: &Tensor, levels: &[i32], history: bool) -> Vec<bool> {
    if !tensor.has_row_flags() {
        return Vec::new();
    }
    let zero: Vec<bool> = levels.chunks_exact(tensor.width).map(|row| row.iter().all(|&level| level == 0)).collect();
    // A skipped piece of a row in a block moves the state by the whole row. Where that does not lead to where its zeros do, a
    // path of states chosen without that is lost.
    let pieces = tensor.edge() > 0 && tensor.width > tensor.edge();
    let lost = tensor.dependent && pieces && !tensor.width.is_multiple_of(4) && zero.contains(&false);
    if lost || !zero.contains(&true) {
        return Vec::new();
    }
    let cost = |skipped: &[bool]| {
        let (mut tally, mut contexts) = (Tally::default(), tensor.contexts());
        let (skipped, history) = code_flags(&mut tally, &mut contexts, tensor, skipped.to_vec(), history);
        code_any(&mut tally, &mut contexts, tensor, &skipped, history, &mut Given(levels), &mut Marks);
        tally.0
    };
    if cost(&zero) < cost(&[]) { zero } else { Vec::new() }
}
