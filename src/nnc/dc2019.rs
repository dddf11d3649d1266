//! Streams of the DeepCABAC authors' software of 2019: the greedy weighted rate-distortion rule on live contexts, and levels in
//! one arithmetic code for all layers, whose contexts go on from layer to layer.
//!
//! A layer is, without contexts: 4 bits N - 4, 2 bits log2 of the number of dimensions, 16 bits a dimension, the step as the
//! low and the high half of a float; then its levels. A terminating decision ends the stream.

use crate::nnc::binarisation::{Around, Binarisation, PREFIXES, class, code_level};
use crate::nnc::cabac::{Bins, Context, Cost, Decoder, Encoder, most_bins};

/// Decisions "greater than k" that the encoder writes.
const UNARY: usize = 10;
/// The most that a stream can say.
const MOST_UNARY: usize = 19;
const ZERO: usize = 0;
const SIGN: usize = 3;
const GREATER: usize = 6;
/// Bits of a layer before its levels, at least.
const HEADER_BITS: u32 = 4 + 2 + 16 + 32;

/// A layer to encode.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// One, two or four dimensions below 2^16.
    pub shape: &'a [u64],
    /// As many as the shape says.
    pub weights: &'a [f32],
    /// Standard deviations of the weights, or one for all of them.
    pub intervals: &'a [f32],
    /// Distance of two values.
    pub step: f32,
    /// What a bit is worth.
    pub lambda: f32,
}

/// A layer decoded.
pub struct Levels {
    /// Its dimensions.
    pub shape: Vec<u32>,
    /// Distance of two values.
    pub step: f32,
    /// Row by row.
    pub levels: Vec<i32>,
}

fn binarisation(unary: usize) -> Binarisation {
    Binarisation { unary, prefix: GREATER + 2 * unary, most: i32::MAX as u32, limits: [u32::MAX; 2], only_sign: None }
}

fn contexts() -> Vec<Context> {
    vec![Context::new(0); GREATER + 2 * MOST_UNARY + PREFIXES + 1]
}

/// Contexts of a level after `before` in its row.
#[inline(always)]
fn around(before: i32) -> Around {
    let class = class(before);
    Around { zero: ZERO + class, sign: SIGN + class, greater: GREATER, base: 0 }
}

/// Width of a row, what is not dimension 0, of so many levels in all; 1 if there are none.
fn width(count: usize, rows: usize) -> usize {
    (count / rows.max(1)).max(1)
}

/// Encodes layers. None if a level does not fit.
pub fn encode(layers: &[Layer]) -> Option<Vec<u8>> {
    let mut encoder = Encoder::default();
    let mut contexts = contexts();
    let form = binarisation(UNARY);
    for layer in layers {
        encoder.bypass(UNARY as u32 - 4, 4);
        encoder.bypass(layer.shape.len() as u32 >> 1, 2);
        for &size in layer.shape {
            encoder.bypass(size as u32, 16);
        }
        let step = layer.step.to_bits();
        encoder.bypass(step & 0xffff, 16);
        encoder.bypass(step >> 16, 16);
        let width = width(layer.weights.len(), layer.shape[0] as usize);
        let mut before = 0;
        for (at, &weight) in layer.weights.iter().enumerate() {
            if at % width == 0 {
                before = 0;
            }
            let interval = *layer.intervals.get(at).or(layer.intervals.first())?;
            let around = around(before);
            let level = decide(&mut contexts, &form, &around, layer, weight, interval)?;
            before = code_level::<_, true>(&mut encoder, &mut contexts, &form, &around, level)?;
        }
    }
    Some(encoder.finish())
}

/// Most candidates below a weight.
const MOST_CANDIDATES: i64 = 1 << 16;

/// The level that costs least, in the arithmetic and the order of the original, so that the same one wins: single precision,
/// from the nearest level down to three standard deviations below the weight. A second loop of the original, upwards, never
/// runs: its bound is 2^31 in 32 bits, which is negative. So the magnitudes of negative weights only grow.
fn decide(
    contexts: &mut [Context],
    form: &Binarisation,
    around: &Around,
    layer: &Layer,
    weight: f32,
    interval: f32,
) -> Option<i32> {
    let Layer { step, lambda, .. } = *layer;
    let lower = weight - 3.0 * interval;
    let nearest = ((f64::from(weight.abs()) + f64::from(step) * 0.5) / f64::from(step)) as i64;
    let nearest = if weight >= 0.0 { nearest } else { -nearest };
    if nearest.abs() > i64::from(i32::MAX) - 2 * MOST_CANDIDATES {
        return None;
    }
    let mut best = (f32::MAX, nearest);
    for below in 0..MOST_CANDIDATES {
        let level = nearest - below;
        if level as f32 * step < lower {
            break;
        }
        let mut rate = Cost::default();
        code_level::<_, true>(&mut rate, contexts, form, around, level as i32);
        let bits = rate.0 as f32 * (1.0 / 32768.0);
        let difference = (weight - level as f32 * step) / (interval * 0.5);
        let cost = difference * difference + bits * lambda;
        if cost < best.0 {
            best = (cost, level);
        }
    }
    Some(best.1 as i32)
}

/// Decodes a whole stream. None if it is damaged.
pub fn decode(bytes: &[u8]) -> Option<Vec<Levels>> {
    let mut decoder = Decoder::new(bytes);
    let mut contexts = contexts();
    let mut layers = Vec::new();
    while decoder.finish() != Some(bytes.len()) {
        let position = decoder.position();
        let left = (8 * bytes.len() as u64).checked_sub(position)?;
        if left < u64::from(HEADER_BITS) {
            return None;
        }
        let form = binarisation(4 + decoder.bypass(0, 4) as usize);
        let dimensions = 1 << decoder.bypass(0, 2);
        let shape: Vec<u32> = (0..dimensions).map(|_| decoder.bypass(0, 16)).collect();
        let step = decoder.bypass(0, 16);
        let step = f32::from_bits(step | decoder.bypass(0, 16) << 16);
        let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size as usize))?;
        if count > most_bins(left as usize / 8 + 1) {
            return None;
        }
        let width = width(count, shape[0] as usize);
        let mut levels = vec![0; count];
        for row in levels.chunks_mut(width) {
            let mut before = 0;
            for level in row {
                *level = code_level::<_, true>(&mut decoder, &mut contexts, &form, &around(before), 0)?;
                before = *level;
            }
            if !decoder.inside() {
                return None;
            }
        }
        layers.push(Levels { shape, step, levels });
    }
    Some(layers)
}
