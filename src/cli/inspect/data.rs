//! `tanren inspect data`: what training would make of rows, and which of their tokens are learned.

use crate::cli::console::{Console, Progress};
use crate::cli::inspect::open_model;
use crate::cli::options::DataArgs;
use crate::cli::units::{count, harmless};
use crate::cli::{template, train};
use crate::config::{TrainConfig, check_max_seq_length};
use crate::data::audit::masked_preview;
use crate::data::encode::{EncodeOptions, Example};
use crate::data::files::read_files;
use crate::data::record::Record;
use crate::data::routing::select;
use crate::data::texts::{Texts, any_chat};
use crate::device::Device;
use crate::error::Result;

/// Rows that are shown unless told otherwise.
const ROWS: usize = 2;

/// Encodes all rows as `tanren train` would, and shows the findings and the first rows.
///
/// # Errors
/// As training: what is wrong with a row, the model or the options.
pub(super) fn show(args: &DataArgs, console: &Console) -> Result<()> {
    // What is not given is what training takes, and what is wrong there is wrong here.
    let usual = TrainConfig::default();
    let longest = args.max_seq_length.unwrap_or(usual.max_seq_length);
    check_max_seq_length(longest)?;
    let (records, routing) =
        select(read_files(&args.data_file, &|| Ok(()))?, args.train_mode.unwrap_or(usual.train_mode))?;
    let model = open_model(&args.model, console)?;
    let format = args.format.unwrap_or(usual.format);
    let texts = Texts::open(model.folder.dir(), format, any_chat(&records), Some(&template::helper()?))?;
    let of_tokenizer = texts.tokenizer.iter().flat_map(|tokenizer| tokenizer.notes());
    of_tokenizer.for_each(|note| console.note(format_args!("note: {note}")));
    let options = EncodeOptions {
        truncation: args.truncation.unwrap_or(usual.truncation),
        escape_special: args.escape_special.unwrap_or(usual.escape_special),
        skip_empty: args.skip_empty.unwrap_or(usual.skip_empty),
        mask_history: args.mask_history.unwrap_or(usual.mask_history),
        vocab_size: Some(model.config.vocab_size),
        max_position_embeddings: Some(model.config.max_sequence_length()),
        ..EncodeOptions::new(texts.format, longest.min(model.config.max_sequence_length()))
    };
    let encoder = texts.encoder(options, &records)?;
    let done = std::sync::atomic::AtomicU64::new(0);
    let (examples, audit) = Device::cpu(0)?.run(|| {
        encoder.encode_all(&records, &|rows| {
            let rows = rows as u64;
            let done = done.fetch_add(rows, std::sync::atomic::Ordering::Relaxed) + rows;
            let total = records.len() as u64;
            console.progress(Progress { what: "tokenising", done, total, detail: "" });
            Ok(())
        })
    })?;
    console.clear();
    console.lines(audit.lines().into_iter().chain(train::routed(routing)));
    if let Some((token, id)) = encoder.end_token() {
        console.line(format_args!("an answer ends with {} ({id})", token));
    }
    for example in examples.iter().take(args.rows.unwrap_or(ROWS)) {
        row(example, &records, &texts, console)?;
    }
    Ok(())
}

/// A row in full: supervised text is underlined, or between marks where nothing can be underlined.
fn row(example: &Example, records: &[Record], texts: &Texts, console: &Console) -> Result<()> {
    let place = records.get(example.record).map(|r| format!("{}:{}", r.file.display(), r.line));
    console.heading(format_args!(
        "{}: {} tokens, {} supervised{}",
        place.unwrap_or_default(),
        count(example.len() as u64),
        count(example.supervised() as u64),
        if example.truncated { ", cut at the beginning" } else { "" }
    ));
    let Some(tokenizer) = &texts.tokenizer else {
        console.line(format_args!("ids {:?}", example.input_ids));
        console.line(format_args!("labels {:?}", example.labels));
        return Ok(());
    };
    let (before, after) = if console.out_is_terminal() { ("\x1b[1;4m", "\x1b[0m") } else { ("«", "»") };
    let mut text = String::new();
    for (piece, supervised) in masked_preview(example, tokenizer)? {
        let piece = harmless(&piece, true);
        match supervised {
            true => text.extend([before, &piece, after]),
            false => text += &piece,
        }
    }
    console.styled(text);
    Ok(())
}
