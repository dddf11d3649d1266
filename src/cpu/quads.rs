//! Four lanes to a vector of four 64-bit numbers (AVX2), and several such quads in turn.
//!
//! The same steps as in plain Rust, in the same order for each lane, so the same state after each. A number of 32 bits
//! lies in the lower half of its lane's 64; what the upper half then holds does not matter unless a comment says so.
//! Conditions are masks of 64 bits. Decisions after the fourth of a level are read for all lanes of a quad if one needs
//! them; what is rarer, low bits and escapes, goes lane by lane through plain Rust.

use std::arch::x86_64::*;
use std::mem;

use crate::coding::binarisation;
use crate::coding::lanes::{Lane, decode_in_turn};
use crate::cpu::vector::{load_u32, load_u64, store_u32, store_u64};
use crate::model::context::GROUP;
use crate::model::context::{self, Contexts, LEANING_SETS, LOW_BIT, Machine, NARROW_SETS, SET, SETS, SIGN, UNARY};
use crate::model::rows;
use crate::model::scale::{self, CLASSES};

/// Lanes in a vector.
const QUAD: usize = 4;
/// Levels decoded between loading the lanes into vectors and storing them: each takes one raw bit at most where nothing
/// is rare, and so many are loaded.
const BLOCK: usize = 56;
/// First class with low bits.
const LOW_CLASS: i64 = {
    let mut class = 0;
    while scale::LOW_BITS[class] == 0 {
        class += 1;
    }
    class as i64
};

/// A class has `(class + LOW_ADDED >> LOW_SHIFT) - LOW_TAKEN` low bits, if that is not negative.
const LOW_ADDED: i64 = 16;
const LOW_SHIFT: u32 = 2;
const LOW_TAKEN: i64 = 13;
const _: () = {
    let mut class = 0;
    while class < CLASSES {
        let low = ((class as i64 + LOW_ADDED) >> LOW_SHIFT) - LOW_TAKEN;
        assert!(scale::LOW_BITS[class] as i64 == if low > 0 { low } else { 0 });
        class += 1;
    }
};

/// State of four lanes.
#[derive(Clone, Copy)]
struct Quad {
    code: __m256i,     // u64 [lane]
    range: __m256i,    // u64 [lane]
    next: __m256i,     // u64 [lane], index of the next byte
    raw: __m256i,      // u64 [lane], the raw bits that come next, the first one lowest
    raw_bits: __m256i, // u64 [lane]
    row: __m256i,      // i32 [lane]
    class_mask: __m256i,
    state: __m256i,         // u64 [lane], of the machine that chooses between two quantisers
    odd_quantizer: __m256i, // u64 [lane], its taps
    odd_index: __m256i,     // u64 [lane]
    // of the present level:
    share: __m256i,     // i32 [lane]
    class: __m256i,     // u64 [lane]
    leaning: __m256i,   // mask [lane]
    down: __m256i,      // mask [lane]
    predicted: __m256i, // i32 [lane]
    expected: __m256i,  // i32 [lane]
    set: [u64; QUAD],   // [lane]
    upper: __m256i,     // u64 [lane]
    value: __m256i,     // u64 [lane], magnitude below 2^32
    more: __m256i,      // mask [lane]: all decisions so far are one
}

/// What a block takes from and gives to the rows.
struct Block {
    shares: [[u32; QUAD]; BLOCK],      // [column][lane]
    predictions: [[u32; QUAD]; BLOCK], // [column][lane]
    levels: [[u32; QUAD]; BLOCK],      // [column][lane]
}

/// [`super::Lanes::decode`]. Up to three lanes that fill no quad are decoded as `M` does it.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
pub(crate) fn decode<M: Machine, const KIND: u8>(lanes: &mut [Lane], count: usize) {
    let mut lanes = lanes;
    while lanes.len() >= QUAD && !rows::regressed(KIND) {
        let (first, rest) = mem::take(&mut lanes).split_first_chunk_mut().expect("so many");
        if rest.len() >= QUAD {
            let (second, rest) = rest.split_first_chunk_mut().expect("so many");
            decode_quads::<KIND, 2>([first, second], count);
            lanes = rest;
        } else {
            decode_quads::<KIND, 1>([first], count);
            lanes = rest;
        }
    }
    decode_in_turn::<M, KIND>(lanes, count);
}

