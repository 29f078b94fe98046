//! A model as Hugging Face lays it out: `config.json` and the weights in one safetensors file, in shards with an index, or, in older
//! models, as `torch.save` wrote them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::folder::Folder;
use super::safetensors::{TensorFile, TensorView};
use super::shard_index::{MAX_INDEX, ShardIndex};
use super::weight_files::WeightFiles;
use crate::error::{Error, Result};

const CODE: &str = "MODEL";
const CONFIG_NAME: &str = "config.json";
const GENERATION_CONFIG_NAME: &str = "generation_config.json";

/// Largest configuration file; real ones have a few kB.
const MAX_CONFIG: u64 = 16 << 20;

/// An open model folder: configuration texts read, every weight file open and its header checked.
#[derive(Debug)]
pub struct ModelFolder {
    dir: PathBuf,
    config: (PathBuf, String),
    generation_config: Option<(PathBuf, String)>,
    /// What is wrong with a file that a run can do without.
    notes: Vec<String>,
    files: Vec<TensorFile>,
    /// Index into `files` of every tensor.
    tensors: BTreeMap<String, usize>,
}

impl ModelFolder {
    /// Opens the model in `dir`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Input`] if a file is missing, malformed, or a link that leads out of the folder; if the
    /// index names a tensor that its shard does not have; or if a tensor is in two shards. A `generation_config.json` that cannot
    /// be read is none of these ([`ModelFolder::notes`]).
    pub fn open(dir: &Path) -> Result<Self> {
        let folder = Folder::open(CODE, dir)?;
        let Some(config) = folder.text(CONFIG_NAME, MAX_CONFIG)? else { return no_config(&folder) };
        let mut notes = Vec::new();
        let generation_config = match folder.text(GENERATION_CONFIG_NAME, MAX_CONFIG) {
            Err(error) if !folder.leads_out(GENERATION_CONFIG_NAME) => {
                notes.push(format!("{GENERATION_CONFIG_NAME} is not used: {error}"));
                None
            }
            text => text?,
        };
        files_of(&folder)?;
        let (files, tensors) = open_weights(&folder)?;
        Ok(Self {
            dir: dir.to_owned(),
            config: (folder.path(CONFIG_NAME), config),
            generation_config: generation_config.map(|text| (folder.path(GENERATION_CONFIG_NAME), text)),
            notes,
            files,
            tensors,
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path and text of `config.json`.
    pub fn config_json(&self) -> (&Path, &str) {
        (&self.config.0, &self.config.1)
    }

    /// Path and text of `generation_config.json`, if there is one.
    pub fn generation_config_json(&self) -> Option<(&Path, &str)> {
        self.generation_config.as_ref().map(|(path, text)| (path.as_path(), text.as_str()))
    }

    /// What is wrong with files that a run can do without, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<TensorView> {
        self.files[*self.tensors.get(name)?].get(name)
    }

    /// Fails if a weight file is not what it was when the folder was opened.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(TensorFile::check_unchanged)
    }

    /// Names of all tensors, sorted.
    pub fn tensor_names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(TensorFile::data_bytes).sum()
    }
}

/// The folder of named templates.
const TEMPLATES: &str = "additional_chat_templates";

/// The files that a tokenizer and its chat templates are read from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// The tokenizer itself.
    pub tokenizer_json: Option<PathBuf>,
    /// Its special tokens, and in older models the chat template.
    pub tokenizer_config_json: Option<PathBuf>,
    /// The special tokens again; counts where `tokenizer_config.json` lists no added tokens.
    pub special_tokens_map_json: Option<PathBuf>,
    /// Added tokens with their ids; counts where `tokenizer_config.json` lists none.
    pub added_tokens_json: Option<PathBuf>,
    /// The model's configuration; its type says the tokenizer's class where nothing else does.
    pub config_json: Option<PathBuf>,
    /// The chat template; wins over the one in `tokenizer_config.json`.
    pub chat_template_jinja: Option<PathBuf>,
    /// The chat template as processors have it; counts where there is no other.
    pub chat_template_json: Option<PathBuf>,
    /// Templates in `additional_chat_templates/`, by name.
    pub additional_chat_templates: Vec<(String, PathBuf)>,
}

