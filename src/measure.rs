//! Sums over weights, in an order that does not depend on the machine, so that steps derived from them do not either.

/// What is known of a run of weights.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Measure {
    /// Sum of w^2.
    pub energy: f64,
    /// Largest |w|.
    pub largest: f64,
    /// Weights that are not numbers or infinite; they do not enter the others.
    pub special: usize,
}

const PARTIAL_SUMS: usize = 8;

/// Measures `weights`: eight partial sums, weight i in sum i mod 8, added up in order.
#[must_use]
pub fn measure(weights: &[f32]) -> Measure {
    let mut energy = [0.0; PARTIAL_SUMS];
    let mut largest = [0.0_f32; PARTIAL_SUMS];
    let mut special = [0_u32; PARTIAL_SUMS];
    for run in weights.chunks(PARTIAL_SUMS) {
        for (lane, weight) in run.iter().enumerate() {
            let finite = weight.is_finite();
            let weight = if finite { *weight } else { 0.0 };
            energy[lane] += f64::from(weight) * f64::from(weight);
            largest[lane] = if weight.abs() > largest[lane] { weight.abs() } else { largest[lane] };
            special[lane] += u32::from(!finite);
        }
    }
    Measure {
        energy: energy.iter().sum(),
        largest: f64::from(largest.into_iter().fold(0.0, f32::max)),
        special: special.iter().map(|n| *n as usize).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_values_are_counted_and_left_out() {
        let mut weights = vec![0.5; 21];
        weights[3] = f32::NAN;
        weights[20] = f32::NEG_INFINITY;
        weights[11] = -2.0;
        assert_eq!(measure(&weights), Measure { energy: 18.0 * 0.25 + 4.0, largest: 2.0, special: 2 });
        assert_eq!(measure(&[]), Measure::default());
    }
}
