//! What the levels already coded say about the next one: its prediction and its scale class.
//!
//! A chunk is a matrix of levels, coded row by row. [`Rows`] holds what the model remembers of it. For each level the
//! caller asks [`Rows::site`], codes the residual there, and reports the level with [`Rows::commit`]; behind the last
//! level of a row it calls [`Rows::end_row`]. Encoder and decoder run the same calls, so they see the same sites.
//!
//! Three kinds of tensors, told apart at compile time ([`PLAIN`], [`ROW`], [`KERNEL`]):
//! no prediction; prediction from the rows above, known before the row begins; prediction inside convolution kernels too.

use crate::context::{self, ContextSet, Contexts, SETS};
use crate::params::{KERNEL_WEIGHTS, Params};
use crate::scale;

/// No prediction: the residual is the level.
pub const PLAIN: u8 = 0;
/// Prediction from the rows above.
pub const ROW: u8 = 1;
/// Prediction from the rows above and inside the kernel.
pub const KERNEL: u8 = 2;

/// Fractional bits of a prediction.
const FRACTION: u32 = 8;
/// A prediction at least this far from the nearest level leans to one side: 0.17 in units of 2^-8.
const LEANING: i32 = 44;
/// Levels enter a prediction clamped to 16 bits, so that sums of weighted levels fit 32 bits.
const CLAMP: i32 = 1 << 15;

/// Which kind of tensor `params` describes.
#[must_use]
pub fn kind(params: &Params) -> u8 {
    if params.kernel.is_some() {
        KERNEL
    } else if params.row.is_some() {
        ROW
    } else {
        PLAIN
    }
}

/// What is known about the next level.
#[derive(Clone, Copy)]
pub struct Site {
    /// Index of the context set.
    pub set: usize,
    /// Low bits of the magnitude that are coded apart.
    pub low: u32,
    /// The predicted level.
    pub predicted: i32,
    /// The prediction leans to one side: the sign of the residual has a context.
    pub leaning: bool,
    /// It leans down: the residual is coded with its sign turned.
    pub down: bool,
}

impl Site {
    /// The residual of `level`, as it is coded.
    #[inline(always)]
    #[must_use]
    pub fn residual(self, level: i32) -> i32 {
        turned(level.wrapping_sub(self.predicted), self.down)
    }

    /// The level that has this residual.
    #[inline(always)]
    #[must_use]
    pub fn level(self, residual: i32) -> i32 {
        turned(residual, self.down).wrapping_add(self.predicted)
    }
}

#[inline(always)]
fn turned(value: i32, turn: bool) -> i32 {
    let mask = -i32::from(turn);
    (value ^ mask).wrapping_sub(mask)
}

/// The model's memory of a chunk.
pub struct Rows {
    contexts: Box<Contexts>,
    class_mask: usize,
    mean_log: i32,
    mean: i32,
    above_weight: i32,
    column_weight: i32,
    /// Per position of the kernel, the weights of the five neighbours; zero where the neighbour lies outside.
    kernel_weights: Vec<[i32; KERNEL_WEIGHTS]>,
    /// How far back in the row the five neighbours lie.
    kernel_offsets: [usize; KERNEL_WEIGHTS],
    /// Running magnitude of the row.
    row: i32,
    row_count: usize,
    /// Running magnitude of each column, in units of 2^-12.
    columns: Vec<i32>,
    /// The columns' shares of the class.
    shares: Vec<i32>,
    /// Running mean of each column's levels, in units of 2^-8.
    means: Vec<i32>,
    /// Prediction from the rows above, in units of 2^-8.
    predictions: Vec<i32>,
    /// Magnitudes of the row's residuals as they enter the averages.
    magnitudes: Vec<i32>,
    /// The row's levels behind `lead` zeros, so that a neighbour's place exists even where it does not count.
    levels: Vec<i32>,
    lead: usize,
}

impl Rows {
    /// Memory for chunks coded with `params`; call [`Rows::start`] before each.
    #[must_use]
    pub fn new(params: &Params) -> Self {
        let width = params.width;
        let (kernel_weights, kernel_offsets) = kernel_tables(params);
        let lead = kernel_offsets.into_iter().max().unwrap_or(0);
        let row = params.row.unwrap_or_default();
        let mut rows = Self {
            contexts: Box::new(*context::initial()),
            class_mask: params.resolution.mask(),
            mean_log: i32::from(params.mean_log),
            mean: scale::from_log(params.mean_log) as i32,
            above_weight: i32::from(row.above),
            column_weight: i32::from(row.column),
            kernel_weights,
            kernel_offsets,
            row: 0,
            row_count: 0,
            columns: vec![0; width],
            shares: vec![0; width],
            means: vec![0; width],
            predictions: vec![0; width],
            magnitudes: vec![0; width],
            levels: vec![0; width + lead],
            lead,
        };
        rows.start();
        rows
    }

