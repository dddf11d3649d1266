//! The steps of the loops as vectors of AVX2; `dispatch.rs` compiles the loops with them.
//!
//! The instructions are those of x86-64-v3 (AVX2, BMI2, LZCNT, MOVBE: every x86 core since 2015). Four contexts adapt as one
//! vector, and eight survivors of the trellis are one. Decoding takes four lanes to a vector besides (`quads.rs`).

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use crate::coding::bits::BitReader;
use crate::coding::fast::frequencies::{BITS, Frequencies, PLACES, SYMBOLS, Symbols};
use crate::coding::fast::{Found, Look, Words};
use crate::coding::lanes::{Lane, Lanes};
use crate::coding::rans;
use crate::cpu::join;
use crate::cpu::quads;
use crate::cpu::symbols;
use crate::cpu::vector::{
    DEALT, OCTET, load_f32, load_i32, load_octet, load_u16, load_u32, store_f32, store_i32, store_octet, store_u32,
};
use crate::exact::Pattern;
use crate::floats::{Join, Joint};
use crate::model::context::{self, GROUP, Lesson, Machine, Portable, SETS, Task};
use crate::model::dependent::MAX_STATES;
use crate::quantize::survivors::{AddCompareSelect, Costs, ENTRIES, Predecessors, Sites, TABULATED, advance_in_turn};

/// AVX2. Only `dispatch.rs` names it, after a check for these features; [`Machine::apart`] compiles a task with them.
pub(crate) struct Avx2;

impl Machine for Avx2 {
    #[inline(always)]
    fn adapt_group(contexts: &mut [u32; GROUP], ones: usize) {
        // SAFETY: only dispatch.rs names this type, after a check for the features that adapt_group needs.
        unsafe { adapt_group(contexts, context::lesson(ones)) }
    }

    // Has not the features itself: the compiler forgets `inline(never)` where there are features, but does not inline a
    // function that has them into one that has not.
    #[inline(never)]
    fn apart<T: Task<Self>>(task: T) -> T::Output {
        // SAFETY: as above.
        unsafe { apart(task) }
    }
}

/// [`Machine::apart`].
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,movbe,popcnt")]
fn apart<T: Task<Avx2>>(task: T) -> T::Output {
    task.run()
}

impl AddCompareSelect for Avx2 {
    #[inline(always)]
    fn add_compare_select<const S: usize, const N: usize>(
        costs: &mut [f32; S],
        metrics: &[[f32; N]; 2],
    ) -> (u64, usize) {
        // SAFETY: as above.
        unsafe { add_compare_select(costs, metrics) }
    }

    #[inline(always)]
    fn inherit<const S: usize, const N: usize>(odd: u64, values: [&[i32; N]; 2]) -> [i32; N] {
        if N != S {
            return Portable::inherit::<S, N>(odd, values);
        }
        // SAFETY: as above.
        unsafe { inherit::<S, N>(odd, values) }
    }

    #[inline(always)]
    fn choose<const N: usize>(
        sites: &Sites<N>,
        costs: &Costs,
        shifts: &[u32; N],
        targets: &[f32; N],
        limit: i32,
    ) -> ([[f32; N]; 2], [[i32; N]; 2]) {
        if N == 2 {
            return Portable::choose(sites, costs, shifts, targets, limit);
        }
        // SAFETY: as above.
        unsafe { choose(sites, costs, shifts, targets, limit) }
    }

    #[inline(always)]
    fn advance<const S: usize, const N: usize>(
        costs: &mut [f32; S],
        sites: &Sites<N>,
        costs_of: &Costs,
        shifts: &[u32; N],
        targets: &[f32; N],
        limit: i32,
    ) -> (u64, usize, [[i32; N]; 2]) {
        if N == 2 {
            // SAFETY: as above.
            return unsafe { advance_of_two(costs, sites, costs_of, shifts, targets, limit) };
        }
        advance_in_turn::<Self, S, N>(costs, sites, costs_of, shifts, targets, limit)
    }
}

