//! What all targets share: libFuzzer's entry, numbers from an input, and seeds from the golden files.

use std::path::{Path, PathBuf};
use std::{env, fs, panic, process, slice};

use deepcabac_core::chunk;
use deepcabac_core::coding::lanes::Job;
use deepcabac_core::coding::output::Output;
use deepcabac_core::cpu::dispatch;
use deepcabac_core::file::index::read_levels;
use deepcabac_core::file::{Header, Index, Tensor};
use deepcabac_core::model::dependent::States;
use deepcabac_core::model::params::{Coder, KernelPrediction, Params, RowPrediction};
use deepcabac_core::model::scale::Resolution;

/// What a target is: what it does with an input, and what it begins with. A panic is a finding.
macro_rules! target {
    ($run:path, $seeds:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn LLVMFuzzerInitialize(_count: *mut i32, _arguments: *mut *mut *mut u8) -> i32 {
            harness::initialize($seeds);
            0
        }

        /// # Safety
        /// libFuzzer gives so many bytes, in memory of that size.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> i32 {
            // SAFETY: by this function's contract.
            $run(harness::Input(unsafe { harness::bytes(data, size) }));
            0
        }
    };
}
pub(crate) use target;

/// # Safety
/// `size` bytes from `data` on can be read.
pub unsafe fn bytes<'a>(data: *const u8, size: usize) -> &'a [u8] {
    // SAFETY: by this function's contract.
    if size == 0 { &[] } else { unsafe { slice::from_raw_parts(data, size) } }
}

/// Makes a panic end the run at once; with `FUZZ_SEEDS=FOLDER GOLDEN=FOLDER` in the environment, writes the seeds and ends.
pub fn initialize(seeds: fn(&Golden) -> Vec<Vec<u8>>) {
    panic::set_hook(Box::new(|what| {
        eprintln!("{what}");
        process::abort();
    }));
    if let (Some(to), Some(golden)) = (env::var_os("FUZZ_SEEDS"), env::var_os("GOLDEN")) {
        for (number, seed) in seeds(&Golden(golden.into())).into_iter().enumerate() {
            fs::write(Path::new(&to).join(format!("golden-{number:04}")), seed).expect("the folder can be written");
        }
        process::exit(0);
    }
}

/// An input, read from its front; after its end there are zeros.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn short(&mut self) -> usize {
        usize::from(self.byte()) | usize::from(self.byte()) << 8
    }

    /// A byte, below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    /// A number: mostly a byte with its sign, sometimes four.
    pub fn level(&mut self) -> i32 {
        match self.byte() as i8 {
            i8::MIN => i32::from_le_bytes([(); 4].map(|()| self.byte())),
            small => i32::from(small),
        }
    }

    /// The rest, in memory of its own, exactly as large.
    pub fn rest(self) -> Box<[u8]> {
        self.0.into()
    }
}

/// Most levels of a chunk here: time is better spent on more inputs.
pub const MOST_LEVELS: usize = 300;

/// A chunk of levels as an input has it: a byte that says what is tried, its parameters, its number of levels, its code.
pub struct Levels {
    pub mode: u8,
    pub params: Params,
    pub count: usize,
    pub code: Box<[u8]>,
}

impl Levels {
    pub fn read(mut input: Input, coder: u8) -> Self {
        let (mode, flags) = (input.byte(), input.byte());
        let (mean_log, width, count) = (input.byte() % 192, 1 + input.below(256), 1 + input.short() % MOST_LEVELS);
        let (above, column) = (input.byte() as i8, input.byte() as i8);
        let (kernel_width, size) = (1 + input.below(64), 1 + input.below(128));
        let weights = [(); 5].map(|()| input.byte() as i8);
        let (density_log, bits) = (input.byte() % 161, 3 + input.byte() % 4);
        let coder = match coder {
            0 => Coder::Binary,
            1 => Coder::Fast,
            2 => Coder::Sparse { density_log },
            _ => Coder::Regression,
        };
        let on = |flag: u8| flags & flag != 0;
        let kernel = KernelPrediction { width: kernel_width, size, weights };
        let params = Params {
            coder,
            resolution: if on(1) { Resolution::Coarse } else { Resolution::Fine },
            mean_log,
            width,
            chunk_rows: MOST_LEVELS,
            row: (on(2) && !matches!(coder, Coder::Sparse { .. })).then_some(RowPrediction { above, column }),
            kernel: (on(4) && coder != Coder::Regression).then_some(kernel),
            states: if on(8) { States::of_bits(bits) } else { None },
        };
        Self { mode, params, count, code: input.rest() }
    }

    pub fn write(&self) -> Vec<u8> {
        let Self { mode, params, count, code } = self;
        let flags = u8::from(params.resolution == Resolution::Coarse)
            | u8::from(params.row.is_some()) << 1
            | u8::from(params.kernel.is_some()) << 2
            | u8::from(params.states.is_some()) << 3;
        let mut out = vec![*mode, flags, params.mean_log, (params.width - 1) as u8];
        out.extend(((count - 1) as u16).to_le_bytes());
        let row = params.row.unwrap_or_default();
        let kernel = params.kernel.unwrap_or(KernelPrediction { width: 1, size: 1, weights: [0; 5] });
        out.extend([row.above as u8, row.column as u8, (kernel.width - 1) as u8, (kernel.size - 1) as u8]);
        out.extend(kernel.weights.map(|weight| weight as u8));
        let density_log = if let Coder::Sparse { density_log } = params.coder { density_log } else { 0 };
        out.extend([density_log, params.states.map_or(3, States::bits) - 3]);
        out.extend(code);
        out
    }
}

