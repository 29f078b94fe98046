//! The options of `tanren inspect plan`: those of `train`, and synthetic rows for planning.

use clap::Args;

use super::TrainArgs;

const PLAN: &str = "Plan";

const EXAMPLES: &str = "\
Examples:
  Plan for a card before downloading anything:
    tanren inspect plan --variant Qwen3-0.6B --gpu rtx3080

  Passes of 8192 tokens, in sequences of 1024 with a tenth of the tokens supervised:
    tanren inspect plan --variant Qwen3-1.7B --gpu rtx3080 --tokens 8192 --sequence-length 1024

  The real rows of a run, on this machine:
    tanren inspect plan --config run.toml";

/// `tanren inspect plan`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// Built-in variant to plan for, without its files (tanren inspect model lists them).
    #[arg(long, value_name = "NAME", conflicts_with = "model", help_heading = PLAN)]
    pub variant: Option<String>,
    /// Tokens per pass of synthetic rows [default: --tokens-per-batch, or --max-tokens-per-pass].
    #[arg(long, value_name = "N", conflicts_with = "train_file", help_heading = PLAN)]
    pub tokens: Option<usize>,
    /// Tokens per sequence of synthetic rows [default: 512].
    #[arg(long, value_name = "N", conflicts_with = "train_file", help_heading = PLAN)]
    pub sequence_length: Option<usize>,
    /// Share of supervised tokens in synthetic rows [default: 0.1].
    #[arg(long, value_name = "X", conflicts_with = "train_file", help_heading = PLAN)]
    pub supervised_share: Option<f64>,
    /// Print the plan as one JSON object.
    #[arg(long, help_heading = PLAN)]
    pub json: bool,
    /// The options of a training.
    #[command(flatten)]
    pub train: TrainArgs,
}