impl Look for Avx2 {
    #[inline(always)]
    fn up<const N: usize>(frequencies: &Frequencies, sets: &[u32; N], places: &[u32; N]) -> Found<N> {
        if !N.is_multiple_of(OCTET) {
            return Portable::up(frequencies, sets, places);
        }
        // SAFETY: as above.
        unsafe { look_up(frequencies, sets, places) }
    }

    #[inline(always)]
    fn refill<const N: usize>(words: &mut Words, states: &mut [u32; N]) {
        if !N.is_multiple_of(OCTET) {
            return Portable::refill(words, states);
        }
        // SAFETY: as above.
        unsafe { refill(words, states) }
    }
}

impl rans::Decode for Avx2 {
    #[inline(always)]
    fn decode(decoder: &mut rans::Decoder, numbers: Option<&[u8]>, symbols: &mut [u8]) {
        // SAFETY: as above.
        unsafe { symbols::decode(decoder, numbers, symbols) }
    }
}

impl Join for Avx2 {
    #[inline(always)]
    fn join<P: Pattern>(joint: Joint, symbols: &[u8], shifts: &[u8], raw: &mut BitReader, patterns: &mut [P]) {
        // SAFETY: as above.
        unsafe { join::join(joint, symbols, shifts, raw, patterns) }
    }
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn decode<const KIND: u8>(lanes: &mut [Lane], count: usize) {
        // SAFETY: as above.
        unsafe { quads::decode::<Self, KIND>(lanes, count) }
    }
}

/// `context::adapt_if` on four contexts.
#[inline]
#[target_feature(enable = "avx2")]
fn adapt_group(contexts: &mut [u32; GROUP], lesson: &Lesson) {
    let [a, b, c, d] = lesson.target;
    let (old, target, used) = (load_u32(contexts), _mm_setr_epi32(a, b, c, d), load_u32(&lesson.used));
    let stage = _mm_srli_epi32::<29>(_mm_slli_epi32::<22>(old));
    let distance = _mm_sub_epi32(target, _mm_srli_epi32::<2>(old));
    let step = _mm_and_si128(_mm_srav_epi32(distance, stage), _mm_set1_epi32(!511));
    let half = _mm_add_epi32(step, _mm_srlv_epi32(_mm_set1_epi32(64), stage));
    let half = _mm_and_si128(half, used);
    store_u32(contexts, _mm_add_epi32(_mm_add_epi32(old, half), half));
}

/// [`AddCompareSelect::add_compare_select`], as it is defined: sums, then for each state the smaller of its two ways.
///
/// States are entered in order: the lower half from the first quantiser's, the even ones, the upper half from the odd ones.
/// So for each of both parities, even and odd sums are separated, and each eight are permuted.
#[inline]
#[target_feature(enable = "avx2")]
fn add_compare_select<const S: usize, const N: usize>(costs: &mut [f32; S], metrics: &[[f32; N]; 2]) -> (u64, usize) {
    compete(costs, |parity, octet| {
        let metrics = &metrics[parity];
        if N == S {
            load_f32(&metrics.as_chunks().0[octet])
        } else {
            _mm256_castsi256_ps(pairs([metrics[0].to_bits(), metrics[1].to_bits()]))
        }
    })
}

