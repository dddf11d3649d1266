//! The arithmetic coder of ISO/IEC 15938-17 (NNC) and of the DeepCABAC authors' streams of 2019: a range of 9 bits, as in
//! HEVC, and contexts that average a fast and a slow counter.
//!
//! The decoder never reads outside its bytes: after their end it sees zeros, and [`Decoder::finish`] says whether the code
//! ended exactly where its bytes do. Between two decisions of a good stream `value < range << 54`. A damaged one may break
//! that (it begins beyond its range, or an entry point sets the range); then decisions are wrong, but every shift stays below
//! 64, and nothing else depends on it.

use std::array;
use std::mem::take;

/// Fixed-point bits of a cost: 2^15 is one bit.
pub const COST_BITS: u32 = 15;

/// Predecessors in which a context can begin and adapt, signalled by their number.
pub const SETTINGS: usize = 9;

/// For each setting: shifts of the fast and of the slow counter, where the sum of the two and the fast one begin.
const SETTING: [[i16; 4]; SETTINGS] = [
    [1, 4, 0, 0],
    [1, 4, -1310, -41],
    [1, 4, 3039, 95],
    [0, 5, 0, 0],
    [2, 6, 962, 30],
    [2, 6, 3039, 95],
    [2, 6, -673, -21],
    [3, 5, 0, 0],
    [3, 5, 962, 30],
];

/// How far a counter moves, by where it stands: against the decision first, with it last.
const CURVE: [i16; 32] = [
    2512, 2288, 2064, 1840, 1616, 1392, 1168, 944, 720, 560, 464, 368, 272, 208, 144, 80, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 64, 64, 64, 64, 64, 64, 0,
];

/// The part of the range that the less probable value gets: by range (8 classes), then by certainty (32 classes).
#[rustfmt::skip]
const LESS_PROBABLE: [[u8; 32]; 8] = [
    [128, 112, 97, 84, 74, 65, 57, 50, 45, 39, 34, 30, 27, 23, 20, 18, 15, 14, 12, 11, 10, 9, 7, 7, 5, 5, 4, 4, 3, 3, 2, 2],
    [142, 125, 108, 93, 82, 72, 63, 56, 50, 43, 38, 33, 30, 26, 22, 20, 17, 16, 13, 12, 11, 10, 8, 8, 6, 6, 5, 5, 3, 3, 2, 2],
    [156, 137, 119, 103, 90, 79, 70, 61, 55, 48, 42, 37, 33, 28, 24, 22, 19, 17, 15, 13, 12, 11, 9, 9, 6, 6, 5, 5, 4, 4, 2, 2],
    [171, 150, 130, 112, 99, 87, 76, 67, 60, 52, 46, 40, 36, 31, 27, 24, 21, 19, 16, 15, 13, 12, 10, 10, 7, 7, 6, 6, 4, 4, 3, 3],
    [185, 162, 141, 121, 107, 94, 82, 73, 65, 56, 50, 43, 39, 34, 29, 26, 22, 21, 17, 16, 14, 13, 11, 11, 8, 8, 6, 6, 4, 4, 3, 3],
    [199, 175, 152, 131, 115, 101, 89, 78, 70, 61, 54, 47, 42, 36, 31, 28, 24, 22, 19, 17, 15, 14, 12, 12, 8, 8, 7, 7, 5, 5, 3, 3],
    [213, 187, 163, 140, 123, 108, 95, 84, 75, 65, 58, 50, 45, 39, 33, 30, 26, 24, 20, 18, 16, 15, 13, 13, 9, 9, 7, 7, 5, 5, 3, 3],
    [228, 200, 174, 150, 132, 116, 102, 90, 80, 70, 62, 54, 48, 42, 36, 32, 28, 26, 22, 20, 18, 16, 14, 14, 10, 10, 8, 8, 6, 6, 4, 4],
];

/// Where the sum of both counters lies, in 64 steps: from [`ONE`] on, one is the more probable value.
const PLACES: usize = 64;
const ONE: usize = PLACES / 2;

