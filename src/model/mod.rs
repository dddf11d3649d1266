//! What is known about the next level before it is coded: both sides, encoder and decoder, learn it from the levels before.

pub mod context;
pub mod dependent;
pub mod params;
pub mod regression;
pub mod rows;
pub mod scale;
