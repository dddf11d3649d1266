//! Units of ISO/IEC 15938-17 as inputs have them.

use deepcabac_core::cpu::dispatch;
use deepcabac_core::nnc::unit::{Tensor, Tools, UnitEncoder};

use crate::harness::Input;

/// A tensor with what it borrows.
pub struct Own {
    tensor: Tensor<'static>,
    base: Option<Box<[i32]>>,
    history: Option<Box<[u8]>>,
}

impl Own {
    pub fn get(&self) -> Tensor<'_> {
        Tensor { base: self.base.as_deref(), history: self.history.as_deref(), ..self.tensor }
    }

    pub fn count(&self) -> usize {
        self.tensor.count()
    }

    pub fn entries(&self) -> usize {
        self.tensor.entries()
    }
}

/// A byte that says what is tried, tensors, and their code.
pub struct Unit {
    pub mode: u8,
    pub tensors: Vec<Own>,
    pub code: Box<[u8]>,
}

impl Unit {
    pub fn read(mut input: Input) -> Self {
        let (mode, count) = (input.byte(), 1 + input.below(3));
        let tensors = (0..count).map(|_| tensor(&mut input)).collect();
        Self { mode, tensors, code: input.rest() }
    }
}

fn tensor(input: &mut Input) -> Own {
    let flags = input.byte();
    let on = |flag: u8| flags & flag != 0;
    let (rows, width) = (1 + input.below(16), 1 + input.below(16));
    let (block, unary, book) = (input.below(12), input.byte(), input.byte());
    let seed = input.byte();
    let unary = if unary == 255 { 256 } else { 1 + usize::from(unary) % 20 };
    let codebook =
        if on(64) { (1 + u32::from(book >> 4), u32::from(book) % (1 + u32::from(book >> 4))) } else { (0, 0) };
    let of = |k: usize| (seed ^ (k * 37) as u8).count_ones() as i32 - 4;
    let places = 0..rows * width;
    let tensor = Tensor {
        rows,
        width,
        block,
        dependent: on(1),
        unary,
        extended: on(2),
        update: on(4),
        qp_bits: if on(8) { 1 + u32::from(seed) % 32 } else { 0 },
        codebook,
        base: None,
        history: None,
    };
    let base = on(16).then(|| places.clone().map(of).collect());
    let history = on(32).then(|| places.map(|k| u8::from(of(k) > 0)).collect());
    Own { tensor, base, history }
}

/// Units of small levels, one for each set of flags: the golden streams' units need their headers.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for flags in 0..128_u8 {
        let head = [flags & 7, 0, flags, 6 + flags % 7, 4 + flags % 5, flags % 9, flags % 13, 0x52, flags];
        let Unit { mode, tensors, .. } = Unit::read(Input(&head));
        let tensor = tensors[0].get();
        let mut encoder = UnitEncoder::default();
        // Zeros and, where two quantisers do not forbid it, ones.
        let level = |k: usize| i32::from(!tensor.dependent && tensor.codebook.0 == 0) * ((k * k % 7) as i32 - 3);
        let levels: Vec<i32> = (0..tensor.count()).map(level).collect();
        let tools = Tools { settings: mode & 2 != 0, rows: mode & 4 != 0 };
        if dispatch::nnc_encode(&mut encoder, &tensor, 5, &levels, tools) {
            seeds.push([&head[..], &encoder.finish()].concat());
        }
    }
    seeds
}
