//! Regression: what the levels so far in a row say about the next one, learned from the rows above.
//!
//! Rows of a trained matrix are not spread evenly in all directions. Let `x` be a row, less what the rows above predict of it,
//! and `L D L^T` the sum of `x x^T` over all rows so far, on top of a multiple of the unit matrix, L being unit lower
//! triangular and D a diagonal. Then the best linear prediction of `x_k` from what precedes it is `sum L_kj e_j` over j < k, `e`
//! being what earlier predictions in this row were off by. A row more changes L and D by rank one (Gill, Golub, Murray &
//! Saunders 1974, method C1), so learning costs little more than predicting.
//!
//! Columns are taken together in blocks, each with an L of its own, so that all factors stay in a core's cache. All is in single
//! precision, element by element and never fused, so that every machine has the same numbers; predictions are then integers,
//! as in `rows.rs`.

use std::ops::Range;

/// Factors of all blocks together are about so many at most, unless a block would be narrower than [`GROUP`].
const MOST_FACTORS: usize = 1 << 19;
/// Predictions are kept within so much.
const LIMIT: i32 = 1 << 23;
/// Numbers that are worked on together. What lies before a column in its group is worked on too, and never used.
const GROUP: usize = 16;
type Group = [f32; GROUP];

/// The regression of a chunk's columns on those before them.
pub struct Regression {
    /// Columns of a block; the last may have fewer.
    reach: usize,
    blocks: Vec<Block>,
    /// Where the next column is.
    block: usize,
    place: usize,
}

struct Block {
    /// `L_kj` in row j, of which only what lies after column j is used.
    factors: Vec<Group>,
    /// D.
    energies: Vec<f32>,
    /// Predictions of the present row's columns, as far as its levels are known.
    predictions: Vec<Group>,
    /// The present row, less what rows above predict.
    row: Vec<Group>,
}

/// Rows that the prior of a regression counts for: about one and a half times as many as there are columns. Twice or half as many
/// cost 0.1 to 0.3 %.
#[must_use]
pub fn prior_rows(width: usize) -> f32 {
    (1_u32 << (3 * width).ilog2()) as f32
}

/// Columns of the blocks of rows of this width: alike, and as many as leave all factors in the cache.
#[must_use]
pub fn reach(width: usize) -> usize {
    let most = (MOST_FACTORS / width.max(1)).max(GROUP);
    width.div_ceil(width.div_ceil(most).max(1)).max(1)
}

impl Regression {
    /// Of rows of `width`, of which nothing is known but what the squares of a column sum up to, `known`.
    #[must_use]
    pub fn new(width: usize, known: f32) -> Self {
        let reach = reach(width);
        let block = |first: usize| Block::new(reach.min(width - first), known);
        Self { reach, blocks: (0..width).step_by(reach).map(block).collect(), block: 0, place: 0 }
    }

    /// What is predicted in the next column, in units of 2^-8.
    #[inline(always)]
    #[must_use]
    pub fn prediction(&self) -> i32 {
        self.blocks[self.block].prediction(self.place)
    }

    /// The level in the next column is off by so much, in units of 2^-8, from all that was predicted there.
    #[inline(always)]
    pub fn commit(&mut self, off: i32) {
        let block = &mut self.blocks[self.block];
        block.commit(self.place, off);
        self.place += 1;
        if self.place == block.energies.len() {
            (self.block, self.place) = (self.block + 1, 0);
        }
    }

    /// Learns from the row, and forgets it.
    #[inline(always)]
    pub fn end_row(&mut self) {
        (self.block, self.place) = (0, 0);
        for block in &mut self.blocks {
            block.end_row();
        }
    }

    /// Predictions in `columns`, after the next one, if levels there were those that `rough` says, in units of 2^-8: after
    /// what `base` predicts of each column, all together.
    #[inline(always)]
    pub(crate) fn guess(
        &self,
        columns: Range<usize>,
        base: &[i32],
        rough: impl Fn(usize) -> f32,
        guesses: &mut Vec<i32>,
    ) {
        guesses.clear();
        let mut start = columns.start;
        while start < columns.end {
            let block = start / self.reach * self.reach;
            let end = columns.end.min(block + self.reach);
            self.blocks[block / self.reach].guess(start - block..end - block, |place, prediction| {
                let prediction = base[block + place] + prediction;
                guesses.push(prediction);
                rough(block + place) - prediction as f32
            });
            start = end;
        }
    }
}

impl Block {
    fn new(width: usize, known: f32) -> Self {
        let groups = width.div_ceil(GROUP);
        Self {
            factors: vec![[0.0; GROUP]; width * groups],
            energies: vec![known; width],
            predictions: vec![[0.0; GROUP]; groups],
            row: vec![[0.0; GROUP]; groups],
        }
    }

    #[inline(always)]
    fn prediction(&self, place: usize) -> i32 {
        whole(self.predictions[place / GROUP][place % GROUP])
    }

