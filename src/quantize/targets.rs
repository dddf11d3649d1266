//! What a quantiser is to come close to: weights as they are, or as the errors before them have moved them.

/// What the survivors are to come close to.
pub(crate) trait Targets {
    /// Whether all survivors always have the same target, whatever row it lies in.
    const SHARED: bool;
    /// Weights whose levels are decided together.
    const BLOCK: usize;
    /// Number of weights.
    fn count(&self) -> usize;
    /// Whether the `index`-th weight is zero, and is to remain so.
    fn is_zero(&self, index: usize) -> bool;
    /// What a squared error of the `index`-th weight counts; None is 1, for all of them.
    #[inline(always)]
    fn importance(&self, _index: usize) -> Option<f32> {
        None
    }
    /// About what the `index`-th weight comes to in steps, whatever the survivors.
    fn rough(&self, index: usize) -> f32;
    /// The search begins again at the `index`-th weight, the levels of all before it being decided.
    #[inline(always)]
    fn begin(&mut self, _index: usize) {}
    /// The level of the `index`-th weight is decided; they are in order.
    #[inline(always)]
    fn decided(&mut self, _index: usize, _level: i32) {}
    /// The target of the `index`-th weight in steps, for each survivor.
    fn targets<const N: usize>(&mut self, index: usize) -> [f32; N];
    /// The survivor in each state came from this state, and has this level at weight `index`.
    #[inline(always)]
    fn follow<const N: usize>(&mut self, _index: usize, _ways: &[(usize, i32); N]) {}
}

/// Weights as they are: all survivors have the same target.
pub(crate) struct Weights<'a> {
    pub weights: &'a [f32],
    /// Of each; or empty: it is 1.
    pub importance: &'a [f32],
    /// Whether a weight of zero stays zero.
    pub keeps_zeros: bool,
    /// Steps in a unit of the weights.
    pub scale: f64,
    /// Largest magnitude of a target.
    pub limit: f64,
}

impl Targets for Weights<'_> {
    const SHARED: bool = true;
    const BLOCK: usize = 512;

    #[inline(always)]
    fn count(&self) -> usize {
        self.weights.len()
    }

    #[inline(always)]
    fn is_zero(&self, index: usize) -> bool {
        self.keeps_zeros && self.weights[index] == 0.0
    }

    #[inline(always)]
    fn importance(&self, index: usize) -> Option<f32> {
        self.importance.get(index).copied()
    }

    #[inline(always)]
    fn rough(&self, index: usize) -> f32 {
        (f64::from(self.weights[index]) * self.scale).clamp(-self.limit, self.limit) as f32
    }

    #[inline(always)]
    fn targets<const N: usize>(&mut self, index: usize) -> [f32; N] {
        [self.rough(index); N]
    }
}
