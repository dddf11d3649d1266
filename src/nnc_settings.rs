//! Which setting suits a context of an NNC tensor: all nine are tried on what it has to code.

use crate::mcoder::{Bins, COST_BITS, Context, Counters, SETTINGS};

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
    /// Decisions not yet tried, the first one lowest.
    queue: u64,
    queued: u32,
    /// Beginnings make no difference any more, or hardly any.
    met: bool,
    tried: u64,
}

impl Trial {
    fn new() -> Trial {
        Trial {
            counters: std::array::from_fn(Counters::new),
            costs: [0; SETTINGS],
            queue: 0,
            queued: 0,
            met: false,
            tried: 0,
        }
    }

    /// Tries what is queued.
    #[inline(always)]
    fn flush(&mut self) {
        self.tried += u64::from(self.queued);
        let weight = if self.tried <= ENOUGH { 1 } else { RARITY };
        if weight > 1 && !(self.tried / BURST).is_multiple_of(RARITY) {
            (self.queue, self.queued) = (0, 0);
            return;
        }
        if self.met {
            let mut leaders = LEADERS.map(|leader| (self.counters[leader], 0));
            for place in 0..self.queued {
                let one = self.queue >> place & 1 == 1;
                for (counters, cost) in &mut leaders {
                    *cost += u64::from(counters.cost(one));
                    counters.adapt(one);
                }
            }
            for setting in 0..SETTINGS {
                let (counters, cost) = leaders[LEADER[setting]];
                self.costs[setting] += weight * cost;
                self.counters[setting] = counters;
            }
        } else {
            for place in 0..self.queued {
                let one = self.queue >> place & 1 == 1;
                for (counters, cost) in self.counters.iter_mut().zip(&mut self.costs) {
                    *cost += u64::from(counters.cost(one));
                    counters.adapt(one);
                }
            }
            self.met = self.tried >= FORGOTTEN
                || (0..SETTINGS).all(|setting| self.counters[setting] == self.counters[LEADERS[LEADER[setting]]]);
        }
        (self.queue, self.queued) = (0, 0);
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
            trial.counters = std::array::from_fn(Counters::new);
            (trial.met, trial.tried) = (false, 0);
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
