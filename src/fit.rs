//! Choosing a tensor's coding parameters from its shape and a sample of its levels.
//!
//! Nothing here is normative: a decoder reads the result from the file.

use crate::coding::fast;
use crate::coding::sparse;
use crate::cpu::dispatch;
use crate::model::context::{COST_BITS, log2};
use crate::model::dependent::States;
use crate::model::params::{
    Coder, KERNEL_WEIGHTS, KernelPrediction, MAX_CHUNK, MAX_KERNEL, MAX_KERNEL_WIDTH, MAX_REGRESSED_CHUNK,
    MAX_REGRESSED_WIDTH, MAX_WIDTH, Params, RowPrediction,
};
use crate::model::scale::{self, Resolution};

/// Row width for tensors without a natural one.
const DEFAULT_WIDTH: usize = 1 << 10;
/// Tensors from this size on get fine classes.
const FINE_FROM: usize = 1 << 16;
/// What is more important.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preset {
    /// Speed, above all of decoding.
    Fast,
    /// Both.
    Default,
    /// Size.
    Small,
}

impl Preset {
    /// Levels a chunk should have. Larger chunks learn better (MiniLM: 2^16 costs 0.2 % more than 2^17), smaller ones share
    /// out better. The fast coder shares out inside a chunk.
    const fn chunk_target(self) -> usize {
        match self {
            Self::Fast => 1 << 18,
            Self::Default => 1 << 17,
            Self::Small => 1 << 20,
        }
    }

    /// Bits a level that a prediction must save to be worth its time.
    const fn least_gain(self) -> f64 {
        match self {
            Self::Fast | Self::Default => 0.02,
            Self::Small => 0.0,
        }
    }

    /// Of the other coder's size, what the sparse coder, which decodes more slowly, has to stay below.
    const fn least_ratio(self) -> f64 {
        match self {
            Self::Fast => 0.95,
            Self::Default => 0.99,
            Self::Small => 1.0,
        }
    }
}

/// Share of levels that are not zero up to which the sparse coder is tried.
const SPARSE_BELOW: f64 = 0.6;

const ROW_FEATURES: usize = 2;
const FEATURES: usize = ROW_FEATURES + KERNEL_WEIGHTS;

/// How a tensor's elements lie: rows of `width`, made of kernels of `kernel = (width, size)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Elements of a row.
    pub width: usize,
    /// Width and size of a kernel, if rows are made of kernels.
    pub kernel: Option<(usize, usize)>,
}

impl Layout {
    /// The layout of a C-ordered tensor.
    ///
    /// Two dimensions: rows are rows. More, with at most 128 elements after the second dimension: convolution kernels, and
    /// a row is everything after the first. More than that: stacked matrices, and a row is the last dimension.
    #[must_use]
    pub fn of_shape(shape: &[u64]) -> Self {
        let product = |dims: &[u64]| dims.iter().fold(1u64, |a, b| a.saturating_mul(*b));
        let last = shape.last().copied().unwrap_or(1);
        let (width, kernel) = match shape.len() {
            0 | 1 => (0, None),
            2 => (last, None),
            _ => match product(&shape[2..]) {
                1 => (product(&shape[1..]), None),
                size if size <= MAX_KERNEL as u64 && last <= MAX_KERNEL_WIDTH as u64 => {
                    (product(&shape[1..]), Some((last as usize, size as usize)))
                }
                _ => (last, None),
            },
        };
        if width == 0 || width > MAX_WIDTH as u64 {
            return Self { width: DEFAULT_WIDTH, kernel: None };
        }
        Self { width: width as usize, kernel }
    }
}

