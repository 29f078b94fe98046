//! The compiled kernels embedded in the program, and the choice of the one that a driver can load on a GPU.
//!
//! There is machine code for some architectures, and PTX that the compiler inside a driver turns into machine
//! code for all others. The program chooses one image and passes only that to the driver, instead of a fat
//! binary from which the driver chooses. So the choice can be shown and tested, and images can be compressed
//! in a format of our own.

use std::fmt;

use super::arch::Arch;
use super::gpus::Version;
use super::kernels::{IMAGES, NVCC, PTXAS};
use crate::error::{Error, Result};

/// All kernels, in one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The machine code of this architecture.
    Code(Arch),
    /// PTX, which the driver compiles when it is loaded.
    Ptx(Arch),
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(arch) => write!(f, "{arch} machine code"),
            Self::Ptx(arch) => write!(f, "PTX for compute_{}", arch.number()),
        }
    }
}

/// A compressed image.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    /// In the format of zlib.
    pub bytes: &'static [u8],
    /// Bytes after decompression.
    pub size: usize,
}

/// An image in the form that drivers load: machine code is an ELF file, PTX is text that ends in a zero byte.
/// Aligned to 16 bytes.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    words: Vec<u128>,
    size: usize,
}

#[cfg(feature = "cuda")]
impl Unpacked {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.size]
    }
}

impl Image {
    /// The image, ready to be loaded.
    ///
    /// # Errors
    /// [`Error::Device`]: this build does not contain it, or the program file is damaged.
    #[cfg(feature = "cuda")]
    pub fn unpack(self) -> Result<Unpacked> {
        let found = IMAGES.iter().find(|(image, _)| *image == self).map(|(_, packed)| *packed);
        found.and_then(unpack).ok_or_else(|| Error::Device {
            what: format!("the kernels in this program ({self}) cannot be unpacked: its file is damaged"),
            fix: "build or install tanren again".into(),
        })
    }
}

#[cfg(feature = "cuda")]
fn unpack(Packed { bytes, size }: Packed) -> Option<Unpacked> {
    let mut words = vec![0u128; size.div_ceil(size_of::<u128>())];
    let room = &mut bytemuck::cast_slice_mut(&mut words)[..size];
    let blocks = std::iter::once(bytes);
    let written = miniz_oxide::inflate::decompress_slice_iter_to_slice(room, blocks, true, false);
    (written == Ok(size)).then_some(Unpacked { words, size })
}

/// The minimum CUDA version of a driver: it has the functions used here, and its compiler reads the PTX,
/// whose version is that of CUDA 11.8.
pub(super) const OLDEST_DRIVER: Version = Version { major: 12, minor: 0 };

/// The first driver for a CUDA version, by its major version. Source: CUDA toolkit release notes, "CUDA
/// Toolkit and Corresponding Driver Versions".
const RELEASES: [(Version, u32); 10] = [
    (Version { major: 12, minor: 0 }, 525),
    (Version { major: 12, minor: 1 }, 530),
    (Version { major: 12, minor: 2 }, 535),
    (Version { major: 12, minor: 3 }, 545),
    (Version { major: 12, minor: 4 }, 550),
    (Version { major: 12, minor: 5 }, 555),
    (Version { major: 12, minor: 6 }, 560),
    (Version { major: 12, minor: 8 }, 570),
    (Version { major: 12, minor: 9 }, 575),
    (Version { major: 13, minor: 0 }, 580),
];

/// The driver to install for CUDA `needed`, as text: `525 or newer`.
pub(super) fn driver_for(needed: Version) -> String {
    match RELEASES.iter().find(|(cuda, _)| *cuda >= needed) {
        Some((_, release)) => format!("{release} or newer"),
        None => format!("for CUDA {needed} or newer"),
    }
}

/// Systems on a chip. Machine code for cards runs on all cards with the same major number, but not on systems
/// on a chip, and vice versa. Source: CUDA C++ programming guide, "Binary Compatibility".
const SYSTEMS_ON_A_CHIP: [(u32, u32); 2] = [(8, 7), (8, 8)];

/// The images in a build.
#[derive(Debug, Clone, Copy)]
struct Build<'a> {
    /// The architectures with machine code, oldest first.
    code: &'a [Arch],
    /// The version of ptxas that compiled it.
    ptxas: Version,
    /// The architecture of the PTX.
    ptx: Arch,
}

/// The image to load, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The image to load.
    pub image: Image,
    /// The reason, as the end of a sentence.
    reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, reason } = self;
        match image {
            Image::Code(_) => write!(f, "{image} by {}: {reason}", short(PTXAS)),
            Image::Ptx(_) => write!(f, "{image}, compiled by the driver: {reason}"),
        }
    }
}

/// Why no image can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The driver is older than this CUDA version.
    Driver(Version),
    /// The GPU is older than all kernels.
    Gpu,
}

