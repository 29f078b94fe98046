//! How the files of a model's weights are called, and in which order they are looked for.

use std::fs::File;
use std::path::Path;

use super::safetensors::TensorFile;
use crate::error::Result;

/// How the weights of a model are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// As safetensors.
    Safetensors,
    /// As `torch.save` wrote them; read where a model has nothing else, and never run.
    Pickled,
}

/// The files that a model's weights are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightFiles {
    /// What they are.
    pub format: WeightFormat,
    /// Whether they are several, named in an index.
    pub sharded: bool,
}

impl WeightFiles {
    /// The files that a model has, in the order of transformers; `has` says whether there is one of this name.
    pub fn find(has: impl Fn(&str) -> bool) -> Option<Self> {
        let formats = WeightFormat::ALL.into_iter();
        let mut all = formats.flat_map(|format| [false, true].map(|sharded| Self { format, sharded }));
        all.find(|files| has(files.name()))
    }

    /// The name of the one file, or of the index.
    pub fn name(self) -> &'static str {
        match self.sharded {
            true => self.format.index(),
            false => self.format.single(),
        }
    }
}

impl WeightFormat {
    /// All of them, in the order in which they are looked for.
    pub const ALL: [Self; 2] = [Self::Safetensors, Self::Pickled];

    /// The name of the weights in one file.
    pub fn single(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors",
            Self::Pickled => "pytorch_model.bin",
        }
    }

    /// The name of the index of shards.
    pub fn index(self) -> &'static str {
        match self {
            Self::Safetensors => "model.safetensors.index.json",
            Self::Pickled => "pytorch_model.bin.index.json",
        }
    }

    /// How the name of a shard ends.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Safetensors => ".safetensors",
            Self::Pickled => ".bin",
        }
    }

    /// Reads where the tensors of an open file are; `path` is its name in messages.
    ///
    /// # Errors
    /// Those of [`TensorFile::from_file`] and [`TensorFile::pickled`].
    pub(in crate::formats) fn open(self, file: File, path: &Path) -> Result<TensorFile> {
        match self {
            Self::Safetensors => TensorFile::from_file(file, path),
            Self::Pickled => TensorFile::pickled(file, path),
        }
    }
}
