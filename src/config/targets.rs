//! The target layers of an adapter, with their ranks and scales: the rules of PEFT, applied to the paths of
//! all modules.
//!
//! A list names modules by their path, or by what follows a dot in it; a text is a regular expression for the
//! whole path; `exclude_modules` removes the modules that match it; `layers_to_transform` limits the result
//! to the blocks with its numbers. The first key of `rank_pattern` (and `alpha_pattern`) that matches the end
//! of a path, up to a dot, sets its rank (and alpha). Source: PEFT 0.18, `tuners_utils.py`
//! (`check_target_module_exists`) and `other.py` (`get_pattern_key`). Expressions are those of Python as far
//! as the `fancy-regex` crate supports them; other syntax is refused.
//!
//! PEFT ignores names that match nothing; here they are errors, since they are usually typing errors. Modules
//! that PEFT adapts and tanren does not (an embedding, a head) are refused, not ignored.

use fancy_regex::{Regex, RegexBuilder};

use super::lora::{LoraConfig, TargetModules};
use super::model::ModelConfig;
use super::sites::{PerSite, Site, Sites};
use crate::error::{Error, InputError, Result};

/// Maximum length of a regular expression, in bytes.
const MAX_EXPRESSION: usize = 1 << 14;
/// Steps of a match before it is given up. Names of layers take hundreds; a model has thousands of paths to match.
const MAX_STEPS: usize = 20_000;
/// Most patterns of an option: more than two for every layer of the largest model.
const MAX_PATTERNS: usize = 1 << 14;

/// The adapter of one linear layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SiteLora {
    /// Rank.
    pub r: usize,
    /// The factor before `B A`.
    pub scaling: f64,
}

impl LoraConfig {
    /// The adapter of each linear layer of `model`.
    ///
    /// # Errors
    /// An input error that names the option: if something matches no module, or one that cannot have an adapter, if an
    /// expression is broken, or if no layer is left.
    pub fn at_sites(&self, model: &ModelConfig) -> Result<PerSite<Option<SiteLora>>> {
        Ok(self.resolve(model)?)
    }

    /// This adapter without names that have no effect on `model`: PEFT writes and reads such names, and they
    /// change no result.
    #[expect(clippy::result_large_err, reason = "asked once per adapter; the place is added by the caller")]
    pub(crate) fn without_unused(mut self, model: &ModelConfig) -> Result<Self, InputError> {
        let sites = Sites::of(model);
        let others = model.family.other_modules(model);
        if let Some(TargetModules::List(names)) = &mut self.exclude_modules {
            let paths =
                || sites.iter().map(|site| site.path.as_str()).chain(others.iter().map(String::as_str));
            names.retain(|name| paths().any(|path| ends_in(path, name)));
        }
        self.exclude_modules.take_if(|modules| *modules == TargetModules::List(Vec::new()));
        let (ranks, alphas) =
            (std::mem::take(&mut self.rank_pattern), std::mem::take(&mut self.alpha_pattern));
        let targets = self.resolve(model)?;
        let targets = || sites.iter().zip(targets.iter()).filter(|(_, lora)| lora.is_some());
        self.rank_pattern = used("rank_pattern", ranks, targets().map(|(site, _)| site))?;
        self.alpha_pattern = used("alpha_pattern", alphas, targets().map(|(site, _)| site))?;
        Ok(self)
    }

    /// As [`LoraConfig::at_sites`], with an error to which the caller can add a place.
    #[expect(
        clippy::result_large_err,
        reason = "asked a few times per run; the place is added by the caller"
    )]
    pub(crate) fn resolve(&self, model: &ModelConfig) -> Result<PerSite<Option<SiteLora>>, InputError> {
        let sites = Sites::of(model);
        let others = model.family.other_modules(model);
        let paths = || sites.iter().map(|site| site.path.as_str()).chain(others.iter().map(String::as_str));
        let target = Matcher::new("target_modules", &self.target_modules)?;
        let exclude = self.exclude_modules.as_ref();
        let exclude = exclude.map(|modules| Matcher::new("exclude_modules", modules)).transpose()?;
        target.check_names(model, &sites, paths())?;
        if let Some(exclude) = &exclude {
            exclude.check_names(model, &sites, paths())?;
        }
        let layers = LayerRule::of(self, model)?;
        let is_target = |path: &str| -> Result<bool, InputError> {
            let is_excluded = exclude.as_ref().map_or(Ok(false), |exclude| exclude.matches(path))?;
            Ok(!is_excluded && target.matches(path)? && (target.has_path(path) || layers.matches(path)?))
        };
        if !matches!(self.target_modules, TargetModules::AllLinear) {
            for path in &others {
                if is_target(path)? {
                    return Err(fault(
                        "target_modules",
                        "adapters on this part of the model are not supported",
                    )
                    .got(path)
                    .expected(names(&sites))
                    .fix("leave it out, or name it in exclude_modules"));
                }
            }
        }
        let ranks = Patterns::new("rank_pattern", &self.rank_pattern)?;
        let alphas = Patterns::new("alpha_pattern", &self.alpha_pattern)?;
        let (mut used_ranks, mut used_alphas) = (vec![false; ranks.0.len()], vec![false; alphas.0.len()]);
        let of_site = |_, site: &Site| -> Result<Option<SiteLora>, InputError> {
            if !is_target(&site.path)? {
                return Ok(None);
            }
            let r = ranks.first(&site.path, &mut used_ranks)?.unwrap_or(self.r);
            let alpha = alphas.first(&site.path, &mut used_alphas)?.unwrap_or(self.alpha);
            Ok(Some(SiteLora { r, scaling: self.scaling_of(r, alpha) }))
        };
        let found = PerSite::try_of(&sites, of_site)?;
        ranks.check_used(&used_ranks)?;
        alphas.check_used(&used_alphas)?;
        if found.iter().all(Option::is_none) {
            // The option that removes the last layer.
            let names_some = sites.iter().any(|site| target.matches(&site.path).unwrap_or(false));
            let field = match (names_some, &self.exclude_modules) {
                (false, _) => "target_modules",
                (true, Some(_)) => "exclude_modules",
                (true, None) => "layers_to_transform",
            };
            return Err(fault(field, "no layer is left for the adapter")
                .got(self.describe_layers())
                .expected(names(&sites))
                .fix("name layers of this model that exclude_modules and layers_to_transform leave"));
        }
        Ok(found)
    }
}

