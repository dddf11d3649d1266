//! Changes of a few values: an update of which most values are those of its base. FORMAT.md, 11.
//!
//! How often values change depends on their exponent: an optimiser's step is large next to the last place of small weights, and
//! small next to that of large ones. So each exponent has a *rate*, and values are laid on a line one after the other, each over
//! as many places as its rate says. The changes are then spread over that line evenly, and the next one is coded by its place.
//! Values that do not change take no time but that of adding up their rates.

use crate::coding::arithmetic::{BLOCK_BITS, Decoder, Encoder, LINE};
use crate::exact::Pattern;
use crate::model::context::{GROUP, Machine, adapt_if, starting};

/// Values in every chunk but the last.
pub const CHUNK: usize = 1 << 18;
/// Codes of a rate.
pub const CODES: usize = 64;
/// Signs and exponents of a value, at most.
const HEADS: usize = 1 << 12;
/// Probability one half, visited as often as a context's first shift of 3 says.
const FRESH: u32 = 0x8000_0100;
/// Bits of a step beyond those sizes that have a decision each, at most.
const MOST_BITS: usize = 63;
/// Sizes of a step with a decision each.
const SIZES: u64 = GROUP as u64;

/// The rate that a code stands for: a floating-point number with two bits of mantissa, rounded down.
#[must_use]
pub const fn rate(code: usize) -> u16 {
    (((4 + code % 4) << (code / 4)) >> 2) as u16
}

/// Rates by what is above the mantissa of a value.
pub struct Rates {
    mantissa: u32,
    rates: [u16; HEADS],
    codes: [u8; HEADS],
}

/// Bits of a pattern below its head: sign and exponent, or of an integer the highest bit.
fn below_head<P: Pattern>(mantissa: u32) -> u32 {
    if mantissa > 0 { mantissa } else { P::BITS - 1 }
}

/// Exponents that a type has.
fn exponents<P: Pattern>(mantissa: u32) -> usize {
    1 << (P::BITS - 1 - below_head::<P>(mantissa))
}

impl Rates {
    /// `codes` are those of the exponents from `first` on; lower ones have the first code, higher ones the last. `mantissa` is
    /// 0 for integers, which have one exponent. None if there are no codes, or one is not below [`CODES`].
    #[must_use]
    pub fn new<P: Pattern>(mantissa: u32, first: usize, codes: &[u8]) -> Option<Self> {
        let last = codes.len().checked_sub(1)?;
        if codes.iter().any(|code| usize::from(*code) >= CODES) {
            return None;
        }
        let mut made = Self { mantissa, rates: [0; HEADS], codes: [0; HEADS] };
        for head in 0..HEADS {
            let code = codes[(head % exponents::<P>(mantissa)).saturating_sub(first).min(last)];
            (made.rates[head], made.codes[head]) = (rate(usize::from(code)), code);
        }
        Some(made)
    }

    #[inline(always)]
    fn head<P: Pattern>(&self, value: P) -> usize {
        (value.wide() >> below_head::<P>(self.mantissa)) as usize % HEADS
    }

    #[inline(always)]
    fn of<P: Pattern>(&self, value: P) -> u32 {
        u32::from(self.rates[self.head(value)])
    }

    /// Patterns in the order of their values, and back.
    #[inline(always)]
    fn ordered<P: Pattern>(&self, value: P) -> u64 {
        let pattern = value.wide();
        let negative = self.mantissa > 0 && pattern >> (P::BITS - 1) != 0;
        if negative { pattern ^ (u64::MAX >> (65 - P::BITS)) } else { pattern }
    }
}