/// [`LESS_PROBABLE`] by place: eight bytes for eight ranges. A shift in a register is sooner done than a load.
static SHARES: [u64; PLACES] = {
    let mut shares = [0; PLACES];
    let mut place = 0;
    while place < PLACES {
        let certainty = place.abs_diff(ONE);
        let mut class = 0;
        while class < 8 {
            shares[place] |= (LESS_PROBABLE[class][certainty & 31] as u64) << (8 * class);
            class += 1;
        }
        place += 1;
    }
    shares
};

/// Cost of the more probable value, by certainty (sum of the counters over 8). That of the other is linear: [`COSTS`].
#[rustfmt::skip]
const MORE_PROBABLE_COST: [u16; 512] = [
    32568, 32174, 31787, 31406, 31031, 30662, 30299, 29942, 29590, 29244, 28904, 28569, 28238, 27913, 27593, 27278,
    26967, 26661, 26360, 26063, 25770, 25482, 25198, 24918, 24641, 24369, 24101, 23836, 23575, 23318, 23064, 22814,
    22567, 22323, 22083, 21846, 21612, 21381, 21154, 20929, 20707, 20488, 20272, 20059, 19849, 19641, 19436, 19233,
    19033, 18836, 18641, 18448, 18258, 18070, 17885, 17702, 17521, 17342, 17166, 16991, 16819, 16649, 16481, 16314,
    16150, 15988, 15828, 15669, 15513, 15358, 15205, 15054, 14904, 14757, 14611, 14466, 14324, 14183, 14043, 13905,
    13769, 13634, 13501, 13369, 13239, 13110, 12983, 12857, 12732, 12609, 12487, 12367, 12248, 12130, 12013, 11898,
    11784, 11671, 11559, 11449, 11340, 11232, 11125, 11019, 10914, 10811, 10708, 10607, 10507, 10407, 10309, 10212,
    10116, 10021, 9927, 9833, 9741, 9650, 9560, 9470, 9382, 9294, 9208, 9122, 9037, 8953, 8870, 8788, 8706, 8626, 8546,
    8467, 8389, 8311, 8235, 8159, 8084, 8009, 7936, 7863, 7790, 7719, 7648, 7578, 7509, 7440, 7372, 7305, 7238, 7172,
    7107, 7042, 6978, 6915, 6852, 6790, 6728, 6667, 6607, 6547, 6488, 6429, 6371, 6313, 6256, 6200, 6144, 6089, 6034,
    5980, 5926, 5872, 5820, 5767, 5716, 5664, 5614, 5563, 5514, 5464, 5415, 5367, 5319, 5271, 5224, 5178, 5132, 5086,
    5041, 4996, 4951, 4907, 4864, 4820, 4778, 4735, 4693, 4651, 4610, 4569, 4529, 4489, 4449, 4410, 4371, 4332, 4294,
    4256, 4218, 4181, 4144, 4107, 4071, 4035, 4000, 3965, 3930, 3895, 3861, 3827, 3793, 3760, 3727, 3694, 3662, 3630,
    3598, 3566, 3535, 3504, 3473, 3443, 3413, 3383, 3353, 3324, 3295, 3266, 3238, 3209, 3181, 3153, 3126, 3099, 3072,
    3045, 3018, 2992, 2966, 2940, 2915, 2889, 2864, 2839, 2814, 2790, 2766, 2742, 2718, 2694, 2671, 2648, 2625, 2602,
    2579, 2557, 2535, 2513, 2491, 2469, 2448, 2427, 2406, 2385, 2364, 2344, 2324, 2303, 2283, 2264, 2244, 2225, 2206,
    2186, 2168, 2149, 2130, 2112, 2094, 2076, 2058, 2040, 2022, 2005, 1988, 1971, 1954, 1937, 1920, 1903, 1887, 1871,
    1855, 1839, 1823, 1807, 1792, 1776, 1761, 1746, 1731, 1716, 1701, 1687, 1672, 1658, 1643, 1629, 1615, 1601, 1588,
    1574, 1561, 1547, 1534, 1521, 1508, 1495, 1482, 1469, 1457, 1444, 1432, 1420, 1407, 1395, 1383, 1372, 1360, 1348,
    1337, 1325, 1314, 1303, 1291, 1280, 1269, 1259, 1248, 1237, 1226, 1216, 1206, 1195, 1185, 1175, 1165, 1155, 1145,
    1135, 1126, 1116, 1106, 1097, 1088, 1078, 1069, 1060, 1051, 1042, 1033, 1024, 1016, 1007, 998, 990, 981, 973, 965,
    956, 948, 940, 932, 924, 916, 909, 901, 893, 886, 878, 870, 863, 856, 848, 841, 834, 827, 820, 813, 806, 799, 792,
    786, 779, 772, 766, 759, 753, 746, 740, 734, 727, 721, 715, 709, 703, 697, 691, 685, 679, 674, 668, 662, 657, 651,
    645, 640, 635, 629, 624, 618, 613, 608, 603, 598, 593, 588, 583, 578, 573, 568, 563, 558, 554, 549, 544, 540, 535,
    530, 526, 521, 517, 513, 508, 504, 500, 495, 491, 487, 483, 479, 475, 471, 467, 463, 459, 455, 451, 447, 444, 440,
    436, 432, 429, 425, 421, 418, 414, 411, 407, 404, 400, 397, 394, 390, 387, 384, 381, 377, 374, 371, 368, 365, 362,
    358, 355, 352, 349, 346, 344, 341, 338, 335, 332, 329, 326, 324, 321, 318, 316, 313, 310,
];

