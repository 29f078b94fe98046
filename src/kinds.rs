//! The kinds of norms, activations and masks: what a configuration names and an op computes.

/// How a norm scales its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By the root mean square (Zhang and Sennrich, 2019).
    Rms,
    /// By the standard deviation, around the mean (Ba et al., 2016).
    Layer,
}

/// Which keys a query sees, all within its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttnMask {
    /// Those up to itself.
    Causal,
    /// All.
    Full,
    /// Those at most this far away on either side.
    Window(usize),
}

/// A function of every element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x (1 + erf(x / sqrt(2))) / 2`.
    Gelu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// The hyperbolic tangent.
    Tanh,
}

/// Rotation of queries and keys: pair `i` of a head of width `d` turns by position times its frequency `f_i`, which is
/// `theta^(-2i/d)` before scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// What is done to them for sequences longer than the model was trained on.
    pub scaling: RopeScaling,
}

/// Scaling of rotary frequencies, by the names of transformers (`rope_type`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// `f_i / factor` (Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// For a sequence of `n > max_positions` tokens theta becomes `theta (factor n / max_positions - (factor - 1))^(d / (d - 2))`
    /// ("dynamic NTK").
    Dynamic {
        /// The factor.
        factor: f64,
        /// Longest sequence without scaling.
        max_positions: usize,
    },
    /// Long waves are divided by the factor, short ones are kept, with a smooth passage between (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Waves longer than `original_max_positions` over this are divided.
        low_freq_factor: f64,
        /// Waves shorter than `original_max_positions` over this are kept.
        high_freq_factor: f64,
        /// Longest sequence of the training before.
        original_max_positions: usize,
    },
    /// Between `f_i` and `f_i / factor` along a ramp over the pairs, and cosines and sines times a factor (Peng et al., 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// Longest sequence of the training before.
        original_max_positions: usize,
        /// Turns within `original_max_positions` above which a pair is kept.
        beta_fast: f64,
        /// Turns below which a pair is divided.
        beta_slow: f64,
        /// Whether the ends of the ramp are whole pairs.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

impl RopeSpec {
    /// Without scaling.
    pub fn unscaled(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::Default }
    }

    /// The frequencies of the pairs of a head of width `head_dim` in a sequence of `len` tokens, in f64.
    pub fn frequencies(&self, head_dim: usize, len: usize) -> Vec<f64> {
        let d = head_dim as f64;
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, max_positions } if len > max_positions => {
                let stretch = factor * len as f64 / max_positions as f64 - (factor - 1.0);
                self.theta * stretch.powf(d / (d - 2.0))
            }
            _ => self.theta,
        };
        let unscaled = (0..head_dim / 2).map(|i| 1.0 / theta.powf(2.0 * i as f64 / d));
        match self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => unscaled.collect(),
            RopeScaling::Linear { factor } => unscaled.map(|f| f / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let of = |f: f64| {
                    let waves = original_max_positions as f64 * f / std::f64::consts::TAU;
                    let smooth = (waves - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                };
                unscaled.map(of).collect()
            }
            RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, truncate, .. } => {
                let pair = |turns: f64| {
                    let waves = original_max_positions as f64 / (turns * std::f64::consts::TAU);
                    d * waves.ln() / (2.0 * theta.ln())
                };
                let (low, high) = match truncate {
                    true => (pair(beta_fast).floor(), pair(beta_slow).ceil()),
                    false => (pair(beta_fast), pair(beta_slow)),
                };
                let (low, high) = (low.max(0.0), high.min(d - 1.0));
                let high = if low == high { high + 0.001 } else { high };
                let of = |(i, f): (usize, f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f * (1.0 - ramp) + f / factor * ramp
                };
                unscaled.enumerate().map(of).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// Longest sequence whose frequencies do not depend on its length; none if none do.
    pub fn max_fixed_len(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::Dynamic { max_positions, .. } => Some(max_positions),
            _ => None,
        }
    }
}
