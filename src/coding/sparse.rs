//! The sparse coder: whether a level is zero by itself, and magnitudes among those of levels that are not.
//!
//! Where most levels are zero, an average of magnitudes mixes up two things: how many levels are not zero, and how large those
//! are. So here are averages of each: of occupancy (one or zero) along the row and the column, combined as in `scale.rs`, and
//! of the magnitudes, less one, of levels that are not zero. No predictions; but a level is rather not zero if its neighbours
//! are not.

use crate::coding::arithmetic::{Decoder, Encoder};
use crate::coding::binarisation::{self, BinCoder};
use crate::coding::output::Output;
use crate::model::context::{self, Contexts, Machine, Task};
use crate::model::dependent::{self, States, Taps};
use crate::model::params::{LAST_DENSITY_LOG, Params};
use crate::model::scale::{self, CLASSES};

/// Fractional bits of an occupancy.
pub(crate) const FRACTION: u8 = 20;
const _: () = assert!(LAST_DENSITY_LOG == 8 * FRACTION);
/// From here on a row's occupancy is an average over about 64.
const SLOW_FROM: usize = 56;
/// None, one or both of two neighbours are not zero, in either of two quantisers.
const NEIGHBOURHOODS: usize = 3 * 2;

/// What a chunk's levels so far say about the next.
struct Model {
    /// Contexts of "not zero".
    occupancy: [[u32; NEIGHBOURHOODS]; CLASSES],
    magnitudes: Box<Contexts>,
    class_mask: usize,
    density: i32,
    row: i32,
    columns: Vec<i32>,
    /// The constant parts of the columns' shares.
    bases: Vec<i32>,
    /// The columns' shares of the class.
    shares: Vec<i32>,
    rows: usize,
    /// Of the present row, after room for the neighbours of its first columns.
    occupied: Vec<u8>,
    /// Which neighbours a column has: 1, if any, for the left one, and for the upper one in a kernel.
    neighbours: Vec<[u8; 2]>,
    /// How far back the upper one lies.
    kernel_width: usize,
    /// Average magnitude, less one, of levels that are not zero, in units of 2^-12.
    typical: i32,
    /// How many such levels there were.
    count: usize,
    dependent: bool,
    taps: Taps,
    state: u32,
}

impl Model {
    fn new(params: &Params, density_log: u8, count: usize) -> Self {
        let width = params.width.min(count);
        let density = scale::from_log(density_log);
        let mean = u64::from(scale::from_log(params.mean_log)) << FRACTION;
        let typical = (mean / u64::from(density)).saturating_sub(1 << scale::FRACTION);
        // Without kernels the row is one line, which has no upper neighbours.
        let (kernel_width, kernel_size) = params.kernel.map_or((width, width), |kernel| (kernel.width, kernel.size));
        let neighbours = |column| {
            let place = column % kernel_size;
            [u8::from(place % kernel_width > 0), u8::from(place >= kernel_width)]
        };
        let base = |column| scale::column_base(column, i32::from(density_log)) + i32::from(column >= SLOW_FROM);
        let mut model = Self {
            occupancy: std::array::from_fn(|class| {
                [context::starting(scale::from_log(scale::lower_log(class)) << (22 - FRACTION)); NEIGHBOURHOODS]
            }),
            magnitudes: Box::new(*context::initial()),
            class_mask: params.resolution.mask(),
            density: density as i32,
            row: density as i32,
            columns: vec![density as i32; width],
            bases: (0..width).map(base).collect(),
            shares: vec![0; width],
            rows: 0,
            occupied: vec![0; kernel_width + width],
            neighbours: (0..width).map(neighbours).collect(),
            kernel_width,
            typical: typical.min(scale::fixed(u32::MAX) as u64) as i32,
            count: 0,
            dependent: params.states.is_some(),
            taps: params.states.map(States::taps).unwrap_or_default(),
            state: 0,
        };
        model.share_columns();
        model
    }

