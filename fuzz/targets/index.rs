//! The index of a file, in the clear, and the values of small tensors: two bytes say how long the index is; after it comes the
//! payload. (The index of a file is coded, so that one changed byte would change all that follow: see `stored.rs`.)

#![no_main]

mod harness;
use deepcabac_core::file::index::HEADER;
use deepcabac_core::file::{Header, Index, Part, decode};
use harness::{Golden, Input};

/// Elements of a chunk that is still decoded.
const MOST: u64 = 1 << 12;

fn run(mut input: Input) {
    let length = input.short();
    let input = input.rest();
    let (plain, payload) = input.split_at(length.min(input.len()));
    let (plain, payload): (Box<[u8]>, Box<[u8]>) = (plain.into(), payload.into());
    let start = (HEADER + payload.len()) as u64;
    let Ok(index) = Index::parse(&plain, &Header { crc: 0, index: start..start }) else { return };
    for tensor in &index.tensors {
        let mut next = 0;
        for chunk in 0..tensor.chunks.len() {
            let elements = tensor.elements(chunk);
            assert!(elements.start == next && elements.end >= next && elements.end <= tensor.size());
            next = elements.end;
            let place = tensor.chunks[chunk].range().expect("a file in memory can be addressed");
            let code = payload.get(place.start - HEADER..place.end - HEADER).expect("chunks lie in the file");
            let wanted = elements.end - elements.start;
            if wanted > MOST {
                continue;
            }
            let code: Box<[u8]> = code.into();
            if let Ok(values) = decode(&[Part { tensor, chunk, code: &code }]) {
                assert_eq!(values[0].bytes().len() as u64, wanted * tensor.dtype.item() as u64);
            }
        }
        assert!(tensor.chunks.is_empty() || next == tensor.size());
    }
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for file in golden.files("", "dcb") {
        let header = Header::read(&file).expect("a golden file has a header");
        let index = header.index_range().expect("it is small");
        let plain = Index::plain(&file[index.clone()], &header, None).expect("a golden file has an index");
        let payload = &file[HEADER..index.start];
        if payload.len() < 4000 {
            seeds.push([&(plain.len() as u16).to_le_bytes()[..], &plain, payload].concat());
        }
    }
    seeds
}

harness::target!(run, seeds);