/// A stage of one quad and of the second, if there is one, in turn. Written out, because a loop would keep their state in
/// memory, where each step waits for it.
macro_rules! in_turn {
    ($n:ident of $count:ident: $stage:expr) => {{
        {
            let $n = 0;
            $stage;
        }
        if $count == 2 {
            let $n = 1;
            $stage;
        }
    }};
}

/// [`decode`] for one or two quads.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
fn decode_quads<const KIND: u8, const N: usize>(mut lanes: [&mut [Lane; QUAD]; N], count: usize) {
    let mut blocks =
        [const { Block { shares: [[0; QUAD]; BLOCK], predictions: [[0; QUAD]; BLOCK], levels: [[0; QUAD]; BLOCK] } };
            N];
    let mut done = 0;
    while done < count {
        let steps = BLOCK.min(count - done);
        let mut quads: [Quad; N] = std::array::from_fn(|n| Quad::load(lanes[n]));
        for (block, lanes) in blocks.iter_mut().zip(&lanes) {
            copy_in(&mut block.shares[..steps], lanes.each_ref().map(|lane| &lane.rows.shares[lane.column..]));
            if rows::predicts(KIND) && !rows::in_kernels(KIND) {
                copy_in(
                    &mut block.predictions[..steps],
                    lanes.each_ref().map(|lane| &lane.rows.predictions[lane.column..]),
                );
            }
        }
        for step in 0..steps {
            in_turn!(n of N: quads[n].locate::<KIND>(lanes[n], &blocks[n], step));
            in_turn!(n of N: quads[n].first_group(lanes[n]));
            in_turn!(n of N: if quads[n].rare() {
                quads[n].large(lanes[n]);
            });
            in_turn!(n of N: quads[n].sign::<KIND>(lanes[n], &mut blocks[n], step));
        }
        for ((quad, lanes), block) in quads.iter().zip(&mut lanes).zip(&blocks) {
            quad.store(lanes);
            for (k, lane) in lanes.iter_mut().enumerate() {
                for (level, decoded) in lane.rows.levels[lane.column..].iter_mut().zip(&block.levels[..steps]) {
                    *level = decoded[k] as i32;
                }
                lane.column += steps;
            }
        }
        done += steps;
    }
}

/// Transposes.
#[inline]
fn copy_in(to: &mut [[u32; QUAD]], from: [&[i32]; QUAD]) {
    let count = to.len();
    let from = from.map(|from| &from[..count]);
    for (column, to) in to.iter_mut().enumerate() {
        *to = from.map(|from| from[column] as u32);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn all(x: i64) -> __m256i {
    _mm256_set1_epi64x(x)
}

#[inline]
#[target_feature(enable = "avx2")]
fn each(x: [u64; QUAD]) -> __m256i {
    let [a, b, c, d] = x.map(|x| x as i64);
    _mm256_set_epi64x(d, c, b, a)
}

#[inline]
#[target_feature(enable = "avx2")]
fn numbers(x: __m256i) -> [u64; QUAD] {
    let mut numbers = [0; QUAD];
    store_u64(&mut numbers, x);
    numbers
}

/// `a > b`, as signed numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn greater(a: __m256i, b: __m256i) -> __m256i {
    _mm256_cmpgt_epi64(a, b)
}

/// `then` where the mask is set, else `other`.
#[inline]
#[target_feature(enable = "avx2")]
fn select(mask: __m256i, then: __m256i, other: __m256i) -> __m256i {
    _mm256_blendv_epi8(other, then, mask)
}

#[inline]
#[target_feature(enable = "avx2")]
fn any(mask: __m256i) -> bool {
    _mm256_movemask_pd(_mm256_castsi256_pd(mask)) != 0
}

/// `arithmetic::scale`, exactly: the halves of the range apart. Neither a product nor the sum exceeds 64 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn scale(range: __m256i, p: __m256i) -> __m256i {
    let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(range), p);
    let low = _mm256_mul_epu32(range, p);
    _mm256_add_epi64(high, _mm256_srli_epi64::<32>(low))
}

