//! What the levels already coded say about the next one: its prediction and its scale class.
//!
//! A chunk is a matrix of levels, coded row by row. [`Rows`] holds what the model remembers of it. For each level the
//! caller asks [`Rows::site`], codes the residual there, and reports the level with [`Rows::commit`]; after the last
//! level of a row it calls [`Rows::end_row`]. Encoder and decoder run the same calls, so they see the same sites.
//!
//! Four kinds of tensors, told apart at compile time ([`PLAIN`], [`ROW`], [`KERNEL`], [`REGRESSED`]):
//! no prediction; prediction from the rows above, known before the row begins; prediction inside convolution kernels too;
//! or else from all columns before.
//! Each with one quantiser or two ([`DEPENDENT`], see `dependent.rs`). With two, memory and predictions are of levels, and
//! what is coded are indices: the prediction is turned into one of the quantiser in force.

use crate::model::context::{self, ContextSet, Contexts, SETS};
use crate::model::dependent::{self, States, Taps};
use crate::model::params::{Coder, KERNEL_WEIGHTS, MAX_KERNEL, MAX_KERNEL_WIDTH, Params};
use crate::model::regression::{self, Regression};
use crate::model::scale;

/// No prediction: the residual is the level.
pub const PLAIN: u8 = 0;
/// Prediction from the rows above.
pub const ROW: u8 = 1;
/// Prediction from the rows above and inside the kernel.
pub const KERNEL: u8 = 2;
/// Prediction from the rows above and, by regression, from the columns before.
pub const REGRESSED: u8 = 3;
/// Added to the others: two quantisers.
pub const DEPENDENT: u8 = 4;

/// Whether tensors of this kind have predictions.
pub(crate) const fn predicts(kind: u8) -> bool {
    kind % DEPENDENT != PLAIN
}

/// Whether tensors of this kind have predictions inside kernels.
pub(crate) const fn in_kernels(kind: u8) -> bool {
    kind % DEPENDENT == KERNEL
}

/// Whether tensors of this kind have regression.
pub(crate) const fn regressed(kind: u8) -> bool {
    kind % DEPENDENT == REGRESSED
}

/// Whether tensors of this kind have two quantisers.
pub(crate) const fn dependent(kind: u8) -> bool {
    kind >= DEPENDENT
}

/// Calls a function that is generic over the kind of tensor, and maybe over types after it, with the kind of `params`.
macro_rules! for_kind {
    ($params:expr, $function:ident::<KIND $(, $type:ident)*>($($argument:expr),*)) => {
        $crate::model::rows::for_kind!(@ $params, $function, ($($type),*), ($($argument),*))
    };
    (@ $params:expr, $function:ident, $types:tt, $arguments:tt) => {
        match $crate::model::rows::kind($params) {
            0 => $crate::model::rows::for_kind!(@@ $function, 0, $types, $arguments),
            1 => $crate::model::rows::for_kind!(@@ $function, 1, $types, $arguments),
            2 => $crate::model::rows::for_kind!(@@ $function, 2, $types, $arguments),
            3 => $crate::model::rows::for_kind!(@@ $function, 3, $types, $arguments),
            4 => $crate::model::rows::for_kind!(@@ $function, 4, $types, $arguments),
            5 => $crate::model::rows::for_kind!(@@ $function, 5, $types, $arguments),
            6 => $crate::model::rows::for_kind!(@@ $function, 6, $types, $arguments),
            _ => $crate::model::rows::for_kind!(@@ $function, 7, $types, $arguments),
        }
    };
    (@@ $function:ident, $kind:literal, ($($type:ident),*), $arguments:tt) => {
        $function::<$kind $(, $type)*> $arguments
    };
}
pub(crate) use for_kind;

/// Fractional bits of a prediction.
pub(crate) const FRACTION: u32 = 8;
/// A level in a prediction.
pub(crate) const UNIT: f32 = (1 << FRACTION) as f32;
/// Half a level in a prediction.
pub(crate) const HALF: i32 = 1 << (FRACTION - 1);
/// A prediction at least this far from the nearest level leans to one side: 0.17 in units of 2^-8.
pub(crate) const LEANING: i32 = 44;
/// With regression, predictions nearer to zero than this do not move the second quantiser's index: two levels.
const NEAR: i32 = 2 << FRACTION;
/// Of those, what is farther has contexts of its own: a level.
const STEEP: i32 = 1 << FRACTION;
/// A prediction does not lean if it lies so far above the lower end of what rounds to the predicted level.
pub(crate) const LEVEL: std::ops::Range<i32> = HALF - LEANING + 1..HALF + LEANING;
/// Levels enter a prediction clamped to 16 bits, so that sums of weighted levels fit 32 bits.
const CLAMP: i32 = 1 << 15;