    #[inline(always)]
    fn commit(&mut self, place: usize, off: i32) {
        let off = off as f32;
        self.row[place / GROUP][place % GROUP] = off + self.prediction(place) as f32;
        let groups = self.predictions.len();
        let factors = &self.factors[place * groups..][..groups];
        add(&mut self.predictions, factors, place, off);
    }

    #[inline(always)]
    fn end_row(&mut self) {
        let groups = self.row.len();
        let mut weight = 1.0;
        for (place, (energy, factors)) in self.energies.iter_mut().zip(self.factors.chunks_mut(groups)).enumerate() {
            let off = self.row[place / GROUP][place % GROUP];
            let weighted = weight * off;
            let before = *energy;
            let behind = before + weighted * off;
            let rate = weighted / behind;
            (*energy, weight) = (behind, weight * before / behind);
            let first = (place + 1) / GROUP;
            for (factors, row) in factors[first..].iter_mut().zip(&mut self.row[first..]) {
                *row = std::array::from_fn(|k| row[k] - off * factors[k]);
                *factors = std::array::from_fn(|k| factors[k] + rate * row[k]);
            }
        }
        self.predictions.fill([0.0; GROUP]);
    }

    /// Asks in these places what the level is off by from what is predicted.
    #[inline(always)]
    fn guess(&self, places: Range<usize>, mut off: impl FnMut(usize, i32) -> f32) {
        let groups = self.predictions.len();
        let last = places.end.div_ceil(GROUP);
        let mut predictions = self.predictions[..last].to_vec();
        for place in places {
            let off = off(place, whole(predictions[place / GROUP][place % GROUP]));
            add(&mut predictions, &self.factors[place * groups..][..last], place, off);
        }
    }
}

/// What a level in this place, `off` from its prediction, adds to predictions after it.
#[inline(always)]
fn add(predictions: &mut [Group], factors: &[Group], place: usize, off: f32) {
    let first = (place + 1) / GROUP;
    for (predictions, factors) in predictions[first..].iter_mut().zip(&factors[first..]) {
        *predictions = std::array::from_fn(|k| predictions[k] + factors[k] * off);
    }
}