/// [`add_compare_select`], with the metrics of a parity and eight states as vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn compete<const S: usize>(costs: &mut [f32; S], metrics: impl Fn(usize, usize) -> __m256) -> (u64, usize) {
    let octets = S / OCTET;
    // [parity][even states, then odd states, in eights], in an order of which `Entrances` knows.
    let mut parts = [[_mm256_setzero_ps(); MAX_STATES / OCTET]; 2];
    let (before, _) = costs.as_chunks::<OCTET>();
    for (parity, parts) in parts.iter_mut().enumerate() {
        if octets == 1 {
            parts[0] = _mm256_add_ps(load_f32(&before[0]), metrics(parity, 0));
            continue;
        }
        for pair in 0..octets / 2 {
            let low = _mm256_add_ps(load_f32(&before[2 * pair]), metrics(parity, 2 * pair));
            let high = _mm256_add_ps(load_f32(&before[2 * pair + 1]), metrics(parity, 2 * pair + 1));
            parts[pair] = _mm256_shuffle_ps::<0b1000_1000>(low, high);
            parts[octets / 2 + pair] = _mm256_shuffle_ps::<0b1101_1101>(low, high);
        }
    }
    let (after, _) = costs.as_chunks_mut::<OCTET>();
    let mut cheapest = [_mm256_setzero_ps(); MAX_STATES / OCTET];
    let mut odd = 0;
    for (octet, after) in after.iter_mut().enumerate() {
        let even_cost = Entrances::<S>::in_order(0, octet, &parts[0]);
        let odd_cost = Entrances::<S>::in_order(1, octet, &parts[1]);
        let cheaper = _mm256_cmp_ps::<_CMP_LT_OQ>(odd_cost, even_cost);
        // Of equal numbers, the second.
        cheapest[octet] = _mm256_min_ps(odd_cost, even_cost);
        odd |= u64::from(_mm256_movemask_ps(cheaper) as u8) << (OCTET * octet);
        store_f32(after, cheapest[octet]);
    }
    let mut least = cheapest;
    for half in [4, 2, 1] {
        for octet in 0..half {
            if octet + half < octets {
                least[octet] = _mm256_min_ps(least[octet], least[octet + half]);
            }
        }
    }
    let [least, ..] = least;
    let least = _mm256_min_ps(least, _mm256_permute2f128_ps::<1>(least, least));
    let least = _mm256_min_ps(least, _mm256_permute_ps::<0b0100_1110>(least));
    let least = _mm256_min_ps(least, _mm256_permute_ps::<0b1011_0001>(least));
    let mut best = 0;
    for (octet, cost) in cheapest[..octets].iter().enumerate() {
        let equal = _mm256_cmp_ps::<_CMP_EQ_OQ>(*cost, least);
        best |= u64::from(_mm256_movemask_ps(equal) as u8) << (OCTET * octet);
    }
    (odd, best.trailing_zeros() as usize % S)
}

/// [`AddCompareSelect::inherit`] where every state has a value: separated and permuted as in [`add_compare_select`].
#[inline]
#[target_feature(enable = "avx2")]
fn inherit<const S: usize, const N: usize>(odd: u64, values: [&[i32; N]; 2]) -> [i32; N] {
    let octets = S / OCTET;
    let mut parts = [[_mm256_setzero_ps(); MAX_STATES / OCTET]; 2];
    for (values, parts) in values.into_iter().zip(&mut parts) {
        let (values, _) = values.as_chunks::<OCTET>();
        if octets == 1 {
            parts[0] = _mm256_castsi256_ps(load_i32(&values[0]));
            continue;
        }
        for pair in 0..octets / 2 {
            let low = _mm256_castsi256_ps(load_i32(&values[2 * pair]));
            let high = _mm256_castsi256_ps(load_i32(&values[2 * pair + 1]));
            parts[pair] = _mm256_shuffle_ps::<0b1000_1000>(low, high);
            parts[octets / 2 + pair] = _mm256_shuffle_ps::<0b1101_1101>(low, high);
        }
    }
    let mut inherited = [0; N];
    let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (octet, inherited) in inherited.as_chunks_mut::<OCTET>().0.iter_mut().enumerate() {
        let even_value = Entrances::<S>::in_order(0, octet, &parts[0]);
        let odd_value = Entrances::<S>::in_order(1, octet, &parts[1]);
        let here = _mm256_set1_epi32(i32::from((odd >> (OCTET * octet)) as u8));
        let from_odd = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(here, bits), bits));
        store_i32(inherited, _mm256_castps_si256(_mm256_blendv_ps(even_value, odd_value, from_odd)));
    }
    inherited
}

