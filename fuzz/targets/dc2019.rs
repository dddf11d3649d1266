//! Streams of the software of 2019.

#![no_main]

mod harness;
use deepcabac_core::nnc::dc2019::{Layer, decode, encode};
use harness::{Golden, Input};

fn run(input: Input) {
    let Some(layers) = decode(&input.rest()) else { return };
    for layer in layers {
        let count: u64 = layer.shape.iter().map(|size| u64::from(*size)).product();
        assert_eq!(count, layer.levels.len() as u64);
    }
}

/// Small layers, as the golden streams are too long; and shapes whose product is beyond 64 bits, or that begin beyond the range.
fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = golden.files("nnc", "dc2019");
    seeds.retain(|file| file.len() < 200);
    seeds.extend([vec![0xff; 40], [&[0x0c, 0, 0x03], &[0xff; 60][..]].concat()]);
    for shape in [&[7][..], &[3, 4], &[2, 3, 2, 2], &[1, 1]] {
        let weights: Vec<f32> = (0..shape.iter().product::<u64>()).map(|k| (k * k % 11) as f32 - 4.0).collect();
        let layer = Layer { shape, weights: &weights, intervals: &[0.5], step: 0.7, lambda: 0.01 };
        seeds.extend(encode(&[layer, layer]));
    }
    seeds
}

harness::target!(run, seeds);