/// A prediction without its fraction, within the limit.
#[inline(always)]
fn whole(prediction: f32) -> i32 {
    (prediction as i32).clamp(-LIMIT, LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::coding::lanes::Job;
    use crate::coding::output::Output;
    use crate::cpu::dispatch;
    use crate::model::params::{Coder, Params};
    use crate::model::scale::Resolution;
    use crate::testing::Random;

    /// Rows with three hidden causes, in units of 2^-8 of a level.
    fn row(random: &mut Random, width: usize) -> Vec<i32> {
        let mut number = || random.below(2001) as i32 - 1000;
        let causes = [number(), number(), number()];
        (0..width).map(|k| causes[k % 3] * (k as i32 % 7 - 3) / 2 + causes[k / 2 % 3] + number()).collect()
    }

    /// `y` with `(known I + sum x x^T) y = b`, by elimination.
    fn solve(rows: &[Vec<i32>], known: f64, places: Range<usize>, target: usize) -> Vec<f64> {
        let moment = |a: usize, b: usize| -> f64 { rows.iter().map(|x| f64::from(x[a]) * f64::from(x[b])).sum() };
        let size = places.len();
        let mut matrix: Vec<Vec<f64>> = (places.clone())
            .map(|a| {
                let left = places.clone().map(|b| moment(a, b) + if a == b { known } else { 0.0 });
                left.chain([moment(a, target)]).collect()
            })
            .collect();
        for pivot in 0..size {
            for other in (0..size).filter(|other| *other != pivot) {
                let factor = matrix[other][pivot] / matrix[pivot][pivot];
                let taken = matrix[pivot].clone();
                for (value, taken) in matrix[other].iter_mut().zip(taken) {
                    *value -= factor * taken;
                }
            }
        }
        (0..size).map(|k| matrix[k][size] / matrix[k][k]).collect()
    }

    #[test]
    fn predictions_are_those_of_ridge_regression_on_all_rows_so_far() {
        let random = &mut Random(21);
        for width in [1, 2, 16, 17, 40] {
            let mut regression = Regression::new(width, 8e6);
            let mut rows: Vec<Vec<i32>> = Vec::new();
            for _ in 0..60 {
                let row = row(random, width);
                for column in 0..width {
                    let weights = solve(&rows, 8e6, 0..column, column);
                    let expected: f64 = weights.iter().zip(&row).map(|(weight, x)| weight * f64::from(*x)).sum();
                    let prediction = regression.prediction();
                    // A prediction is cut to a whole number, and so what is learned from it.
                    assert!((f64::from(prediction) - expected).abs() < 4.0, "{prediction} {expected}");
                    regression.commit(row[column] - prediction);
                }
                regression.end_row();
                rows.push(row);
            }
        }
    }

    #[test]
    fn columns_of_other_blocks_do_not_count() {
        let random = &mut Random(22);
        let width = 3000;
        let start = width / reach(width) * reach(width);
        let (mut whole, mut part) = (Regression::new(width, 4e6), Regression::new(width - start, 4e6));
        for _ in 0..20 {
            let row = row(random, width);
            for (column, x) in row.into_iter().enumerate() {
                let prediction = whole.prediction();
                whole.commit(x - prediction);
                if column >= start {
                    assert_eq!(part.prediction(), prediction);
                    part.commit(x - prediction);
                }
            }
            whole.end_row();
            part.end_row();
        }
    }

    #[test]
    fn guesses_are_predictions_where_levels_are_what_they_are_taken_for() {
        let random = &mut Random(23);
        let width = 1100;
        let mut regression = Regression::new(width, 16e6);
        let mut guesses = Vec::new();
        for _ in 0..12 {
            let row = row(random, width);
            let base: Vec<i32> = (0..width).map(|k| 10 * (k as i32 % 5)).collect();
            for start in (0..width).step_by(450) {
                let columns = start..width.min(start + 450);
                regression.guess(columns.clone(), &base, |column| (row[column] + base[column]) as f32, &mut guesses);
                for (column, guess) in columns.zip(&guesses) {
                    let prediction = base[column] + regression.prediction();
                    assert_eq!(prediction, *guess);
                    regression.commit(row[column] + base[column] - prediction);
                }
            }
            regression.end_row();
        }
    }

    fn params(width: usize, coder: Coder) -> Params {
        Params {
            coder,
            resolution: Resolution::Fine,
            mean_log: 110,
            width,
            chunk_rows: 1000,
            row: None,
            kernel: None,
            states: None,
        }
    }

    #[test]
    fn columns_that_say_something_about_each_other_take_less() {
        let random = &mut Random(24);
        let levels: Vec<i32> = (0..1000).flat_map(|_| row(random, 30)).map(|x| x / 256).collect();
        let size = |coder| {
            let mut code = Vec::new();
            dispatch::encode(&params(30, coder), &levels, &mut code);
            code.len() as f64
        };
        let (with, without) = (size(Coder::Regression), size(Coder::Binary));
        assert!(with < 0.9 * without, "{with} {without}");
    }

    #[test]
    fn numbers_beyond_single_precision_are_what_the_format_says() {
        assert_eq!(
            [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -3e38, 1.9, -1.9].map(whole),
            [LIMIT, -LIMIT, 0, -LIMIT, 1, -1]
        );
        // Factors, energies or both at their ends, as no encoder leads to: predictions are whole numbers within the limit.
        for (factor, energy) in [(3e38, 1.0), (f32::INFINITY, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (-3e38, f32::INFINITY)]
        {
            let mut regression = Regression::new(40, energy);
            regression.blocks[0].factors.fill([factor; GROUP]);
            for row in 0..4 {
                for column in 0..40 {
                    let prediction = regression.prediction();
                    assert!((-LIMIT..=LIMIT).contains(&prediction));
                    regression
                        .commit(if (row + column) % 3 == 0 { i32::MIN / 128 } else { i32::MAX / 128 } - prediction);
                }
                regression.end_row();
            }
        }
    }

    /// The largest levels, of alternating signs, with a prior as small as it can be: both builds and the encoder agree.
    #[test]
    fn rows_of_the_largest_levels_come_back() {
        for (width, period) in [(1, 1), (17, 2), (50, 3), (130, 5)] {
            let params = Params { mean_log: 0, ..params(width, Coder::Regression) };
            let ends = [i32::MAX, i32::MIN, 1 << 15, -(1 << 15), 0, 1];
            let levels: Vec<i32> = (0..30 * width).map(|k| ends[(k / period + k / width) % ends.len()]).collect();
            let mut code = Vec::new();
            dispatch::encode(&params, &levels, &mut code);
            #[cfg(target_arch = "x86_64")]
            if dispatch::available() {
                let found = crate::cpu::differential::chunks(&[params], &[(&code, levels.len())]);
                assert_eq!(found[0].as_ref(), Some(&levels));
            }
        }
    }

    #[test]
    fn levels_of_any_size_come_back_and_any_bytes_decode_to_something() {
        let random = &mut Random(25);
        for round in 0..300 {
            let params = params(1 + random.below(50), Coder::Regression);
            let bits = random.below(32);
            let levels: Vec<i32> = (0..1 + random.below(400)).map(|_| random.next() as i32 >> bits).collect();
            let mut code = Vec::new();
            dispatch::encode(&params, &levels, &mut code);
            let decode = |bytes: &[u8]| {
                let mut out = vec![0; levels.len()];
                let mut jobs = [Job { params: params.clone(), bytes, output: Output::Levels(&mut out), good: false }];
                dispatch::decode(&mut jobs);
                jobs[0].good.then_some(out)
            };
            assert_eq!(decode(&code), Some(levels.clone()), "round {round}");
            let place = random.below(code.len() as u64);
            code[place] ^= 1 << random.below(8);
            // The last arithmetic bytes may have more than one fitting value.
            let found = decode(&code);
            assert!(place > 0 || found != Some(levels.clone()));
        }
    }
}