/// Where candidates are, eight of them: [`Sites`], as vectors.
struct Octet {
    target: __m256,
    predicted: __m256i,
    down: __m256i,
    set: __m256i,
    shift: __m256i,
    odd: __m256i,
}

impl Octet {
    /// Costs and levels of these indices.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn cost(&self, costs: &Costs, limit: i32, index: __m256i) -> (__m256, __m256i) {
        // `dependent::level`
        let level = _mm256_sub_epi32(_mm256_add_epi32(index, index), _mm256_sign_epi32(self.odd, index));
        let error = _mm256_sub_ps(self.target, _mm256_cvtepi32_ps(level));
        let turned = _mm256_xor_si256(_mm256_sub_epi32(index, self.predicted), self.down);
        let residual = _mm256_sub_epi32(turned, self.down);
        let magnitude = _mm256_srlv_epi32(_mm256_abs_epi32(residual), self.shift);
        let magnitude = _mm256_min_epu32(magnitude, _mm256_set1_epi32(TABULATED as i32 - 1));
        let sign = _mm256_and_si256(_mm256_srai_epi32::<31>(residual), _mm256_set1_epi32(TABULATED as i32));
        let table = _mm256_mullo_epi32(self.set, _mm256_set1_epi32(ENTRIES as i32));
        let entry = _mm256_add_epi32(_mm256_add_epi32(table, magnitude), sign);
        let entry = _mm256_and_si256(entry, _mm256_set1_epi32(costs.len() as i32 - 1));
        // SAFETY: the number of costs is a power of two, so indices masked so are within them.
        let bits = unsafe { _mm256_i32gather_ps::<4>(costs.as_ptr(), entry) };
        let cost = _mm256_add_ps(_mm256_mul_ps(error, error), bits);
        let beyond = _mm256_cmpgt_epi32(_mm256_abs_epi32(level), _mm256_set1_epi32(limit));
        (_mm256_blendv_ps(cost, _mm256_set1_ps(f32::INFINITY), _mm256_castsi256_ps(beyond)), level)
    }

    /// Targets in units of two indices.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn exact(&self) -> __m256 {
        // Not of a zero that has a sign.
        let negative = _mm256_cmp_ps::<_CMP_LT_OQ>(self.target, _mm256_setzero_ps());
        let sign = _mm256_and_ps(negative, _mm256_set1_ps(-0.0));
        let offset = _mm256_or_ps(_mm256_cvtepi32_ps(self.odd), sign);
        _mm256_mul_ps(_mm256_set1_ps(0.25), _mm256_add_ps(self.target, offset))
    }

    /// The indices after these towards the prediction.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn inward(&self, index: __m256i) -> __m256i {
        _mm256_add_epi32(index, _mm256_sign_epi32(_mm256_set1_epi32(2), _mm256_sub_epi32(self.predicted, index)))
    }
}

/// Two numbers, four times.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs([first, second]: [u32; 2]) -> __m256i {
    _mm256_set1_epi64x((u64::from(first) | u64::from(second) << 32) as i64)
}

