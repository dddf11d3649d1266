//! Error feedback: what rounding one weight does to a layer's output is made up for by the weights that come after it.
//!
//! Errors `E` (weights less levels, in steps) of an `r x d` matrix cost `tr(G E A E^T)`, with `A = U D U^T` and `G = V C V^T`
//! factored into unit upper triangular matrices and diagonals. That is `sum C_i D_j Z_ij^2` of `Z = V^T E U`, and `Z_ij` is
//! the error of weight (i, j) plus what the errors left of it and above it add through `U` and `V`. So every weight gets a
//! target, itself plus that, and what its level lies beside the target is all that it costs. (One-sided: the optimal brain
//! surgeon of Hassibi & Stork 1993, in the form of GPTQ, Frantar et al. 2022; two-sided: Tseng et al. 2025.)
//!
//! Inside a block that the trellis decides as a whole, each survivor has the errors of its own path.

use crate::dependent::MAX_STATES;
use crate::trellis::Targets;

/// Weights whose levels are decided together: every one looks at all errors since the block's start.
const BLOCK: usize = 64;
/// Most weights between a block's start and the end of what is looked at.
const REACH: usize = 128;

/// The matrix that a chunk is a part of, and its factors.
pub struct Coupling<'a> {
    /// Columns.
    pub width: usize,
    /// `U` of each group of rows, `[groups][width][width]`: what an error in column l (row of `U`) adds in column j.
    pub columns: &'a [f32],
    /// Rows of a group.
    pub group_rows: usize,
    /// `V`, `[rows][rows]`, likewise; or empty: rows are independent.
    pub rows: &'a [f32],
    /// The chunk's first row.
    pub first_row: usize,
    /// `E U` of the rows before and, when the chunk is done, of its own: `[rows][width]`; empty if rows are independent.
    pub errors: &'a mut [f32],
}

impl Coupling<'_> {
    /// Row `column` of the `U` of the row that the chunk's `index`-th weight lies in.
    #[inline(always)]
    fn factors(&self, index: usize, column: usize) -> &[f32] {
        let group = (self.first_row + index / self.width) / self.group_rows;
        &self.columns[(group * self.width + column) * self.width..][..self.width]
    }
}

/// The targets of a chunk of a matrix.
pub struct Feedback<'a> {
    weights: &'a [f32],
    coupling: Coupling<'a>,
    limit: f32,
    /// Targets of the present row, by the errors of all weights whose levels are decided.
    row: Vec<f32>,
    /// What the rows above add to them.
    above: Vec<f32>,
    /// First weight of the present block.
    start: usize,
    /// Errors of the survivors since then, `[weight][state]`.
    errors: Vec<[f32; MAX_STATES]>,
    /// The part of `U` that counts inside the block, transposed: `[column][row]`.
    tile: Vec<[f32; REACH]>,
}

impl<'a> Feedback<'a> {
    /// `weights` in steps, the rows from `coupling.first_row` on; targets are kept within `limit`.
    #[must_use]
    pub fn new(weights: &'a [f32], coupling: Coupling<'a>, limit: f32) -> Self {
        let width = coupling.width;
        Self {
            weights,
            coupling,
            limit,
            row: vec![0.0; width],
            above: vec![0.0; width],
            start: 0,
            errors: Vec::with_capacity(REACH),
            tile: Vec::with_capacity(REACH),
        }
    }

    /// The target of the `index`-th weight, the levels of all before it being decided.
    #[inline(always)]
    pub(crate) fn target(&self, index: usize) -> f32 {
        self.row[index % self.coupling.width].clamp(-self.limit, self.limit)
    }

    #[inline(always)]
    fn begin_row(&mut self, index: usize) {
        let (width, coupling) = (self.coupling.width, &self.coupling);
        self.row.copy_from_slice(&self.weights[index..index + width]);
        if coupling.rows.is_empty() {
            return;
        }
        let row = coupling.first_row + index / width;
        let rows = coupling.errors.len() / width;
        self.above.fill(0.0);
        for (before, errors) in coupling.errors.chunks_exact(width).enumerate().take(row) {
            let factor = coupling.rows[before * rows + row];
            for (above, error) in self.above.iter_mut().zip(errors) {
                *above += factor * error;
            }
        }
        for (target, above) in self.row.iter_mut().zip(&self.above) {
            *target += above;
        }
    }

    /// The level of the `index`-th weight is decided; they are in order.
    #[inline(always)]
    pub(crate) fn decided(&mut self, index: usize, level: i32) {
        let (width, level) = (self.coupling.width, level as f32);
        let column = index % width;
        if !self.coupling.rows.is_empty() {
            let row = self.coupling.first_row + index / width;
            self.coupling.errors[row * width + column] = self.row[column] - level - self.above[column];
        }
        let error = self.weights[index] - level;
        let factors = self.coupling.factors(index, column);
        for (target, factor) in self.row[column + 1..].iter_mut().zip(&factors[column + 1..]) {
            *target += error * factor;
        }
    }
}

impl Targets for Feedback<'_> {
    const SHARED: bool = false;
    const BLOCK: usize = BLOCK;

    #[inline(always)]
    fn count(&self) -> usize {
        self.weights.len()
    }

    #[inline(always)]
    fn begin(&mut self, index: usize) {
        let column = index % self.coupling.width;
        if column == 0 {
            self.begin_row(index);
        }
        self.start = index;
        self.errors.clear();
        let reach = REACH.min(self.coupling.width - column);
        self.tile.clear();
        self.tile.resize(reach, [0.0; REACH]);
        for row in 0..reach {
            let factors = &self.coupling.factors(index, column + row)[column..column + reach];
            for (tile, factor) in self.tile.iter_mut().zip(factors) {
                tile[row] = *factor;
            }
        }
    }

    #[inline(always)]
    fn targets<const N: usize>(&mut self, index: usize) -> [f32; N] {
        let mut targets = [self.row[index % self.coupling.width]; N];
        let factors = &self.tile[index - self.start];
        for (errors, factor) in self.errors.iter().zip(factors) {
            for (target, error) in targets.iter_mut().zip(errors) {
                *target += error * factor;
            }
        }
        targets.map(|target| target.clamp(-self.limit, self.limit))
    }

    #[inline(always)]
    fn follow<const N: usize>(&mut self, index: usize, ways: &[(usize, i32); N]) {
        for errors in &mut self.errors {
            let before = *errors;
            for (error, (from, _)) in errors.iter_mut().zip(ways) {
                *error = before[from % MAX_STATES];
            }
        }
        let mut errors = [0.0; MAX_STATES];
        for (error, (_, level)) in errors.iter_mut().zip(ways) {
            *error = self.weights[index] - *level as f32;
        }
        self.errors.push(errors);
    }
}