    /// Codes the level in this column. A decoder ignores `level` and returns its own.
    #[inline(always)]
    fn code<C: BinCoder, M: Machine>(&mut self, coder: &mut C, column: usize, level: i32) -> i32 {
        let odd = if self.dependent { (self.state & 1) as i32 } else { 0 };
        let index = if self.dependent { dependent::index(level, odd) } else { level };
        let share = self.shares[column];
        let class = scale::class(self.row, share) & self.class_mask;
        let place = column + self.kernel_width;
        let [left, up] = self.neighbours[column];
        let near = (left & self.occupied[place - 1]) + (up & self.occupied[column]);
        let occupied = binarisation::code_bit(
            coder,
            &mut self.occupancy[class][2 * usize::from(near) + odd as usize],
            true,
            index != 0,
        );
        self.occupied[place] = u8::from(occupied);
        self.row = scale::row_average(self.row, i32::from(occupied) << FRACTION, share);
        let index = if occupied { self.code_occupied::<C, M>(coder, index) } else { 0 };
        self.state = self.taps.next(self.state, index as u32);
        if self.dependent { dependent::level(index, odd) } else { index }
    }

    /// Codes an index that is not zero.
    #[inline(always)]
    fn code_occupied<C: BinCoder, M: Machine>(&mut self, coder: &mut C, index: i32) -> i32 {
        let class = scale::class_of_average(self.typical) & self.class_mask;
        let set = &mut self.magnitudes[context::set(class, false, false)];
        let low = u32::from(scale::LOW_BITS[class]);
        let more = binarisation::code_magnitude::<C, M>(coder, set, low, index.unsigned_abs().wrapping_sub(1)).value;
        self.typical += (scale::fixed(more) - self.typical) >> scale::row_shift(self.count);
        self.count += 1;
        let magnitude = more.wrapping_add(1) as i32;
        if coder.raw_bit(true, index < 0) { magnitude.wrapping_neg() } else { magnitude }
    }

    fn end_row(&mut self) {
        let shift = scale::column_shift(self.rows);
        self.rows += 1;
        self.row = self.density;
        for (average, occupied) in self.columns.iter_mut().zip(&self.occupied[self.kernel_width..]) {
            *average += ((i32::from(*occupied) << FRACTION) - *average) >> shift;
        }
        self.share_columns();
    }

    fn share_columns(&mut self) {
        for ((share, average), base) in self.shares.iter_mut().zip(&self.columns).zip(&self.bases) {
            *share = scale::column_share(*average, *base);
        }
    }
}

/// Appends the code of `levels` to `out`.
pub(crate) fn encode<M: Machine>(params: &Params, density_log: u8, levels: &[i32], out: &mut Vec<u8>) {
    let model = Model::new(params, density_log, levels.len());
    M::apart(Encoding { model, width: params.width, levels }).finish(out);
}

struct Encoding<'a> {
    model: Model,
    width: usize,
    levels: &'a [i32],
}

impl<M: Machine> Task<M> for Encoding<'_> {
    type Output = Encoder;

    #[inline(always)]
    fn run(self) -> Encoder {
        let Self { mut model, width, levels } = self;
        let mut encoder = Encoder::new();
        for row in levels.chunks(width) {
            for (column, level) in row.iter().enumerate() {
                model.code::<_, M>(&mut encoder, column, *level);
            }
            if row.len() == width {
                model.end_row();
            }
        }
        encoder
    }
}

/// Decodes a chunk. False if `bytes` are not exactly one of so many levels.
#[must_use]
pub(crate) fn decode<M: Machine>(params: &Params, density_log: u8, bytes: &[u8], output: &mut Output) -> bool {
    let model = Model::new(params, density_log, output.len());
    M::apart(Decoding { model, width: params.width, bytes, output })
}

struct Decoding<'a, 'o> {
    model: Model,
    width: usize,
    bytes: &'a [u8],
    output: &'a mut Output<'o>,
}