/// `context::adapt_if` on eight contexts; masks of 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn adapt(old: __m256i, one: __m256i, used: __m256i) -> __m256i {
    const ZERO: i32 = context::target(false);
    const ONE: i32 = context::target(true);
    let target = select(one, _mm256_set1_epi32(ONE), _mm256_set1_epi32(ZERO));
    let stage = _mm256_srli_epi32::<29>(_mm256_slli_epi32::<22>(old));
    let distance = _mm256_sub_epi32(target, _mm256_srli_epi32::<2>(old));
    let step = _mm256_and_si256(_mm256_srav_epi32(distance, stage), _mm256_set1_epi32(!511));
    let half = _mm256_add_epi32(step, _mm256_srlv_epi32(_mm256_set1_epi32(64), stage));
    let half = _mm256_and_si256(half, used);
    _mm256_add_epi32(_mm256_add_epi32(old, half), half)
}

/// The contexts of group `index` in a set.
#[inline]
fn group(contexts: &mut Contexts, set: u64, index: usize) -> &mut [u32; GROUP] {
    binarisation::group_of(&mut contexts[set as usize % SETS], index)
}

impl Quad {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(lanes: &[Lane; QUAD]) -> Self {
        let zero = _mm256_setzero_si256();
        let lane = lanes.each_ref();
        Self {
            code: load_u64(&lane.map(|lane| lane.decoder.code)),
            range: load_u64(&lane.map(|lane| lane.decoder.range)),
            next: load_u64(&lane.map(|lane| u64::from(lane.decoder.next))),
            raw: load_u64(&lane.map(|lane| lane.decoder.raw_word())),
            raw_bits: load_u64(&lane.map(|lane| u64::from(lane.decoder.raw_bits))),
            row: load_u64(&lane.map(|lane| lane.rows.row as u64)),
            class_mask: load_u64(&lane.map(|lane| lane.rows.class_mask as u64)),
            state: load_u64(&lane.map(|lane| u64::from(lane.rows.state))),
            odd_quantizer: load_u64(&lane.map(|lane| u64::from(lane.rows.taps.odd_quantizer))),
            odd_index: load_u64(&lane.map(|lane| u64::from(lane.rows.taps.odd_index))),
            share: zero,
            class: zero,
            leaning: zero,
            down: zero,
            predicted: zero,
            expected: zero,
            set: [0; QUAD],
            upper: zero,
            value: zero,
            more: zero,
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(&self, lanes: &mut [Lane; QUAD]) {
        self.store_decoders(lanes);
        let (row, state) = (numbers(self.row), numbers(self.state));
        for (k, lane) in lanes.iter_mut().enumerate() {
            lane.rows.row = row[k] as i32;
            lane.rows.state = state[k] as u32;
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_decoders(&self, lanes: &mut [Lane; QUAD]) {
        let (code, range) = (numbers(self.code), numbers(self.range));
        let (next, raw_bits) = (numbers(self.next), numbers(self.raw_bits));
        for (k, lane) in lanes.iter_mut().enumerate() {
            lane.decoder.code = code[k];
            lane.decoder.range = range[k];
            lane.decoder.next = next[k] as u32;
            lane.decoder.raw_bits = raw_bits[k] as u32;
        }
    }

    /// `Rows::site`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn locate<const KIND: u8>(&mut self, lanes: &mut [Lane; QUAD], block: &Block, step: usize) {
        self.share = _mm256_cvtepu32_epi64(load_u32(&block.shares[step]));
        // `scale::log`: 8 * exponent + mantissa of a float. Its offset is taken from the sum instead.
        let float = _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_or_si256(self.row, all(1))));
        let log = _mm256_srli_epi32::<20>(float);
        let weighted = _mm256_mullo_epi32(log, all(i64::from(scale::ROW_WEIGHT)));
        let offset = all(i64::from(((127 << 3) * scale::ROW_WEIGHT) as u32));
        let sum = _mm256_add_epi32(weighted, _mm256_sub_epi32(self.share, offset));
        let class = _mm256_srai_epi32::<{ scale::SUM_BITS as i32 }>(sum);
        // The upper half becomes zero here.
        let class = _mm256_max_epi32(class, _mm256_setzero_si256());
        let class = _mm256_min_epi32(class, all(CLASSES as i64 - 1));
        self.class = _mm256_and_si256(class, self.class_mask);
        let mut set = self.class;
        if rows::dependent(KIND) && !rows::predicts(KIND) {
            set = _mm256_add_epi64(set, _mm256_and_si256(self.odd(), all(NARROW_SETS as i64)));
        }
        if rows::predicts(KIND) {
            let prediction = if !rows::in_kernels(KIND) {
                _mm256_cvtepu32_epi64(load_u32(&block.predictions[step]))
            } else {
                let mut predict = |k: usize| lanes[k].rows.predict_in_kernel(lanes[k].column + step) as u32;
                each(std::array::from_fn(|k| u64::from(predict(k))))
            };
            let raised = _mm256_add_epi32(prediction, all(i64::from(rows::HALF)));
            self.expected = _mm256_srai_epi32::<{ rows::FRACTION as i32 }>(raised);
            if rows::dependent(KIND) {
                let narrow = self.predict_index(prediction);
                set = _mm256_add_epi64(set, _mm256_and_si256(narrow, all(NARROW_SETS as i64)));
            } else {
                let rest = _mm256_and_si256(raised, all(i64::from(2 * rows::HALF - 1)));
                self.predicted = self.expected;
                let below = greater(all(i64::from(rows::LEVEL.start)), rest);
                let above = greater(rest, all(i64::from(rows::LEVEL.end - 1)));
                self.leaning = _mm256_or_si256(below, above);
                self.down = greater(all(i64::from(rows::HALF)), rest);
            }
            set = _mm256_add_epi64(set, _mm256_and_si256(self.leaning, all(LEANING_SETS as i64)));
        }
        self.set = numbers(set);
    }

