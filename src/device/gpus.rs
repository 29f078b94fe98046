//! The GPUs of this machine before one is opened: the driver, the cards, and whether the kernels of this
//! build run on them.

use std::fmt;

use super::arch::Arch;
use super::image::{self, Choice};
use crate::error::{Error, Result};

/// A version of CUDA: 13.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Version {
    /// From the number that `cuDriverGetVersion` returns.
    #[cfg(feature = "cuda")]
    pub(super) fn from_cuda(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }

    /// From the version text of a compiler: `ptxas 12.8, V12.8.93`.
    pub(super) fn of_compiler(text: &str) -> Option<Self> {
        let (major, rest) = text.split_once(' ')?.1.split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { major: major.parse().ok()?, minor: rest[..digits].parse().ok()? })
    }

    /// Fails for a driver that cannot run the kernels on any GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn check(self) -> Result<()> {
        if self >= image::OLDEST_DRIVER { Ok(()) } else { Err(image::too_old(self, image::OLDEST_DRIVER)) }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The driver and its GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA version that the driver supports.
    pub version: Version,
    /// The GPUs that the driver lists, in the order of their indices.
    pub gpus: Vec<GpuInfo>,
}

impl Driver {
    /// The GPU with this index.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none.
    pub fn gpu(&self, index: usize) -> Result<&GpuInfo> {
        self.gpus.get(index).ok_or_else(|| Error::Device {
            what: match self.gpus.len() {
                0 => "the CUDA driver shows no GPU".into(),
                1 => format!("there is no GPU cuda:{index}, only cuda:0"),
                n => format!("there is no GPU cuda:{index}, only cuda:0 to cuda:{}", n - 1),
            },
            fix: "`tanren inspect device` lists the GPUs; check CUDA_VISIBLE_DEVICES, or pass --device cpu"
                .into(),
        })
    }
}

/// A GPU as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its index, the N of `--device cuda:N`.
    pub index: usize,
    /// Name of the product.
    pub name: String,
    /// Major and minor number: 8 and 6 for sm_86.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub num_multiprocessors: u32,
    /// Maximum shared memory of a block, in bytes.
    pub smem_per_block: u32,
    /// Memory in bytes.
    pub total_bytes: u64,
}

impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuda:{} ({})", self.index, self.name)
    }
}

impl GpuInfo {
    /// The architecture for kernel plans: the GPU's own, if this program knows it. Otherwise the known
    /// architecture with the most shared memory among those that need no more than the GPU has, since shared
    /// memory decides which tiles fit; the newest of equal ones.
    pub fn arch(&self) -> Arch {
        let (major, minor) = self.compute_capability;
        let fits = |arch: &&Arch| arch.limits().smem_per_block <= self.smem_per_block;
        let most = |arch: &&Arch| (arch.limits().smem_per_block, arch.number());
        Arch::of(major, minor)
            .or_else(|| Arch::ALL.iter().filter(fits).max_by_key(most).copied())
            .unwrap_or(Arch::Sm86)
    }

    /// Which kernels of this build a driver for CUDA `driver` loads on this GPU, and why.
    ///
    /// # Errors
    /// [`Error::Device`] that names the kernels in the build and those needed.
    pub fn image(&self, driver: Version) -> Result<Choice> {
        image::choose(&self.to_string(), self.compute_capability, driver)
    }
}

/// The driver and its GPUs.
///
/// # Errors
/// [`Error::Device`]: this build has no GPU support, or there is no driver, or the driver is too old or
/// fails.
pub fn gpus() -> Result<Driver> {
    #[cfg(feature = "cuda")]
    return super::cuda::list();
    #[cfg(not(feature = "cuda"))]
    Err(without_cuda())
}

/// The error of a build without GPU support.
#[cfg(not(feature = "cuda"))]
pub(super) fn without_cuda() -> Error {
    Error::Device {
        what: "this build knows no GPUs: it was made without the feature `cuda`".into(),
        fix: "build with --features cuda, or pass --device cpu".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA_13_0: Version = Version { major: 13, minor: 0 };

    fn gpu(major: u32, minor: u32, smem_kib: u32) -> GpuInfo {
        GpuInfo {
            index: 0,
            name: "A".into(),
            compute_capability: (major, minor),
            num_multiprocessors: 1,
            smem_per_block: smem_kib << 10,
            total_bytes: 1,
        }
    }

    #[test]
    fn unknown_gpus_are_planned_for_by_their_shared_memory() {
        for (gpu, arch) in [
            (gpu(8, 6, 99), Arch::Sm86),
            (gpu(8, 7, 163), Arch::Sm80),
            (gpu(10, 0, 227), Arch::Sm90),
            (gpu(12, 0, 99), Arch::Sm120),
            (gpu(12, 1, 99), Arch::Sm120),
            (gpu(11, 0, 227), Arch::Sm90),
            (gpu(13, 0, 64), Arch::Sm86),
        ] {
            assert_eq!(gpu.arch(), arch, "{gpu:?}");
        }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(Version::of_compiler("nvcc 13.0, V13.0.88"), Some(CUDA_13_0));
        assert_eq!(Version::of_compiler("ptxas 12.10"), Some(Version { major: 12, minor: 10 }));
        assert_eq!(Version::of_compiler("no nvcc was found"), None);
        assert_eq!(Version::of_compiler(""), None);
        #[cfg(feature = "cuda")]
        assert_eq!(Version::from_cuda(12080), Version { major: 12, minor: 8 });
    }

    #[test]
    fn a_missing_gpu_is_named() {
        let mut driver = Driver { version: CUDA_13_0, gpus: Vec::new() };
        assert!(driver.gpu(0).unwrap_err().to_string().contains("shows no GPU"));
        driver.gpus = vec![gpu(8, 6, 99), gpu(8, 6, 99)];
        assert!(driver.gpu(2).unwrap_err().to_string().contains("only cuda:0 to cuda:1"));
    }
}
