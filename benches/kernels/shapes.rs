//! The shapes that kernels are measured at, by mode.

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All models and rows, with criterion's samples.
    Full,
    /// One model at 2,176 rows, a few samples, a row as soon as it is there: `TANREN_BENCH_QUICK=1`.
    Quick,
    /// Whether the benchmarks run at all: tiny shapes on the emulator, and times that mean nothing.
    #[cfg_attr(not(feature = "emulated"), allow(dead_code, reason = "an emulator is needed"))]
    Smoke,
}

/// Widths of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) num_layers: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab_size: usize,
}

impl Model {
    const fn qwen3(name: &'static str, num_layers: usize, widths: [usize; 2], heads: usize) -> Self {
        let [hidden, intermediate] = widths;
        Self {
            name,
            num_layers,
            hidden,
            intermediate,
            num_attention_heads: heads,
            num_key_value_heads: 8,
            head_dim: 128,
            vocab_size: 151_936,
        }
    }

    /// Columns of q.
    pub(crate) fn q_cols(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Columns of k, and of v.
    pub(crate) fn kv_cols(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

const MODELS: [Model; 4] = [
    Model::qwen3("Qwen3-0.6B", 28, [1024, 3072], 16),
    Model::qwen3("Qwen3-1.7B", 28, [2048, 6144], 16),
    Model::qwen3("Qwen3-4B", 36, [2560, 9728], 32),
    Model::qwen3("Qwen3-8B", 36, [4096, 12_288], 32),
];

const TINY: [Model; 1] = [Model {
    name: "tiny",
    num_layers: 1,
    hidden: 64,
    intermediate: 96,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 16,
    vocab_size: 304,
}];

impl Mode {
    pub(crate) fn models(self) -> &'static [Model] {
        match self {
            Self::Full => &MODELS,
            Self::Quick => &MODELS[..1],
            Self::Smoke => &TINY,
        }
    }

    /// Rows that fill an RTX 3080 in whole waves.
    pub(crate) fn rows(self) -> &'static [usize] {
        match self {
            Self::Full => &[2176, 4352],
            Self::Quick => &[2176],
            Self::Smoke => &[40],
        }
    }

    /// `full` where everything is measured, otherwise `short`.
    pub(crate) fn choose<X>(self, full: X, short: X) -> X {
        if self == Self::Full { full } else { short }
    }

    /// Samples, of which the median is given.
    pub(crate) fn samples(self) -> usize {
        match self {
            Self::Full => 21,
            Self::Quick => 7,
            Self::Smoke => 1,
        }
    }

    /// What a sample takes at least.
    pub(crate) fn sample_secs(self) -> f64 {
        match self {
            Self::Full | Self::Quick => 3e-3,
            Self::Smoke => 0.0,
        }
    }

    /// Traffic between two uses of the same bytes.
    pub(crate) fn rotation_bytes(self) -> u64 {
        match self {
            Self::Full | Self::Quick => super::harness::ROTATION_BYTES,
            // Two or three sets of most.
            Self::Smoke => 30_000,
        }
    }
}
