//! Which preset a run gets: that of the variant its model is, found by name, by Hugging Face id, or by the model folder.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::aliases::nearest;
use super::model::ModelConfig;
use super::registry::{Variant, matching_variant, variant, variants};
use super::setting_layers::Layers;
use crate::error::Result;

/// The variant whose preset applies to the given options, if any.
///
/// # Errors
/// An input error if `preset` names no variant.
pub(super) fn of_model(given: &Layers) -> Result<Option<&'static Variant>> {
    match given.text("preset").unwrap_or("auto") {
        "none" => Ok(None),
        "auto" => Ok(given.text("model").and_then(|model| variant(model).or_else(|| of_folder(model)))),
        name => match variant(name) {
            Some(found) => Ok(Some(found)),
            None => {
                let names = || variants().iter().map(|variant| variant.name);
                let fix = match nearest(name, names()) {
                    Some(known) => format!("did you mean {known}?"),
                    None => "use auto, none or one of these names".to_owned(),
                };
                given
                    .error("preset", "no such variant")
                    .got(name)
                    .expected(names().collect::<Vec<_>>().join(", "))
                    .fix(fix)
                    .into()
            }
        },
    }
}

/// Largest configuration that is looked at.
const MAX_CONFIG: u64 = 16 << 20;

/// The variant of a model folder. A folder that cannot be read has none; loading the model reports why.
fn of_folder(model: &str) -> Option<&'static Variant> {
    let path = Path::new(model).join("config.json");
    // A pipe would be waited for.
    let file = path.is_file().then(|| File::open(&path).ok())??;
    let mut text = String::new();
    file.take(MAX_CONFIG).read_to_string(&mut text).ok()?;
    matching_variant(&ModelConfig::from_json(&path, &text).ok()?)
}