    /// Whether the second quantiser is in force; a mask.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn odd(&self) -> __m256i {
        _mm256_sub_epi64(_mm256_setzero_si256(), _mm256_and_si256(self.state, all(1)))
    }

    /// `Site::predicted` with two quantisers, from a prediction whose upper half is zero. Returns where zero is narrow.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn predict_index(&mut self, prediction: __m256i) -> __m256i {
        let zero = _mm256_setzero_si256();
        let odd = self.odd();
        let negative = greater(prediction, all(i64::from(i32::MAX)));
        // By magnitudes, which as 64 bits are positive.
        let given = _mm256_abs_epi32(prediction);
        let offset = _mm256_and_si256(odd, all(i64::from(2 * rows::HALF)));
        let raised = _mm256_add_epi64(_mm256_add_epi64(given, all(i64::from(2 * rows::HALF))), offset);
        let nearest = _mm256_srli_epi64::<{ rows::FRACTION as i32 + 1 }>(raised);
        let within = greater(_mm256_srli_epi64::<1>(offset), given);
        let index = _mm256_andnot_si256(within, nearest);
        let none = _mm256_cmpeq_epi64(index, zero);
        let level = _mm256_add_epi64(_mm256_add_epi64(index, index), _mm256_andnot_si256(none, odd));
        let rest = _mm256_sub_epi64(given, _mm256_slli_epi64::<{ rows::FRACTION as i32 }>(level));
        let least = i64::from(2 * rows::LEANING);
        self.leaning = _mm256_or_si256(greater(rest, all(least - 1)), greater(all(1 - least), rest));
        self.down = select(negative, greater(rest, zero), greater(zero, rest));
        self.predicted = _mm256_sub_epi32(_mm256_xor_si256(index, negative), negative);
        _mm256_and_si256(odd, none)
    }

    /// The first four decisions.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn first_group(&mut self, lanes: &mut [Lane; QUAD]) {
        self.upper = self.group::<true>(lanes, 0);
        self.value = self.upper;
    }

    /// `binarisation::code_group` where the mask `more` is set (for the FIRST everywhere); leaves there whether all are ones.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn group<const FIRST: bool>(&mut self, lanes: &mut [Lane; QUAD], index: usize) -> __m256i {
        let active = if FIRST { all(-1) } else { self.more };
        let [a, b, c, d] = std::array::from_fn(|k| load_u32(group(&mut lanes[k].rows.contexts, self.set[k], index)));
        let ac = _mm256_set_m128i(c, a); // u32 [lane 0, lane 2][k]
        let bd = _mm256_set_m128i(d, b); // u32 [lane 1, lane 3][k]
        let p01 = _mm256_unpacklo_epi64(ac, bd); // u32 [lane][k = 0, 1]
        let p23 = _mm256_unpackhi_epi64(ac, bd); // u32 [lane][k = 2, 3]
        let t0 = self.range;
        let t1 = scale(t0, p01);
        let t2 = scale(t1, _mm256_srli_epi64::<32>(p01));
        let t3 = scale(t2, p23);
        let t4 = scale(t3, _mm256_srli_epi64::<32>(p23));
        let below = |t| {
            let below = less(self.code, t);
            if FIRST { below } else { _mm256_and_si256(below, active) }
        };
        let (m1, m2, m3, m4) = (below(t1), below(t2), below(t3), below(t4));
        let to = select(m4, t4, select(m3, t3, select(m2, t2, select(m1, t1, t0))));
        let from = _mm256_andnot_si256(m4, select(m3, t4, select(m2, t3, select(m1, t2, t1))));
        self.take(lanes, if FIRST { from } else { _mm256_and_si256(from, active) }, to);
        // The masks in the order of the contexts.
        let m12 = _mm256_blend_epi32::<0b1010_1010>(m1, m2); // [lane][k = 0, 1]
        let m34 = _mm256_blend_epi32::<0b1010_1010>(m3, m4); // [lane][k = 2, 3]
        let (one_ac, one_bd) = (_mm256_unpacklo_epi64(m12, m34), _mm256_unpackhi_epi64(m12, m34));
        let (first_ac, first_bd) = (_mm256_unpacklo_epi64(active, active), _mm256_unpackhi_epi64(active, active));
        // A context is used if the decision before its own is one.
        let ac = adapt(ac, one_ac, _mm256_alignr_epi8::<12>(one_ac, first_ac));
        let bd = adapt(bd, one_bd, _mm256_alignr_epi8::<12>(one_bd, first_bd));
        let new = [
            _mm256_castsi256_si128(ac),
            _mm256_castsi256_si128(bd),
            _mm256_extracti128_si256::<1>(ac),
            _mm256_extracti128_si256::<1>(bd),
        ];
        for (k, new) in new.into_iter().enumerate() {
            store_u32(group(&mut lanes[k].rows.contexts, self.set[k], index), new);
        }
        self.more = m4;
        let sum = _mm256_add_epi64(_mm256_add_epi64(m1, m2), _mm256_add_epi64(m3, m4));
        _mm256_sub_epi64(_mm256_setzero_si256(), sum)
    }

    /// `Decoder::take`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn take(&mut self, lanes: &[Lane; QUAD], from: __m256i, to: __m256i) {
        let range = _mm256_sub_epi64(to, from);
        // `arithmetic::normalisation`: the exponent of the range without its lowest 12 bits as a double (2^52 plus a number
        // below it, minus 2^52: exact). A range below 2^12 gives 48 too, which is right, as it is at least 2^10.
        let magic = _mm256_set1_pd(4_503_599_627_370_496.0);
        let high = _mm256_or_pd(_mm256_castsi256_pd(_mm256_srli_epi64::<12>(range)), magic);
        let double = _mm256_castpd_si256(_mm256_sub_pd(high, magic));
        let zeros = _mm256_sub_epi64(all(1023 + 51), _mm256_srli_epi64::<52>(double));
        let shift = _mm256_and_si256(zeros, all(56)); // [lane]
        let next = numbers(self.next);
        let word = each(std::array::from_fn(|k| lanes[k].decoder.word_at(next[k] as u32)));
        let come = _mm256_srlv_epi64(word, _mm256_sub_epi64(all(64), shift));
        self.range = _mm256_sllv_epi64(range, shift);
        self.code = _mm256_or_si256(_mm256_sllv_epi64(_mm256_sub_epi64(self.code, from), shift), come);
        self.next = _mm256_add_epi64(self.next, _mm256_srli_epi64::<3>(shift));
    }

    /// True if more than four decisions or low bits are to be read.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rare(&self) -> bool {
        any(_mm256_or_si256(self.more, greater(self.class, all(LOW_CLASS - 1))))
    }

    /// What follows four ones, and the low bits.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn large(&mut self, lanes: &mut [Lane; QUAD]) {
        for index in 1..UNARY / GROUP {
            if !any(self.more) {
                break;
            }
            self.upper = _mm256_add_epi64(self.upper, self.group::<false>(lanes, index));
        }
        if any(self.more) {
            self.escape(lanes);
        }
        self.value = self.upper;
        if any(greater(self.class, all(LOW_CLASS - 1))) {
            self.low_bits(lanes);
        }
    }

    /// `binarisation::code_escape` where the mask `more` is set, lane by lane.
    #[cold]
    #[inline(never)]
    #[target_feature(enable = "avx2")]
    fn escape(&mut self, lanes: &mut [Lane; QUAD]) {
        self.store_decoders(lanes);
        let (more, mut upper) = (numbers(self.more), numbers(self.upper));
        for (k, lane) in lanes.iter_mut().enumerate() {
            if more[k] != 0 {
                upper[k] = u64::from(binarisation::code_escape(&mut lane.decoder, 0));
            }
        }
        let lane = lanes.each_ref();
        self.raw = load_u64(&lane.map(|lane| lane.decoder.raw_word()));
        self.raw_bits = load_u64(&lane.map(|lane| u64::from(lane.decoder.raw_bits)));
        self.upper = load_u64(&upper);
    }

    /// `binarisation::code_low_bits` where there are any.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn low_bits(&mut self, lanes: &mut [Lane; QUAD]) {
        let low = _mm256_srli_epi64::<{ LOW_SHIFT as i32 }>(_mm256_add_epi64(self.class, all(LOW_ADDED)));
        let low = _mm256_max_epi32(_mm256_sub_epi32(low, all(LOW_TAKEN)), _mm256_setzero_si256()); // u64 [lane]
        let smallest = _mm256_cmpeq_epi64(self.upper, _mm256_setzero_si256());
        let with_context = _mm256_and_si256(smallest, greater(low, _mm256_setzero_si256()));
        let one = self.bit(lanes, [LOW_BIT; QUAD], with_context);
        let highest = _mm256_sllv_epi64(_mm256_and_si256(one, all(1)), _mm256_sub_epi64(low, all(1)));
        let count = _mm256_add_epi64(low, with_context);
        let mask = _mm256_sub_epi64(_mm256_sllv_epi64(all(1), count), all(1));
        let rest = _mm256_and_si256(self.raw, mask);
        self.raw_bits = _mm256_add_epi64(self.raw_bits, count);
        let raw_bits = numbers(self.raw_bits);
        self.raw = each(std::array::from_fn(|k| lanes[k].decoder.raw_word_at(raw_bits[k] as u32)));
        let upper = _mm256_and_si256(_mm256_sllv_epi64(self.upper, low), all(i64::from(u32::MAX)));
        self.value = _mm256_or_si256(upper, _mm256_or_si256(highest, rest));
    }

    /// `Decoder::bit_if` and `context::adapt_if` with the context of this index in the lane's set; a mask.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn bit(&mut self, lanes: &mut [Lane; QUAD], index: [usize; QUAD], coded: __m256i) -> __m256i {
        let mut old = [0; QUAD];
        for k in 0..QUAD {
            let set = &lanes[k].rows.contexts[self.set[k] as usize % SETS];
            old[k] = u64::from(set[index[k] % SET]);
        }
        let old = each(old);
        let bound = scale(self.range, _mm256_and_si256(old, coded));
        let one = less(self.code, bound);
        let from = _mm256_andnot_si256(one, bound);
        let to = select(one, bound, self.range);
        self.take(lanes, from, to);
        let new = numbers(adapt(old, one, coded));
        for k in 0..QUAD {
            let set = &mut lanes[k].rows.contexts[self.set[k] as usize % SETS];
            set[index[k] % SET] = new[k] as u32;
        }
        one
    }

    /// `binarisation::code_sign` and `Rows::commit`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn sign<const KIND: u8>(&mut self, lanes: &mut [Lane; QUAD], block: &mut Block, step: usize) {
        let zero = _mm256_cmpeq_epi64(self.value, _mm256_setzero_si256());
        let signed = _mm256_andnot_si256(zero, all(-1));
        let raw = if !rows::predicts(KIND) { signed } else { _mm256_andnot_si256(self.leaning, signed) };
        let bit = _mm256_and_si256(self.raw, _mm256_and_si256(raw, all(1)));
        let mut turn = _mm256_sub_epi64(_mm256_setzero_si256(), bit); // mask [lane]
        self.raw = _mm256_srlv_epi64(self.raw, _mm256_and_si256(raw, all(1)));
        self.raw_bits = _mm256_sub_epi64(self.raw_bits, raw);
        if rows::predicts(KIND) {
            let coded = _mm256_and_si256(self.leaning, signed);
            let index = _mm256_min_epu32(self.upper, all((LOW_BIT - SIGN - 1) as i64));
            let one = self.bit(lanes, numbers(index).map(|index| SIGN + index as usize), coded);
            turn = _mm256_or_si256(turn, one);
            // Turned once more where the prediction leans down.
            turn = _mm256_xor_si256(turn, self.down);
        }
        let level = _mm256_sub_epi32(_mm256_xor_si256(self.value, turn), turn);
        let mut level = if rows::predicts(KIND) { _mm256_add_epi32(level, self.predicted) } else { level };
        let mut magnitude = self.value;
        if rows::dependent(KIND) {
            let odd = self.odd();
            let one = _mm256_and_si256(self.state, all(1));
            let parity = if rows::predicts(KIND) { _mm256_xor_si256(self.value, self.predicted) } else { self.value };
            let parity = _mm256_sub_epi64(_mm256_setzero_si256(), _mm256_and_si256(parity, all(1)));
            let behind =
                _mm256_xor_si256(_mm256_and_si256(self.odd_quantizer, odd), _mm256_and_si256(self.odd_index, parity));
            self.state = _mm256_xor_si256(_mm256_srli_epi64::<1>(self.state), behind);
            // `dependent::level`
            level = _mm256_sub_epi32(_mm256_add_epi32(level, level), _mm256_sign_epi32(one, level));
            magnitude = if rows::predicts(KIND) { _mm256_sub_epi32(level, self.expected) } else { level };
            magnitude = _mm256_abs_epi32(magnitude);
        }
        let packed = _mm256_permutevar8x32_epi32(level, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        store_u32(&mut block.levels[step], _mm256_castsi256_si128(packed));
        if rows::in_kernels(KIND) {
            for (lane, level) in lanes.iter_mut().zip(block.levels[step]) {
                lane.rows.kernel.commit(lane.column + step, level as i32);
            }
        }
        // `scale::row_average`
        let magnitude = if rows::dependent(KIND) {
            let magnitude = _mm256_min_epu32(magnitude, all(i64::from(2 * scale::LARGEST + 1)));
            _mm256_slli_epi32::<{ scale::FRACTION as i32 - 1 }>(magnitude)
        } else {
            let magnitude = _mm256_min_epu32(magnitude, all(i64::from(scale::LARGEST)));
            _mm256_slli_epi32::<{ scale::FRACTION as i32 }>(magnitude)
        };
        let shift = _mm256_and_si256(self.share, all((1 << scale::SHIFT_BITS) - 1));
        let step = _mm256_srav_epi32(_mm256_sub_epi32(magnitude, self.row), shift);
        self.row = _mm256_add_epi32(self.row, step);
    }
}

