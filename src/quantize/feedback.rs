//! Error feedback: what rounding one weight does to a layer's output is made up for by the weights that come after it.
//!
//! Errors `E` (weights less levels, in steps) of an `r x d` matrix cost `tr(G E A E^T)`, with `A = U D U^T` and `G = V C V^T`
//! factored into unit upper triangular matrices and diagonals. That is `sum C_i D_j Z_ij^2` of `Z = V^T E U`, and `Z_ij` is
//! the error of weight (i, j) plus what the errors left of it and above it add through `U` and `V`. So every weight gets a
//! target, itself plus that, and what its level lies beside the target is all that it costs. (One-sided: the optimal brain
//! surgeon of Hassibi & Stork 1993, in the form of GPTQ, Frantar et al. 2022; two-sided: Tseng et al. 2025.)
//!
//! Inside a block that the trellis decides as a whole, each survivor has the errors of its own path.

use crate::model::dependent::MAX_STATES;
use crate::quantize::targets::Targets;

/// Weights whose levels are decided together: every one looks at all errors since the block's start.
const BLOCK: usize = 64;
/// Most weights between a block's start and the end of what is looked at.
const REACH: usize = 128;

/// The matrix that a chunk is a part of, and its factors.
///
/// `U` is given in square blocks along its diagonal. Beside them it is zero, or what it has in column j is the same in
/// all rows: the factor of a matrix that is the sum of such blocks and of a matrix of ones has that form.
pub struct Coupling<'a> {
    /// Columns.
    pub width: usize,
    /// Columns of a block of `U`, a divisor of `width`; `width` if `U` is given whole.
    pub block: usize,
    /// Blocks of the `U` of each group of rows, `[groups][width / block][block][block]`: what an error in column l (row of
    /// `U`) adds in column j.
    pub columns: &'a [f32],
    /// What an error in an earlier block adds in each column, `[width]`; or empty: nothing.
    pub common: &'a [f32],
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
    /// Row `column` of the block of `U` that it lies in, for the row that the chunk's `index`-th weight lies in.
    #[inline(always)]
    fn factors(&self, index: usize, column: usize) -> &[f32] {
        let group = (self.first_row + index / self.width) / self.group_rows;
        &self.columns[(group * self.width + column) * self.block..][..self.block]
    }
}

/// The targets of a chunk of a matrix.
pub struct Feedback<'a> {
    weights: &'a [f32],
    /// Whether a weight of zero stays zero, whatever it could make up for.
    keeps_zeros: bool,
    coupling: Coupling<'a>,
    limit: f32,
    /// Targets of the present row, by the errors of all weights whose levels are decided.
    row: Vec<f32>,
    /// What the rows above add to them.
    above: Vec<f32>,
    /// Sum of the row's errors, as far as they are decided, and of those in the blocks of `U` before the first that is
    /// not decided as a whole.
    sum: f32,
    before: f32,
    /// First column of that block.
    undecided: usize,
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
    pub fn new(weights: &'a [f32], keeps_zeros: bool, coupling: Coupling<'a>, limit: f32) -> Self {
        let width = coupling.width;
        Self {
            weights,
            keeps_zeros,
            coupling,
            limit,
            row: vec![0.0; width],
            above: vec![0.0; width],
            sum: 0.0,
            before: 0.0,
            undecided: 0,
            start: 0,
            errors: Vec::with_capacity(REACH),
            tile: Vec::with_capacity(REACH),
        }
    }

    /// The target of the `index`-th weight, the levels of all before it being decided.
    #[inline(always)]
    pub(crate) fn target(&self, index: usize) -> f32 {
        self.unbounded(index % self.coupling.width).clamp(-self.limit, self.limit)
    }

    #[inline(always)]
    fn unbounded(&self, column: usize) -> f32 {
        let Some(factor) = self.coupling.common.get(column) else { return self.row[column] };
        let errors = if column < self.undecided + self.coupling.block { self.before } else { self.sum };
        self.row[column] + factor * errors
    }

    #[inline(always)]
    fn begin_row(&mut self, index: usize) {
        let (width, coupling) = (self.coupling.width, &self.coupling);
        self.row.copy_from_slice(&self.weights[index..index + width]);
        (self.sum, self.before, self.undecided) = (0.0, 0.0, 0);
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
}

