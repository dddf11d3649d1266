//! Levels on their own, what the Python package's `encode` returns.

#![no_main]

mod harness;
use deepcabac_core::file::index::read_levels;
use deepcabac_core::file::{Part, decode};
use harness::{Golden, Input};

fn run(input: Input) {
    let data = input.rest();
    let Ok(tensor) = read_levels(&data) else { return };
    for chunk in 0..tensor.chunks.len() {
        let elements = tensor.elements(chunk);
        let code = &data[tensor.chunks[chunk].range().expect("a file in memory can be addressed")];
        if elements.end - elements.start < 1 << 12 {
            let code: Box<[u8]> = code.into();
            if let Ok(values) = decode(&[Part { tensor: &tensor, chunk, code: &code }]) {
                assert_eq!(values[0].bytes().len() as u64, 4 * (elements.end - elements.start));
            }
        }
    }
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    golden.files("", "levels").into_iter().filter(|file| file.len() < 1000).collect()
}

harness::target!(run, seeds);
