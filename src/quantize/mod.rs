//! From weights to levels.

pub mod feedback;
pub mod greedy;
pub(crate) mod source;
pub(crate) mod survivors;
pub(crate) mod targets;
pub(crate) mod trellis;