fn fault(field: &str, what: impl Into<String>) -> InputError {
    Error::input("CONFIG", what).field(field)
}

/// The names of the layers of a model.
fn names(sites: &Sites) -> String {
    sites.names().join(", ")
}

/// One of the options that name modules.
struct Matcher<'a> {
    field: &'static str,
    kind: Kind<'a>,
}

enum Kind<'a> {
    AllLinear,
    Names(&'a [String]),
    Expression(Box<Regex>),
}

#[expect(clippy::result_large_err, reason = "see LoraConfig::resolve")]
impl<'a> Matcher<'a> {
    fn new(field: &'static str, modules: &'a TargetModules) -> Result<Self, InputError> {
        let kind = match modules {
            TargetModules::AllLinear => Kind::AllLinear,
            TargetModules::List(names) => Kind::Names(names),
            TargetModules::Pattern(text) => Kind::Expression(Box::new(whole(field, text)?)),
        };
        Ok(Self { field, kind })
    }

    fn matches(&self, path: &str) -> Result<bool, InputError> {
        match &self.kind {
            Kind::AllLinear => Ok(true),
            Kind::Names(names) => Ok(names.iter().any(|name| ends_in(path, name))),
            Kind::Expression(expression) => is_match(self.field, expression, path),
        }
    }

    /// True if a list contains the whole path, to which `layers_to_transform` does not apply.
    fn has_path(&self, path: &str) -> bool {
        matches!(self.kind, Kind::Names(names) if names.iter().any(|name| name == path))
    }

    /// Fails for a name that matches no module.
    fn check_names<'p>(
        &self,
        model: &ModelConfig,
        sites: &Sites,
        paths: impl Iterator<Item = &'p str> + Clone,
    ) -> Result<(), InputError> {
        let Kind::Names(listed) = &self.kind else { return Ok(()) };
        match listed.iter().find(|name| !paths.clone().any(|path| ends_in(path, name))) {
            None => Ok(()),
            Some(name) => Err(fault(self.field, format!("{} models have no such layer", model.family))
                .got(name)
                .expected(names(sites))
                .fix("name layers of this model, or all-linear")),
        }
    }
}

/// True if `name` is the path, or what follows a dot in it.
fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The expression for a whole path.
#[expect(clippy::result_large_err, reason = "see LoraConfig::resolve")]
fn whole(field: &'static str, text: &str) -> Result<Regex, InputError> {
    expression(field, text, &format!(r"\A(?:{text})\z"))
}

/// Compiles `full`, which is derived from the user's `text`.
#[expect(clippy::result_large_err, reason = "see LoraConfig::resolve")]
fn expression(field: &'static str, text: &str, full: &str) -> Result<Regex, InputError> {
    let refuse = |what: String| {
        fault(field, what)
            .got(text)
            .expected("a regular expression of Python")
            .fix("correct it, or name the layers in a list")
    };
    if text.len() > MAX_EXPRESSION {
        return Err(refuse(format!("the expression is longer than {MAX_EXPRESSION} bytes")));
    }
    RegexBuilder::new(full)
        .backtrack_limit(MAX_STEPS)
        .build()
        .map_err(|error| refuse(format!("invalid expression: {error}")))
}

#[expect(clippy::result_large_err, reason = "see LoraConfig::resolve")]
fn is_match(field: &'static str, expression: &Regex, path: &str) -> Result<bool, InputError> {
    expression.is_match(path).map_err(|error| {
        fault(field, format!("the expression cannot be matched: {error}"))
            .got(expression.as_str())
            .fix("write it simpler, or name the layers in a list")
    })
}