/// Parameters for `count` levels laid out as `layout`, from a sample of `sampled` of them: whole rows, as far as there are
/// any, `level(i)` being (about) the i-th level of the sample. With `regression` where it can be.
#[must_use]
pub fn fit(
    layout: Layout,
    count: usize,
    sampled: usize,
    states: Option<States>,
    preset: Preset,
    regression: bool,
    level: impl Fn(usize) -> f64 + Copy,
) -> Params {
    let width = layout.width.min(count.max(1));
    let rows = count.div_ceil(width).max(1);
    let chunks = count.div_ceil(preset.chunk_target()).max(1);
    let mut chunk_rows = rows.div_ceil(chunks);
    if preset == Preset::Fast && chunks > 1 {
        chunk_rows = chunk_rows.next_multiple_of(fast::STRIPS);
    }
    let chunk_rows = chunk_rows.min(MAX_CHUNK / width);

    let moments = Moments::of(layout, width, sampled, level);
    let row = moments.solve(ROW_FEATURES);
    let all = layout.kernel.map(|_| moments.solve(FEATURES));
    let row_gain = moments.gain(&row) * count as f64 - 16.0;
    let all_gain = all.map_or(0.0, |all| moments.gain(&all) * count as f64 - 72.0);
    let least = preset.least_gain() * count as f64;
    let weights = match all {
        Some(all) if all_gain > least && all_gain > row_gain => Some(all),
        _ if row_gain > least => Some(row),
        _ => None,
    };
    let used = weights.unwrap_or_default();
    let kernel = layout.kernel.filter(|_| used[ROW_FEATURES..].iter().any(|w| *w != 0));
    let mean = moments.magnitude * (moments.error(&used) / moments.energy.max(f64::MIN_POSITIVE)).sqrt();
    // With two quantisers, magnitudes are those of indices, half as large.
    let unit = if states.is_some() { 2048.0 } else { 4096.0 };
    let params = Params {
        // Without strips the fast coder takes as long as the binary one, for more bytes.
        coder: if preset == Preset::Fast && fast::has_strips(width, (chunk_rows * width).min(count)) {
            Coder::Fast
        } else {
            Coder::Binary
        },
        resolution: if count >= FINE_FROM { Resolution::Fine } else { Resolution::Coarse },
        mean_log: scale::log((mean * unit).clamp(16.0, 16_777_215.0) as i32) as u8,
        width,
        chunk_rows,
        row: (used[0] != 0 || used[1] != 0).then_some(RowPrediction { above: used[0], column: used[1] }),
        kernel: kernel.map(|(width, size)| KernelPrediction {
            width,
            size,
            weights: std::array::from_fn(|k| used[ROW_FEATURES + k]),
        }),
        states,
    };
    let params = sparse_if_smaller(params, layout, preset, sampled, level);
    if regression && may_regress(&params) { with_regression(params, count) } else { params }
}

/// The sparse coder's parameters instead, if many levels are zero and it codes the sample in fewer bytes.
fn sparse_if_smaller(
    params: Params,
    layout: Layout,
    preset: Preset,
    sampled: usize,
    level: impl Fn(usize) -> f64,
) -> Params {
    // With two quantisers, what is coded are indices; about half.
    let unit = if params.states.is_some() { 0.5 } else { 1.0 };
    let sample: Vec<i32> = (0..sampled).map(|i| (unit * level(i)).round_ties_even() as i32).collect();
    let density = sample.iter().filter(|level| **level != 0).count() as f64 / sampled.max(1) as f64;
    if density > SPARSE_BELOW {
        return params;
    }
    let log = scale::log((density * f64::from(1 << sparse::FRACTION)) as i32);
    let kernel = layout.kernel.map(|(width, size)| KernelPrediction { width, size, weights: [0; KERNEL_WEIGHTS] });
    let coder = Coder::Sparse { density_log: log as u8 };
    let sparse = Params { coder, resolution: Resolution::Coarse, row: None, kernel, ..params.clone() };
    let size = |params: &Params| {
        let mut code = Vec::new();
        dispatch::encode(&Params { states: None, ..params.clone() }, &sample, &mut code);
        code.len() as f64
    };
    if size(&sparse) < preset.least_ratio() * size(&params) { sparse } else { params }
}

/// `params` with regression, for `count` levels: chunks are longer, for each learns anew.
fn with_regression(params: Params, count: usize) -> Params {
    let rows = count.div_ceil(params.width).max(1);
    let chunk_rows = rows.div_ceil(count.div_ceil(MAX_REGRESSED_CHUNK).max(1)).min(MAX_REGRESSED_CHUNK / params.width);
    Params { coder: Coder::Regression, chunk_rows, ..params }
}

/// Whether a tensor of these parameters may have regression.
fn may_regress(params: &Params) -> bool {
    params.coder == Coder::Binary && params.kernel.is_none() && (2..=MAX_REGRESSED_WIDTH).contains(&params.width)
}

/// Whether `levels` (with two quantisers indices), the first ones of a tensor, take less room with regression.
#[must_use]
pub fn regression_pays(params: &Params, levels: &[i32]) -> bool {
    let size = |params: &Params| {
        let mut code = Vec::new();
        levels.chunks(params.chunk_levels()).for_each(|levels| dispatch::encode(params, levels, &mut code));
        code.len()
    };
    let plain = Params { states: None, ..params.clone() };
    may_regress(params) && size(&with_regression(plain.clone(), levels.len())) < size(&plain)
}

