//! Settings: embedded variants, presets, files and flags become one immutable value. The only place with defaults.
//!
//! [`TrainConfig::resolve`] and [`ScoreConfig::resolve`] are the two doors; [`TrainConfig::from_pairs`] and
//! [`ScoreConfig::from_pairs`] lead through them without a file. [`ModelConfig`] is the shape of a model, read from
//! its `config.json` or taken from a [`Variant`] that is built in. Nothing here knows the command line parser, a device or an
//! op; whoever needs a setting gets the value.

mod base_dropout;
mod check;
mod families;
mod foreign;
mod init_adapter;
mod label_options;
mod lora_options;
mod options;
mod presets;
mod setting_layers;
mod supported;
mod targets;

pub mod aliases;
pub mod block;
pub mod head;
pub mod keys;
pub mod lora;
pub mod model;
pub mod registry;
pub mod score;
pub mod sites;
pub mod size;
pub mod train;
pub mod values;
pub mod variant;

pub use base_dropout::{BaseDropout, DropoutPlace};
pub use check::check_max_seq_length;
pub use families::{Family, ModulePaths};
pub use foreign::is_foreign;
pub use label_options::{ClassWeights, Numbers};
pub use lora::{LoraConfig, TargetModules};
pub use lora_options::{BlockNumbers, ByName};
pub use model::ModelConfig;
pub use options::{Options, Value};
pub use registry::{Variant, matching_variant, variant, variants};
pub use score::ScoreConfig;
pub use sites::{PerSite, Site, Sites, Slot};
pub use size::MemorySize;
pub use supported::{has_no_choice, supported, unsupported};
pub use targets::SiteLora;
pub use train::TrainConfig;
pub use values::{
    ActivationPolicy, BaseDropoutMode, Batching, DeviceChoice, Dtype, Format, Loss, LrScheduler, Quant,
    Resume, ScoreMode, TargetShift, Task, TrainMode, Truncation,
};