/// Codes of the rates that suit some values, and the first exponent that they are of.
#[must_use]
pub fn fit<P: Pattern>(mantissa: u32, base: &[P], values: &[P]) -> (usize, Vec<u8>) {
    let below = below_head::<P>(mantissa);
    let count = exponents::<P>(mantissa);
    let (mut all, mut changed) = (vec![0u64; count], vec![0u64; count]);
    // Four histograms in turn: neighbours often have the same exponent, and one would wait for itself.
    let mut histograms = vec![[0u32; HEADS]; 4];
    for four in base.chunks(4) {
        for (value, histogram) in four.iter().zip(&mut histograms) {
            histogram[(value.wide() >> below) as usize % HEADS] += 1;
        }
    }
    for histogram in &histograms {
        for (head, seen) in histogram.iter().enumerate() {
            all[head % count] += u64::from(*seen);
        }
    }
    let mut at = next_change(base, values, 0);
    while at < base.len() {
        changed[(base[at].wide() >> below) as usize % count] += 1;
        at = next_change(base, values, at + 1);
    }
    let used = |seen: &u64| *seen > 0;
    let first = all.iter().position(used).unwrap_or(0);
    let last = all.iter().rposition(used).unwrap_or(0);
    let mut codes = vec![0; last + 1 - first];
    // Next to the exponent above, twice as many of few values are expected to change.
    let mut expected = (changed.iter().sum::<u64>() as f64 + 0.5) / (base.len() as f64 + 1.0) / 16.0;
    for exponent in (first..=last).rev() {
        let share = (changed[exponent] as f64 + 2.0) / (all[exponent] as f64 + 2.0 / expected);
        codes[exponent - first] = code_of(share.min(0.95));
        expected = (2.0 * share).min(0.5);
    }
    (first, codes)
}

/// The code whose rate is next to what fits a share of changed values: half of what is left changes in each block.
fn code_of(share: f64) -> u8 {
    // -ln(1 - share) = 2 artanh(share / (2 - share)). Additions and multiplications alone give the same on every machine.
    let z = share / (2.0 - share);
    let (mut power, mut sum) = (z, 0.0);
    for k in 0..80 {
        sum += power / f64::from(2 * k + 1);
        power *= z * z;
    }
    let wanted = 2.0 * sum / std::f64::consts::LN_2 * f64::from(1 << BLOCK_BITS);
    let distance = |code: usize| (f64::from(rate(code)) - wanted).abs();
    let mut best = 0;
    for code in 1..CODES {
        if distance(code) < distance(best) {
            best = code;
        }
    }
    best as u8
}

/// The first value that differs from its base, from `from` on.
#[inline(always)]
fn next_change<P: Pattern>(base: &[P], values: &[P], from: usize) -> usize {
    const RUN: usize = 16;
    let mut at = from;
    while let (Some(one), Some(other)) = (run::<P, RUN>(base, at), run::<P, RUN>(values, at)) {
        let mut different = 0;
        for k in 0..RUN {
            different |= one[k].wide() ^ other[k].wide();
        }
        if different != 0 {
            break;
        }
        at += RUN;
    }
    while at < base.len() && base[at].wide() == values[at].wide() {
        at += 1;
    }
    at
}

/// So many values from `at` on.
#[inline(always)]
fn run<P, const N: usize>(values: &[P], at: usize) -> Option<&[P; N]> {
    values.get(at..)?.first_chunk()
}

/// What is known about the next change.
struct Model {
    /// That it is beyond a block: of the first line after a change, and of later ones.
    onwards: [[u32; GROUP]; 2],
    /// By the code of its rate: that the step is larger than 1, 2, 3 and 4.
    larger: [[u32; GROUP]; CODES],
    /// That what is beyond 4 has more bits.
    bits: [u32; MOST_BITS],
}

impl Model {
    fn new() -> Self {
        let mut larger = [[0; GROUP]; CODES];
        for (code, set) in larger.iter_mut().enumerate() {
            // Steps are larger than one where nearly all values change. With a Gaussian step about as here.
            let cube = (u64::from(rate(code)) >> 4).pow(3);
            set.fill(starting(((cube << 22) / (cube + 10 * (1 << 30))) as u32));
        }
        Self { onwards: [[FRESH; GROUP]; 2], larger, bits: [FRESH; MOST_BITS] }
    }
}