/// [`AddCompareSelect::advance`] for two sites: the nearest of either parity and site in the lower half of a vector, what is tried
/// besides in the upper.
#[inline]
#[target_feature(enable = "avx2")]
fn advance_of_two<const S: usize, const N: usize>(
    costs: &mut [f32; S],
    sites: &Sites<N>,
    costs_of: &Costs,
    shifts: &[u32; N],
    targets: &[f32; N],
    limit: i32,
) -> (u64, usize, [[i32; N]; 2]) {
    let octet = Octet {
        target: _mm256_castsi256_ps(pairs([targets[0].to_bits(), targets[1].to_bits()])),
        predicted: pairs([sites.predicted[0] as u32, sites.predicted[1] as u32]),
        down: pairs([sites.down[0] as u32, sites.down[1] as u32]),
        set: pairs([sites.sets[0], sites.sets[1]]),
        shift: pairs([shifts[0], shifts[1]]),
        odd: pairs([0, 1]),
    };
    let parity = _mm256_setr_epi32(0, 0, 1, 1, 0, 0, 1, 1);
    let exact = octet.exact();
    let rounded = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(exact);
    let twice = _mm256_cvttps_epi32(_mm256_blend_ps::<0b1100_1100>(rounded, _mm256_floor_ps(exact)));
    let nearest = _mm256_add_epi32(_mm256_add_epi32(twice, twice), parity);
    let index = _mm256_blend_epi32::<0b1111_0000>(nearest, octet.inward(nearest));
    let (cost, level) = octet.cost(costs_of, limit, index);
    let (first, second) = (_mm256_castps256_ps128(cost), _mm256_extractf128_ps::<1>(cost));
    let better = _mm_castps_si128(_mm_cmplt_ps(second, first));
    let (first_level, second_level) = (_mm256_castsi256_si128(level), _mm256_extracti128_si256::<1>(level));
    // [parity][site]
    let metric = _mm_castps_pd(_mm_min_ps(second, first));
    let even = _mm256_castpd_ps(_mm256_broadcastsd_pd(metric));
    let odd = _mm256_castpd_ps(_mm256_broadcastsd_pd(_mm_unpackhi_pd(metric, metric)));
    let mut found = [0; 4];
    store_u32(&mut found, _mm_blendv_epi8(first_level, second_level, better));
    let mut levels = [[0; N]; 2];
    for (levels, found) in levels.iter_mut().zip(found.as_chunks::<2>().0) {
        (levels[0], levels[1]) = (found[0] as i32, found[1] as i32);
    }
    let (odd, best) = compete(costs, |parity, _| if parity == 0 { even } else { odd });
    (odd, best, levels)
}

/// [`AddCompareSelect::choose`] for eight sites at a time.
#[inline]
#[target_feature(enable = "avx2")]
fn choose<const N: usize>(
    sites: &Sites<N>,
    costs: &Costs,
    shifts: &[u32; N],
    targets: &[f32; N],
    limit: i32,
) -> ([[f32; N]; 2], [[i32; N]; 2]) {
    let (mut metrics, mut levels) = ([[0.0; N]; 2], [[0; N]; 2]);
    for part in 0..N / OCTET {
        let octet = Octet {
            target: load_f32(&targets.as_chunks().0[part]),
            predicted: load_i32(&sites.predicted.as_chunks().0[part]),
            down: load_i32(&sites.down.as_chunks().0[part]),
            set: load_octet(&sites.sets.as_chunks().0[part]),
            shift: load_octet(&shifts.as_chunks().0[part]),
            // Every other state has the second quantiser.
            odd: pairs([0, 1]),
        };
        let exact = octet.exact();
        for parity in 0..2 {
            let nearest = if parity == 0 {
                let twice = _mm256_cvtps_epi32(exact);
                _mm256_add_epi32(twice, twice)
            } else {
                let twice = _mm256_cvttps_epi32(_mm256_floor_ps(exact));
                _mm256_add_epi32(_mm256_add_epi32(twice, twice), _mm256_set1_epi32(1))
            };
            let first = octet.cost(costs, limit, nearest);
            let second = octet.cost(costs, limit, octet.inward(nearest));
            let better = _mm256_cmp_ps::<_CMP_LT_OQ>(second.0, first.0);
            let metric = _mm256_min_ps(second.0, first.0);
            let level = _mm256_blendv_ps(_mm256_castsi256_ps(first.1), _mm256_castsi256_ps(second.1), better);
            store_f32(&mut metrics[parity].as_chunks_mut().0[part], metric);
            store_i32(&mut levels[parity].as_chunks_mut().0[part], _mm256_castps_si256(level));
        }
    }
    (metrics, levels)
}