/// Which kind of tensor `params` describes.
#[must_use]
pub fn kind(params: &Params) -> u8 {
    let prediction = match (params.kernel, params.row) {
        _ if matches!(params.coder, Coder::Sparse { .. }) => PLAIN,
        _ if params.coder == Coder::Regression => REGRESSED,
        (Some(_), _) => KERNEL,
        (None, Some(_)) => ROW,
        (None, None) => PLAIN,
    };
    prediction + if params.states.is_some() { DEPENDENT } else { 0 }
}

/// What is known about the next level.
#[derive(Clone, Copy, Default)]
pub struct Site {
    /// Index of the context set.
    pub set: usize,
    /// Low bits of the magnitude that are coded apart.
    pub low: u32,
    /// The predicted level, or with two quantisers the predicted index.
    pub predicted: i32,
    /// The level nearest to the prediction, from which magnitudes are taken.
    pub(crate) expected: i32,
    /// With two quantisers, 1 if the second is in force.
    pub(crate) odd: i32,
    /// The prediction leans to one side: the sign of the residual has a context.
    pub leaning: bool,
    /// It leans down: the residual is coded with its sign turned.
    pub down: bool,
    /// The column's share of the class.
    pub(crate) share: i32,
}

impl Site {
    /// The site with what follows from its class and the prediction.
    #[inline(always)]
    pub(crate) fn predicted<const KIND: u8>(self, class: usize, prediction: i32) -> Self {
        if !predicts(KIND) {
            return Self { set: context::set(class, false, dependent(KIND) && self.odd != 0), ..self };
        }
        let expected = rounded(prediction);
        if !dependent(KIND) {
            // How far the prediction lies above the lower end of what rounds to the predicted level; half is in the
            // middle.
            let rest = (prediction + HALF) & (2 * HALF - 1);
            let leaning = !LEVEL.contains(&rest);
            let set = context::set(class, leaning, false);
            return Self { set, predicted: expected, expected, leaning, down: rest < HALF, ..self };
        }
        if regressed(KIND) && self.odd != 0 && prediction.abs() < NEAR {
            // About zero the second quantiser's levels are closer, and what is coded is the index itself.
            let leaning = prediction.abs() >= 2 * LEANING;
            let steep = prediction.abs() >= STEEP;
            let set = if steep { context::steep_set(class) } else { context::set(class, leaning, true) };
            return Self { set, predicted: 0, expected, leaning, down: prediction < 0, ..self };
        }
        // The nearest level of the quantiser in force: of the second, zero has half a step to either side.
        let offset = self.odd << FRACTION;
        let magnitude = (prediction.abs() + 2 * HALF + offset) >> (FRACTION + 1);
        let magnitude = if prediction.abs() < offset / 2 { 0 } else { magnitude };
        let predicted = if prediction < 0 { -magnitude } else { magnitude };
        let rest = prediction - (dependent::level(predicted, self.odd) << FRACTION);
        let leaning = rest.abs() >= 2 * LEANING;
        let set = context::set(class, leaning, self.odd != 0 && predicted == 0);
        Self { set, predicted, expected, leaning, down: rest < 0, ..self }
    }

    /// The residual of `level`, as it is coded.
    #[inline(always)]
    #[must_use]
    pub fn residual<const KIND: u8>(self, level: i32) -> i32 {
        self.residual_of(if dependent(KIND) { dependent::index(level, self.odd) } else { level })
    }

    /// The residual of an index, which with one quantiser is the level.
    #[inline(always)]
    pub(crate) fn residual_of(self, index: i32) -> i32 {
        turned(index.wrapping_sub(self.predicted), self.down)
    }

    /// What leads from a level to the predicted one, two levels at most.
    #[inline(always)]
    #[must_use]
    pub fn toward(self, level: i32) -> i32 {
        (i64::from(self.predicted) - i64::from(level)).clamp(-2, 2) as i32
    }

    /// The level that has this residual.
    #[inline(always)]
    #[must_use]
    pub fn level<const KIND: u8>(self, residual: i32) -> i32 {
        let coded = turned(residual, self.down).wrapping_add(self.predicted);
        if dependent(KIND) { dependent::level(coded, self.odd) } else { coded }
    }
}

#[inline(always)]
fn turned(value: i32, turn: bool) -> i32 {
    let mask = -i32::from(turn);
    (value ^ mask).wrapping_sub(mask)
}