/// Costs of a zero and of a one in units of 2^-15 bits, by the sum of the counters over 8, plus 512.
static COSTS: [[u32; 1024]; 2] = {
    let mut costs = [[0; 1024]; 2];
    let mut place = 0;
    while place < 1024 {
        let one_is_more_probable = place >= 512;
        let distance = if one_is_more_probable { place - 512 } else { 512 - place };
        let certainty = if distance > 511 { 511 } else { distance };
        let less_probable = ((2_160_650_100 + 26_266_759 * certainty as u64) >> 16) as u32;
        costs[one_is_more_probable as usize][place] = MORE_PROBABLE_COST[certainty] as u32;
        costs[!one_is_more_probable as usize][place] = less_probable;
        place += 1;
    }
    costs
};

/// What a zero and a one add to the fast counter, by itself and its shift.
static FAST: [[i16; 4 * 256]; 2] = {
    let mut moves = [[0; 4 * 256]; 2];
    let mut at = 0;
    while at < 4 * 256 {
        let (shift, counter) = (at / 256, (at % 256) as i32 - 128);
        let down = CURVE[(16 + (-counter >> 3)) as usize & 31] >> (shift + 4);
        let up = CURVE[(16 + (counter >> 3)) as usize & 31] >> (shift + 4);
        // Counters that no sequence of decisions leads to stay in their row.
        let place = (at % 256) as i16;
        moves[0][at] = if place < down { 0 } else { -down };
        moves[1][at] = if place + up > 255 { 0 } else { up };
        at += 1;
    }
    moves
};

/// What a zero and a one add to the slow counter, by itself over 128, rounded up for a zero, and its shift.
static SLOW: [[i16; 4 * 64]; 2] = {
    let mut moves = [[0; 4 * 64]; 2];
    let mut at = 0;
    while at < 4 * 64 {
        let (shift, counter) = (at / 64, at % 64);
        moves[0][at] = -(CURVE[(32 - counter as i32) as usize & 31] >> (shift + 4));
        moves[1][at] = CURVE[counter & 31] >> (shift + 4);
        at += 1;
    }
    moves
};

/// A fast and a slow counter, stored as places in the tables above, so that little is left to compute.
///
/// The slow one is in the upper half: 2^13 times its shift less 4, and 2048 more than the counter, which is in -2000..=2000. The
/// fast one is in the lower: 2^8 times its shift less 4, and 128 more than the counter, which is in -123..=123.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters(u32);

impl Counters {
    /// Those of this setting, which is below [`SETTINGS`], at their beginning.
    #[inline]
    pub const fn new(setting: usize) -> Counters {
        let [fast_shift, slow_shift, sum, fast] = SETTING[setting];
        let slow = ((slow_shift - 4) << 13) as u32 + (2048 + sum - 16 * fast) as u32;
        Counters(slow << 16 | ((fast_shift << 8) + 128 + fast) as u32)
    }

    /// Their sum: 4096 more than slow and 16 times fast, in 207..=7985, but for bits from 2^13 on.
    #[inline(always)]
    const fn sum(self) -> usize {
        (self.0 >> 16) as usize + 16 * (self.0 as u8) as usize
    }

