//! Which setting suits a context of an NNC tensor: all nine are tried on what it has to code.

use crate::nnc::cabac::{Bins, COST_BITS, Context, Counters, SETTINGS};

/// Settings that adapt differently, and for each setting which of these it adapts as: the others differ in their beginning alone.
const LEADERS: [usize; 4] = [0, 3, 4, 7];
const LEADER: [usize; SETTINGS] = [0, 0, 0, 1, 2, 2, 2, 3, 3];

/// Decisions after which beginnings are forgotten.
const FORGOTTEN: u64 = 1 << 18;
/// Decisions after which only one burst in [`RARITY`] is tried, and counts as all of them.
const ENOUGH: u64 = 1 << 18;
const BURST: u64 = 1 << 10;
const RARITY: u64 = 4;

/// A context under every setting, and what its decisions cost.
#[derive(Clone)]
struct Trial {
    counters: [Counters; SETTINGS],
    costs: [u64; SETTINGS],
    /// Settings that are still tried, those of [`LEADERS`] first: others have met their leader, which counts for them.
    alive: [u8; SETTINGS],
    count: usize,
    /// Decisions not yet tried, the first one lowest.
    queue: u64,
    queued: u32,
    tried: u64,
}

/// Adds what the decisions in a queue cost to each of `N` tracks, and lets them learn.
fn follow<const N: usize>(tracks: &mut [(Counters, u64); SETTINGS], queue: u64, queued: u32) {
    let mut first: [_; N] = std::array::from_fn(|track| tracks[track]);
    for place in 0..queued {
        let one = queue >> place & 1 == 1;
        for (counters, cost) in &mut first {
            *cost += u64::from(counters.cost(one));
            counters.adapt(one);
        }
    }
    tracks[..N].copy_from_slice(&first);
}

impl Trial {
    fn new() -> Trial {
        let mut trial = Trial {
            counters: std::array::from_fn(Counters::new),
            costs: [0; SETTINGS],
            alive: [0; SETTINGS],
            count: 0,
            queue: 0,
            queued: 0,
            tried: 0,
        };
        trial.begin();
        trial
    }

    /// All settings at their beginning.
    fn begin(&mut self) {
        self.counters = std::array::from_fn(Counters::new);
        let followers = (0..SETTINGS).filter(|&setting| LEADERS[LEADER[setting]] != setting);
        for (alive, setting) in self.alive.iter_mut().zip(LEADERS.into_iter().chain(followers)) {
            *alive = setting as u8;
        }
        (self.count, self.tried) = (SETTINGS, 0);
    }

    /// Tries what is queued.
    fn flush(&mut self) {
        let (queue, queued) = (std::mem::take(&mut self.queue), std::mem::take(&mut self.queued));
        self.tried += u64::from(queued);
        let weight = if self.tried <= ENOUGH { 1 } else { RARITY };
        if weight > 1 && !(self.tried / BURST).is_multiple_of(RARITY) {
            return;
        }
        let mut tracks = self.alive.map(|setting| (self.counters[usize::from(setting)], 0));
        match self.count {
            4 => follow::<4>(&mut tracks, queue, queued),
            5 => follow::<5>(&mut tracks, queue, queued),
            6 => follow::<6>(&mut tracks, queue, queued),
            7 => follow::<7>(&mut tracks, queue, queued),
            8 => follow::<8>(&mut tracks, queue, queued),
            _ => follow::<9>(&mut tracks, queue, queued),
        }
        let mut places = LEADER;
        for (track, &setting) in self.alive[..self.count].iter().enumerate() {
            places[usize::from(setting)] = track;
        }
        for setting in 0..SETTINGS {
            let (counters, cost) = tracks[places[setting]];
            self.counters[setting] = counters;
            self.costs[setting] += weight * cost;
        }
        let forgotten = self.tried >= FORGOTTEN;
        let mut track = LEADERS.len();
        while track < self.count {
            let setting = usize::from(self.alive[track]);
            if forgotten || self.counters[setting] == self.counters[LEADERS[LEADER[setting]]] {
                self.count -= 1;
                self.alive.swap(track, self.count);
            } else {
                track += 1;
            }
        }
    }
}

/// Trials of all contexts of a tensor.
pub struct Trials(Vec<Trial>);

impl Trials {
    /// Nothing coded yet.
    pub fn new(contexts: usize) -> Trials {
        Trials(vec![Trial::new(); contexts])
    }

    /// All contexts begin anew, as they do at an entry point.
    pub fn reset(&mut self) {
        for trial in &mut self.0 {
            trial.flush();
            trial.begin();
        }
    }

    /// To be called before [`Self::best`].
    pub fn finish(&mut self) {
        self.0.iter_mut().for_each(Trial::flush);
    }

    /// The setting that makes a context's decisions cheapest, if another than the first costs three bits and `penalty`, in
    /// units of 2^-15 bits. And the cost.
    pub fn best(&self, number: usize, penalty: u64) -> (usize, u64) {
        let said = |setting: usize| if setting == 0 { 0 } else { (3 << COST_BITS) + penalty };
        let costs = &self.0[number].costs;
        let best = (0..SETTINGS).min_by_key(|&setting| costs[setting] + said(setting)).unwrap_or(0);
        (best, costs[best])
    }
}

impl Bins for Trials {
    #[inline(always)]
    fn bin(&mut self, _contexts: &mut [Context], number: usize, one: bool) -> bool {
        let trial = &mut self.0[number];
        trial.queue |= u64::from(one) << trial.queued;
        trial.queued += 1;
        if trial.queued == 64 {
            trial.flush();
        }
        one
    }

    #[inline(always)]
    fn bypass(&mut self, bits: u32, _count: u32) -> u32 {
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings that have met their leader cost what they would have cost alone.
    #[test]
    fn all_settings_are_tried_to_the_end() {
        let mut trials = Trials::new(1);
        let mut alone: Vec<_> = (0..SETTINGS).map(|setting| (Counters::new(setting), 0)).collect();
        for i in 0..20_000u32 {
            let one = i.wrapping_mul(2_654_435_761) >> 28 < 1 + i / 4000;
            trials.bin(&mut [], 0, one);
            for (counters, cost) in &mut alone {
                *cost += u64::from(counters.cost(one));
                counters.adapt(one);
            }
        }
        trials.finish();
        assert!(trials.0[0].count < SETTINGS, "none has met its leader");
        assert_eq!(trials.0[0].costs.to_vec(), alone.iter().map(|&(_, cost)| cost).collect::<Vec<_>>());
    }
}