/// Most templates in `additional_chat_templates/`. Published models have up to 2.
const MAX_TEMPLATES: usize = 32;

/// The tokenizer files that `dir` has.
///
/// # Errors
/// [`Error::Io`], or [`Error::Input`] if one is a link that leads out of the folder, or no regular file.
pub fn tokenizer_files(dir: &Path) -> Result<TokenizerFiles> {
    files_of(&Folder::open(CODE, dir)?)
}

fn files_of(folder: &Folder) -> Result<TokenizerFiles> {
    let file = |name: &str| Ok::<_, Error>(folder.file(name)?.map(|_| folder.path(name)));
    Ok(TokenizerFiles {
        tokenizer_json: file("tokenizer.json")?,
        tokenizer_config_json: file("tokenizer_config.json")?,
        special_tokens_map_json: file("special_tokens_map.json")?,
        added_tokens_json: file("added_tokens.json")?,
        config_json: file(CONFIG_NAME)?,
        chat_template_jinja: file("chat_template.jinja")?,
        chat_template_json: file("chat_template.json")?,
        additional_chat_templates: match folder.folder(TEMPLATES)? {
            Some(folder) => additional_templates(&folder)?,
            None => Vec::new(),
        },
    })
}

/// Whether `dir` holds a model: its configuration and weights. Results do not belong there.
pub fn is_model_folder(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
    has(CONFIG_NAME) && WeightFiles::find(has).is_some()
}

/// The templates of a folder, by name.
fn additional_templates(folder: &Folder) -> Result<Vec<(String, PathBuf)>> {
    let mut templates = Vec::new();
    for file in folder.names()?.iter().filter(|file| file.ends_with(".jinja")).take(MAX_TEMPLATES) {
        if folder.file(file)?.is_some() {
            templates.push((file.trim_end_matches(".jinja").to_owned(), folder.path(file)));
        }
    }
    Ok(templates)
}

/// The weight files, and which of them holds which tensor.
fn open_weights(folder: &Folder) -> Result<(Vec<TensorFile>, BTreeMap<String, usize>)> {
    let has = |name: &str| folder.path(name).symlink_metadata().is_ok();
    let Some(found) = WeightFiles::find(has) else { return no_weights(folder) };
    let path = folder.path(found.name());
    if !found.sharded {
        let Some(file) = folder.file(found.name())? else { return no_weights(folder) };
        let file = found.format.open(file, &path)?;
        let tensors = file.names().map(|name| (name.to_owned(), 0)).collect();
        return Ok((vec![file], tensors));
    }
    let Some(text) = folder.text(found.name(), MAX_INDEX)? else { return no_weights(folder) };
    let index = ShardIndex::parse(&path, found.format, &text)?;
    let mut files = Vec::new();
    let mut tensors: BTreeMap<String, usize> = BTreeMap::new();
    let shards: Vec<&str> = index.shards().into_iter().collect();
    for &shard in &shards {
        let path = folder.path(shard);
        let Some(file) = folder.file(shard)? else {
            return Error::input(CODE, "a shard of the model is missing")
                .path(path)
                .fix("copy or download the model again, with all its files")
                .into();
        };
        let file = found.format.open(file, &path)?;
        for name in file.names() {
            if let Some(first) = tensors.insert(name.to_owned(), files.len()) {
                return Error::input(CODE, "the tensor is in two shards")
                    .path(path)
                    .field(name)
                    .got(format!("{shard} and {}", shards[first]))
                    .fix("remove files of other exports from the folder, or download the model again")
                    .into();
            }
        }
        files.push(file);
    }
    for (name, shard) in &index.weight_map {
        if tensors.get(name).map(|&file| shards[file]) != Some(shard) {
            return Error::input(CODE, "the index names a tensor that its shard does not have")
                .path(path)
                .field(name)
                .got(shard)
                .fix("index and shards are of different exports; download the model again")
                .into();
        }
    }
    Ok((files, tensors))
}