    /// Cost of a decision in units of 2^-15 bits.
    #[inline(always)]
    pub fn cost(self, one: bool) -> u32 {
        COSTS[usize::from(one)][(self.sum() >> 3) & 1023]
    }

    /// Learns from a decision.
    #[inline(always)]
    pub fn adapt(&mut self, one: bool) {
        let bit = usize::from(one);
        let up = if one { 0 } else { 127 << 16 };
        let slow = i32::from(SLOW[bit][(self.0.wrapping_add(up) >> 23) as usize & 255]) << 16;
        let fast = i32::from(FAST[bit][self.0 as usize & 1023]);
        self.0 = self.0.wrapping_add_signed(slow + fast);
    }
}

/// An adaptive probability: counters, and what follows from them, so that the next decision need not wait for it.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The entry of [`SHARES`] at `place`.
    shares: u64,
    counters: Counters,
    /// Where the sum of the counters lies.
    place: u16,
    setting: u16,
}

impl Context {
    /// A context of this setting, which is below [`SETTINGS`], at its beginning.
    #[inline]
    pub const fn new(setting: usize) -> Context {
        let mut context = Context { shares: 0, counters: Counters::new(setting), place: 0, setting: setting as u16 };
        context.settle();
        context
    }

    /// Back to the beginning of its setting.
    #[inline]
    pub fn reset(&mut self) {
        *self = Context::new(usize::from(self.setting));
    }

    /// Keeps what follows from the counters.
    #[inline(always)]
    const fn settle(&mut self) {
        let place = (self.counters.sum() >> 7) & (PLACES - 1);
        self.shares = SHARES[place];
        self.place = place as u16;
    }

    /// Whether one is the more probable value.
    #[inline(always)]
    fn one_is_more(self) -> bool {
        usize::from(self.place) >= ONE
    }

    /// The part of a range of 9 bits that the less probable value gets.
    #[inline(always)]
    fn less(self, range: u64) -> u64 {
        (self.shares >> ((range >> 2) & 0x38)) & 0xff
    }

    /// Cost of a decision in units of 2^-15 bits.
    #[inline(always)]
    pub fn cost(self, one: bool) -> u32 {
        self.counters.cost(one)
    }

    /// Learns from a decision.
    #[inline(always)]
    pub fn adapt(&mut self, one: bool) {
        self.counters.adapt(one);
        self.settle();
    }
}

/// Where decisions go to or come from. An encoder takes what is given and returns it; a decoder ignores it.
pub trait Bins {
    /// A decision with the context of this number.
    fn bin(&mut self, contexts: &mut [Context], number: usize, one: bool) -> bool;
    /// The same for a decision that nothing is chosen by at once, such as a sign: for a decoder that is better without a branch.
    #[inline(always)]
    fn bin_apart(&mut self, contexts: &mut [Context], number: usize, one: bool) -> bool {
        self.bin(contexts, number, one)
    }
    /// The low `count <= 32` bits of `bits`, which has no others; without a context.
    fn bypass(&mut self, bits: u32, count: u32) -> u32;
    /// Runs a loop, or a rarely called function, on a copy of its own, so that the state can stay in registers.
    #[inline(always)]
    fn locally<R>(&mut self, body: impl FnOnce(&mut Self) -> R) -> R {
        body(self)
    }
}

/// Adds up costs in units of 2^-15 bits; leaves the contexts as they are.
#[derive(Default)]
pub struct Cost(pub u64);

impl Bins for Cost {
    #[inline(always)]
    fn bin(&mut self, contexts: &mut [Context], number: usize, one: bool) -> bool {
        self.0 += u64::from(contexts[number].cost(one));
        one
    }

    #[inline(always)]
    fn bypass(&mut self, bits: u32, count: u32) -> u32 {
        self.0 += u64::from(count) << COST_BITS;
        bits
    }
}

/// Adds up costs, and lets contexts learn.
#[derive(Default)]
pub struct Tally(pub u64);

impl Bins for Tally {
    #[inline(always)]
    fn bin(&mut self, contexts: &mut [Context], number: usize, one: bool) -> bool {
        self.0 += u64::from(contexts[number].cost(one));
        contexts[number].adapt(one);
        one
    }