/// `a < b`, as unsigned numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn less(a: __m256i, b: __m256i) -> __m256i {
    let sign = all(i64::MIN);
    greater(_mm256_xor_si256(b, sign), _mm256_xor_si256(a, sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::cpu::{differential, dispatch};
    use crate::model::dependent::{self, States};
    use crate::model::params::{Coder, KernelPrediction, Params, RowPrediction};
    use crate::model::rows::{DEPENDENT, KERNEL, PLAIN, REGRESSED, ROW};
    use crate::model::scale::Resolution;
    use crate::testing::Random;

    impl Random {
        /// Levels of all magnitudes: small ones, some with low bits, now and then an escape.
        fn levels(&mut self, count: usize) -> Vec<i32> {
            let bits = self.below(10) as u32;
            let level = |random: &mut Self| {
                let bits = match random.below(200) {
                    0 => 31,
                    1..5 => 6,
                    5..60 => 0,
                    _ => bits,
                };
                let magnitude = (random.next() >> 20) as i32 & ((1u32 << bits) - 1) as i32;
                if random.below(2) == 0 { magnitude } else { -magnitude }
            };
            (0..count).map(|_| level(self)).collect()
        }

        /// The levels of such indices.
        fn path(&mut self, states: States, count: usize) -> Vec<i32> {
            let (taps, mut state) = (states.taps(), 0);
            let level = |index| {
                let odd = (state & 1) as i32;
                state = taps.next(state, index as u32);
                dependent::level(index, odd)
            };
            // So that levels fit 32 bits.
            self.levels(count).into_iter().map(|index| index >> 1).map(level).collect()
        }

        fn params(&mut self, kind: u8) -> Params {
            let mut weight = || self.next() as i8;
            let row = rows::predicts(kind).then(|| RowPrediction { above: weight() / 2, column: weight() / 2 });
            let kernel = KernelPrediction { width: 3, size: 9, weights: [0; 5].map(|_| weight() / 4) };
            Params {
                coder: if rows::regressed(kind) { Coder::Regression } else { Coder::Binary },
                resolution: if self.below(2) == 0 { Resolution::Coarse } else { Resolution::Fine },
                mean_log: self.below(150) as u8,
                width: 1 + self.below(150),
                chunk_rows: 1000,
                row,
                kernel: rows::in_kernels(kind).then_some(kernel),
                states: if rows::dependent(kind) { States::of_bits(3 + self.below(4) as u8) } else { None },
            }
        }
    }

    fn same_as_in_turn<const KIND: u8>(seed: u64) {
        let mut random = Random(seed);
        let count = 1 + random.below(13);
        let params: Vec<Params> = (0..count).map(|_| random.params(KIND)).collect();
        let chunks: Vec<(Vec<u8>, usize)> = (params.iter())
            .map(|params| {
                let levels = 1 + random.below(1500);
                let levels = match params.states {
                    Some(states) => random.path(states, levels),
                    None => random.levels(levels),
                };
                assert!(params.states.is_none_or(|states| states.has_path(&levels)));
                let mut bytes = Vec::new();
                dispatch::encode(params, &levels, &mut bytes);
                match random.below(4) {
                    0 => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
                    1 => bytes.truncate(random.below(bytes.len() as u64)),
                    _ => {}
                }
                (bytes, levels.len())
            })
            .collect();
        let chunks: Vec<(&[u8], usize)> = chunks.iter().map(|(bytes, count)| (&bytes[..], *count)).collect();
        differential::chunks(&params, &chunks);
    }

    #[test]
    fn quads_do_what_lanes_in_turn_do() {
        if !dispatch::available() {
            return;
        }
        for seed in 1..100 {
            same_as_in_turn::<PLAIN>(seed);
            same_as_in_turn::<ROW>(seed);
            same_as_in_turn::<KERNEL>(seed);
            same_as_in_turn::<REGRESSED>(seed);
            same_as_in_turn::<{ DEPENDENT + PLAIN }>(seed);
            same_as_in_turn::<{ DEPENDENT + ROW }>(seed);
            same_as_in_turn::<{ DEPENDENT + KERNEL }>(seed);
            same_as_in_turn::<{ DEPENDENT + REGRESSED }>(seed);
        }
    }
}