impl Targets for Feedback<'_> {
    const SHARED: bool = false;
    const BLOCK: usize = BLOCK;

    #[inline(always)]
    fn count(&self) -> usize {
        self.weights.len()
    }

    #[inline(always)]
    fn is_zero(&self, index: usize) -> bool {
        self.keeps_zeros && self.weights[index] == 0.0
    }

    #[inline(always)]
    fn rough(&self, index: usize) -> f32 {
        self.target(index)
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
        let coupling = &self.coupling;
        for row in 0..reach {
            let place = (column + row) % coupling.block;
            let inside = (coupling.block - place).min(reach - row);
            let factors = &coupling.factors(index, column + row)[place..place + inside];
            for (tile, factor) in self.tile[row..].iter_mut().zip(factors) {
                tile[row] = *factor;
            }
            let common = coupling.common.get(column + row + inside..).unwrap_or_default();
            for (tile, factor) in self.tile[row + inside..].iter_mut().zip(common) {
                tile[row] = *factor;
            }
        }
    }

    #[inline(always)]
    fn decided(&mut self, index: usize, level: i32) {
        let (width, block, level) = (self.coupling.width, self.coupling.block, level as f32);
        let column = index % width;
        if !self.coupling.rows.is_empty() {
            let row = self.coupling.first_row + index / width;
            self.coupling.errors[row * width + column] = self.unbounded(column) - level - self.above[column];
        }
        let error = self.weights[index] - level;
        let place = column % block;
        let factors = self.coupling.factors(index, column);
        for (target, factor) in self.row[column + 1..].iter_mut().zip(&factors[place + 1..]) {
            *target += error * factor;
        }
        self.sum += error;
        if place + 1 == block {
            (self.before, self.undecided) = (self.sum, column + 1);
        }
    }

    #[inline(always)]
    fn targets<const N: usize>(&mut self, index: usize) -> [f32; N] {
        let mut targets = [self.unbounded(index % self.coupling.width); N];
        let factors = &self.tile[index - self.start];
        for (errors, factor) in self.errors.iter().zip(factors) {
            for (target, error) in targets.iter_mut().zip(errors) {
                *target += error * factor;
            }
        }
        for target in &mut targets {
            *target = target.clamp(-self.limit, self.limit);
        }
        targets
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::quantize_on;
    use crate::coding::lanes::Job;
    use crate::coding::output::Output;
    use crate::cpu::dispatch::{self, quantize};
    use crate::model::context::Portable;
    use crate::model::dependent::States;
    use crate::model::params::{Coder, KernelPrediction, Params, RowPrediction};
    use crate::model::scale::Resolution;
    use crate::quantize::greedy::Quantizer;
    use crate::testing::Random;

    /// A number between -1 and 1.
    fn number(random: &mut Random) -> f32 {
        random.below(2001) as f32 / 1000.0 - 1.0
    }

    /// Unit upper triangular matrices, `[count][size][size]`.
    fn factors(random: &mut Random, count: usize, size: usize) -> Vec<f32> {
        let mut factors = vec![0.0; count * size * size];
        for (index, factor) in factors.iter_mut().enumerate() {
            let (row, column) = (index / size % size, index % size);
            *factor = if row < column { 0.5 * number(random) / (size as f32).sqrt() } else { f32::from(row == column) };
        }
        factors
    }

    /// Some of what errors in earlier blocks add.
    fn common(random: &mut Random, width: usize) -> Vec<f32> {
        (0..width).map(|_| 0.3 * number(random) / (width as f32).sqrt()).collect()
    }

    /// The whole of the matrices that [`Coupling`] has in blocks: `[groups][width][width]`.
    fn whole(blocks: &[f32], common: &[f32], groups: usize, width: usize, block: usize) -> Vec<f32> {
        let mut factors = Vec::with_capacity(groups * width * width);
        for row in 0..groups * width {
            let start = row % width / block * block;
            factors.extend((0..width).map(|column| match column.checked_sub(start) {
                Some(place) if place < block => blocks[row * block + place],
                Some(_) => common.get(column).copied().unwrap_or_default(),
                None => 0.0,
            }));
        }
        factors
    }

    /// `E U` of one row, in column j, and what rows above add to it: plain sums, as the head of this file has them.
    struct Direct<'a> {
        width: usize,
        group_rows: usize,
        height: usize,
        columns: &'a [f32],
        rows: &'a [f32],
    }

    impl Direct<'_> {
        fn along(&self, errors: &[f64], row: usize, column: usize, until: usize) -> f64 {
            let group = row / self.group_rows;
            let factor = |l: usize| f64::from(self.columns[(group * self.width + l) * self.width + column]);
            (0..until).map(|l| errors[row * self.width + l] * factor(l)).sum()
        }

        /// What `Z` at (row, column) is but for the error there.
        fn others(&self, errors: &[f64], row: usize, column: usize) -> f64 {
            let above = |before: usize| {
                let factor = f64::from(self.rows[before * self.height + row]);
                factor * self.along(errors, before, column, column + 1)
            };
            let above: f64 = if self.rows.is_empty() { 0.0 } else { (0..row).map(above).sum() };
            above + self.along(errors, row, column, column)
        }
    }

    #[test]
    fn targets_of_survivors_are_those_of_a_direct_computation() {
        const N: usize = 8;
        let random = &mut Random(7);
        for (height, width, groups, coupled, block) in [
            (3, 5, 1, true, 5),
            (6, 70, 3, false, 70),
            (4, 300, 1, true, 300),
            (4, 9, 4, true, 9),
            (2, 64, 1, false, 64),
            (1, 1, 1, true, 1),
            (3, 180, 1, false, 9),
            (3, 200, 1, true, 25),
            (4, 90, 2, false, 1),
            (2, 300, 1, false, 100),
        ] {
            let blocks = factors(random, groups * (width / block), block);
            let common = if block < width { common(random, width) } else { Vec::new() };
            let columns = whole(&blocks, &common, groups, width, block);
            let rows = if coupled { factors(random, 1, height) } else { Vec::new() };
            let direct = Direct { width, group_rows: height / groups, height, columns: &columns, rows: &rows };
            let weights: Vec<f32> = (0..height * width).map(|_| 4.0 * number(random)).collect();
            let mut eu = vec![0.0; if coupled { height * width } else { 0 }];
            let group_rows = height / groups;
            let (columns, common, rows, errors) = (&blocks[..], &common[..], &rows[..], &mut eu[..]);
            let coupling = Coupling { width, block, columns, common, group_rows, rows, first_row: 0, errors };
            let mut feedback = Feedback::new(&weights, false, coupling, 1e6);
            let mut decided = vec![0.0; height * width];
            let mut start = 0;
            while start < height * width {
                let (row, column) = (start / width, start % width);
                let count = Feedback::BLOCK.min(width - column);
                let looked_at = (count + 32).min(width - column);
                feedback.begin(start);
                // Errors, and levels, of the survivors' paths.
                let mut survivors = vec![(decided.clone(), vec![0; looked_at]); N];
                for place in 0..looked_at {
                    let targets: [f32; N] = feedback.targets(start + place);
                    for ((errors, _), target) in survivors.iter().zip(targets) {
                        let expected = f64::from(weights[start + place]) + direct.others(errors, row, column + place);
                        assert!((f64::from(target) - expected).abs() < 1e-4, "{target} {expected}");
                    }
                    let ways: [(usize, i32); N] =
                        std::array::from_fn(|s| (random.below(N as u64), targets[s].round() as i32 + s as i32 % 3 - 1));
                    feedback.follow(start + place, &ways);
                    survivors = ways
                        .iter()
                        .map(|(from, level)| {
                            let (mut errors, mut levels) = survivors[*from].clone();
                            errors[start + place] = f64::from(weights[start + place]) - f64::from(*level);
                            levels[place] = *level;
                            (errors, levels)
                        })
                        .collect();
                }
                let (errors, levels) = &survivors[random.below(N as u64)];
                for place in 0..count {
                    feedback.decided(start + place, levels[place]);
                    decided[start + place] = errors[start + place];
                }
                start += count;
            }
            for (index, eu) in eu.iter().enumerate() {
                let (row, column) = (index / width, index % width);
                assert!((f64::from(*eu) - direct.along(&decided, row, column, column + 1)).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn every_machine_finds_the_same_levels_and_they_make_up_for_each_other() {
        let random = &mut Random(8);
        let row = Some(RowPrediction { above: 20, column: 10 });
        let kernel = Some(KernelPrediction { width: 3, size: 9, weights: [20, 20, -10, 3, 3] });
        let all_states = [None, States::of_bits(3), States::of_bits(4), States::of_bits(5), States::of_bits(6)];
        for states in all_states {
            for (height, width, groups, row, kernel, coder) in [
                (12, 18, 3, None, None, Coder::Binary),
                (10, 90, 1, row, None, Coder::Binary),
                (12, 27, 1, row, kernel, Coder::Binary),
                (6, 200, 2, None, kernel, Coder::Binary),
                (40, 1, 1, None, None, Coder::Binary),
                (30, 100, 1, row, None, Coder::Regression),
            ] {
                for (lambda, limit) in [(0.0, 1 << 24), (0.3, 1 << 24), (0.1, 8)] {
                    let resolution = Resolution::Coarse;
                    let params = Params { coder, resolution, mean_log: 96, width, chunk_rows: 5, row, kernel, states };
                    let block = if kernel.is_some() { 9.min(width / 2) } else { width };
                    let block = if width.is_multiple_of(block) { block } else { width };
                    let columns = factors(random, groups * (width / block), block);
                    let common = if block < width { common(random, width) } else { Vec::new() };
                    let rows = factors(random, 1, height);
                    let weights: Vec<f32> = (0..height * width).map(|_| 20.0 * number(random)).collect();
                    let code = |portable: bool| {
                        let (mut bytes, mut levels) = (Vec::new(), vec![0; height * width]);
                        let mut errors = vec![0.0; height * width];
                        let chunks = weights.chunks(5 * width).zip(levels.chunks_mut(5 * width));
                        for (chunk, (weights, levels)) in chunks.enumerate() {
                            let group_rows = height / groups;
                            let (columns, common, rows, errors) = (&columns, &common, &rows, &mut errors);
                            let first_row = 5 * chunk;
                            let coupling =
                                Coupling { width, block, columns, common, group_rows, rows, first_row, errors };
                            let quantizer = Quantizer::new(1.0, lambda, limit);
                            let mut coded = Vec::new();
                            let sums = if portable {
                                let (coupling, levels) = (Some(coupling), Some(&mut *levels));
                                quantize_on::<Portable>(&params, weights, quantizer, coupling, levels, &mut coded)
                            } else {
                                let (coupling, levels) = (Some(coupling), Some(&mut *levels));
                                quantize(&params, weights, quantizer, coupling, levels, &mut coded)
                            };
                            let pairs =
                                || weights.iter().zip(levels.iter()).map(|(w, q)| (f64::from(*w), f64::from(*q)));
                            assert_eq!(sums.error, pairs().map(|(w, q)| (w - q) * (w - q)).sum::<f64>());
                            let mut decoded = vec![0; levels.len()];
                            let output = Output::Levels(&mut decoded);
                            let mut jobs = [Job { params: params.clone(), bytes: &coded, output, good: false }];
                            dispatch::decode(&mut jobs);
                            assert!(jobs[0].good);
                            assert_eq!(decoded, levels);
                            bytes.push(coded);
                        }
                        (bytes, levels, errors)
                    };
                    let (bytes, levels, errors) = code(false);
                    assert!(levels.iter().all(|level| level.abs() <= limit));
                    assert!(code(true) == (bytes, levels, errors));
                }
            }
        }
    }
}