    #[inline(always)]
    fn bypass(&mut self, bits: u32, count: u32) -> u32 {
        self.0 += u64::from(count) << COST_BITS;
        bits
    }
}

/// Lets contexts learn, and writes nothing.
pub struct Learner;

impl Bins for Learner {
    #[inline(always)]
    fn bin(&mut self, contexts: &mut [Context], number: usize, one: bool) -> bool {
        contexts[number].adapt(one);
        one
    }

    #[inline(always)]
    fn bypass(&mut self, bits: u32, _count: u32) -> u32 {
        bits
    }
}

/// The range at the beginning of a stream.
const FIRST_RANGE: u32 = 510;
/// The range at an entry point, where decoding can begin with nothing known but the bits.
pub const ENTRY_RANGE: u32 = 256;
/// Bits of the range.
const RANGE_BITS: u32 = 9;

/// Writes decisions as bytes.
pub struct Encoder {
    out: Vec<u8>,
    /// The lower end of the interval: what is not yet in `out`, `pending` bits and those of the range, and a carry.
    low: u64,
    range: u32,
    pending: u32,
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder { out: Vec::new(), low: 0, range: FIRST_RANGE, pending: 0 }
    }
}

/// Moves all whole bytes but the carry's into `out`. With what is left of [`Encoder::low`] and [`Encoder::pending`]: nothing is
/// borrowed, so that these can stay in registers.
#[cold]
#[inline(never)]
fn flushed(mut out: Vec<u8>, mut low: u64, mut pending: u32) -> (Vec<u8>, u64, u32) {
    if low >> (pending + RANGE_BITS) != 0 {
        low &= (1 << (pending + RANGE_BITS)) - 1;
        // The code is below one, so a byte that is not 255 comes before the first one.
        for byte in out.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
    while pending >= 8 {
        pending -= 8;
        out.push((low >> (pending + RANGE_BITS)) as u8);
    }
    (out, low & ((1 << (pending + RANGE_BITS)) - 1), pending)
}

impl Encoder {
    /// Makes room for `shift` bits: at most 32 at a time, so that `low` stays below 2^(9 + 1 + 31 + 32).
    #[inline(always)]
    fn shift(&mut self, shift: u32) {
        self.low <<= shift;
        self.pending += shift;
        if self.pending >= 32 {
            self.flush();
        }
    }

    #[inline(always)]
    fn flush(&mut self) {
        (self.out, self.low, self.pending) = flushed(take(&mut self.out), self.low, self.pending);
    }

    /// From here on an entry point: decoding can begin here.
    #[inline(always)]
    pub fn entry_point(&mut self) {
        self.range = ENTRY_RANGE;
    }

    /// Where the stream stands: bits shifted out so far.
    pub fn position(&self) -> u64 {
        8 * self.out.len() as u64 + u64::from(self.pending)
    }

    /// A terminating decision, a stop bit and zeros up to a byte.
    pub fn finish(mut self) -> Vec<u8> {
        self.low = (self.low + u64::from(self.range - 2)) | 1;
        self.flush();
        let bits = self.pending + RANGE_BITS;
        let last = self.low << (64 - bits);
        self.out.extend_from_slice(&last.to_be_bytes()[..bits.div_ceil(8) as usize]);
        self.out
    }
}

impl Bins for Encoder {
    #[inline(always)]
    fn bin(&mut self, contexts: &mut [Context], number: usize, one: bool) -> bool {
        let context = &mut contexts[number];
        let less = context.less(u64::from(self.range)) as u32;
        let more = self.range - less;
        let is_less = context.one_is_more() != one;
        let mask = u32::from(is_less).wrapping_neg();
        self.low += u64::from(more & mask);
        let range = more ^ ((more ^ less) & mask);
        let shift = range.leading_zeros() - (32 - RANGE_BITS);
        self.range = range << shift;
        context.adapt(one);
        self.shift(shift);
        one
    }

    #[inline(always)]
    fn bypass(&mut self, bits: u32, count: u32) -> u32 {
        for place in (0..count).rev() {
            self.low <<= 1;
            self.low += u64::from(self.range & ((bits >> place) & 1).wrapping_neg());
            self.pending += 1;
            if self.pending >= 32 {
                self.flush();
            }
        }
        bits
    }

    #[inline(always)]
    fn locally<R>(&mut self, body: impl FnOnce(&mut Self) -> R) -> R {
        let mut local = take(self);
        let result = body(&mut local);
        *self = local;
        result
    }
}

/// Bits of [`Decoder::range`] below the range.
const RANGE_SHIFT: u32 = 64 - RANGE_BITS;

/// Reads decisions from bytes.
#[derive(Clone)]
#[cfg_attr(any(test, fuzzing), derive(PartialEq, Debug))]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    /// Bytes that have been read, or would be if there were zeros after the end.
    taken: usize,
    /// The range at the top.
    range: u64,
    /// How far the code is below the upper end of the interval, likewise: less the bits to come, and less a one after the
    /// last of them, which says where that is. The less probable value, which has the upper part, leaves it as it is.
    below: u64,
}

