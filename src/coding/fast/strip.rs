//! What the levels so far say about the next ones, for `N` rows at once, each in a strip of its own.
//!
//! As `rows.rs` says it, but for the columns: their averages are those of all strips together.

#![allow(clippy::needless_range_loop)] // strips are numbered in several arrays at once

use crate::model::dependent::{self, States, Taps};
use crate::model::params::Params;
use crate::model::rows::{self, Kernel, Site};
use crate::model::scale;

/// What is known about the next levels: [`Site`], each field by itself.
pub(crate) struct Sites<const N: usize> {
    pub(crate) set: [u32; N],
    pub(crate) low: [u32; N],
    predicted: [i32; N],
    expected: [i32; N],
    odd: [i32; N],
    /// -1 or 0.
    down: [i32; N],
    /// All ones where symbols are signed residuals, else 0.
    pub(crate) zigzag: [u32; N],
}

impl<const N: usize> Sites<N> {
    /// The residuals of these levels.
    #[inline(always)]
    pub(crate) fn residuals<const KIND: u8>(&self, levels: &[i32; N]) -> [i32; N] {
        let mut residuals = [0; N];
        for k in 0..N {
            let index = if rows::dependent(KIND) { dependent::index(levels[k], self.odd[k]) } else { levels[k] };
            let residual = index.wrapping_sub(self.predicted[k]);
            residuals[k] = (residual ^ self.down[k]).wrapping_sub(self.down[k]);
        }
        residuals
    }

    /// The indices that have these residuals.
    #[inline(always)]
    pub(crate) fn indices<const KIND: u8>(&self, residuals: &[i32; N]) -> [i32; N] {
        let mut indices = *residuals;
        if rows::predicts(KIND) {
            for k in 0..N {
                let turned = (residuals[k] ^ self.down[k]).wrapping_sub(self.down[k]);
                indices[k] = turned.wrapping_add(self.predicted[k]);
            }
        }
        indices
    }
}

/// The model's memory of `N` strips.
pub(crate) struct Strips<const N: usize> {
    class_mask: u32,
    mean: i32,
    above_weight: i32,
    column_weight: i32,
    taps: Taps,
    kernel: Kernel,
    row_count: usize,
    /// Running magnitude of each strip's row.
    pub(crate) row: [i32; N],
    /// State of the machine that chooses between two quantisers.
    pub(crate) state: [u32; N],
    columns: Vec<i32>,
    bases: Vec<i32>,
    shares: Vec<i32>,
    means: Vec<i32>,
    /// Empty without predictions.
    predictions: Vec<[i32; N]>,
    pub(crate) levels: Vec<[i32; N]>,
}

impl<const N: usize> Strips<N> {
    /// The memory at the start of strips of `count` levels each.
    pub(crate) fn new<const KIND: u8>(params: &Params, count: usize) -> Self {
        let width = params.width.min(count);
        let mean_log = i32::from(params.mean_log);
        let mean = scale::from_log(params.mean_log) as i32;
        let row = params.row.unwrap_or_default();
        let mut strips = Self {
            class_mask: params.resolution.mask() as u32,
            mean,
            above_weight: i32::from(row.above),
            column_weight: i32::from(row.column),
            taps: params.states.map(States::taps).unwrap_or_default(),
            kernel: Kernel::new(params),
            row_count: 0,
            row: [mean; N],
            state: [0; N],
            columns: vec![mean; width],
            bases: (0..width).map(|column| scale::column_base(column, mean_log)).collect(),
            shares: vec![0; width],
            means: vec![0; width],
            predictions: if rows::predicts(KIND) { vec![[0; N]; width] } else { Vec::new() },
            levels: vec![[0; N]; width],
        };
        strips.share_columns();
        strips
    }