/// [`Look::up`] for eight states at a time.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up<const N: usize>(frequencies: &Frequencies, sets: &[u32; N], places: &[u32; N]) -> Found<N> {
    let mut found = Found { symbols: [0; N], entries: [0; N], ranges: [0; N] };
    let table: &Symbols = frequencies.symbols();
    for octet in 0..N / OCTET {
        let sets = load_octet(&sets.as_chunks().0[octet]);
        let places = load_octet(&places.as_chunks().0[octet]);
        let place = _mm256_or_si256(_mm256_slli_epi32::<{ BITS as i32 }>(sets), places);
        let place = _mm256_and_si256(place, _mm256_set1_epi32((SETS * PLACES) as i32 - 1));
        // SAFETY: the table has three bytes more than SETS * PLACES, a power of two, so four bytes lie at every index.
        let symbol = unsafe { _mm256_i32gather_epi32::<1>(table.as_ptr().cast(), place) };
        let symbol = _mm256_and_si256(symbol, _mm256_set1_epi32(SYMBOLS as i32 - 1));
        let entry = _mm256_or_si256(_mm256_slli_epi32::<4>(sets), symbol);
        let entry = _mm256_and_si256(entry, _mm256_set1_epi32((SETS * SYMBOLS) as i32 - 1));
        // SAFETY: the number of ranges is a power of two, so indices masked so are within them.
        let range = unsafe { _mm256_i32gather_epi32::<4>(frequencies.ranges.as_ptr().cast(), entry) };
        store_octet(&mut found.symbols.as_chunks_mut().0[octet], symbol);
        store_octet(&mut found.entries.as_chunks_mut().0[octet], entry);
        store_octet(&mut found.ranges.as_chunks_mut().0[octet], range);
    }
    found
}

/// [`Look::refill`] for eight states at a time.
#[inline]
#[target_feature(enable = "avx2")]
fn refill<const N: usize>(words: &mut Words, states: &mut [u32; N]) {
    for octet in states.as_chunks_mut().0 {
        let state = load_octet(octet);
        let wants = _mm256_cmpeq_epi32(_mm256_srli_epi32::<16>(state), _mm256_setzero_si256());
        let wanted = _mm256_movemask_ps(_mm256_castsi256_ps(wants)) as u8;
        let next = _mm256_cvtepu16_epi32(load_u16(words.eight()));
        let word = _mm256_permutevar8x32_epi32(next, load_octet(&DEALT[usize::from(wanted)]));
        let filled = _mm256_or_si256(_mm256_slli_epi32::<16>(state), word);
        store_octet(octet, _mm256_blendv_epi8(state, filled, wants));
        words.pass(wanted.count_ones() as usize);
    }
}

const _: () = assert!((SETS * ENTRIES).is_power_of_two() && (SETS * PLACES).is_power_of_two() && SYMBOLS == 16);

/// Where the ways into each eight states come from: which part of those that [`add_compare_select`] separates, and where in it.
struct Entrances<const S: usize>;

impl<const S: usize> Entrances<S> {
    const FROM: [[(usize, [i32; OCTET]); MAX_STATES / OCTET]; 2] = {
        let mut from = [[(0, [0; OCTET]); MAX_STATES / OCTET]; 2];
        let mut way = 0;
        while way < 2 * S {
            let (parity, state) = (way / S, way % S);
            let origin = Predecessors::<S>::FROM[parity][state];
            let (part, place) = if S == OCTET {
                (0, origin)
            } else {
                // A shuffle takes two of each half vector from one source and two from the other.
                let (pair, within) = (origin / (2 * OCTET), origin % (2 * OCTET));
                let half = within / 4 % 2;
                (origin % 2 * (S / OCTET / 2) + pair, 4 * half + 2 * (within / OCTET) + within / 2 % 2)
            };
            let entry = &mut from[parity][state / OCTET];
            assert!(state % OCTET == 0 || entry.0 == part, "eight states are entered from one part");
            entry.0 = part;
            entry.1[state % OCTET] = place as i32;
            way += 1;
        }
        from
    };