/// Appends the code of `values`, as many as `base` has, to `out`: nothing if they are the same.
pub(crate) fn encode_on<P: Pattern, M: Machine>(rates: &Rates, base: &[P], values: &[P], out: &mut Vec<u8>) {
    let (mut at, mut change) = (0, next_change(base, values, 0));
    if change == base.len() {
        return;
    }
    let (mut coder, mut model) = (Encoder::new(), Model::new());
    loop {
        let mut from = 0;
        for value in &base[at..change] {
            from += u64::from(rates.of(*value));
        }
        // Values end where the line does.
        let mut to = base.get(change).map_or(LINE.max(from + 1), |value| from + u64::from(rates.of(*value)));
        let mut onwards = &mut model.onwards[0];
        // A value over the end of a line is coded by its larger part.
        while from >= LINE || to - from > 2 * (LINE - from) {
            let line = coder.line(onwards);
            coder.part(&line, LINE, LINE + 1);
            M::adapt_group(onwards, GROUP);
            (from, to) = (from.saturating_sub(LINE), to - LINE);
            if change == base.len() {
                to = LINE;
            }
            onwards = &mut model.onwards[1];
        }
        let to = to.min(LINE);
        let line = coder.line(onwards);
        coder.part(&line, from, to);
        M::adapt_group(onwards, ((from + to) >> (BLOCK_BITS + 1)) as usize);
        let Some(before) = base.get(change) else {
            break;
        };
        let difference = rates.ordered(values[change]).wrapping_sub(rates.ordered(*before));
        let step = ((difference << (64 - P::BITS)) as i64) >> (64 - P::BITS);
        let contexts = &mut model.larger[usize::from(rates.codes[rates.head(*before)]) % CODES];
        encode_size(&mut coder, contexts, &mut model.bits, step.unsigned_abs());
        coder.raw(u32::from(step < 0), 1);
        at = change + 1;
        change = next_change(base, values, at);
    }
    coder.finish(out);
}

#[inline(always)]
fn encode_size(coder: &mut Encoder, larger: &mut [u32; GROUP], more: &mut [u32; MOST_BITS], size: u64) {
    for (context, passed) in larger.iter_mut().zip(1..) {
        let one = size > passed;
        coder.bit(*context, one);
        adapt_if(true, context, one);
        if !one {
            return;
        }
    }
    let rest = size - SIZES;
    let bits = rest.ilog2();
    for (context, passed) in more.iter_mut().zip(0..) {
        let one = bits > passed;
        coder.bit(*context, one);
        adapt_if(true, context, one);
        if !one {
            break;
        }
    }
    let low = bits.min(32);
    coder.raw((rest & ((1 << low) - 1)) as u32, low);
    coder.raw(((rest & ((1 << bits) - 1)) >> low) as u32, bits - low);
}

/// Where decoded changes go.
pub enum Found<'a, P> {
    /// Into values that are those of the base so far.
    Values(&'a mut [P]),
    /// Into a list of places and one of values.
    List(&'a mut Vec<u32>, &'a mut Vec<P>),
}

