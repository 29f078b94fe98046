//! Dropout of the frozen model itself: what `config.json` says, and how much of it a training applies (`--base-dropout`).
//!
//! transformers applies it in training although the base is frozen, also where `config.json` has no such key and its
//! configuration class has a default.

use super::values::BaseDropoutMode;
use crate::error::{Error, InputError, Result};

/// Where a probability of dropout applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropoutPlace {
    /// The sum of the embeddings, behind its norm if it has one.
    Embeddings,
    /// The output of both sublayers of a block, before it is added to the residual.
    Hidden,
    /// The embeddings and both sublayers.
    EmbeddingsAndHidden,
    /// What each trained layer of a head for labels reads.
    Head,
    /// The attention weights, which have no dropout here.
    Attention,
    /// Another place, which has no dropout here.
    Elsewhere,
}

/// A key of `config.json`, as a family has it.
#[derive(Debug, PartialEq)]
pub(super) struct DropoutKey {
    pub(super) name: &'static str,
    pub(super) place: DropoutPlace,
    /// What transformers takes where the key is absent or null; none where that is the one of the hidden states.
    pub(super) default: Option<f64>,
}

/// A probability of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    name: &'static str,
    place: DropoutPlace,
    /// None where that of the hidden states counts.
    p: Option<f64>,
}

/// See the module text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BaseDropout {
    rates: Vec<Rate>,
    mode: BaseDropoutMode,
}

impl BaseDropout {
    /// The probabilities of a family's `keys`, of which none is applied; `value` gives what the file has, or the default.
    ///
    /// # Errors
    /// That of `value`; and the key of a number that is no probability.
    pub(super) fn read(
        keys: &'static [DropoutKey],
        value: impl Fn(&DropoutKey) -> Result<Option<f64>>,
        error: impl Fn(&str, &str) -> InputError,
    ) -> Result<Self> {
        let mut rates = Vec::new();
        for key in keys {
            let p = value(key)?;
            if let Some(p) = p.filter(|p| !(0.0..=1.0).contains(p)) {
                return error(key.name, "not a probability")
                    .got(p)
                    .expected("0 to 1")
                    .fix("check config.json")
                    .into();
            }
            rates.push(Rate { name: key.name, place: key.place, p });
        }
        Ok(Self { rates, mode: BaseDropoutMode::Off })
    }

    /// The keys with their values, as `config.json` has them.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&'static str, Option<f64>)> {
        self.rates.iter().map(|rate| (rate.name, rate.p))
    }

    /// The same probabilities, of which `mode` says what is applied.
    ///
    /// # Errors
    /// The key of a probability that would have to be applied and cannot be.
    pub(super) fn with_mode(self, mode: BaseDropoutMode) -> Result<Self> {
        let refuse = |Rate { name, p, .. }: &Rate, what: &str| {
            Error::input("CONFIG", what)
                .field("base_dropout")
                .got(format!("{mode}, with {name} {} in config.json", p.unwrap_or(0.0)))
        };
        for rate in self.rates.iter().filter(|rate| mode != BaseDropoutMode::Off && rate.p > Some(0.0)) {
            match rate.place {
                DropoutPlace::Attention if mode == BaseDropoutMode::Config => {
                    return refuse(rate, "attention weights have no dropout here")
                        .expected("hidden, which applies all but this one, or off")
                        .fix(format!("use --base-dropout hidden, or set {} to 0 in config.json", rate.name))
                        .into();
                }
                DropoutPlace::Elsewhere => {
                    return refuse(rate, "there is no dropout at this place here")
                        .expected("off")
                        .fix(format!("use --base-dropout off, or set {} to 0 in config.json", rate.name))
                        .into();
                }
                _ => {}
            }
            if rate.p >= Some(1.0) {
                return refuse(rate, "the probability leaves nothing")
                    .expected("0 to below 1")
                    .fix("use --base-dropout off")
                    .into();
            }
        }
        Ok(Self { mode, ..self })
    }

    /// Whether anything is applied.
    pub fn is_on(&self) -> bool {
        [DropoutPlace::Embeddings, DropoutPlace::Hidden, DropoutPlace::Head]
            .iter()
            .any(|&at| self.p(at) > 0.0)
    }

    /// The probability that is applied at a place: 0 where none is.
    pub fn p(&self, place: DropoutPlace) -> f64 {
        if self.mode == BaseDropoutMode::Off {
            return 0.0;
        }
        let at = |place| self.rates.iter().find(|rate| rate.place == place)?.p;
        let both = || at(DropoutPlace::EmbeddingsAndHidden);
        let p = match place {
            DropoutPlace::Embeddings => at(DropoutPlace::Embeddings).or_else(both),
            DropoutPlace::Hidden => at(DropoutPlace::Hidden).or_else(both),
            DropoutPlace::Head if self.rates.iter().any(|rate| rate.place == DropoutPlace::Head) => {
                at(DropoutPlace::Head).or_else(both)
            }
            _ => None,
        };
        p.unwrap_or(0.0)
    }

    /// What the model has and the training does not apply, for a note; none if there is nothing.
    pub fn left_out(&self) -> Option<String> {
        let applies = |rate: &Rate| match self.mode {
            BaseDropoutMode::Off => false,
            BaseDropoutMode::Hidden | BaseDropoutMode::Config => rate.place != DropoutPlace::Attention,
        };
        let rates = self.rates.iter().filter(|rate| rate.p > Some(0.0) && !applies(rate));
        let rates: Vec<String> =
            rates.map(|rate| format!("{} {}", rate.name, rate.p.unwrap_or(0.0))).collect();
        (!rates.is_empty()).then(|| {
            format!(
                "dropout of the model that is not applied in training (--base-dropout {}): {}",
                self.mode,
                rates.join(", ")
            )
        })
    }
}
