//! The kernels of this build: an enum generated from `kernels/*.cu`, their params structs, and their images.
//!
//! The C++ sources are where kernels and params structs are declared; `build.rs` reads them and writes what is included here.
//! Sizes and offsets of the structs are asserted by both compilers. See `docs/architecture.md`.

use super::arch::{Arch, occupancy};
use super::image::{Image, Packed};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// An address in device memory. Null where a pointer is optional.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DevicePtr(pub u64);

/// A params struct of a kernel: plain bytes, the same on both sides.
pub trait Params: bytemuck::Pod {
    /// The name of the struct in the kernel sources.
    const NAME: &'static str;
}

/// What a kernel may take, by its row in `kernels/README.md`. Plans stay within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Registers per thread, on sm_86.
    pub registers: u32,
    /// Shared memory of a block in bytes, static and dynamic together.
    pub smem: u32,
}

/// What the compiler gave a kernel on one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Shared memory of fixed size, in bytes per block.
    pub static_smem: u32,
    /// Local memory, in bytes per thread.
    pub stack: u32,
    /// Bytes that a thread stores to local memory and loads from it because registers ran out.
    pub spills: u32,
}

/// Bytes of shared memory that a block may have without asking.
const SMEM_OF_EVERY_KERNEL: u32 = 48 << 10;

/// What is known of a kernel when this is compiled.
struct Facts {
    symbol: &'static str,
    file: &'static str,
    threads: u32,
    min_blocks: u32,
    params_name: &'static str,
    params_size: usize,
    budget: Budget,
    resources: &'static [(Arch, Resources)],
}

impl Kernel {
    /// The name that the driver knows it by: `lora_matmul_fwd_bf16`.
    pub const fn symbol(self) -> &'static str {
        self.facts().symbol
    }

    /// Its file below `kernels/`.
    pub const fn file(self) -> &'static str {
        self.facts().file
    }

    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        self.facts().threads
    }

    /// Blocks that the compiler was told must fit on one multiprocessor.
    pub const fn min_blocks(self) -> u32 {
        self.facts().min_blocks
    }

    /// Bytes of its params struct.
    pub const fn params_size(self) -> usize {
        self.facts().params_size
    }

    /// Name of its params struct, [`Params::NAME`].
    pub const fn params_name(self) -> &'static str {
        self.facts().params_name
    }

    /// What it may take.
    pub const fn budget(self) -> Budget {
        self.facts().budget
    }

    /// What the compiler gave it on `arch`; `None` where there is no machine code.
    pub fn resources(self, arch: Arch) -> Option<Resources> {
        self.facts().resources.iter().find(|(other, _)| *other == arch).map(|(_, resources)| *resources)
    }

    /// Whether the blocks that plans count on one multiprocessor of `arch` need more shared memory than a driver is sure to set
    /// aside, so that it has to be asked for all there is: where launches ask for theirs and several blocks are to be resident, or
    /// one that takes more than every kernel may have. Kernels with static shared memory alone are left to the driver, which
    /// knows their size; they are narrow products, and what is not shared memory is the cache of their factors.
    pub fn needs_carveout(self, arch: Arch) -> bool {
        let Budget { registers, smem } = self.budget();
        let fixed = self.resources(arch).map_or(0, |resources| resources.static_smem);
        let blocks = occupancy(arch, self.threads(), registers, smem);
        smem > fixed && (blocks > 1 || smem > SMEM_OF_EVERY_KERNEL)
    }

    /// The kernel with this symbol.
    pub fn from_symbol(symbol: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kernel| kernel.symbol() == symbol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_name_their_kernels() {
        for kernel in Kernel::ALL {
            assert_eq!(Kernel::from_symbol(kernel.symbol()), Some(*kernel));
            assert!(kernel.file().ends_with(".cu") && kernel.params_name().ends_with("Params"));
            assert!(kernel.params_size() > 0 && kernel.threads().is_multiple_of(32));
        }
        assert_eq!(Kernel::from_symbol("no_such_kernel"), None);
    }

    #[test]
    fn machine_code_is_there_for_all_kernels_or_for_none() {
        let code = crate::device::image::architectures();
        for kernel in Kernel::ALL {
            for arch in Arch::ALL {
                assert_eq!(kernel.resources(arch).is_some(), code.contains(&arch), "{kernel:?} {arch}");
            }
        }
        // The compiler's name, or advice.
        assert_eq!(!IMAGES.is_empty(), NVCC.starts_with("nvcc "), "{NVCC}");
        assert_eq!(!IMAGES.is_empty(), PTXAS.starts_with("ptxas "), "{PTXAS}");
    }
}