/// The next bytes, with zeros after the end.
#[inline(always)]
fn four_bytes(bytes: &[u8], taken: usize) -> u32 {
    let rest = bytes.get(taken..).unwrap_or_default();
    match rest.first_chunk() {
        Some(bytes) => u32::from_be_bytes(*bytes),
        None => u32::from_be_bytes(array::from_fn(|i| rest.get(i).copied().unwrap_or(0))),
    }
}

/// [`Decoder::below`] with 32 bits more. Not inlined: it is seldom needed, and what comes before and after it often.
#[cold]
#[inline(never)]
fn refilled(below: u64, bytes: &[u8], taken: usize) -> u64 {
    let place = below.trailing_zeros();
    let next = (u64::from(four_bytes(bytes, taken)) << 1 | 1) << (place & 31);
    below.wrapping_add(1 << place).wrapping_sub(next)
}

impl<'a> Decoder<'a> {
    /// At the beginning of a stream.
    pub fn new(bytes: &'a [u8]) -> Self {
        let range = u64::from(FIRST_RANGE) << RANGE_SHIFT;
        let mut decoder = Decoder { bytes, taken: 0, range, below: range };
        let first = u64::from(decoder.read()) << 32;
        // A damaged stream may begin beyond its range.
        decoder.below = decoder.below.wrapping_sub(first + (1 << 31));
        decoder
    }

    #[inline(always)]
    fn read(&mut self) -> u32 {
        let next = four_bytes(self.bytes, self.taken);
        self.taken += 4;
        next
    }

    /// Passes over `shift` bits, at most 9. At least 24 are left.
    #[inline(always)]
    fn drop(&mut self, shift: u32) {
        self.below <<= shift;
        if self.below as u32 == 0 {
            self.below = refilled(self.below, self.bytes, self.taken);
            self.taken += 4;
        }
    }

    /// What the code is above the interval's lower end, at the top.
    #[inline(always)]
    fn value(&self) -> u64 {
        self.range.wrapping_sub(self.below)
    }

    /// From here on an entry point: see [`Encoder::entry_point`].
    #[inline(always)]
    pub fn entry_point(&mut self) {
        let value = self.value();
        self.range = u64::from(ENTRY_RANGE) << RANGE_SHIFT;
        self.below = self.range.wrapping_sub(value);
    }

    /// Where the stream stands: bits shifted out so far.
    #[inline(always)]
    pub fn position(&self) -> u64 {
        8 * self.taken as u64 + u64::from(self.below.trailing_zeros()) - 63
    }

    /// What an entry point stores of the code: the low 8 bits of its top 9.
    #[inline(always)]
    pub fn entry_value(&self) -> u8 {
        (self.value() >> RANGE_SHIFT) as u8
    }

    /// False once more has been decoded than there is.
    #[inline]
    pub fn inside(&self) -> bool {
        self.position() <= 8 * self.bytes.len() as u64
    }

    /// Bytes that the code takes if it ends here: after a terminating decision, with a stop bit and nothing but zeros in
    /// its last byte. None if it does not end here.
    pub fn finish(&self) -> Option<usize> {
        if self.below > 2 << RANGE_SHIFT {
            return None;
        }
        let stop = self.position() + 8;
        let (last, place) = ((stop / 8) as usize, stop % 8);
        let byte = *self.bytes.get(last)?;
        (byte << place == 0x80).then_some(last + 1)
    }