/// About the indices of weights that are to be quantised with `step`: with two quantisers they are half as large as levels.
#[must_use]
pub fn indices(params: &Params, weights: &[f32], step: f32) -> Vec<i32> {
    let scale = if params.states.is_some() { 0.5 } else { 1.0 } / f64::from(step);
    weights.iter().map(|weight| (scale * f64::from(*weight)).round_ties_even() as i32).collect()
}

/// Second moments of a level and its neighbours over the sample.
struct Moments {
    count: f64,
    /// Mean |level|.
    magnitude: f64,
    /// Sum of level^2.
    energy: f64,
    /// Sums of neighbour x neighbour.
    matrix: [[f64; FEATURES]; FEATURES],
    /// Sums of neighbour x level.
    vector: [f64; FEATURES],
}

impl Moments {
    fn of(layout: Layout, width: usize, count: usize, level: impl Fn(usize) -> f64) -> Self {
        let mut moments = Self {
            count: 0.0,
            magnitude: 0.0,
            energy: 0.0,
            matrix: [[0.0; FEATURES]; FEATURES],
            vector: [0.0; FEATURES],
        };
        let mut means = vec![0.0; width];
        let mut above = vec![0.0; width];
        let mut present = vec![0.0; width];
        for (row, start) in (0..count).step_by(width).enumerate() {
            let here = width.min(count - start);
            let rate = 1.0 / f64::from(1 << scale::column_shift(row));
            for (column, present) in present[..here].iter_mut().enumerate() {
                *present = level(start + column);
            }
            match layout.kernel {
                Some(kernel) => moments.add_row::<FEATURES>(kernel, &present[..here], &above, &means),
                None => moments.add_row::<ROW_FEATURES>((0, 0), &present[..here], &above, &means),
            }
            for (mean, present) in means.iter_mut().zip(&present[..here]) {
                *mean += (present - *mean) * rate;
            }
            above[..here].copy_from_slice(&present[..here]);
        }
        moments.magnitude /= moments.count.max(1.0);
        moments
    }

    /// Adds a row, with its neighbours up to `USED`.
    fn add_row<const USED: usize>(&mut self, kernel: (usize, usize), row: &[f64], above: &[f64], means: &[f64]) {
        for column in 0..row.len() {
            self.add::<USED>(kernel, row, above, means, column);
        }
    }

    #[inline(always)]
    fn add<const USED: usize>(
        &mut self,
        (width, size): (usize, usize),
        row: &[f64],
        above: &[f64],
        means: &[f64],
        column: usize,
    ) {
        let level = row[column];
        self.count += 1.0;
        self.magnitude += level.abs();
        self.energy += level * level;
        let mut features = [0.0; FEATURES];
        features[0] = above[column];
        features[1] = means[column];
        if USED > ROW_FEATURES {
            let (x, y) = (column % size % width, column % size / width);
            for (k, (left, up)) in [(1, 0), (0, 1), (1, 1), (2, 0), (0, 2)].into_iter().enumerate() {
                if x >= left && y >= up {
                    features[ROW_FEATURES + k] = row[column - left - up * width];
                }
            }
        }
        for a in 0..USED {
            for b in 0..=a {
                self.matrix[a][b] += features[a] * features[b];
            }
            self.vector[a] += features[a] * level;
        }
    }

    /// Least-squares weights of the first `used` neighbours, in units of 1/64.
    fn solve(&self, used: usize) -> [i8; FEATURES] {
        let mut lower = [[0.0; FEATURES]; FEATURES];
        let mut solution = [0.0; FEATURES];
        // Cholesky; the ridge keeps neighbours that never occur, or always agree, from dividing by zero.
        let ridge = 1e-6 * self.energy + 1e-9;
        for a in 0..used {
            for b in 0..=a {
                let dot: f64 = (0..b).map(|k| lower[a][k] * lower[b][k]).sum();
                let value = self.matrix[a][b] - dot;
                lower[a][b] = if a == b { (value + ridge).max(ridge).sqrt() } else { value / lower[b][b] };
            }
            let dot: f64 = (0..a).map(|k| lower[a][k] * solution[k]).sum();
            solution[a] = (self.vector[a] - dot) / lower[a][a];
        }
        for a in (0..used).rev() {
            let dot: f64 = (a + 1..used).map(|k| lower[k][a] * solution[k]).sum();
            solution[a] = (solution[a] - dot) / lower[a][a];
        }
        // `as` saturates and turns NaN into 0.
        solution.map(|weight| (64.0 * weight).round_ties_even() as i8)
    }