impl<M: Machine> Task<M> for Decoding<'_, '_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let Self { mut model, width, bytes, output } = self;
        let mut decoder = Decoder::new(bytes);
        let mut row = vec![0; width.min(output.len())];
        for start in (0..output.len()).step_by(width) {
            let width = width.min(output.len() - start);
            for (column, level) in row[..width].iter_mut().enumerate() {
                *level = model.code::<_, M>(&mut decoder, column, 0);
            }
            output.put(start, &row[..width]);
            if !decoder.plausible() {
                return false;
            }
            model.end_row();
        }
        decoder.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk;
    use crate::coding::lanes::Job;
    use crate::cpu::dispatch;
    use crate::model::params::{Coder, KernelPrediction};
    use crate::model::scale::Resolution;
    use crate::testing::Random;

    fn params(width: usize, chunk_rows: usize, kernel: Option<(usize, usize)>, states: Option<States>) -> Params {
        Params {
            coder: Coder::Sparse { density_log: 120 },
            resolution: Resolution::Coarse,
            mean_log: 90,
            width,
            chunk_rows,
            row: None,
            kernel: kernel.map(|(width, size)| KernelPrediction { width, size, weights: [0; _] }),
            states,
        }
    }

    /// Levels of which one in `every` is not zero; a path through the trellis, if there is one.
    fn levels(random: &mut Random, count: usize, every: u64, most: u64, states: Option<States>) -> Vec<i32> {
        let mut state = 0;
        (0..count)
            .map(|_| {
                let magnitude = if random.below(every) == 0 { 1 + random.below(most) as i32 } else { 0 };
                let index = if random.below(2) == 0 { magnitude } else { -magnitude };
                let Some(states) = states else { return index };
                let level = dependent::level(index, (state & 1) as i32);
                state = states.taps().next(state, index as u32);
                level
            })
            .collect()
    }

    fn decoded(params: &Params, bytes: &[u8], count: usize) -> Option<Vec<i32>> {
        let mut out = vec![0; count];
        let mut jobs = [Job { params: params.clone(), bytes, output: Output::Levels(&mut out), good: false }];
        dispatch::decode(&mut jobs);
        jobs[0].good.then_some(out)
    }

    #[test]
    fn levels_come_back_and_other_lengths_do_not() {
        let random = &mut Random(11);
        for states in [None, States::of_bits(3), States::of_bits(6)] {
            for (width, rows, kernel, every, most) in [
                (100, 30, None, 20, 3),
                (75, 40, Some((5, 25)), 5, 200),
                (7, 1, Some((3, 9)), 2, 1 << 29),
                (1, 300, None, 1, 20),
                (900, 7, Some((9, 9)), 900, 1),
            ] {
                let params = params(width, rows, kernel, states);
                let count = width * rows - width / 2;
                let mut given = levels(random, count, every, most, states);
                if states.is_none() && count > 3 {
                    given[..3].copy_from_slice(&[i32::MIN, i32::MAX, -i32::MAX]);
                }
                let mut code = Vec::new();
                dispatch::encode(&params, &given, &mut code);
                assert_eq!(decoded(&params, &code, count).as_ref(), Some(&given));
                let mut portable = Vec::new();
                chunk::encode_on::<context::Portable>(&params, &given, &mut portable);
                assert_eq!(portable, code);
                assert_ne!(decoded(&params, &code[..code.len() - 1], count).as_ref(), Some(&given));
                code.push(0);
                assert_eq!(decoded(&params, &code, count), None);
            }
        }
    }

    #[test]
    fn any_bytes_decode_to_something_without_a_panic() {
        let random = &mut Random(12);
        for round in 0..2000 {
            let states = States::of_bits([0, 3, 5][round % 3]);
            let params = params(30, 40, Some((3, 9)), states);
            let bytes: Vec<u8> = (0..random.below(60)).map(|_| random.next() as u8).collect();
            let _ = decoded(&params, &bytes, 1 + random.below(1200));
        }
    }

    #[test]
    fn a_sparse_matrix_takes_less_than_its_entropy_of_order_0_where_columns_differ() {
        let random = &mut Random(13);
        let (width, rows) = (400, 500);
        // Half of the columns are empty but for a few.
        let given: Vec<i32> = (0..width * rows)
            .map(|place| if random.below(if place % 2 == 0 { 200 } else { 10 }) == 0 { 1 } else { 0 })
            .collect();
        let density = given.iter().filter(|level| **level != 0).count() as f64 / given.len() as f64;
        let entropy = -(density * density.log2() + (1.0 - density) * (1.0 - density).log2()) + density;
        let mut code = Vec::new();
        dispatch::encode(&params(width, rows, None, None), &given, &mut code);
        let ratio = code.len() as f64 * 8.0 / (entropy * given.len() as f64);
        assert!(ratio < 0.93, "{ratio}");
    }
}
