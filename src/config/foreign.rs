//! Options of other tools that are no options here: what changes nothing is accepted with a note, the rest is refused by name.
//!
//! Names are those of the Hugging Face trainer, TRL, PEFT, LLaMA-Factory, axolotl, Unsloth and torchtune. What is the same thing
//! under another name is in [`super::aliases`]; here is what has no counterpart, with the reason and with what to write instead.

use toml::Value;

use crate::error::{Error, InputError};

/// Options of other tools that share an answer.
struct Foreign {
    names: &'static [&'static str],
    fine: Fine,
    /// Why a value that is fine changes nothing.
    why: &'static str,
    /// What to do about another one.
    instead: &'static str,
}

/// Which values change nothing.
enum Fine {
    Any,
    /// Those that switch it off.
    Off,
    /// These words; texts are compared in lower case.
    Words(&'static [&'static str]),
    /// These words; any other one is no mistake, but may say something else than what is done here.
    Else(&'static [&'static str]),
}

/// Values that say that something is not wanted.
const OFF: [&str; 8] = ["false", "none", "null", "no", "0", "off", "", "[]"];

const ONE_DEVICE: &str = "one process trains on one device";
const NO_PADDING: &str = "batches are packed without padding, and no row sees another one";
const OWN_KERNELS: &str = "attention and the other operations are always those of tanren";
const LOADING: &str = "rows are read, tokenised and packed by all CPU threads";
const LOG: &str =
    "every run writes training_log.jsonl and loss.svg into the output folder, and nothing elsewhere";