    /// The next decision, without a branch. The context has yet to learn it.
    #[inline(always)]
    fn next(&mut self, context: Context) -> bool {
        let less = context.less(self.range >> RANGE_SHIFT) << RANGE_SHIFT;
        let is_less = self.below < less;
        let range = if is_less { less } else { self.range - less };
        let below = self.below.wrapping_sub(less);
        self.below = if is_less { self.below } else { below };
        let shift = range.leading_zeros();
        self.range = range << shift;
        self.drop(shift);
        is_less != context.one_is_more()
    }
}

impl Bins for Decoder<'_> {
    #[inline(always)]
    fn bin(&mut self, contexts: &mut [Context], number: usize, _one: bool) -> bool {
        let context = &mut contexts[number];
        // What comes next will be foreseen by the processor, and what is learnt is known then.
        if self.next(*context) {
            context.adapt(true);
            true
        } else {
            context.adapt(false);
            false
        }
    }

    #[inline(always)]
    fn locally<R>(&mut self, body: impl FnOnce(&mut Self) -> R) -> R {
        let mut local = self.clone();
        let result = body(&mut local);
        *self = local;
        result
    }

    #[inline(always)]
    fn bin_apart(&mut self, contexts: &mut [Context], number: usize, _one: bool) -> bool {
        let context = &mut contexts[number];
        let one = self.next(*context);
        context.adapt(one);
        one
    }

    #[inline(always)]
    fn bypass(&mut self, _bits: u32, count: u32) -> u32 {
        let mut bits = 0;
        for _ in 0..count {
            let (below, one) = self.below.overflowing_sub(self.range >> 1);
            self.below = if one { self.below } else { below };
            self.drop(1);
            bits = bits << 1 | u32::from(one);
        }
        bits
    }
}

/// Most decisions with contexts that so many bytes can hold: each divides the range by at least 351 / 349 (two of 351 go to
/// the less probable value), which is 1 / 121.3 bits.
pub const fn most_bins(bytes: usize) -> usize {
    bytes.saturating_mul(8 * 122)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both counters by the rule, and what the tables make of it, from one end of their ranges to the other.
    #[test]
    fn counters_follow_the_curve() {
        for (setting, [fast_shift, slow_shift, sum, mut fast]) in SETTING.into_iter().enumerate() {
            let mut slow = sum - 16 * fast;
            let mut context = Context::new(setting);
            for step in 0..4000u32 {
                // Long runs, and runs of every short length.
                let one = if step < 1500 { step % 600 < 400 } else { (step.wrapping_mul(2654435761) >> 29) < step % 8 };
                let sign = if one { 1 } else { -1 };
                let moved = |counter: i16, scale: i32, shift: i16| {
                    let place = 16 + (i32::from(sign * counter) >> scale);
                    counter + sign * (CURVE[place as usize] >> shift)
                };
                (slow, fast) = (moved(slow, 7, slow_shift), moved(fast, 3, fast_shift + 4));
                context.adapt(one);
                let place = (4096 + i32::from(slow) + 16 * i32::from(fast)) as usize;
                assert_eq!(context.counters.sum(), place + ((slow_shift as usize - 4) << 13), "{setting} {step}");
                assert_eq!(context.shares, SHARES[place >> 7]);
                assert_eq!(context.one_is_more(), place >> 7 >= ONE);
            }
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bits: Vec<bool> = (0..5000u32).map(|i| (i.wrapping_mul(2654435761) >> 13) % 7 == 0).collect();
        let mut encoder = Encoder::default();
        let mut contexts: Vec<Context> = (0..SETTINGS).map(Context::new).collect();
        for (i, &bit) in bits.iter().enumerate() {
            encoder.bin(&mut contexts, i % SETTINGS, bit);
            encoder.bypass(i as u32 % 8, 3);
        }
        let code = encoder.finish();
        let mut decoder = Decoder::new(&code);
        let mut contexts: Vec<Context> = (0..SETTINGS).map(Context::new).collect();
        for (i, &bit) in bits.iter().enumerate() {
            assert_eq!(decoder.bin(&mut contexts, i % SETTINGS, false), bit, "{i}");
            assert_eq!(decoder.bypass(0, 3), i as u32 % 8);
        }
        assert_eq!(decoder.finish(), Some(code.len()));
    }
}