/// The error of a folder without `config.json`.
fn no_config<T>(folder: &Folder) -> Result<T> {
    let error = Error::input(CODE, "no config.json").path(folder.dir());
    if folder.file("adapter_config.json")?.is_some() {
        return error.fix("this is an adapter; pass it as the adapter, and its base model as --model").into();
    }
    error.fix("name a folder with config.json and model.safetensors").into()
}

/// The error of a folder without safetensors weights.
fn no_weights<T>(folder: &Folder) -> Result<T> {
    let error = Error::input(CODE, "no model.safetensors and no index of shards").path(folder.dir());
    match pickled(&folder.names()?) {
        Some(name) => error.got(&name).fix(pickle_fix(&name)).into(),
        None => error.fix("name a folder with config.json and model.safetensors").into(),
    }
}

/// The first name that is a pickle by its ending.
pub(super) fn pickled(names: &[String]) -> Option<String> {
    let endings = [".bin", ".pt", ".pth", ".ckpt"];
    names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending))).cloned()
}

/// What to do about a pickle of another name than that of weights.
pub(super) fn pickle_fix(name: &str) -> String {
    format!(
        "{name} is a pickle of another kind than is read here; convert it with save_pretrained(safe_serialization=True)"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::safetensors::{NamedTensor, TensorData, serialize};
    use super::*;

    fn weights(names: &[&str]) -> Vec<u8> {
        let data = [1.0f32, 2.0];
        let tensor = |name: &&str| NamedTensor {
            name: (*name).to_owned(),
            shape: vec![2],
            data: TensorData::F32(&data),
        };
        serialize(&names.iter().map(tensor).collect::<Vec<_>>(), &[]).unwrap()
    }

    /// A folder with `config.json` and these files.
    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    fn refusal(dir: &Path) -> String {
        let error = ModelFolder::open(dir).unwrap_err().to_string();
        assert!(error.contains("fix:"), "{error}");
        error
    }

    #[test]
    fn one_file_is_read() {
        let dir = folder(&[("model.safetensors", &weights(&["b", "a"])), ("generation_config.json", b"[]")]);
        let model = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(model.tensor_names(), ["a", "b"]);
        assert_eq!(model.total_bytes(), 16);
        assert_eq!(model.tensor("a").unwrap().to_f32().unwrap(), [1.0, 2.0]);
        assert!(model.tensor("c").is_none());
        assert_eq!(model.config_json().1, "{}");
        assert_eq!(model.generation_config_json().unwrap().1, "[]");
        assert!(is_model_folder(dir.path()) && model.notes().is_empty());
        let config_json = Some(dir.path().join("config.json"));
        let files = tokenizer_files(dir.path()).unwrap();
        assert_eq!(files, TokenizerFiles { config_json, ..TokenizerFiles::default() });
    }

    const INDEX_NAME: &str = "model.safetensors.index.json";
    const INDEX: &[u8] = br#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;

    #[test]
    fn shards_are_read() {
        let files: [(&str, &[u8]); 3] = [
            ("1.safetensors", &weights(&["a"])),
            ("2.safetensors", &weights(&["b", "not in the index"])),
            (INDEX_NAME, INDEX),
        ];
        let model = ModelFolder::open(folder(&files).path()).unwrap();
        assert_eq!(model.tensor_names(), ["a", "b", "not in the index"]);
        assert!(model.tensor("b").unwrap().path().ends_with("2.safetensors"));
    }

    #[test]
    fn weights_of_torch_save_are_read_where_there_is_nothing_else() {
        let bin = include_bytes!("../../tests/golden/torch_bin/zip.bin");
        let dir = folder(&[("pytorch_model.bin", bin)]);
        let model = ModelFolder::open(dir.path()).unwrap();
        assert_eq!(model.tensor("1.bias").unwrap().to_f32().unwrap(), [-1.0, 0.0]);
        assert!(is_model_folder(dir.path()));
        std::fs::write(dir.path().join("model.safetensors"), weights(&["a"])).unwrap();
        assert_eq!(ModelFolder::open(dir.path()).unwrap().tensor_names(), ["a"]);
        let map: serde_json::Map<String, serde_json::Value> =
            model.tensor_names().iter().map(|&name| (name.to_owned(), "1.bin".into())).collect();
        let index = serde_json::json!({ "weight_map": map }).to_string();
        let files: [(&str, &[u8]); 2] = [("pytorch_model.bin.index.json", index.as_bytes()), ("1.bin", bin)];
        let sharded = ModelFolder::open(folder(&files).path()).unwrap();
        assert_eq!(sharded.tensor_names(), model.tensor_names());
        let refused = refusal(folder(&[files[0]]).path());
        assert!(refused.contains("shard of the model is missing"), "{refused}");
    }

    #[test]
    fn shards_that_do_not_fit_their_index_are_refused() {
        let dir = folder(&[("1.safetensors", &weights(&["a"])), (INDEX_NAME, INDEX)]);
        assert!(refusal(dir.path()).contains("shard of the model is missing"));
        std::fs::write(dir.path().join("2.safetensors"), weights(&["a", "b"])).unwrap();
        assert!(refusal(dir.path()).contains("in two shards"));
        std::fs::write(dir.path().join("2.safetensors"), weights(&["c"])).unwrap();
        assert!(refusal(dir.path()).contains("does not have"));
    }

    #[test]
    fn a_folder_with_pickles_only_says_how_to_convert() {
        for name in ["model.pt", "a.pth", "b.ckpt", "tf.bin"] {
            let error = refusal(folder(&[(name, b"x")]).path());
            assert!(error.contains(name) && error.contains("safe_serialization"), "{error}");
        }
        assert!(refusal(folder(&[]).path()).contains("no model.safetensors"));
    }

    #[test]
    fn an_adapter_folder_says_that_it_is_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(dir.path()).contains("config.json"));
        std::fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
        assert!(refusal(dir.path()).contains("adapter"));
        assert!(ModelFolder::open(&dir.path().join("missing")).unwrap_err().exit_code() == 3);
        assert!(refusal(&dir.path().join("adapter_config.json")).contains("not a folder"));
    }

    #[test]
    fn links_may_not_leave_the_folder() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("model.safetensors");
        std::fs::write(&target, weights(&["a"])).unwrap();
        let dir = folder(&[]);
        symlink(&target, dir.path().join("model.safetensors")).unwrap();
        assert!(refusal(dir.path()).contains("leads out of the folder"));
        // A name that merely starts like the folder's is outside too.
        let sibling = PathBuf::from(format!("{}-other", dir.path().canonicalize().unwrap().display()));
        std::fs::create_dir(&sibling).unwrap();
        std::fs::rename(&target, sibling.join("w")).unwrap();
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        symlink(sibling.join("w"), dir.path().join("model.safetensors")).unwrap();
        assert!(refusal(dir.path()).contains("leads out of the folder"));
        // Inside is fine, and so is a link to the folder itself.
        std::fs::rename(sibling.join("w"), dir.path().join("w")).unwrap();
        std::fs::remove_dir(&sibling).unwrap();
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        symlink("w", dir.path().join("model.safetensors")).unwrap();
        symlink(dir.path(), outside.path().join("link")).unwrap();
        assert!(ModelFolder::open(&outside.path().join("link")).is_ok());
    }

    #[test]
    fn every_file_of_the_folder_is_held_to_its_links() {
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("file");
        std::fs::write(&target, "{}").unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            let dir = folder(&[("model.safetensors", &weights(&["a"]))]);
            symlink(&target, dir.path().join(name)).unwrap();
            let error = tokenizer_files(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("leads out of the folder"), "{error}");
        }
        for name in ["config.json", "generation_config.json", "model.safetensors"] {
            let dir = folder(&[("model.safetensors", &weights(&["a"]))]);
            let _ = std::fs::remove_file(dir.path().join(name));
            symlink(&target, dir.path().join(name)).unwrap();
            let error = refusal(dir.path());
            assert!(error.contains(name) && error.contains("leads out of the folder"), "{error}");
        }
        let dir = folder(&[(INDEX_NAME, INDEX), ("1.safetensors", &weights(&["a"]))]);
        symlink(&target, dir.path().join("2.safetensors")).unwrap();
        assert!(refusal(dir.path()).contains("leads out of the folder"));
    }

    #[test]
    fn a_broken_generation_config_is_noted() {
        let files: [(&str, &[u8]); 2] =
            [("model.safetensors", &weights(&["a"])), ("generation_config.json", b"\xff")];
        let model = ModelFolder::open(folder(&files).path()).unwrap();
        assert!(model.generation_config_json().is_none());
        assert!(model.notes()[0].contains("generation_config.json is not used"), "{:?}", model.notes());
    }

    #[test]
    fn links_of_the_hugging_face_cache_stay_inside_their_repository() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--name");
        let snapshot = repo.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repo.join("blobs")).unwrap();
        std::fs::write(repo.join("blobs/1"), "{}").unwrap();
        std::fs::write(repo.join("blobs/2"), weights(&["a"])).unwrap();
        symlink("../../blobs/1", snapshot.join("config.json")).unwrap();
        symlink("../../blobs/2", snapshot.join("model.safetensors")).unwrap();
        assert!(ModelFolder::open(&snapshot).is_ok());
        std::fs::write(cache.path().join("secret"), weights(&["a"])).unwrap();
        std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
        symlink("../../../secret", snapshot.join("model.safetensors")).unwrap();
        assert!(refusal(&snapshot).contains("leads out of the folder"));
    }

    #[test]
    fn links_of_the_hugging_face_cache_may_lead_to_its_shared_store() {
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cache.path().join("models--org--name/snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        let hash = "ab".repeat(32);
        for (place, is_shared) in [
            (format!("blobs/ab/{hash}"), true),
            (format!("blobs/cd/{hash}"), false),
            (format!("blobs/{hash}"), false),
            (format!("blobs/ab/{hash}/x"), false),
            (format!("blobs/ab/{}", "aB".repeat(32)), false),
            (format!("datasets--a/ab/{hash}"), false),
        ] {
            let file = cache.path().join(&place);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, weights(&["a"])).unwrap();
            let link = snapshot.join("model.safetensors");
            symlink(&file, &link).unwrap();
            match is_shared {
                true => assert!(ModelFolder::open(&snapshot).is_ok(), "{place}"),
                false => assert!(refusal(&snapshot).contains("leads out of the folder"), "{place}"),
            }
            std::fs::remove_file(&link).unwrap();
            std::fs::remove_dir_all(cache.path().join("blobs")).unwrap_or_default();
        }
    }

    #[test]
    fn tokenizers_and_templates_are_files_of_the_folder_too() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "{}").unwrap();
        let template = "additional_chat_templates/tool_use.jinja";
        for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", template, TEMPLATES] {
            let dir = folder(&[("model.safetensors", &weights(&["a"]))]);
            assert!(ModelFolder::open(dir.path()).is_ok());
            if name == template {
                std::fs::create_dir(dir.path().join(TEMPLATES)).unwrap();
            }
            let target = if name == TEMPLATES { outside.path() } else { &secret };
            symlink(target, dir.path().join(name)).unwrap();
            let error = tokenizer_files(dir.path()).unwrap_err().to_string();
            assert!(error.contains("leads out of the folder") && error.contains(name), "{error}");
            assert!(refusal(dir.path()).contains(name));
        }
    }

    #[test]
    fn broken_links_and_odd_files_are_errors() {
        let dir = folder(&[]);
        symlink("nowhere", dir.path().join("model.safetensors")).unwrap();
        assert_eq!(ModelFolder::open(dir.path()).unwrap_err().exit_code(), 3);
        std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        std::fs::create_dir(dir.path().join("model.safetensors")).unwrap();
        assert!(refusal(dir.path()).contains("not a regular file"));
        std::fs::write(dir.path().join("config.json"), b"\xff").unwrap();
        assert!(refusal(dir.path()).contains("UTF-8"));
    }
}
