//! The kernels of this build: an enum generated from `kernels/*.cu`, their params structs, and their images.
//!
//! Kernels and params structs are declared in the C++ sources; `build.rs` reads them and generates the code
//! included here. Sizes and offsets of the structs are asserted by both compilers. See
//! `docs/architecture.md`.

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

/// The resource limits of a kernel, from its row in `kernels/README.md`. Plans stay within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Registers per thread, on sm_86.
    pub registers: u32,
    /// Shared memory of a block in bytes, static and dynamic together.
    pub smem: u32,
}

/// The resources that the compiler allocated for a kernel on one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Registers per thread.
    pub registers: u32,
    /// Shared memory of fixed size, in bytes per block.
    pub static_smem: u32,
    /// Local memory, in bytes per thread.
    pub stack: u32,
    /// Register spills: bytes that a thread stores to and loads from local memory.
    pub spills: u32,
}

/// Bytes of shared memory that a block may use without opting in.
const SMEM_OF_EVERY_KERNEL: u32 = 48 << 10;

/// Data of a kernel that is known at compile time.
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
    /// The symbol of the kernel: `lora_matmul_fwd_bf16`.
    pub const fn symbol(self) -> &'static str {
        self.facts().symbol
    }

    /// Its source file in `kernels/`.
    pub const fn file(self) -> &'static str {
        self.facts().file
    }

    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        self.facts().threads
    }

    /// Minimum blocks per multiprocessor given to the compiler (`__launch_bounds__`).
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

    /// The resource limits of the kernel.
    pub const fn budget(self) -> Budget {
        self.facts().budget
    }

    /// The resources it uses on `arch`; `None` if the build has no machine code for it.
    pub fn resources(self, arch: Arch) -> Option<Resources> {
        self.facts().resources.iter().find(|(other, _)| *other == arch).map(|(_, resources)| *resources)
    }

    /// True if the driver must be asked for the maximum shared-memory carve-out on `arch`, because it might
    /// reserve less than the resident blocks of a plan need. That is the case for kernels with dynamic shared
    /// memory of which several blocks must be resident, or one block that needs more than the default limit.
    /// For kernels with static shared memory alone the driver knows the size and chooses itself: they are
    /// projections, and memory that is not shared memory serves as L1 cache for their factors.
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