    /// Eight numbers of one parity, in the order of the states that they lead to.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn in_order(parity: usize, octet: usize, parts: &[__m256; MAX_STATES / OCTET]) -> __m256 {
        let (part, order) = &Self::FROM[parity][octet];
        let [a, b, c, d, e, f, g, h] = *order;
        _mm256_permutevar8x32_ps(parts[*part], _mm256_setr_epi32(a, b, c, d, e, f, g, h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::vector::available;
    use crate::testing::Random;

    fn survivors_are_the_same<const S: usize, const N: usize>(random: &mut Random) {
        let number = |random: &mut Random| random.below(64) as f32 / 8.0;
        let mut costs = [f32::INFINITY; S];
        costs[random.below(S as u64)] = 0.0;
        for _ in 0..1000 {
            let metrics = [(); 2].map(|()| [(); N].map(|()| number(random)));
            let mut portable = costs;
            assert_eq!(
                Avx2::add_compare_select(&mut costs, &metrics),
                Portable::add_compare_select(&mut portable, &metrics)
            );
            assert_eq!(costs, portable);
            let values = [(); 2].map(|()| [(); N].map(|()| random.next() as i32));
            let odd = random.next();
            let values = [&values[0], &values[1]];
            assert_eq!(Avx2::inherit::<S, N>(odd, values), Portable::inherit::<S, N>(odd, values));
        }
    }

    fn choices_are_the_same<const S: usize, const N: usize>(random: &mut Random, costs: &Costs) {
        let number = |random: &mut Random, end: i32| random.below(2 * end as u64) as i32 - end;
        for round in 0..300 {
            let size = 1 << (round % 24);
            let sites = Sites {
                sets: [(); N].map(|()| random.below(SETS as u64) as u32),
                predicted: [(); N].map(|()| number(random, size)),
                expected: [0; N],
                down: [(); N].map(|()| -(random.below(2) as i32)),
            };
            let shifts = [(); N].map(|()| random.below(10) as u32);
            let targets = [(); N].map(|()| number(random, 8 * size) as f32 / 8.0);
            for limit in [1, size, 1 << 24] {
                let mut survivors = [(); S].map(|()| random.below(64) as f32 / 8.0);
                let mut portable = survivors;
                let chosen = Avx2::advance(&mut survivors, &sites, costs, &shifts, &targets, limit);
                assert_eq!(chosen, Portable::advance(&mut portable, &sites, costs, &shifts, &targets, limit));
                assert_eq!(survivors, portable);
            }
        }
    }

    #[test]
    fn survivors_choose_as_in_plain_rust() {
        if !available() {
            return;
        }
        let random = &mut Random(1);
        let costs: Box<Costs> =
            (0..SETS * ENTRIES).map(|_| random.below(64) as f32 / 8.0).collect::<Vec<_>>().try_into().expect("so many");
        choices_are_the_same::<8, 2>(random, &costs);
        choices_are_the_same::<8, 8>(random, &costs);
        choices_are_the_same::<32, 2>(random, &costs);
        choices_are_the_same::<64, 2>(random, &costs);
        choices_are_the_same::<64, 64>(random, &costs);
    }

    #[test]
    fn survivors_compete_as_in_plain_rust() {
        if !available() {
            return;
        }
        for seed in 1..20 {
            let random = &mut Random(seed);
            survivors_are_the_same::<8, 2>(random);
            survivors_are_the_same::<8, 8>(random);
            survivors_are_the_same::<16, 2>(random);
            survivors_are_the_same::<16, 16>(random);
            survivors_are_the_same::<32, 2>(random);
            survivors_are_the_same::<32, 32>(random);
            survivors_are_the_same::<64, 2>(random);
            survivors_are_the_same::<64, 64>(random);
        }
    }

    #[test]
    fn a_group_adapts_as_in_plain_rust() {
        if !available() {
            return;
        }
        let mut state = 1u64;
        for round in 0..100_000 {
            let mut contexts = [0; GROUP];
            for context in &mut contexts {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *context = (state >> 32) as u32;
            }
            let mut portable = contexts;
            Avx2::adapt_group(&mut contexts, round % 5);
            Portable::adapt_group(&mut portable, round % 5);
            assert_eq!(contexts, portable);
        }
    }
}
