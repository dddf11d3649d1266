//! Where decoded levels go: as they are, or times a step.

/// Where decoded levels go.
pub enum Output<'a> {
    /// The levels themselves.
    Levels(&'a mut [i32]),
    /// Levels times step.
    Values(&'a mut [f32], f32),
}

impl Output<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Levels(out) => out.len(),
            Self::Values(out, _) => out.len(),
        }
    }

    /// Levels from `start` on, one by one.
    #[inline(always)]
    pub(crate) fn put_strided(&mut self, start: usize, levels: impl ExactSizeIterator<Item = i32>) {
        let range = start..start + levels.len();
        match self {
            Self::Levels(out) => out[range].iter_mut().zip(levels).for_each(|(out, level)| *out = level),
            Self::Values(out, step) => {
                out[range].iter_mut().zip(levels).for_each(|(out, level)| *out = level as f32 * *step);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put(&mut self, start: usize, row: &[i32]) {
        match self {
            Self::Levels(out) => out[start..start + row.len()].copy_from_slice(row),
            Self::Values(out, step) => {
                for (value, level) in out[start..start + row.len()].iter_mut().zip(row) {
                    *value = *level as f32 * *step;
                }
            }
        }
    }
}
