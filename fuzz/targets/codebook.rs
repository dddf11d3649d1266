//! Indices of a codebook.

#![no_main]

mod harness;
use deepcabac_core::coding::codebook::{self, MOST_ENTRIES};
use deepcabac_core::file::Method;
use harness::{Golden, Input};

fn run(mut input: Input) {
    let (mode, entries) = (input.byte(), 1 + input.short() % MOST_ENTRIES);
    let usual = (input.short() % entries) as u16;
    let (width, count) = (1 + input.below(64), 1 + input.below(256));
    let code = input.rest();
    let mut indices: Box<[u16]> = vec![0; count].into();
    if codebook::decode(&code, entries, usual, width, &mut indices) {
        assert!(indices.iter().all(|index| usize::from(*index) < entries), "an index has no entry");
        if mode & 1 != 0 {
            let (mut again, mut back) = (Vec::new(), vec![0; count]);
            codebook::encode(&indices, entries, usual, width, &mut again);
            let good = codebook::decode(&again, entries, usual, width, &mut back);
            assert!(good && *back == *indices, "decoded indices do not come back");
        }
    }
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (tensor, code) in golden.tensors() {
        let Method::Codebook { entries, usual, width, .. } = &tensor.method else { continue };
        let (elements, entries) = (tensor.elements(0), entries.len());
        let mut indices = vec![0; (elements.end - elements.start) as usize];
        assert!(codebook::decode(&code, entries, *usual, *width, &mut indices));
        indices.truncate(256);
        let width = (*width).min(64);
        let mut seed = vec![1];
        seed.extend((entries as u16 - 1).to_le_bytes());
        seed.extend(usual.to_le_bytes());
        seed.extend([(width - 1) as u8, (indices.len() - 1) as u8]);
        codebook::encode(&indices, entries, *usual, width, &mut seed);
        seeds.push(seed);
    }
    seeds
}

harness::target!(run, seeds);