    /// Forgets everything: a new chunk begins.
    pub fn start(&mut self) {
        self.contexts.copy_from_slice(context::initial());
        self.row = self.mean;
        self.row_count = 0;
        self.columns.fill(self.mean);
        self.share_columns();
        self.means.fill(0);
        self.predictions.fill(0);
        self.levels.fill(0);
    }

    /// What is known about the level in the next column, `column`.
    #[inline(always)]
    #[must_use]
    pub fn site<const KIND: u8>(&self, column: usize) -> Site {
        let class = scale::class(self.row, self.shares[column]) & self.class_mask;
        let low = scale::low_bits(class);
        if KIND == PLAIN {
            return Site { set: 2 * class, low, predicted: 0, leaning: false, down: false };
        }
        let mut prediction = self.predictions[column];
        if KIND == KERNEL {
            let weights = &self.kernel_weights[column % self.kernel_weights.len()];
            for (weight, offset) in weights.iter().zip(self.kernel_offsets) {
                prediction += weight * clamped(self.levels[self.lead + column - offset]);
            }
        }
        let predicted = (prediction + (1 << (FRACTION - 1))) >> FRACTION;
        let rest = prediction - (predicted << FRACTION);
        let leaning = rest.abs() >= LEANING;
        Site { set: 2 * class + usize::from(leaning), low, predicted, leaning, down: rest < 0 }
    }

    /// The contexts of a site.
    #[inline(always)]
    pub fn contexts(&mut self, site: Site) -> &mut ContextSet {
        &mut self.contexts[site.set % SETS]
    }

    /// Reports the level in that column and the magnitude of its residual.
    #[inline(always)]
    pub fn commit(&mut self, column: usize, level: i32, magnitude: u32) {
        let magnitude = scale::fixed(magnitude);
        self.levels[self.lead + column] = level;
        self.magnitudes[column] = magnitude;
        self.row = scale::row_average(self.row, magnitude, self.shares[column]);
    }

    /// The first `count` levels of the present row.
    #[inline(always)]
    #[must_use]
    pub fn row(&self, count: usize) -> &[i32] {
        &self.levels[self.lead..self.lead + count]
    }

    /// Moves on to the next row.
    #[inline(always)]
    pub fn end_row<const KIND: u8>(&mut self) {
        let shift = scale::column_shift(self.row_count);
        self.row_count += 1;
        self.row = self.mean;
        for (column, magnitude) in self.columns.iter_mut().zip(&self.magnitudes) {
            *column += (magnitude - *column) >> shift;
        }
        self.share_columns();
        if KIND != PLAIN {
            let levels = &self.levels[self.lead..];
            let (above_weight, column_weight) = (4 * self.above_weight, self.column_weight);
            for ((mean, prediction), level) in self.means.iter_mut().zip(&mut self.predictions).zip(levels) {
                let level = clamped(*level);
                *mean += ((level << FRACTION) - *mean) >> shift;
                *prediction = above_weight * level + ((column_weight * *mean) >> 6);
            }
        }
    }

    #[inline(always)]
    fn share_columns(&mut self) {
        for (index, (share, column)) in self.shares.iter_mut().zip(&self.columns).enumerate() {
            *share = scale::column_share(*column, self.mean_log, scale::row_shift(index));
        }
    }
}

#[inline(always)]
fn clamped(level: i32) -> i32 {
    level.clamp(-CLAMP, CLAMP - 1)
}

/// Weights per position of the kernel (in units of 2^-8) and offsets of its five neighbours.
fn kernel_tables(params: &Params) -> (Vec<[i32; KERNEL_WEIGHTS]>, [usize; KERNEL_WEIGHTS]) {
    let Some(kernel) = params.kernel else { return (vec![[0; KERNEL_WEIGHTS]], [0; KERNEL_WEIGHTS]) };
    let width = kernel.width;
    // (columns to the left, rows up) of each neighbour
    let steps = [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2)];
    let weights = (0..kernel.size)
        .map(|position| {
            let (x, y) = (position % width, position / width);
            std::array::from_fn(|n| {
                let inside = x >= steps[n].0 && y >= steps[n].1;
                if inside { 4 * i32::from(kernel.weights[n]) } else { 0 }
            })
        })
        .collect();
    (weights, steps.map(|(left, up)| left + up * width))
}