    /// What is known about the levels in the next column, `column`.
    #[inline(always)]
    pub(crate) fn locate<const KIND: u8>(&mut self, column: usize) -> Sites<N> {
        let share = self.shares[column];
        let mut sites = Sites {
            set: [0; N],
            low: [0; N],
            predicted: [0; N],
            expected: [0; N],
            odd: [0; N],
            down: [0; N],
            zigzag: [0; N],
        };
        for k in 0..N {
            sites.odd[k] = (self.state[k] & 1) as i32;
        }
        let prediction = if rows::predicts(KIND) { self.predict::<KIND>(column) } else { [0; N] };
        for k in 0..N {
            let class = scale::class_of_log(scale::log(self.row[k]), share) as u32 & self.class_mask;
            sites.low[k] = (((class as i32 + 16) >> 2) - 13).max(0) as u32;
            let site = Site { odd: sites.odd[k], ..Site::default() }.predicted::<KIND>(class as usize, prediction[k]);
            sites.set[k] = site.set as u32;
            if rows::predicts(KIND) {
                (sites.predicted[k], sites.expected[k]) = (site.predicted, site.expected);
                sites.down[k] = -i32::from(site.down);
                sites.zigzag[k] = u32::from(site.leaning && sites.low[k] == 0).wrapping_neg();
            }
        }
        sites
    }

    #[inline(always)]
    fn predict<const KIND: u8>(&mut self, column: usize) -> [i32; N] {
        let mut prediction = self.predictions[column];
        if rows::in_kernels(KIND) {
            for (offset, weight) in self.kernel.neighbours(column % self.kernel.size) {
                if let Some(levels) = column.checked_sub(usize::from(offset)).map(|column| &self.levels[column]) {
                    for k in 0..N {
                        prediction[k] += weight * rows::clamped(levels[k]);
                    }
                }
            }
            self.predictions[column] = prediction;
        }
        prediction
    }

    /// Reports the indices at these sites; returns their levels.
    #[inline(always)]
    pub(crate) fn commit<const KIND: u8>(&mut self, column: usize, sites: &Sites<N>, indices: &[i32; N]) {
        let share = self.shares[column];
        let mut levels = *indices;
        for k in 0..N {
            if rows::dependent(KIND) {
                levels[k] = dependent::level(indices[k], sites.odd[k]);
                self.state[k] = self.taps.next(self.state[k], indices[k] as u32);
            }
            let fixed = fixed::<KIND>(levels[k].wrapping_sub(sites.expected[k]));
            self.row[k] = scale::row_average(self.row[k], fixed, share);
        }
        self.levels[column] = levels;
    }

    /// Moves on to the next row of each strip.
    #[inline(always)]
    pub(crate) fn end_row<const KIND: u8>(&mut self) {
        let shift = if N == 1 { scale::column_shift(self.row_count) } else { column_shift(self.row_count) };
        self.row_count += 1;
        self.row = [self.mean; N];
        for (column, levels) in self.levels.iter().enumerate() {
            let mut sum = 0;
            for k in 0..N {
                let expected = if rows::predicts(KIND) { rows::rounded(self.predictions[column][k]) } else { 0 };
                sum += fixed::<KIND>(levels[k].wrapping_sub(expected));
            }
            let average = &mut self.columns[column];
            *average += (sum / N as i32 - *average) >> shift;
        }
        self.share_columns();
        if rows::predicts(KIND) {
            let (above_weight, column_weight) = (4 * self.above_weight, self.column_weight);
            for ((mean, predictions), levels) in self.means.iter_mut().zip(&mut self.predictions).zip(&self.levels) {
                let mut levels = *levels;
                for level in &mut levels {
                    *level = rows::clamped(*level);
                }
                let sum: i32 = levels.iter().sum();
                *mean += ((sum << rows::FRACTION) / N as i32 - *mean) >> shift;
                let from_column = (column_weight * *mean) >> 6;
                for k in 0..N {
                    predictions[k] = above_weight * levels[k] + from_column;
                }
            }
        }
    }

    #[inline(always)]
    fn share_columns(&mut self) {
        for ((share, column), base) in self.shares.iter_mut().zip(&self.columns).zip(&self.bases) {
            *share = scale::column_share(*column, *base);
        }
    }
}

/// Adaptation shift of the columns' averages after the `row`-th row of many strips, which teaches as much as many rows.
const fn column_shift(row: usize) -> u32 {
    match row {
        0 => 1,
        1..8 => 3,
        _ => 5,
    }
}

/// A residual as it enters an average.
#[inline(always)]
fn fixed<const KIND: u8>(residual: i32) -> i32 {
    let magnitude = residual.unsigned_abs();
    if rows::dependent(KIND) { scale::fixed_half(magnitude) } else { scale::fixed(magnitude) }
}
