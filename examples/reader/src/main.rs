//! Prints the tensors of a `.dcb` file: name, type, shape, and the sum of the bytes of its values.

use std::io::Write;

use deepcabac_reader::{index, tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: reader FILE.dcb")?;
    let file = std::fs::read(path)?;
    let index = index(&file, None).map_err(|error| error.message().to_owned())?;
    let mut out = std::io::stdout().lock();
    for (number, one) in index.tensors.iter().enumerate() {
        let values = tensor(&file, &index, number, None).map_err(|error| error.message().to_owned())?;
        let sum: u64 = values.iter().map(|byte| u64::from(*byte)).sum();
        writeln!(out, "{} {} {:?} {sum}", one.name, one.dtype.name(), one.shape)?;
    }
    Ok(())
}