/// The model's memory of a chunk.
pub struct Rows {
    pub(crate) contexts: Box<Contexts>,
    pub(crate) class_mask: usize,
    pub(crate) mean: i32,
    above_weight: i32,
    column_weight: i32,
    pub(crate) taps: Taps,
    /// State of the machine that chooses between two quantisers.
    pub(crate) state: u32,
    pub(crate) kernel: Kernel,
    pub(crate) regression: Regression,
    /// Running magnitude of the row.
    pub(crate) row: i32,
    row_count: usize,
    /// Running magnitude of each column, in units of 2^-12.
    columns: Vec<i32>,
    /// The constant parts of the columns' shares.
    bases: Vec<i32>,
    /// The columns' shares of the class.
    pub(crate) shares: Vec<i32>,
    /// Running mean of each column's levels, in units of 2^-8.
    means: Vec<i32>,
    /// Predictions in units of 2^-8: from the rows above; up to the present column from the kernel or by regression too.
    pub(crate) predictions: Vec<i32>,
    /// The row's levels.
    pub(crate) levels: Vec<i32>,
}

impl Rows {
    /// The memory at the start of a chunk of `count` levels coded with `params`.
    #[must_use]
    pub fn new(params: &Params, count: usize) -> Self {
        let width = params.width.min(count);
        let mean_log = i32::from(params.mean_log);
        let mean = scale::from_log(params.mean_log) as i32;
        let row = params.row.unwrap_or_default();
        // The mean magnitude in units of 2^-8 of a level, and about the mean square: of a bell where it is large, and where it
        // is small of levels of one.
        let typical = (if params.states.is_some() { 2 * mean } else { mean }) as f32 / 16.0;
        let energy = typical * typical + 256.0 * typical;
        let regressed = if params.coder == Coder::Regression { width } else { 0 };
        let mut rows = Self {
            contexts: Box::new(*context::initial()),
            class_mask: params.resolution.mask(),
            mean,
            above_weight: i32::from(row.above),
            column_weight: i32::from(row.column),
            taps: params.states.map(States::taps).unwrap_or_default(),
            state: 0,
            kernel: Kernel::new(params),
            regression: Regression::new(regressed, energy * regression::prior_rows(params.width)),
            row: mean,
            row_count: 0,
            columns: vec![mean; width],
            bases: (0..width).map(|column| scale::column_base(column, mean_log)).collect(),
            shares: vec![0; width],
            means: vec![0; width],
            predictions: vec![0; width],
            levels: vec![0; width],
        };
        rows.share_columns();
        rows
    }

    /// What is known about the level in the next column, `column`.
    #[inline(always)]
    #[must_use]
    pub fn site<const KIND: u8>(&mut self, column: usize) -> Site {
        let mut prediction = 0;
        if predicts(KIND) {
            prediction = self.predictions[column];
        }
        if in_kernels(KIND) {
            prediction = self.predict_in_kernel(column);
        }
        if regressed(KIND) {
            prediction += self.regression.prediction();
            self.predictions[column] = prediction;
        }
        let share = self.shares[column];
        let class = scale::class(self.row, share) & self.class_mask;
        let (low, odd) = (u32::from(scale::LOW_BITS[class]), (self.state & 1) as i32);
        Site { low, share, odd, ..Site::default() }.predicted::<KIND>(class, prediction)
    }

    /// The prediction of the level in the next column, `column`, from the rows above and the kernel.
    #[inline(always)]
    pub(crate) fn predict_in_kernel(&mut self, column: usize) -> i32 {
        let prediction = self.predictions[column] + self.kernel.prediction(column);
        self.predictions[column] = prediction;
        prediction
    }

    /// The contexts of a site.
    #[inline(always)]
    pub fn contexts(&mut self, site: Site) -> &mut ContextSet {
        &mut self.contexts[site.set % SETS]
    }

    /// Reports the level at that site and the magnitude of its residual.
    #[inline(always)]
    pub fn commit<const KIND: u8>(&mut self, column: usize, site: Site, level: i32, magnitude: u32) {
        self.levels[column] = level;
        let mut fixed = scale::fixed(magnitude);
        if dependent(KIND) {
            // The index is odd if one of residual and predicted index is.
            self.state = self.taps.next(self.state, magnitude ^ site.predicted as u32);
            fixed = scale::fixed_half(level.wrapping_sub(site.expected).unsigned_abs());
        }
        self.row = scale::row_average(self.row, fixed, site.share);
        if in_kernels(KIND) {
            self.kernel.commit(column, level);
        }
        if regressed(KIND) {
            self.regression.commit((clamped(level) << FRACTION) - self.predictions[column]);
        }
    }

    /// The first `count` levels of the present row.
    #[inline(always)]
    #[must_use]
    pub fn row(&self, count: usize) -> &[i32] {
        &self.levels[..count]
    }