/// The blocks selected by `layers_to_transform`.
struct LayerRule<'a> {
    layers: &'a [usize],
    /// Each captures the number of the block in its first group.
    expressions: Vec<Regex>,
}

#[expect(clippy::result_large_err, reason = "see LoraConfig::resolve")]
impl<'a> LayerRule<'a> {
    fn of(lora: &'a LoraConfig, model: &ModelConfig) -> Result<Self, InputError> {
        let layers = lora.layers_to_transform.as_deref().unwrap_or_default();
        if layers.is_empty() {
            return match lora.layers_pattern.is_empty() {
                true => Ok(Self { layers, expressions: Vec::new() }),
                false => Err(fault("layers_pattern", "it has no effect without layers_to_transform")
                    .fix("give layers_to_transform too, or leave it out")),
            };
        }
        if matches!(lora.target_modules, TargetModules::Pattern(_)) {
            return Err(fault(
                "layers_to_transform",
                "it cannot be combined with an expression for whole paths",
            )
            .expected("target_modules as a list of names")
            .fix("put the blocks into the expression"));
        }
        if let Some(layer) = layers.iter().find(|layer| **layer >= model.num_hidden_layers()) {
            return Err(fault("layers_to_transform", "the model has no such block")
                .got(layer)
                .expected(format!("0 to {}", model.num_hidden_layers() - 1))
                .fix("blocks are counted from 0"));
        }
        // An empty pattern stands for any name.
        let any = [r"[^.]*".to_owned()];
        let patterns = if lora.layers_pattern.is_empty() { &any[..] } else { &lora.layers_pattern };
        let numbered = |text: &String| expression("layers_pattern", text, &format!(r"\A.*\.{text}\.(\d+)\."));
        Ok(Self { layers, expressions: patterns.iter().map(numbered).collect::<Result<_, _>>()? })
    }

    fn matches(&self, path: &str) -> Result<bool, InputError> {
        if self.layers.is_empty() {
            return Ok(true);
        }
        for expression in &self.expressions {
            let found = expression.captures(path).map_err(|error| {
                fault("layers_pattern", format!("the expression cannot be matched: {error}"))
                    .fix("write it simpler")
            })?;
            // As in PEFT; a pattern with groups of its own captures something else there.
            if let Some(number) = found.and_then(|groups| groups.get(1)) {
                return match number.as_str().parse() {
                    Ok(layer) => Ok(self.layers.contains(&layer)),
                    Err(_) => Err(fault("layers_pattern", "the name of a list of blocks has no groups")
                        .got(number.as_str())
                        .expected("such as layers")
                        .fix("write (?:...) instead of (...)")),
                };
            }
        }
        Ok(false)
    }
}

/// Expressions for ends of paths, with a value each.
struct Patterns<'a, V>(Vec<(&'static str, &'a str, Regex, V)>);

#[expect(clippy::result_large_err, reason = "see LoraConfig::resolve")]
impl<'a, V: Copy> Patterns<'a, V> {
    fn new(field: &'static str, patterns: &'a [(String, V)]) -> Result<Self, InputError> {
        if patterns.len() > MAX_PATTERNS {
            let error = fault(field, "too many patterns")
                .got(patterns.len())
                .expected(format!("at most {MAX_PATTERNS}"));
            return Err(error.fix("name several layers by one expression"));
        }
        let compile = |(text, value): &'a (String, V)| {
            let expression = expression(field, text, &format!(r"\A(.*\.)?({text})\z"))?;
            Ok((field, text.as_str(), expression, *value))
        };
        patterns.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    /// The value of the first expression that matches; the match is recorded in `used`.
    fn first(&self, path: &str, used: &mut [bool]) -> Result<Option<V>, InputError> {
        for ((field, _, expression, value), used) in self.0.iter().zip(used) {
            if is_match(field, expression, path)? {
                *used = true;
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    /// Fails for an expression that matched no layer first.
    fn check_used(&self, used: &[bool]) -> Result<(), InputError> {
        match self.0.iter().zip(used).find(|(_, used)| !**used) {
            None => Ok(()),
            Some(((field, text, ..), _)) => Err(fault(field, "no layer of the adapter matches this name")
                .got(*text)
                .fix("correct the name, or leave it out; the first name that fits a layer counts")),
        }
    }
}

/// The patterns that match one of the layers first.
#[expect(clippy::result_large_err, reason = "see LoraConfig::resolve")]
fn used<'s, V: Copy>(
    field: &'static str,
    patterns: Vec<(String, V)>,
    layers: impl Iterator<Item = &'s Site>,
) -> Result<Vec<(String, V)>, InputError> {
    let compiled = Patterns::new(field, &patterns)?;
    let mut used = vec![false; patterns.len()];
    for site in layers {
        compiled.first(&site.path, &mut used)?;
    }
    drop(compiled);
    Ok(patterns.into_iter().zip(used).filter_map(|(pair, used)| used.then_some(pair)).collect())
}

#[cfg(test)]
#[path = "targets_tests.rs"]
mod tests;