/// Decodes the changes of a chunk. False if `code` is not exactly the code of some; `found` then has some of its changes.
pub(crate) fn decode_on<P: Pattern, M: Machine>(
    rates: &Rates,
    base: &[P],
    code: &[u8],
    found: &mut Found<'_, P>,
) -> bool {
    let (mut coder, mut model) = (Decoder::new(code), Model::new());
    // No line begins as far out.
    let most = (base.len() as u64) << u16::BITS;
    let mut at = 0;
    loop {
        if !coder.plausible() {
            return false;
        }
        let mut onwards = &mut model.onwards[0];
        let mut line = coder.line(onwards);
        let mut place = coder.place(&line);
        let mut start = 0;
        while place == LINE {
            if start > most {
                return false;
            }
            coder.part(&line, LINE, LINE + 1);
            M::adapt_group(onwards, GROUP);
            onwards = &mut model.onwards[1];
            start += LINE;
            line = coder.line(onwards);
            place = coder.place(&line);
        }
        let target = start + place;
        let mut passed = 0;
        while let Some(values) = run::<P, 8>(base, at) {
            let mut sum = 0;
            for value in values {
                sum += rates.of(*value);
            }
            if passed + u64::from(sum) > target {
                break;
            }
            passed += u64::from(sum);
            at += values.len();
        }
        let mut end = u64::MAX;
        while let Some(value) = base.get(at) {
            end = passed + u64::from(rates.of(*value));
            if end > target {
                break;
            }
            (passed, end) = (end, u64::MAX);
            at += 1;
        }
        let (from, to) = (passed.saturating_sub(start), (end - start).min(LINE));
        coder.part(&line, from, to);
        M::adapt_group(onwards, ((from + to) >> (BLOCK_BITS + 1)) as usize);
        let Some(before) = base.get(at) else {
            return coder.check();
        };
        let contexts = &mut model.larger[usize::from(rates.codes[rates.head(*before)]) % CODES];
        let size = decode_size(&mut coder, contexts, &mut model.bits);
        let negative = coder.raw(1) != 0;
        let step = if negative { size.wrapping_neg() } else { size };
        let value = P::of(rates.ordered(P::of(rates.ordered(*before).wrapping_add(step))));
        match found {
            Found::Values(values) => values[at] = value,
            Found::List(places, values) => {
                places.push(at as u32);
                values.push(value);
            }
        }
        at += 1;
    }
}