    /// Moves on to the next row.
    #[inline(always)]
    pub fn end_row<const KIND: u8>(&mut self) {
        let shift = scale::column_shift(self.row_count);
        self.row_count += 1;
        self.row = self.mean;
        for ((column, level), prediction) in self.columns.iter_mut().zip(&self.levels).zip(&self.predictions) {
            let residual = if !predicts(KIND) { *level } else { level.wrapping_sub(rounded(*prediction)) };
            let magnitude = residual.unsigned_abs();
            let fixed = if dependent(KIND) { scale::fixed_half(magnitude) } else { scale::fixed(magnitude) };
            *column += (fixed - *column) >> shift;
        }
        self.share_columns();
        if predicts(KIND) {
            let (above_weight, column_weight) = (4 * self.above_weight, self.column_weight);
            for ((mean, prediction), level) in self.means.iter_mut().zip(&mut self.predictions).zip(&self.levels) {
                let level = clamped(*level);
                *mean += ((level << FRACTION) - *mean) >> shift;
                *prediction = above_weight * level + ((column_weight * *mean) >> 6);
            }
        }
        if in_kernels(KIND) {
            self.kernel.position = 0;
        }
        if regressed(KIND) {
            self.regression.end_row();
        }
    }

    #[inline(always)]
    fn share_columns(&mut self) {
        for ((share, column), base) in self.shares.iter_mut().zip(&self.columns).zip(&self.bases) {
            *share = scale::column_share(*column, *base);
        }
    }
}

/// A prediction as a level.
#[inline(always)]
pub(crate) fn rounded(prediction: i32) -> i32 {
    (prediction + HALF) >> FRACTION
}

#[inline(always)]
pub(crate) fn clamped(level: i32) -> i32 {
    level.clamp(-CLAMP, CLAMP - 1)
}

/// Prediction inside convolution kernels, from five neighbours.
pub(crate) struct Kernel {
    /// Positions in a kernel.
    pub(crate) size: usize,
    /// Position of the next level.
    position: usize,
    /// How far back in the row the neighbours lie.
    offsets: [u8; KERNEL_WEIGHTS],
    /// Weights of the neighbours in units of 2^-8, by position; zero where the neighbour lies outside.
    weights: [[i32; KERNEL_WEIGHTS]; MAX_KERNEL],
    /// The last levels, clamped: that of column c at c mod 256.
    recent: [i32; 256],
}
const _: () = assert!(2 * MAX_KERNEL_WIDTH < 256, "the neighbour two rows up is recent");

impl Kernel {
    pub(crate) fn new(params: &Params) -> Self {
        let mut tables = Self {
            size: 1,
            position: 0,
            offsets: [0; KERNEL_WEIGHTS],
            weights: [[0; KERNEL_WEIGHTS]; MAX_KERNEL],
            recent: [0; 256],
        };
        let Some(kernel) = params.kernel else { return tables };
        tables.size = kernel.size;
        // (columns to the left, rows up) of each neighbour
        let steps = [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2)];
        tables.offsets = steps.map(|(left, up)| (left + up * kernel.width) as u8);
        for (position, weights) in tables.weights.iter_mut().enumerate() {
            let (x, y) = (position % kernel.width, position / kernel.width);
            for ((weight, given), (left, up)) in weights.iter_mut().zip(kernel.weights).zip(steps) {
                *weight = if x >= left && y >= up { 4 * i32::from(given) } else { 0 };
            }
        }
        tables
    }

    #[inline(always)]
    fn prediction(&self, column: usize) -> i32 {
        self.neighbours(self.position).map(|(offset, weight)| weight * self.recent(column, offset)).sum()
    }

    /// How far back in the row the neighbours of this position of the kernel lie, and their weights in units of 2^-8.
    #[inline(always)]
    pub(crate) fn neighbours(&self, position: usize) -> impl Iterator<Item = (u8, i32)> + use<> {
        self.offsets.into_iter().zip(self.weights[position % MAX_KERNEL])
    }

    /// The level so many columns before `column`, clamped.
    #[inline(always)]
    pub(crate) fn recent(&self, column: usize, offset: u8) -> i32 {
        self.recent[usize::from((column as u8).wrapping_sub(offset))]
    }

    /// How far back the farthest neighbour lies.
    pub(crate) fn farthest(&self) -> usize {
        self.offsets.into_iter().max().map_or(0, usize::from)
    }

    #[inline(always)]
    pub(crate) fn commit(&mut self, column: usize, level: i32) {
        self.recent[column % 256] = clamped(level);
        self.position = if self.position + 1 < self.size { self.position + 1 } else { 0 };
    }
}