impl Build<'_> {
    /// Which image a driver for CUDA `driver` loads on a GPU of this compute capability.
    fn choose(&self, (major, minor): (u32, u32), driver: Version) -> Result<Choice, Refusal> {
        if driver < OLDEST_DRIVER {
            return Err(Refusal::Driver(OLDEST_DRIVER));
        }
        let number = 10 * major + minor;
        if number < self.ptx.number() {
            return Err(Refusal::Gpu);
        }
        let ptx = |reason: String| Ok(Choice { image: Image::Ptx(self.ptx), reason });
        let runs = |arch: &&Arch| arch.number() / 10 == major && arch.number() <= number;
        let Some(&arch) = self.code.iter().rfind(runs) else {
            return ptx(format!("there is no machine code for compute capability {major}.{minor}"));
        };
        if SYSTEMS_ON_A_CHIP.contains(&(major, minor)) {
            return ptx(format!("machine code of cards does not run on compute capability {major}.{minor}"));
        }
        // Machine code runs on every driver of the same CUDA major version as its compiler or a later one, if
        // the driver supports the card.
        let needed = Version { minor: 0, ..self.ptxas }.max(first_driver(arch));
        if driver < needed {
            let what = format!("machine code for {arch} by {}", short(PTXAS));
            return ptx(format!("{what} needs a driver for CUDA {needed}, and this one is for {driver}"));
        }
        let reason = match arch.number() == number {
            true => format!("the driver is for CUDA {driver}, and {needed} is enough"),
            false => format!("it runs on compute capability {major}.{minor} too"),
        };
        Ok(Choice { image: Image::Code(arch), reason })
    }
}

/// The first CUDA version whose driver supports cards of this architecture.
fn first_driver(arch: Arch) -> Version {
    match arch {
        Arch::Sm80 | Arch::Sm86 | Arch::Sm89 | Arch::Sm90 => OLDEST_DRIVER,
        Arch::Sm120 => Version { major: 12, minor: 8 },
    }
}

/// Which image of this program a driver for CUDA `driver` loads on a GPU of this compute capability; `label` is for messages.
///
/// # Errors
/// [`Error::Device`] that names the images in the build, what is needed, and what to install.
pub(super) fn choose(label: &str, capability: (u32, u32), driver: Version) -> Result<Choice> {
    let code: Vec<Arch> = architectures();
    let ptx = IMAGES.iter().find_map(|(image, _)| match image {
        Image::Ptx(arch) => Some(*arch),
        Image::Code(_) => None,
    });
    let (Some(ptx), Some(ptxas)) = (ptx, Version::of_compiler(PTXAS)) else {
        return Err(Error::Device {
            what: format!("{label}: this build has no kernels: {NVCC}"),
            fix: "build again with an nvcc, or pass --device cpu".into(),
        });
    };
    let refusal = match (Build { code: &code, ptxas, ptx }).choose(capability, driver) {
        Ok(choice) => return Ok(choice),
        Err(refusal) => refusal,
    };
    Err(match refusal {
        Refusal::Driver(needed) => too_old(driver, needed),
        Refusal::Gpu => Error::Device {
            what: format!(
                "{label}: compute capability {}.{} is older than the kernels of this build ({})",
                capability.0,
                capability.1,
                images()
            ),
            fix: "use a GPU of compute capability 8.0 or newer (GeForce RTX 30 series, A100), or pass --device cpu"
                .into(),
        },
    })
}

/// The error of a driver that is too old.
pub(super) fn too_old(driver: Version, needed: Version) -> Error {
    Error::Device {
        what: format!("the CUDA driver is too old: it is for CUDA {driver}, and {needed} is needed"),
        fix: format!("install the NVIDIA driver {}, or pass --device cpu", driver_for(needed)),
    }
}

/// The architectures that this build has machine code for, oldest first.
pub fn architectures() -> Vec<Arch> {
    let code = |(image, _): &(Image, Packed)| match image {
        Image::Code(arch) => Some(*arch),
        Image::Ptx(_) => None,
    };
    IMAGES.iter().filter_map(code).collect()
}

/// The architectures and the compiler of the kernels of this build, as text.
pub fn images() -> String {
    let mut names: Vec<String> = IMAGES.iter().map(|(image, _)| image.to_string()).collect();
    for name in &mut names {
        *name = name.trim_end_matches(" machine code").to_owned();
    }
    match names.pop() {
        None => format!("none in this build: {NVCC}"),
        Some(last) => format!("{} and {last}, by {} and {}", names.join(", "), short(NVCC), short(PTXAS)),
    }
}

/// `ptxas 12.8` of `ptxas 12.8, V12.8.93`.
fn short(compiler: &str) -> &str {
    compiler.split_once(',').map_or(compiler, |(short, _)| short)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
