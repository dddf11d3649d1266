//! The stored index of a file, as it is coded: bytes with contexts of the bytes before. Two bytes say how many there are.

#![no_main]

mod harness;
use deepcabac_core::coding::bytes;
use deepcabac_core::cpu::dispatch;
use deepcabac_core::file::index::HEADER;
use deepcabac_core::file::{Header, Index};
use harness::{Golden, Input};

fn run(mut input: Input) {
    let count = input.short() % 300;
    let code = input.rest();
    let mut out = vec![0; count];
    if count <= bytes::most_decoded(code.len()) && dispatch::decode_bytes(&code, &mut out) {
        let mut back = vec![0; count];
        assert!(
            dispatch::decode_bytes(&dispatch::encode_bytes(&out), &mut back) && back == out,
            "decoded bytes do not come back"
        );
    }
    let start = HEADER as u64;
    let header = Header { crc: 0, index: start..start + code.len() as u64 };
    if code.first().is_some_and(|first| *first < 128) {
        let _ = Index::read(&code, &header, Some(1 << 12));
    }
}

fn seeds(golden: &Golden) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for file in golden.files("", "dcb") {
        let header = Header::read(&file).expect("a golden file has a header");
        let stored = &file[header.index_range().expect("it is small")];
        if stored.len() < 200 {
            seeds.push([&[0, 0], stored].concat());
        }
        let plain = Index::plain(stored, &header, None).expect("a golden file has an index");
        let plain = &plain[..plain.len().min(100)];
        seeds.push([&(plain.len() as u16).to_le_bytes()[..], &dispatch::encode_bytes(plain)].concat());
    }
    seeds
}

harness::target!(run, seeds);