    /// Sum of squared residuals with these weights.
    fn error(&self, weights: &[i8; FEATURES]) -> f64 {
        let w = weights.map(|w| f64::from(w) / 64.0);
        let mut error = self.energy;
        for a in 0..FEATURES {
            error -= 2.0 * w[a] * self.vector[a];
            for b in 0..FEATURES {
                error += w[a] * w[b] * self.matrix[a.max(b)][a.min(b)];
            }
        }
        error.max(0.0)
    }

    /// Bits a level saved by these weights, for Gaussian residuals; the noise of rounding to levels does not shrink.
    fn gain(&self, weights: &[i8; FEATURES]) -> f64 {
        let rounding = self.count / 12.0;
        let ratio = (self.energy + rounding) / (self.error(weights) + rounding);
        // The library's logarithm may differ between machines in its last bit, and with it the file.
        0.5 * (f64::from(log2((65_536.0 * ratio) as u32 | 1)) / f64::from(1 << COST_BITS) - 16.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_become_rows_and_kernels() {
        let of = |shape: &[u64]| Layout::of_shape(shape);
        assert_eq!(of(&[100, 30]), Layout { width: 30, kernel: None });
        assert_eq!(of(&[64, 32, 3, 3]), Layout { width: 288, kernel: Some((3, 9)) });
        assert_eq!(of(&[64, 32, 1, 1]), Layout { width: 32, kernel: None });
        assert_eq!(of(&[64, 32, 7]), Layout { width: 224, kernel: Some((7, 7)) });
        assert_eq!(of(&[8, 512, 300]), Layout { width: 300, kernel: None });
        assert_eq!(of(&[100]), Layout { width: DEFAULT_WIDTH, kernel: None });
        assert_eq!(of(&[]), Layout { width: DEFAULT_WIDTH, kernel: None });
        assert_eq!(of(&[2, 1 << 40]), Layout { width: DEFAULT_WIDTH, kernel: None });
    }

    #[test]
    fn a_smooth_kernel_is_predicted_and_noise_is_not() {
        let layout = Layout { width: 90, kernel: Some((3, 9)) };
        let smooth =
            fit(layout, 9000, 9000, None, Preset::Default, false, |i| f64::from((i / 9 * 7919 % 41) as i32 - 20));
        assert!(smooth.kernel.is_some());
        let noise = fit(layout, 9000, 9000, None, Preset::Default, false, |i| {
            f64::from((i * i * 7919 % 10_007 % 41) as i32 - 20)
        });
        assert_eq!((noise.kernel, noise.row), (None, None));
    }

    #[test]
    fn the_fast_preset_takes_the_coder_that_fits() {
        let coder = |count: usize, level: fn(usize) -> f64| {
            let layout = Layout { width: 100, kernel: None };
            fit(layout, count, count, None, Preset::Fast, false, level).coder
        };
        let dense = |i: usize| f64::from((i * i * 7919 % 10_007 % 41) as i32 - 20);
        assert_eq!((coder(6400, dense), coder(6300, dense)), (Coder::Fast, Coder::Binary));
        let sparse = |i: usize| f64::from(i32::from(i * 7919 % 10_007 < 500));
        assert!(matches!(coder(20_000, sparse), Coder::Sparse { .. }));
    }

    #[test]
    fn chunks_are_even_and_within_their_limit() {
        for (width, count) in [(384, 384 * 384), (1, 1 << 24), (65_536, 1 << 24), (1000, 999), (7, 0)] {
            for preset in [Preset::Fast, Preset::Default, Preset::Small] {
                for regression in [false, true] {
                    let params = fit(Layout { width, kernel: None }, count, 0, None, preset, regression, |_| 1.0);
                    let most = if params.coder == Coder::Regression { MAX_REGRESSED_CHUNK } else { MAX_CHUNK };
                    assert!(params.chunk_levels() <= most);
                    let mut bytes = Vec::new();
                    params.write(&mut bytes);
                    assert_eq!(Params::read(&bytes), Some(params));
                }
            }
        }
    }
}