/// The levels of a chunk, if it is good.
pub fn decoded(params: &Params, code: &[u8], count: usize) -> Option<Vec<i32>> {
    let mut levels = vec![0; count];
    let mut jobs = [Job { params: params.clone(), bytes: code, output: Output::Levels(&mut levels), good: false }];
    dispatch::decode(&mut jobs);
    jobs[0].good.then_some(levels)
}

/// The target of a coder of levels. What is tried besides decoding one chunk: with an odd mode, whether a good one's levels come
/// back when coded again; with modes from 240 on, several chunks together.
pub fn levels(input: Input, coder: u8) {
    let Levels { mode, params, count, code } = Levels::read(input, coder);
    let found = decoded(&params, &code, count);
    if mode & 1 != 0
        && let Some(levels) = &found
        // Hostile code has levels beyond 32 bits, which are taken modulo 2^32; no encoder writes those.
        && chunk::has_code(&params, levels)
    {
        let mut again = Vec::new();
        dispatch::encode(&params, levels, &mut again);
        assert!(decoded(&params, &again, count).as_ref() == Some(levels), "decoded levels do not come back");
    }
    if mode >= 240 {
        let together = usize::from(mode - 240);
        let short = 1 + count / 2;
        let mut values: Vec<Vec<f32>> =
            (0..together).map(|k| vec![0.0; if k % 3 == 2 { short } else { count }]).collect();
        let mut jobs: Vec<Job> = (values.iter_mut())
            .map(|values| Job {
                params: params.clone(),
                bytes: &code,
                output: Output::Values(values, 0.5),
                good: false,
            })
            .collect();
        dispatch::decode(&mut jobs);
        let good: Vec<bool> = jobs.iter().map(|job| job.good).collect();
        for (values, good) in values.iter().zip(good) {
            if values.len() == count {
                assert_eq!(good, found.is_some(), "a chunk is good and bad");
                let levels = found.iter().flatten().map(|level| *level as f32 * 0.5);
                assert!(!good || levels.eq(values.iter().copied()), "a chunk has different levels");
            }
        }
    }
}

/// The golden files' folder.
pub struct Golden(PathBuf);

impl Golden {
    /// Files of this ending, in a folder below, by name.
    pub fn files(&self, under: &str, ending: &str) -> Vec<Vec<u8>> {
        let listed = fs::read_dir(self.0.join(under)).expect("there are golden files");
        let mut names: Vec<PathBuf> = listed.map(|entry| entry.expect("it can be listed").path()).collect();
        names.retain(|name| name.extension().is_some_and(|found| found == ending));
        names.sort();
        names.iter().map(|name| fs::read(name).expect("a golden file can be read")).collect()
    }

    /// Tensors of all `.dcb` files, with the code of their first chunk.
    pub fn tensors(&self) -> Vec<(Tensor, Vec<u8>)> {
        let mut tensors = Vec::new();
        for file in self.files("", "dcb") {
            let header = Header::read(&file).expect("a golden file has a header");
            let stored = &file[header.index_range().expect("it is small")];
            for tensor in Index::read(stored, &header, None).expect("a golden file has an index").tensors {
                if let Some(chunk) = tensor.chunks.first() {
                    let code = file[chunk.range().expect("it is small")].to_vec();
                    tensors.push((tensor, code));
                }
            }
        }
        tensors
    }

    /// Inputs of [`levels`]: the first levels of every tensor that any coder has coded, coded with this one.
    pub fn levels(&self, coder: u8) -> Vec<Vec<u8>> {
        let mut tensors: Vec<(Tensor, Vec<u8>)> = self.tensors();
        for file in self.files("", "levels") {
            let tensor = read_levels(&file).expect("they are good");
            if let Some(chunk) = tensor.chunks.first() {
                let code = file[chunk.range().expect("it is small")].to_vec();
                tensors.push((tensor, code));
            }
        }
        let mut seeds = Vec::new();
        for (number, (tensor, code)) in tensors.iter().enumerate() {
            let Some(given) = tensor.method.params() else { continue };
            let coded = code.len() - tensor.chunks[0].refinement as usize;
            let elements = tensor.elements(0);
            let all = decoded(given, &code[..coded], (elements.end - elements.start) as usize).expect("it is good");
            let levels = &all[..all.len().min(MOST_LEVELS)];
            let density_log = if let Coder::Sparse { density_log } = given.coder { density_log } else { 120 };
            let (row, kernel) = (given.row, given.kernel);
            let params = Params {
                coder: [Coder::Binary, Coder::Fast, Coder::Sparse { density_log }, Coder::Regression]
                    [usize::from(coder)],
                width: given.width.min(256),
                chunk_rows: MOST_LEVELS,
                row: if coder == 2 { None } else { row },
                kernel: if coder == 3 { None } else { kernel },
                ..given.clone()
            };
            if !levels.is_empty() && chunk::has_code(&params, levels) {
                let mut code = Vec::new();
                dispatch::encode(&params, levels, &mut code);
                let mode = [1, 0, 243, 253][number % 4];
                seeds.push(Levels { mode, params, count: levels.len(), code: code.into() }.write());
            }
        }
        seeds
    }
}
