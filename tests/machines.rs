//! What every machine has to agree on: the golden files' values, and the bytes of what is coded. `bench/machines.py` runs this,
//! with all tests of the core, on other processors (ARM, 32 bits, big-endian) under emulation; here it is the x86 build that is
//! compared.
//!
//! The writer of `.dcb` files is in Python. What is coded here, by the functions that it calls, is the network of `examples/`:
//! parameters are fitted, weights quantised and encoded in every way, by steps that do not depend on the machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use deepcabac_core::coding::changes::{self, Rates};
use deepcabac_core::coding::codebook;
use deepcabac_core::cpu::dispatch;
use deepcabac_core::exact::{Form, Origin};
use deepcabac_core::file::index::read_levels;
use deepcabac_core::file::{Error, Header, Index, Method, Part, Tensor, decode};
use deepcabac_core::fit::{self, Layout, Preset};
use deepcabac_core::measure;
use deepcabac_core::model::dependent::States;
use deepcabac_core::nnc::dc2019;
use deepcabac_core::nnc::quantize::NncQuantizer;
use deepcabac_core::nnc::unit::{self, Tools, UnitEncoder};
use deepcabac_core::quantize::greedy::Quantizer;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sha256(data: &[u8]) -> String {
    // Round constants and first state: the first 32 bits of the fractions of cube and square roots of primes.
    let primes: Vec<u64> = (2..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let fraction = |n: u64, power: u32| {
        // The largest x with x^power <= n 2^(32 power).
        let wanted = u128::from(n) << (32 * power);
        let mut root = 0u128;
        for bit in (0..36).rev() {
            let next = root | 1 << bit;
            if next.pow(power) <= wanted {
                root = next;
            }
        }
        root as u32
    };
    let k: Vec<u32> = primes.iter().map(|prime| fraction(*prime, 3)).collect();
    let mut state: Vec<u32> = primes[..8].iter().map(|prime| fraction(*prime, 2)).collect();
    let mut padded = data.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((8 * data.len() as u64).to_be_bytes());
    for block in padded.as_chunks::<64>().0 {
        let mut w: Vec<u32> = block.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        for t in 16..64 {
            let (a, b) = (w[t - 15], w[t - 2]);
            let a = a.rotate_right(7) ^ a.rotate_right(18) ^ a >> 3;
            let b = b.rotate_right(17) ^ b.rotate_right(19) ^ b >> 10;
            w.push(w[t - 16].wrapping_add(a).wrapping_add(w[t - 7]).wrapping_add(b));
        }
        let mut now = state.clone();
        for t in 0..64 {
            let (a, e) = (now[0], now[4]);
            let sum = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let first =
                now[7].wrapping_add(sum).wrapping_add(e & now[5] ^ !e & now[6]).wrapping_add(k[t]).wrapping_add(w[t]);
            let sum = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let second = sum.wrapping_add(a & now[1] ^ a & now[2] ^ now[1] & now[2]);
            now.rotate_right(1);
            now[0] = first.wrapping_add(second);
            now[4] = now[4].wrapping_add(first);
        }
        for (state, now) in state.iter_mut().zip(now) {
            *state = state.wrapping_add(now);
        }
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

/// Of each golden file, the digests of its tensors, by name, from `expected.json`, which has a key or a value in each line.
fn expected() -> BTreeMap<String, BTreeMap<String, String>> {
    let text = fs::read_to_string(root().join("tests/golden/expected.json")).expect("it is there");
    let mut files: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let (mut file, mut tensor) = (String::new(), String::new());
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let parts: Vec<&str> = line.split('"').collect();
        match (indent, &parts[..]) {
            (1, [_, name, _]) => file = (*name).to_owned(),
            (3, [_, name, _]) => tensor = (*name).to_owned(),
            (4, [_, "sha256", _, digest, _]) => {
                files.entry(file.clone()).or_default().insert(tensor.clone(), (*digest).to_owned());
            }
            _ => {}
        }
    }
    files
}

/// A tensor's elements in little-endian order; `None` if they need a base.
fn elements(file: &[u8], tensors: &[Tensor], tensor: &Tensor) -> Option<Vec<u8>> {
    if let Method::Tied(other) | Method::Equal(other) = tensor.method {
        return elements(file, tensors, &tensors[other]);
    }
    let mut out = Vec::new();
    if matches!(tensor.method, Method::Update { .. }) {
        return None;
    }
    for chunk in 0..tensor.chunks.len() {
        let code = &file[tensor.chunks[chunk].range().unwrap()];
        let values = match decode(&[Part { tensor, chunk, code }]) {
            Err(Error::Unsupported(_)) => return None,
            values => values.unwrap(),
        };
        let bytes = values[0].bytes();
        // Raw bytes are the file's own.
        let item = if matches!(tensor.method, Method::Raw) { 1 } else { tensor.dtype.item() };
        for element in bytes.chunks(item) {
            if cfg!(target_endian = "big") { out.extend(element.iter().rev()) } else { out.extend(element) }
        }
    }
    let packed = tensor.whole.filter(|whole| whole.code() < 16);
    Some(packed.map_or(out.clone(), |whole| {
        // Codes, a byte each, the first one in the lowest bits.
        let each = *tensor.shape.last().unwrap() as usize;
        let bits = 8 * whole.item() / each;
        let word = |codes: &[u8]| codes.iter().rev().fold(0u64, |word, code| word << bits | u64::from(*code));
        out.chunks(each).flat_map(|codes| word(codes).to_le_bytes()[..whole.item()].to_vec()).collect()
    }))
}

#[test]
fn golden_files_decode_to_the_same_values() {
    assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    let (mut compared, mut left) = (0, 0);
    for (name, digests) in expected() {
        let file = fs::read(root().join("tests/golden").join(&name)).unwrap();
        let tensors = if name.ends_with(".levels") {
            vec![read_levels(&file).unwrap()]
        } else {
            let header = Header::read(&file).unwrap();
            Index::read(&file[header.index_range().unwrap()], &header, None).unwrap().tensors
        };
        assert_eq!(tensors.len(), digests.len(), "{name}");
        for tensor in &tensors {
            match elements(&file, &tensors, tensor) {
                Some(bytes) => {
                    assert_eq!(sha256(&bytes), digests[&tensor.name], "{name}: {}", tensor.name);
                    compared += 1;
                }
                None => left += 1,
            }
        }
    }
    println!("{compared} tensors of golden files are the same; {left} need a base");
    assert!(compared > 200 && left < 100);
}

/// The network's tensors: shapes and weights.
fn network() -> Vec<(Vec<u64>, Vec<f32>)> {
    let file = fs::read(root().join("examples/lenet300.safetensors")).unwrap();
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let head = str::from_utf8(&file[8..8 + length]).unwrap();
    let numbers = |text: &str| -> Vec<u64> {
        text.split(']').next().unwrap().split(',').map(|number| number.trim().parse().unwrap()).collect()
    };
    let shapes = head.split("\"shape\":[").skip(1).map(numbers);
    let places = head.split("\"data_offsets\":[").skip(1).map(numbers);
    let tensors = shapes.zip(places).map(|(shape, place)| {
        let bytes = &file[8 + length..][place[0] as usize..place[1] as usize];
        (shape, bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    });
    tensors.collect()
}

/// A step for some weights: a quarter of their root mean square, or half with two quantisers' finer one.
fn step(weights: &[f32], part: f64) -> f32 {
    let energy = measure::measure(weights).energy;
    ((energy / weights.len() as f64).sqrt() * part) as f32
}

fn quantized(network: &[(Vec<u64>, Vec<f32>)], preset: Preset, bits: u8) -> Vec<u8> {
    let mut out = Vec::new();
    for (shape, weights) in network {
        let states = States::of_bits(bits);
        let step = step(weights, if bits > 0 { 0.125 } else { 0.25 });
        let scale = 1.0 / f64::from(step);
        let layout = Layout::of_shape(shape);
        let level = |i: usize| f64::from(weights[i]) * scale;
        let small = preset == Preset::Small;
        let params = fit::fit(layout, weights.len(), weights.len(), states, preset, small, level);
        params.write(&mut out);
        for chunk in weights.chunks(params.chunk_levels()) {
            let mut levels = vec![0; chunk.len()];
            let quantizer = Quantizer::new(step, 0.05, 1 << 20);
            dispatch::quantize(&params, chunk, quantizer, None, Some(&mut levels), &mut out);
            let importance: Vec<f32> = (0..chunk.len()).map(|k| (k % 7) as f32 / 4.0).collect();
            let quantizer = Quantizer { importance: &importance, ..quantizer };
            let sums = dispatch::quantize(&params, chunk, quantizer, None, None, &mut out);
            out.extend(sums.error.to_bits().to_le_bytes());
            dispatch::encode(&params, &levels, &mut out);
        }
    }
    out
}

/// Levels and refinement bits, of floating-point numbers and of differences, coded.
fn exact(network: &[(Vec<u64>, Vec<f32>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (shape, weights) in network {
        let patterns: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
        let base: Vec<u32> = patterns.iter().enumerate().map(|(k, pattern)| pattern ^ (k % 3) as u32).collect();
        let width = *shape.last().unwrap() as usize;
        for origin in [Origin::Float { zeros: true }, Origin::Steps(&base), Origin::Differences(&base)] {
            let exponent = if matches!(origin, Origin::Float { .. }) { 140 } else { 2 };
            let (form, mut levels) = (Form { mantissa: 23, float: true, exponent }, vec![0; patterns.len()]);
            dispatch::split(form, origin, width, &patterns, &mut levels, &mut out);
            let level = |i: usize| f64::from(levels[i]);
            let params =
                fit::fit(Layout::of_shape(shape), levels.len(), levels.len(), None, Preset::Default, false, level);
            levels.chunks(params.chunk_levels()).for_each(|chunk| dispatch::encode(&params, chunk, &mut out));
        }
    }
    out
}

fn symbols(network: &[(Vec<u64>, Vec<f32>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (shape, weights) in network {
        let width = *shape.last().unwrap() as usize;
        let wide: Vec<u64> = weights.iter().map(|weight| f64::from(*weight).to_bits()).collect();
        let patterns: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
        let narrow: Vec<u16> = patterns.iter().map(|pattern| (pattern >> 16) as u16).collect();
        for scaled in [false, true] {
            dispatch::encode_floats(52, width, scaled, &wide, &mut out);
            dispatch::encode_floats(23, width, scaled, &patterns, &mut out);
            dispatch::encode_floats(7, width, scaled, &narrow, &mut out);
        }
    }
    out
}

fn changed(network: &[(Vec<u64>, Vec<f32>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (_, weights) in network {
        let base: Vec<u32> = weights.iter().map(|weight| weight.to_bits()).collect();
        let change = |(k, pattern): (usize, &u32)| if k.is_multiple_of(17) { pattern + k as u32 % 9 } else { *pattern };
        let values: Vec<u32> = base.iter().enumerate().map(change).collect();
        let (first, codes) = changes::fit(23, &base, &values);
        out.push(first as u8);
        out.extend(&codes);
        let rates = Rates::new::<u32>(23, first, &codes).unwrap();
        for (base, values) in base.chunks(changes::CHUNK).zip(values.chunks(changes::CHUNK)) {
            dispatch::encode_changes(&rates, base, values, &mut out);
        }
    }
    out
}

fn codebook(network: &[(Vec<u64>, Vec<f32>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (shape, weights) in network {
        let indices: Vec<u16> = weights.iter().map(|weight| (weight.to_bits() >> 24) as u16 % 200).collect();
        codebook::encode(&indices, 200, 61, *shape.last().unwrap() as usize, &mut out);
    }
    out.extend(dispatch::encode_bytes(&out.clone()[..3000]));
    out
}

fn nnc(network: &[(Vec<u64>, Vec<f32>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for dependent in [false, true] {
        let mut encoder = UnitEncoder::default();
        for (shape, weights) in network {
            let (rows, width) = (shape[0] as usize, weights.len() / shape[0] as usize);
            let tensor =
                unit::Tensor { rows, width, block: 64, dependent, unary: 10, extended: true, ..Default::default() };
            let mut levels = vec![0; weights.len()];
            let quantizer = NncQuantizer { step: step(weights, 0.25), lambda: 0.1, settings: true };
            assert!(dispatch::nnc_quantize(&tensor, weights, quantizer, &mut levels));
            assert!(dispatch::nnc_encode(&mut encoder, &tensor, 0, &levels, Tools { settings: true, rows: true }));
        }
        out.extend(encoder.finish());
    }
    out
}

fn of_2019(network: &[(Vec<u64>, Vec<f32>)]) -> Vec<u8> {
    let layer = |(_, weights): &(Vec<u64>, Vec<f32>)| (step(weights, 0.5), step(weights, 1.0));
    let steps: Vec<(f32, [f32; 1])> = network.iter().map(layer).map(|(step, interval)| (step, [interval])).collect();
    let layers = network.iter().zip(&steps).map(|((shape, weights), (step, intervals))| dc2019::Layer {
        shape,
        weights,
        intervals,
        step: *step,
        lambda: 0.01,
    });
    dc2019::encode(&layers.collect::<Vec<_>>()).unwrap()
}

#[test]
fn the_network_is_coded_to_the_same_bytes() {
    let network = network();
    assert_eq!(network.iter().map(|(_, weights)| weights.len()).sum::<usize>(), 266_610);
    let measures = network.iter().flat_map(|(_, weights)| measure::measure(weights).energy.to_bits().to_le_bytes());
    let coded = [
        ("measures", measures.collect()),
        ("fast", quantized(&network, Preset::Fast, 0)),
        ("fast, 8 states", quantized(&network, Preset::Fast, 3)),
        ("default", quantized(&network, Preset::Default, 0)),
        ("default, 8 states", quantized(&network, Preset::Default, 3)),
        ("default, 64 states", quantized(&network, Preset::Default, 6)),
        ("small", quantized(&network, Preset::Small, 0)),
        ("small, 16 states", quantized(&network, Preset::Small, 4)),
        ("exact", exact(&network)),
        ("symbols", symbols(&network)),
        ("changes", changed(&network)),
        ("codebook", codebook(&network)),
        ("nnc", nnc(&network)),
        ("2019", of_2019(&network)),
    ];
    let lines: String = coded.iter().map(|(name, coded)| format!("{} {name}\n", sha256(coded))).collect();
    let golden = root().join("tests/golden/coded.txt");
    if env::var_os("DEEPCABAC_WRITE_GOLDEN").is_some() {
        fs::write(&golden, &lines).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap();
    let different: Vec<&str> = lines.lines().filter(|line| !expected.lines().any(|other| other == *line)).collect();
    assert!(
        different.is_empty(),
        "{different:#?} are other bytes than in tests/golden/coded.txt. If the encoder chooses otherwise on purpose, set \
         DEEPCABAC_WRITE_GOLDEN=1 and run this again"
    );
}
