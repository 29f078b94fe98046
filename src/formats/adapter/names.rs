//! Names of tensors in adapters: those of PEFT, and variants written by other tools.
//!
//! A tensor has another name if it was saved from a wrapper by `torch.compile` (`_orig_mod.`), from a second
//! PEFT model (`base_model.model.` twice), from the base model itself (no prefix), or with the name of the
//! adapter, which PEFT leaves out of files (`lora_A.default.weight`). None of these variants is ambiguous.

/// Start of every name.
const PREFIX: &str = "base_model.model.";

/// Prefix that `torch.compile` adds to names.
const COMPILED: &str = "_orig_mod.";

/// The name as PEFT writes it.
pub(super) fn canonical(name: &str) -> String {
    let mut rest = name;
    while let Some(inner) = rest.strip_prefix(PREFIX).or_else(|| rest.strip_prefix(COMPILED)) {
        rest = inner;
    }
    format!("{PREFIX}{}", without_adapter(&rest.replace(&format!(".{COMPILED}"), ".")))
}

/// The name without that of an adapter.
fn without_adapter(name: &str) -> String {
    for part in [".lora_A.", ".lora_B."] {
        if let Some((module, rest)) = name.rsplit_once(part)
            && let Some((adapter, kind @ ("weight" | "bias"))) = rest.rsplit_once('.')
            && !adapter.contains('.')
        {
            return format!("{module}{part}{kind}");
        }
    }
    let magnitude = ".lora_magnitude_vector";
    match name.rsplit_once(magnitude) {
        Some((module, rest)) => {
            let rest = rest.strip_suffix(".weight").unwrap_or(rest);
            let is_adapter = rest.is_empty() || rest.rfind('.') == Some(0);
            if is_adapter { format!("{module}{magnitude}") } else { name.to_owned() }
        }
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_the_name_of_peft() {
        let module = "model.layers.0.self_attn.q_proj";
        let a = format!("base_model.model.{module}.lora_A.weight");
        for name in [
            a.clone(),
            format!("{module}.lora_A.weight"),
            format!("base_model.model.base_model.model.{module}.lora_A.weight"),
            format!("base_model.model.{module}.lora_A.default.weight"),
            format!("_orig_mod.base_model.model.{module}.lora_A.weight"),
            format!("base_model.model._orig_mod.{module}.lora_A.weight"),
            "base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_A.weight".to_owned(),
        ] {
            assert_eq!(canonical(&name), a, "{name}");
        }
        let magnitude = format!("base_model.model.{module}.lora_magnitude_vector");
        for end in ["", ".weight", ".default", ".default.weight"] {
            assert_eq!(canonical(&format!("{magnitude}{end}")), magnitude, "{end}");
        }
        for name in ["base_model.model.model.embed_tokens.weight", "base_model.model.a.lora_A.b.c.weight"] {
            assert_eq!(canonical(name), name);
        }
    }
}
