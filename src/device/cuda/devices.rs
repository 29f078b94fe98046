//! The GPUs that the driver lists.

use std::ffi::{CStr, c_char, c_int};

use super::{Fault, Library};
use crate::device::gpus::{Driver, GpuInfo, Version};
use crate::error::Result;

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSOR_COUNT: u32 = 16;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
const COMPUTE_CAPABILITY_MAJOR: u32 = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
const COMPUTE_CAPABILITY_MINOR: u32 = 76;
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`.
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: u32 = 97;

/// The driver and its GPUs, in the order of their indices. No context is created, so no GPU memory is used.
///
/// # Errors
/// [`crate::error::Error::Device`]: no driver, one that is too old, or one that fails.
pub(in crate::device) fn list() -> Result<Driver> {
    let library = Library::get()?;
    let version = Version::from_cuda(library.version);
    version.check()?;
    let gpus = gpus(library).map_err(|fault| fault.error("CUDA driver"))?;
    Ok(Driver { version, gpus })
}

fn gpus(library: &Library) -> Result<Vec<GpuInfo>, Fault> {
    // SAFETY: may be called at any time and any number of times.
    library.call("cuInit", |driver| unsafe { (driver.cuInit)(0) })?;
    let mut count = 0;
    // SAFETY: writes the number that the pointer points to.
    library.call("cuDeviceGetCount", |driver| unsafe { (driver.cuDeviceGetCount)(&mut count) })?;
    (0..count).map(|ordinal| describe(library, ordinal)).collect()
}

/// The handle of the GPU with this index.
pub(super) fn device(library: &Library, ordinal: c_int) -> Result<c_int, Fault> {
    let mut device = 0;
    // SAFETY: writes the number that the pointer points to; a wrong index is an error code.
    library.call("cuDeviceGet", |driver| unsafe { (driver.cuDeviceGet)(&mut device, ordinal) })?;
    Ok(device)
}

fn describe(library: &Library, ordinal: c_int) -> Result<GpuInfo, Fault> {
    let device = device(library, ordinal)?;
    let mut name = [0 as c_char; 256];
    let room = c_int::try_from(name.len() - 1).unwrap_or(0);
    library.call("cuDeviceGetName", |driver| {
        // SAFETY: writes at most `room` bytes into `name`, the zero at the end among them.
        unsafe { (driver.cuDeviceGetName)(name.as_mut_ptr(), room, device) }
    })?;
    let bytes: &[u8] = bytemuck::cast_slice(&name);
    let name = CStr::from_bytes_until_nul(bytes).unwrap_or_default().to_string_lossy().into_owned();
    let mut total_bytes = 0;
    library.call("cuDeviceTotalMem_v2", |driver| {
        // SAFETY: writes the number that the pointer points to.
        unsafe { (driver.cuDeviceTotalMem_v2)(&mut total_bytes, device) }
    })?;
    let attribute = |which: u32| -> Result<u32, Fault> {
        let mut value = 0;
        library.call("cuDeviceGetAttribute", |driver| {
            // SAFETY: writes the number that the pointer points to.
            unsafe { (driver.cuDeviceGetAttribute)(&mut value, which, device) }
        })?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    Ok(GpuInfo {
        index: usize::try_from(ordinal).unwrap_or(0),
        name,
        compute_capability: (attribute(COMPUTE_CAPABILITY_MAJOR)?, attribute(COMPUTE_CAPABILITY_MINOR)?),
        num_multiprocessors: attribute(MULTIPROCESSOR_COUNT)?,
        smem_per_block: attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        total_bytes: total_bytes as u64,
    })
}
