//! Units of ISO/IEC 15938-17.

#![no_main]

mod harness;
mod units;
use deepcabac_core::cpu::dispatch;
use deepcabac_core::nnc::unit::{Tools, UnitDecoder, UnitEncoder};
use harness::{Golden, Input};
use units::{Own, Unit};

fn run(input: Input) {
    let Unit { mode, tensors, code } = Unit::read(input);
    let mut decoder = UnitDecoder::new(&code);
    let mut found = Vec::new();
    for tensor in &tensors {
        let (mut levels, mut entries) = (vec![0; tensor.count()].into_boxed_slice(), vec![0; tensor.entries()]);
        let Some(qp) = dispatch::nnc_decode(&mut decoder, &tensor.get(), &mut levels, &mut entries, false) else {
            return;
        };
        found.push((qp, levels));
    }
    // With two quantisers and blocks, a skipped row leads to another state than its zeros: such levels come back with the
    // flags that they had, which an encoder need not choose.
    let may_differ = tensors.iter().map(Own::get).any(|one| one.dependent && one.extended && one.block > 0);
    if decoder.finish() != Some(code.len()) || mode & 1 == 0 || may_differ {
        return;
    }
    let mut encoder = UnitEncoder::default();
    for (tensor, (qp, levels)) in tensors.iter().zip(&found) {
        let tools = Tools { settings: mode & 2 != 0, rows: mode & 4 != 0 };
        if !dispatch::nnc_encode(&mut encoder, &tensor.get(), *qp, levels, tools) {
            // A decoder gives some levels that an encoder may refuse: the largest of 32 bits.
            return;
        }
    }
    let again = encoder.finish();
    let mut decoder = UnitDecoder::new(&again);
    for (tensor, (qp, levels)) in tensors.iter().zip(&found) {
        let (mut back, mut entries) = (vec![0; tensor.count()], vec![0; tensor.entries()]);
        let found = dispatch::nnc_decode(&mut decoder, &tensor.get(), &mut back, &mut entries, false);
        assert!(found == Some(*qp) && *back == **levels, "decoded levels do not come back");
    }
    assert_eq!(decoder.finish(), Some(again.len()), "an encoder's stream does not end");
}

/// And a stream that begins beyond its range.
fn seeds(_golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds = units::seeds();
    seeds.push(vec![0xff; 40]);
    seeds
}

harness::target!(run, seeds);