#[inline(always)]
fn decode_size(coder: &mut Decoder, larger: &mut [u32; GROUP], more: &mut [u32; MOST_BITS]) -> u64 {
    for (context, size) in larger.iter_mut().zip(1..) {
        let one = coder.bit_if(true, *context);
        adapt_if(true, context, one);
        if !one {
            return size;
        }
    }
    let mut bits = 0;
    for context in more {
        let one = coder.bit_if(true, *context);
        adapt_if(true, context, one);
        if !one {
            break;
        }
        bits += 1;
    }
    let low = bits.min(32);
    let rest = u64::from(coder.raw(low)) | u64::from(coder.raw(bits - low)) << low;
    (SIZES + (1 << bits)).wrapping_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::context::Portable;
    use crate::testing::Random;

    fn check<P: Pattern>(mantissa: u32, base: &[P], values: &[P]) -> usize {
        let (first, codes) = fit(mantissa, base, values);
        let rates = Rates::new::<P>(mantissa, first, &codes).unwrap();
        let mut code = Vec::new();
        encode_on::<P, Portable>(&rates, base, values, &mut code);
        if base.iter().zip(values).all(|(one, other)| one.wide() == other.wide()) {
            assert!(code.is_empty());
            return 0;
        }
        let decoded = |code: &[u8]| {
            let (mut places, mut found) = (Vec::new(), Vec::new());
            let good = decode_on::<P, Portable>(&rates, base, code, &mut Found::List(&mut places, &mut found));
            let mut back = base.to_vec();
            for (place, value) in places.iter().zip(&found) {
                back[*place as usize] = *value;
            }
            let mut direct = base.to_vec();
            assert_eq!(good, decode_on::<P, Portable>(&rates, base, code, &mut Found::Values(&mut direct)));
            assert!(direct.iter().map(|one| one.wide()).eq(back.iter().map(|one| one.wide())));
            good.then_some(back)
        };
        let back = decoded(&code).expect("a code is decoded");
        for (one, other) in values.iter().zip(&back) {
            assert_eq!(one.wide(), other.wide());
        }
        // One byte less or more is not a code of the same.
        let same = |back: Option<Vec<P>>| {
            back.is_some_and(|back| back.iter().zip(values).all(|(one, other)| one.wide() == other.wide()))
        };
        assert!(!same(decoded(&code[..code.len() - 1])));
        let length = code.len();
        code.push(0);
        assert!(!same(decoded(&code)));
        #[cfg(target_arch = "x86_64")]
        if crate::cpu::dispatch::available() {
            code.pop();
            let mut other = Vec::new();
            crate::cpu::dispatch::avx2::encode_changes(&rates, base, values, &mut other);
            assert_eq!(code, other);
            let mut back = base.to_vec();
            assert!(crate::cpu::dispatch::avx2::decode_changes(&rates, base, &code, &mut Found::Values(&mut back)));
            assert!(values.iter().map(|one| one.wide()).eq(back.iter().map(|one| one.wide())));
        }
        length
    }

    fn changed<P: Pattern>(mantissa: u32, seed: u64) {
        let mut random = Random(seed);
        for (count, one_in) in [(1, 1), (1, 2), (7, 3), (300, 1), (300, 2), (5000, 50), (20_000, 3000), (3000, 1 << 40)]
        {
            for size in [1, 2, 8, 1 << 20, u64::MAX] {
                let base: Vec<P> = (0..count).map(|_| P::of(random.next() >> (random.next() % 60))).collect();
                let values: Vec<P> = base
                    .iter()
                    .map(|value| {
                        let step = if random.below(one_in) == 0 { 1 + random.next() % size } else { 0 };
                        P::of(if random.next().is_multiple_of(2) {
                            value.wide() ^ step
                        } else {
                            value.wide().wrapping_sub(step)
                        })
                    })
                    .collect();
                check(mantissa, &base, &values);
            }
        }
    }

    #[test]
    fn every_change_of_every_type_comes_back() {
        changed::<u64>(52, 1);
        changed::<u32>(23, 2);
        changed::<u16>(10, 3);
        changed::<u16>(7, 4);
        changed::<u8>(3, 5);
        changed::<u8>(2, 6);
        changed::<u8>(0, 7);
        changed::<u64>(0, 8);
    }

    #[test]
    fn every_pattern_becomes_any_other() {
        let base: Vec<u16> = (0..=u16::MAX).collect();
        for by in [1, 0x7fff, 0x8000, 0xffff] {
            let values: Vec<u16> = base.iter().map(|value| value ^ by).collect();
            check(7, &base, &values);
            check(10, &base, &values);
            check(0, &base, &values);
        }
    }

    #[test]
    fn few_changes_take_few_bytes() {
        let base: Vec<u16> = (0..1 << 18).map(|k| 0x3c00 + (k * 40_503) as u16 % 0x400).collect();
        assert_eq!(check(7, &base, &base.clone()), 0);
        let mut values = base.clone();
        values[200_000] ^= 1;
        assert!(check(7, &base, &values) < 12);
        // One in a hundred, all over: their entropy is 0.0808 bits a value, and the direction of each.
        let mut random = Random(5);
        let values: Vec<u16> =
            base.iter().map(|value| if random.below(100) == 0 { value + 1 } else { *value }).collect();
        let bits = 8 * check(7, &base, &values);
        assert!(bits < (0.0945 * f64::from(1 << 18)) as usize, "{bits}");
    }

    #[test]
    fn codes_are_of_rising_rates_and_shares_become_the_nearest() {
        assert!((1..CODES).all(|code| rate(code) >= rate(code - 1)));
        assert_eq!((rate(0), rate(CODES - 1)), (1, 57_344));
        assert_eq!(rate(usize::from(code_of(0.5))), 1 << BLOCK_BITS);
        assert_eq!((code_of(0.0), code_of(1e-9)), (0, 0));
        assert!(Rates::new::<u16>(7, 0, &[]).is_none());
        assert!(Rates::new::<u16>(7, 0, &[64]).is_none());
    }

    #[test]
    fn any_bytes_decode_to_something_without_a_panic_and_in_time() {
        let mut random = Random(11);
        let base: Vec<u16> = (0..5000).map(|_| random.next() as u16).collect();
        for round in 0..3000 {
            let codes: Vec<u8> = (0..1 + random.next() % 40).map(|_| (random.next() % 64) as u8).collect();
            let rates = Rates::new::<u16>(7, random.below(300), &codes).unwrap();
            let fill = [0, 255, random.next() as u8][round % 3];
            let code: Vec<u8> = (0..random.next() % 60)
                .map(|k| if k < 9 && round % 2 == 0 { fill } else { random.next() as u8 })
                .collect();
            let mut values = base.clone();
            let _ = decode_on::<u16, Portable>(&rates, &base, &code, &mut Found::Values(&mut values));
        }
    }
}
