//! Counter-based random numbers (Philox 4x32-10): a pure function of key and counter, so nothing has to be stored or replayed.
//!
//! Source of the generator: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Dropout masks,
//! the shuffle and weight initialisation all draw from it, each in a stream of its own; resuming a run needs no state but
//! the seed and the position.

/// Four random words for `counter` under `key`.
///
/// ```
/// // Known answer of the Random123 distribution for the all-zero input.
/// assert_eq!(
///     tanren::rng::philox([0, 0], [0, 0, 0, 0]),
///     [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
/// );
/// ```
#[inline(always)]
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    for _ in 0..10 {
        let p0 = u64::from(c0) * 0xD251_1F53;
        let p1 = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// The purpose of a stream of random numbers. Streams with different purposes never share a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// LoRA dropout masks.
    Dropout = 1,
    /// Order of the training rows.
    Shuffle = 2,
    /// Start values of adapters.
    AdapterInit = 3,
    /// Start values of a model made by `tanren init`.
    ModelInit = 4,
    /// Choice of the evaluation rows.
    Split = 5,
    /// Dropout masks of the frozen model.
    BaseDropout = 6,
}

/// A stream of random numbers: `(seed, purpose, index)` names it, the position counts within it.
#[derive(Debug, Clone)]
pub struct Stream {
    key: [u32; 2],
    purpose: u32,
    index: u32,
    block: u64,
    words: [u32; 4],
    left: usize,
}

impl Stream {
    /// The stream number `index` for `purpose` under `seed`, at its start.
    pub fn new(seed: u64, purpose: Purpose, index: u32) -> Self {
        let key = [seed as u32, (seed >> 32) as u32];
        Self { key, purpose: purpose as u32, index, block: 0, words: [0; 4], left: 0 }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.left == 0 {
            let counter = [self.block as u32, (self.block >> 32) as u32, self.index, self.purpose];
            self.words = philox(self.key, counter);
            self.block += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left]
    }

    /// Uniform in [0, 1) with 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// A standard normal number (Box and Muller).
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * f64::from(1.0 - self.uniform()).ln()).sqrt();
        (radius * (2.0 * std::f64::consts::PI * f64::from(self.uniform())).cos()) as f32
    }

    /// Uniform in `0..bound`; `bound` must not be 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        // Lemire's method without the rejection step: the bias is below bound / 2^32.
        ((u64::from(self.next_u32()) * u64::from(bound)) >> 32) as u32
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(
            philox([u32::MAX; 2], [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_depends_on_the_index() {
        let order = |index| {
            let mut items: Vec<u32> = (0..100).collect();
            Stream::new(7, Purpose::Shuffle, index).shuffle(&mut items);
            items
        };
        let mut sorted = order(0);
        assert_ne!(sorted, order(1));
        assert_eq!(order(0), order(0));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut stream = Stream::new(1, Purpose::ModelInit, 0);
        let draws: Vec<f64> = (0..100_000).map(|_| f64::from(stream.normal())).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