/// The table. A name stands in one entry.
const TABLE: &[Foreign] = &[
    Foreign {
        names: &["train_on_eos"],
        fine: Fine::Words(&["turn"]),
        why: "the end of every answer that is learned is learned",
        instead: "leave it out: the end of an answer is learned with it, and no other one",
    },
    // Kernels, memory, processes.
    Foreign {
        names: &[
            "flash_attn",
            "attn_implementation",
            "flash_attention",
            "sdp_attention",
            "xformers_attention",
            "use_liger_kernel",
            "enable_liger_kernel",
            "use_unsloth",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "compile",
            "use_cache",
            "enable_activation_offloading",
            "activation_offloading",
            "unsloth_tiled_mlp",
        ],
        fine: Fine::Any,
        why: OWN_KERNELS,
        instead: "",
    },
    Foreign {
        names: &["bf16", "tf32", "bf16_full_eval", "upcast_layernorm", "upcast_lmhead_output", "pure_bf16"],
        fine: Fine::Any,
        why: "numbers are f32 on the CPU and bf16 on a GPU; the adapter is always trained in f32",
        instead: "",
    },
    Foreign {
        names: &["fp16", "fp16_full_eval", "half_precision_backend", "fp16_opt_level"],
        fine: Fine::Words(&["false", "none", "null", "no", "0", "off", "", "auto", "cpu_amp"]),
        why: "numbers are f32 on the CPU and bf16 on a GPU",
        instead: "leave it out: there is no fp16 here, a GPU computes in bf16 and the CPU in f32",
    },
    Foreign {
        names: &["gradient_checkpointing_kwargs", "use_reentrant_gc", "disable_gradient_checkpointing"],
        fine: Fine::Any,
        why: "activation_policy says what blocks keep, and results are the same whatever it is",
        instead: "",
    },
    Foreign {
        names: &[
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_timeout",
            "ddp_backend",
            "local_rank",
            "average_tokens_across_devices",
            "log_on_each_node",
            "save_on_each_node",
            "split_batches",
            "skip_memory_metrics",
        ],
        fine: Fine::Any,
        why: ONE_DEVICE,
        instead: "",
    },
    Foreign {
        names: &["deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "tp_size"],
        fine: Fine::Off,
        why: ONE_DEVICE,
        instead: "leave it out: one process trains on one device; --memory-limit makes blocks keep less",
    },
    Foreign {
        names: &["auto_find_batch_size"],
        fine: Fine::Off,
        why: "the plan of a run says before it starts whether it fits",
        instead: "leave it out: blocks keep less where memory is short, and tanren inspect plan says what fits",
    },
    // Rows.
    Foreign {
        names: &[
            "packing",
            "neat_packing",
            "packing_strategy",
            "eval_packing",
            "padding_free",
            "sample_packing",
            "eval_sample_packing",
            "multipack_real_batches",
            "pad_to_sequence_len",
            "pad_to_multiple_of",
            "group_by_length",
            "length_column_name",
            "padding_side",
            "pad_token",
            "train_sampling_strategy",
        ],
        fine: Fine::Any,
        why: NO_PADDING,
        instead: "",
    },
    Foreign {
        names: &[
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_prefetch_factor",
            "dataloader_persistent_workers",
            "dataset_num_proc",
            "dataset_processes",
            "preprocessing_num_workers",
            "preprocessing_batch_size",
            "overwrite_cache",
            "dataset_prepared_path",
            "tokenized_path",
            "skip_prepare_dataset",
            "buffer_size",
        ],
        fine: Fine::Any,
        why: LOADING,
        instead: "",
    },
    Foreign {
        names: &["remove_unused_columns", "label_names"],
        fine: Fine::Any,
        why: "columns without a meaning are left out and listed once",
        instead: "",
    },
    Foreign {
        names: &["dataloader_drop_last", "streaming", "eval_on_each_dataset"],
        fine: Fine::Off,
        why: "every row is trained on in every epoch",
        instead: "leave it out: every row is trained on, and a short last batch counts by its tokens",
    },
    Foreign {
        names: &["dataset", "datasets", "dataset_name", "dataset_dir", "dataset_config", "dataset_path"],
        fine: Fine::Off,
        why: "rows come from train_file",
        instead: "name the file of the rows: train_file = \"rows.jsonl\" (docs/rows.md has the forms that are read)",
    },
    Foreign {
        names: &["eval_dataset", "test_datasets"],
        fine: Fine::Off,
        why: "evaluation rows come from eval_file or eval_fraction",
        instead: "name the file of the rows: eval_file = \"rows.jsonl\", or give eval_fraction",
    },
    Foreign {
        names: &["max_samples", "max_train_samples", "max_eval_samples"],
        fine: Fine::Off,
        why: "all rows are read",
        instead: "cut the file, for example head -n 1000 rows.jsonl > few.jsonl, or give max_steps",
    },
    Foreign {
        names: &["train_on_inputs", "train_on_prompt", "train_on_input"],
        fine: Fine::Off,
        why: "loss is on the answers and nothing else",
        instead: "loss is on the answers; write rows as {\"text\": ...} to learn all of their text",
    },
    Foreign {
        names: &["completion_only_loss", "assistant_only_loss"],
        fine: Fine::Words(&["true", "none", "null", ""]),
        why: "loss is on the answers and nothing else",
        instead: "leave it out: loss is on the answers; write rows as {\"text\": ...} to learn all of their text",
    },
    Foreign {
        names: &["dataset_text_field"],
        fine: Fine::Words(&["text"]),
        why: "rows of text have the key \"text\"",
        instead: "rename the key of the rows to \"text\"",
    },
    Foreign {
        names: &["template", "chat_template"],
        fine: Fine::Else(&["tokenizer_default", "none", "null", ""]),
        why: "conversations are written by the chat template of the model folder",
        instead: "conversations are written by the chat template of the model folder, which may be another one; tanren inspect data shows \
                  the text, and chat_template.jinja in the model folder replaces the template",
    },
    Foreign {
        names: &["chat_template_path", "chat_template_jinja"],
        fine: Fine::Off,
        why: "the chat template is the model folder's",
        instead: "put the template into the model folder as chat_template.jinja",
    },
    Foreign {
        names: &["data_seed"],
        fine: Fine::Off,
        why: "seed decides the order of rows as well",
        instead: "give seed: it decides the order of rows, initial weights and dropout",
    },
    Foreign {
        names: &["ignore_data_skip"],
        fine: Fine::Off,
        why: "a resumed run goes on with the rows that come next",
        instead: "leave it out: a resumed run always goes on with the rows that come next",
    },
    // What is trained.
    Foreign {
        names: &["stage", "rl"],
        fine: Fine::Words(&["sft", "none", "null", "false", ""]),
        why: "rows with answers are learned: that is supervised fine-tuning",
        instead: "only supervised fine-tuning is here: write stage = \"sft\" or leave it out",
    },
    Foreign {
        names: &["finetuning_type", "peft_type"],
        fine: Fine::Words(&["lora"]),
        why: "an adapter is trained, the model stays as it is",
        instead: "only LoRA is here: write \"lora\" or leave it out",
    },
    Foreign {
        names: &["use_peft"],
        fine: Fine::Words(&["true"]),
        why: "an adapter is trained, the model stays as it is",
        instead: "leave it out: only adapters are trained here, and without one this would be another training",
    },
    Foreign {
        names: &["lora_inference_mode", "inference_mode"],
        fine: Fine::Off,
        why: "the adapter is trained",
        instead: "leave it out: an adapter in this mode would not be trained",
    },
    Foreign {
        names: &["lora_bias", "bias"],
        fine: Fine::Words(&["none", "false", "null", ""]),
        why: "biases stay as they are",
        instead: "leave it out: biases are not trained",
    },
    Foreign {
        names: &["init_lora_weights"],
        fine: Fine::Words(&["true"]),
        why: "A is drawn as PEFT draws it and B is zero",
        instead: "leave it out: A is drawn as PEFT draws it and B is zero",
    },
    Foreign {
        names: &[
            "additional_target",
            "modules_to_save",
            "lora_modules_to_save",
            "loraplus_lr_ratio",
            "loraplus_lr_embedding",
            "pissa_init",
            "pissa_convert",
            "loftq_config",
            "lora_fan_in_fan_out",
            "load_in_8bit",
            "neftune_noise_alpha",
            "use_galore",
            "use_badam",
            "use_dft_loss",
            "nefttune_noise_alpha",
            "lisa_n_layers",
            "relora",
            "relora_steps",
            "use_llama_pro",
            "quantize_base",
            "trainable_token_indices",
            "peft_layer_replication",
        ],
        fine: Fine::Off,
        why: "it is switched off",
        instead: "leave it out: this is not in tanren, and a run without it would be another one",
    },
    Foreign {
        names: &["apply_lora_to_mlp", "apply_lora_to_output"],
        fine: Fine::Off,
        why: "target_modules names all layers with an adapter",
        instead: "name the layers: target_modules = \"q_proj,v_proj,gate_proj,up_proj,down_proj\", or \"all-linear\"",
    },
    Foreign {
        names: &["rope_scaling", "resize_vocab", "special_tokens", "added_tokens", "shift_attn"],
        fine: Fine::Off,
        why: "the model is taken as its folder says",
        instead: "leave it out: the model is taken as its folder says; change config.json or the tokenizer there",
    },
    Foreign {
        names: &[
            "trust_remote_code",
            "use_fast_tokenizer",
            "tokenizer_use_fast",
            "low_cpu_mem_usage",
            "model_type",
            "tokenizer_type",
            "is_qwen_derived_model",
            "is_llama_derived_model",
            "device_map",
            "strict",
        ],
        fine: Fine::Any,
        why: "model and tokenizer are read by tanren itself, and no code of a model folder is run",
        instead: "",
    },
    Foreign {
        names: &["model_revision", "revision", "model_commit"],
        fine: Fine::Words(&["main", "none", "null", ""]),
        why: "the newest revision in the cache is taken",
        instead: "download that revision into a folder and give the folder as model",
    },
    Foreign {
        names: &["cache_dir", "hf_hub_token", "token", "hub_token", "use_auth_token"],
        fine: Fine::Off,
        why: "HF_HOME and HF_TOKEN are read from the environment",
        instead: "set HF_HOME or HF_TOKEN in the environment",
    },
    // Optimizer.
    Foreign {
        names: &["optim", "optimizer", "optimizer_type"],
        fine: Fine::Words(&[
            "adamw",
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_hf",
            "adamw_apex_fused",
            "adamw_torch_xla",
        ]),
        why: "the optimizer is AdamW in f32",
        instead: "the optimizer is AdamW in f32: write \"adamw_torch\" or leave it out",
    },
    Foreign {
        names: &["optim_args", "optim_target_modules", "lr_scheduler_kwargs", "cosine_min_lr_ratio"],
        fine: Fine::Off,
        why: "it is empty",
        instead: "leave it out: adam_beta1, adam_beta2, adam_epsilon and lr_scheduler are all there is",
    },
    Foreign {
        names: &["full_determinism", "use_deterministic_algorithms"],
        fine: Fine::Any,
        why: "the same input always gives the same bytes",
        instead: "",
    },
    // Steps, logs, files.
    Foreign {
        names: &["do_train"],
        fine: Fine::Words(&["true", ""]),
        why: "tanren train trains",
        instead: "use tanren score to score rows, or --dry-run to check everything and train nothing",
    },
    Foreign {
        names: &["do_eval"],
        fine: Fine::Any,
        why: "what is evaluated on is given by eval_file or eval_fraction",
        instead: "",
    },
    Foreign {
        names: &["do_predict", "predict_with_generate", "compute_accuracy", "eval_on_start", "eval_delay"],
        fine: Fine::Off,
        why: "it is switched off",
        instead: "leave it out; tanren score scores rows with a model and its adapter",
    },
    Foreign {
        names: &["report_to"],
        fine: Fine::Words(&["none", "null", "", "[]", "[none]"]),
        why: LOG,
        instead: "write report_to = \"none\": steps are in training_log.jsonl and the curve in loss.svg",
    },
    Foreign {
        names: &[
            "wandb_project",
            "wandb_entity",
            "wandb_watch",
            "wandb_log_model",
            "use_mlflow",
            "use_comet",
            "use_swanlab",
            "use_tensorboard",
            "trackio_space_id",
        ],
        fine: Fine::Off,
        why: LOG,
        instead: "leave it out: steps are in training_log.jsonl and the curve in loss.svg",
    },
    Foreign {
        names: &[
            "logging_dir",
            "run_name",
            "wandb_name",
            "wandb_run_id",
            "logging_first_step",
            "plot_loss",
            "disable_tqdm",
            "log_level",
            "log_level_replica",
            "logging_nan_inf_filter",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "include_effective_tokens_per_second",
            "project",
            "eval_table_size",
            "debug",
        ],
        fine: Fine::Any,
        why: LOG,
        instead: "",
    },
    Foreign {
        names: &["logging_strategy"],
        fine: Fine::Words(&["steps"]),
        why: "logging_steps says how often",
        instead: "give logging_steps",
    },
    Foreign {
        names: &["save_strategy"],
        fine: Fine::Words(&["steps", "epoch"]),
        why: "checkpoints are saved every save_steps steps, or after every epoch where it is not given",
        instead: "give save_steps, or leave it out to save after every epoch; save_total_limit = 1 keeps one checkpoint",
    },
    Foreign {
        names: &["eval_strategy", "evaluation_strategy"],
        fine: Fine::Words(&["steps", "epoch"]),
        why: "evaluation comes every eval_steps steps, or after every epoch where it is not given",
        instead: "leave it out; without eval_file and eval_fraction nothing is evaluated",
    },
    Foreign {
        names: &["evals_per_epoch", "saves_per_epoch"],
        fine: Fine::Words(&["1"]),
        why: "that is what happens without eval_steps and save_steps",
        instead: "give eval_steps or save_steps, the number of steps between two",
    },
    Foreign {
        names: &["save_safetensors"],
        fine: Fine::Words(&["true"]),
        why: "adapters are always safetensors",
        instead: "leave it out: no pickles are written",
    },
    Foreign {
        names: &["save_only_model"],
        fine: Fine::Off,
        why: "checkpoints hold all that a run needs to go on",
        instead: "leave it out: checkpoints hold all that a run needs to go on; the adapter stands alone in the output folder",
    },
    Foreign {
        names: &["push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push"],
        fine: Fine::Off,
        why: "nothing is uploaded",
        instead: "leave it out: nothing is uploaded; the output folder is a PEFT adapter that hf upload takes as it is",
    },
    Foreign {
        names: &[
            "prediction_loss_only",
            "eval_accumulation_steps",
            "batch_eval_metrics",
            "torch_empty_cache_steps",
            "include_for_metrics",
            "use_legacy_prediction_loop",
            "gc_steps",
        ],
        fine: Fine::Any,
        why: "an evaluation computes losses only for what is learned, and keeps no logits",
        instead: "",
    },
];

/// The answer to an option of another tool: a note, or the error. None if it is no such option.
pub(super) fn answer(name: &str, value: &Value) -> Option<Result<String, InputError>> {
    let canonical = name.replace('-', "_");
    let entry = TABLE.iter().find(|entry| entry.names.contains(&canonical.as_str()))?;
    let word = word(value);
    let fine = match entry.fine {
        Fine::Any => true,
        Fine::Off => OFF.contains(&word.as_str()),
        Fine::Words(words) => words.contains(&word.as_str()),
        Fine::Else(words) if words.contains(&word.as_str()) => true,
        Fine::Else(_) => return Some(Ok(format!("{canonical} = {value} is not taken: {}", entry.instead))),
    };
    Some(match fine {
        true => Ok(format!("{canonical} changes nothing: {}", entry.why)),
        false => Err(Error::input("CONFIG", "an option of another tool that is not here")
            .field(name)
            .got(value)
            .fix(entry.instead)),
    })
}

/// Whether `name` is an option of another tool.
pub fn is_foreign(name: &str) -> bool {
    let name = name.replace('-', "_");
    TABLE.iter().any(|entry| entry.names.contains(&name.as_str()))
}

/// A value as a word in lower case; `[a]` for lists.
fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.trim().to_lowercase(),
        Value::Array(values) => format!("[{}]", values.iter().map(word).collect::<Vec<_>>().join(",")),
        // 0 and 0.0 are the same.
        Value::Float(number) => number.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod tests;
