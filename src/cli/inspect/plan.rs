//! `tanren inspect plan`: the resources a training needs, on this machine or on a card, with real or with
//! synthetic rows.

use std::sync::Arc;

use crate::cli::console::Console;
use crate::cli::inspect::open_model;
use crate::cli::options::PlanArgs;
use crate::cli::units::count;
use crate::cli::{plan, table, train};
use crate::config::{ModelConfig, TrainConfig, variant, variants};
use crate::error::{Error, Result};
use crate::train::{Plan, Workload, plan_workload};

/// Default length of a synthetic sequence, in tokens.
const SEQUENCE_LENGTH: usize = 512;

/// Default share of supervised tokens in synthetic rows.
const SUPERVISED_SHARE: f64 = 0.1;

/// Shows the plan.
///
/// # Errors
/// Errors of options, rows or model; or that the plan does not fit, with settings that would.
pub(super) fn show(args: &PlanArgs, console: &Arc<Console>) -> Result<()> {
    let mut flags = args.train.flags()?;
    if let Some(name) = &args.variant {
        flags = flags.set("model", name.as_str());
    }
    let config = TrainConfig::resolve_plan(flags, args.train.config())?;
    let synthetic = args.variant.is_some()
        || args.tokens.is_some()
        || args.sequence_length.is_some()
        || args.supervised_share.is_some()
        || config.train_file.is_empty();
    if !synthetic {
        if !args.json {
            let rows = train::settings(&config).into_iter().filter(|(name, _)| *name != "output");
            console.lines(table::pairs(&rows.collect::<Vec<_>>()));
        }
        return train::planned(&config, args.json, console);
    }
    config.check_supported()?;
    config.notes.iter().for_each(|note| console.note(format_args!("note: {note}")));
    let model = shape(&config, args, console)?;
    let workload = Workload {
        tokens: args.tokens.or(config.tokens_per_batch).unwrap_or(config.max_tokens_per_pass),
        sequence_length: args.sequence_length.unwrap_or(SEQUENCE_LENGTH.min(model.max_sequence_length())),
        supervised_share: args.supervised_share.unwrap_or(SUPERVISED_SHARE),
    };
    let plan = plan_workload(&config, &model, &workload)?;
    match args.json {
        true => json(&plan, console),
        false => {
            let counts = ["model", "preset", "LoRA", "device"];
            let rows = train::settings(&config).into_iter().filter(|(name, _)| counts.contains(name));
            let synthetic = format!(
                "{} tokens per pass, in sequences of {}, {}% of them supervised (synthetic)",
                count(workload.tokens as u64),
                count(workload.sequence_length as u64),
                100.0 * workload.supervised_share
            );
            console.lines(table::pairs(&rows.chain([("rows", synthetic)]).collect::<Vec<_>>()));
            tables(&plan, console);
        }
    }
    plan.check_fits()
}

/// All tables of a plan.
pub(in crate::cli) fn tables(planned: &Plan, console: &Console) {
    console.heading("plan");
    console.lines(plan::summary(planned));
    console.heading("memory at peak");
    console.lines(plan::by_use(planned));
    console.heading("work of one optimizer step by group");
    console.lines(plan::by_group(planned));
    console.heading("work of one optimizer step by op");
    console.lines(plan::by_op(planned));
    if let Some(prediction) = plan::prediction(planned) {
        console.heading(prediction);
    }
    if !planned.capacity.is_empty() {
        console.heading("maximum tokens per pass");
        console.lines(plan::capacity(planned));
    }
}

/// The plan for machines.
pub(in crate::cli) fn json(plan: &Plan, console: &Console) {
    // Every key is a text and every number finite, so this cannot fail.
    console.line(serde_json::to_string_pretty(plan).unwrap_or_default());
}

/// The shape of the model: of a variant as it is built in, else of a model folder.
fn shape(config: &TrainConfig, args: &PlanArgs, console: &Console) -> Result<ModelConfig> {
    let error = |what: &str| Error::input("CONFIG", what).field("variant").got(&config.model);
    match variant(&config.model) {
        Some(found) => found.model_config(),
        None if args.variant.is_some() => {
            let names: Vec<&str> = variants().iter().map(|variant| variant.name).collect();
            error("no such variant")
                .expected(names.join(", "))
                .fix("choose one of them, or pass --model")
                .into()
        }
        None => Ok(open_model(&config.model, console)?.config),
    }
}
