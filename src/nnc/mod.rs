//! Streams of ISO/IEC 15938-17 (NNC), and of the DeepCABAC authors' software of 2019.

pub mod binarisation;
pub mod cabac;
pub mod dc2019;
pub mod quantize;
mod settings;
pub mod unit;
