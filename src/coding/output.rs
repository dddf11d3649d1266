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

    /// Levels of `N` rows, column by column. The first row begins at `start`, each other one `apart` after the one before.
    #[inline(always)]
    pub(crate) fn put_columns<const N: usize>(&mut self, start: usize, apart: usize, columns: &[[i32; N]]) {
        match self {
            Self::Levels(out) => scatter(&mut out[start..], apart, columns, |level| level),
            Self::Values(out, step) => scatter(&mut out[start..], apart, columns, |level| level as f32 * *step),
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

/// Numbers of a square that is turned over at once: rows of a vector.
const SIDE: usize = 4;

/// Writes `N` rows that are given column by column.
#[inline(never)]
fn scatter<T: Copy + Default, const N: usize>(
    out: &mut [T],
    apart: usize,
    columns: &[[i32; N]],
    of: impl Fn(i32) -> T,
) {
    let (blocks, rest) = columns.as_chunks::<SIDE>();
    let (whole, squares) = (SIDE * blocks.len(), N - N % SIDE);
    for (number, block) in blocks.iter().enumerate() {
        for k in (0..squares).step_by(SIDE) {
            let mut square = [[T::default(); SIDE]; SIDE];
            for i in 0..SIDE {
                for j in 0..SIDE {
                    square[j][i] = of(block[i][k + j]);
                }
            }
            for (j, row) in square.iter().enumerate() {
                out[(k + j) * apart + SIDE * number..][..SIDE].copy_from_slice(row);
            }
        }
        for k in squares..N {
            for i in 0..SIDE {
                out[k * apart + SIDE * number + i] = of(block[i][k]);
            }
        }
    }
    for (i, levels) in rest.iter().enumerate() {
        for (k, level) in levels.iter().enumerate() {
            out[k * apart + whole + i] = of(*level);
        }
    }
}
