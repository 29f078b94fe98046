//! Launches: the only way to run a kernel, with the checks before it and the dispatch to the driver.
//!
//! A kernel takes one params struct by value, so a launch is a kernel, a grid, a size of shared memory and
//! the bytes of the struct, on every device. All checks that need no GPU are here, so that the dry device and
//! the emulator find the same mistakes.

use super::Device;
use super::arch::Limits;
use super::kernels::{Kernel, Params};
use crate::error::{Error, Result};

/// Maximum blocks in x: 2^31 - 1. In y and z: 65535.
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65_535, 65_535];

/// A kernel and how it is cut into blocks. The threads of a block belong to the kernel ([`Kernel::threads`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks in x, y and z, at least 1 each.
    pub grid: [u32; 3],
    /// Bytes of shared memory on top of what the kernel declares itself.
    pub dynamic_smem: u32,
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [x, y, z] = self.grid;
        write!(f, "{} ({x} x {y} x {z} blocks", self.kernel.symbol())?;
        match self.dynamic_smem {
            0 => write!(f, ")"),
            bytes => write!(f, ", {bytes} bytes of shared memory)"),
        }
    }
}

impl Launch {
    /// The reason why this launch is invalid, if it is, given the params struct `params_name` of
    /// `params_size` bytes and these limits of a multiprocessor.
    fn fault(&self, params_name: &str, params_size: usize, limits: &Limits) -> Option<String> {
        let kernel = self.kernel;
        if (params_name, params_size) != (kernel.params_name(), kernel.params_size()) {
            return Some(format!(
                "got {params_name} of {params_size} bytes, expected {} of {} bytes",
                kernel.params_name(),
                kernel.params_size()
            ));
        }
        for ((name, blocks), most) in ["x", "y", "z"].into_iter().zip(self.grid).zip(MAX_GRID) {
            if blocks == 0 || blocks > most {
                return Some(format!("got {blocks} blocks in {name}, expected 1 to {most}"));
            }
        }
        // Compiled sizes differ little or not at all between architectures; the largest is on the safe side.
        let resources = super::arch::Arch::ALL.into_iter().filter_map(|arch| kernel.resources(arch));
        let fixed = resources.map(|resources| resources.static_smem).max().unwrap_or(0);
        let smem = u64::from(self.dynamic_smem) + u64::from(fixed);
        for (whose, most) in
            [("its row in kernels/README.md", kernel.budget().smem), ("the device", limits.smem_per_block)]
        {
            if smem > u64::from(most) {
                return Some(format!(
                    "a block takes {smem} bytes of shared memory, and {whose} allows {most}"
                ));
            }
        }
        None
    }
}

impl Device {
    /// Starts a kernel with `params`. Launches run one after another, in the order of the calls; a later call
    /// may report an error inside a kernel.
    ///
    /// All devices count the launch ([`super::Ledger::launches`]); a dry device does not run it.
    ///
    /// # Errors
    /// [`Error::Device`] that names the kernel, the grid and the device: the params struct belongs to another
    /// kernel, the grid or the shared memory exceed the limits of the device, the device has no kernels, or
    /// an earlier launch failed.
    pub fn launch<P: Params>(&self, launch: &Launch, params: &P) -> Result<()> {
        let refused = |what: String| Error::Device {
            what: format!("{}: cannot launch {launch}: {what}", self.label()),
            fix: "this is a mistake in tanren: please report the message and the command".into(),
        };
        let Some(gpu) = self.gpu() else { return Err(refused("the device runs no kernels".into())) };
        if let Some(fault) = launch.fault(P::NAME, size_of::<P>(), gpu.limits()) {
            return Err(refused(fault));
        }
        gpu.launch(launch, bytemuck::bytes_of(params))?;
        self.lock().add_launch(launch);
        Ok(())
    }
}
