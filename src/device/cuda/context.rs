//! A GPU in use: its primary context, one stream, memory, kernels, and a clock.
//!
//! There is one stream for launches and copies. Neither the driver nor cudarc sees the pointers inside params
//! structs, so they could not order two streams by the memory these touch. With one stream, work runs in the
//! order of the calls.

use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use super::staging::Staging;
use super::{Fault, Functions, Handle, Library, OUT_OF_MEMORY, devices};
use crate::device::arch::{Arch, Chip, Limits};
use crate::device::gpu::GpuMemory;
use crate::device::gpus::GpuInfo;
use crate::device::image::Unpacked;
use crate::device::kernels::{DevicePtr, IMAGES, Kernel, NVCC};
use crate::device::launch::Launch;
use crate::device::region::{LOWER, size};
use crate::error::{Error, Result};

/// `CU_STREAM_NON_BLOCKING`: the stream does not wait for work on the default stream.
const NON_BLOCKING: u32 = 1;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED_SIZE_BYTES: u32 = 8;

/// `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`.
const PREFERRED_SHARED_MEMORY_CARVEOUT: u32 = 9;

/// `CU_SHAREDMEM_CARVEOUT_MAX_SHARED`: per cent of the maximum of a multiprocessor.
const MOST_SHARED_MEMORY: c_int = 100;

/// See the module documentation.
pub(in crate::device) struct Cuda {
    library: &'static Library,
    info: GpuInfo,
    arch: Arch,
    label: String,
    device: c_int,
    context: Handle,
    stream: Handle,
    /// The module with the kernels; 0 in a build without kernels.
    module: Handle,
    functions: Mutex<BTreeMap<Kernel, Function>>,
    staging: Mutex<Option<Staging>>,
}

/// A kernel that was looked up.
#[derive(Debug, Clone, Copy)]
struct Function {
    handle: Handle,
    /// The dynamic shared memory that the driver was asked to allow so far.
    allowed_smem: u32,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Cuda {
    /// Opens the GPU with this index.
    ///
    /// # Errors
    /// [`Error::Device`]: no driver, a driver that is too old, no such GPU, kernels that do not run on it, or an error of the driver.
    pub(in crate::device) fn open(index: usize) -> Result<Self> {
        let driver = devices::list()?;
        let library = Library::get()?;
        let info = driver.gpu(index)?.clone();
        let image = match IMAGES.is_empty() {
            true => None,
            false => Some(info.image(driver.version)?.image.unpack()?),
        };
        let label = info.to_string();
        let error = |fault: Fault| fault.error(&label);
        let ordinal = c_int::try_from(index).unwrap_or(c_int::MAX);
        let device = devices::device(library, ordinal).map_err(error)?;
        let arch = info.arch();
        // From here on `drop` releases the handles; 0 means not created.
        let mut cuda = Self {
            library,
            arch,
            label: label.clone(),
            device,
            context: 0,
            stream: 0,
            module: 0,
            functions: Mutex::default(),
            staging: Mutex::default(),
            info,
        };
        cuda.start(image.as_ref()).map_err(error)?;
        Ok(cuda)
    }

    /// Makes context and stream, and loads the kernels.
    fn start(&mut self, image: Option<&Unpacked>) -> Result<(), Fault> {
        let (library, device) = (self.library, self.device);
        library.call("cuDevicePrimaryCtxRetain", |driver| {
            // SAFETY: writes the handle that the pointer points to.
            unsafe { (driver.cuDevicePrimaryCtxRetain)(&mut self.context, device) }
        })?;
        self.bind()?;
        library.call("cuStreamCreate", |driver| {
            // SAFETY: writes the handle that the pointer points to; the context is current.
            unsafe { (driver.cuStreamCreate)(&mut self.stream, NON_BLOCKING) }
        })?;
        if let Some(image) = image {
            library.call_waiting("cuModuleLoadData", |driver| {
                // SAFETY: the image is whole, machine code as ptxas wrote it or PTX that ends in a zero byte, at an address that is
                // a multiple of 16. The driver keeps what it needs of it before the call returns.
                unsafe { (driver.cuModuleLoadData)(&mut self.module, image.bytes().as_ptr().cast()) }
            })?;
        }
        Ok(())
    }

    /// The chip that kernel plans depend on.
    pub(in crate::device) fn chip(&self) -> Chip {
        Chip { arch: self.arch, multiprocessors: self.info.num_multiprocessors }
    }

    /// Limits of a block: those of the architecture, with the shared memory that the driver reports.
    pub(in crate::device) fn limits(&self) -> Limits {
        Limits { smem_per_block: self.info.smem_per_block, ..self.arch.limits() }
    }

    /// The name of the device in messages.
    pub(in crate::device) fn label(&self) -> &str {
        &self.label
    }

    /// Memory of the card.
    pub(in crate::device) fn memory(&self) -> Result<GpuMemory> {
        self.ours(|cuda| {
            let (mut free, mut total) = (0, 0);
            cuda.call("cuMemGetInfo_v2", |driver| {
                // SAFETY: writes the numbers that the pointers point to; the context is current.
                unsafe { (driver.cuMemGetInfo_v2)(&mut free, &mut total) }
            })?;
            Ok(GpuMemory { free_bytes: free as u64, total_bytes: total as u64 })
        })
    }

    /// Allocates memory, aligned to 256 bytes.
    pub(in crate::device) fn allocate(&self, bytes: u64) -> Result<DevicePtr> {
        let mut address = 0;
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.ours(|_| Ok(()))?;
        let result = self.call("cuMemAlloc_v2", |driver| {
            // SAFETY: writes the address that the pointer points to; the context is current.
            unsafe { (driver.cuMemAlloc_v2)(&mut address, size) }
        });
        match result {
            Ok(()) => Ok(DevicePtr(address)),
            Err(fault) if fault.code == OUT_OF_MEMORY => Err(self.out_of_memory(bytes)),
            Err(fault) => Err(fault.error(&self.label)),
        }
    }

    fn out_of_memory(&self, needed: u64) -> Error {
        let state = match self.memory() {
            Ok(memory) => format!("{} of {} are free", size(memory.free_bytes), size(memory.total_bytes)),
            Err(_) => format!("{} in all", size(self.info.total_bytes)),
        };
        Error::Device {
            what: format!("{}: out of memory: {} needed in one piece, {state}", self.label, size(needed)),
            fix: format!("close other programs on the GPU (nvidia-smi lists them), or {LOWER}"),
        }
    }

    /// Frees memory of [`Cuda::allocate`], after all work that uses it.
    pub(in crate::device) fn free(&self, ptr: DevicePtr) -> Result<()> {
        self.ours(|cuda| {
            // SAFETY: the address is one of `allocate`, and its owner is being dropped.
            cuda.call_waiting("cuMemFree_v2", |driver| unsafe { (driver.cuMemFree_v2)(ptr.0) })
        })
    }

    /// Overwrites memory with a byte.
    pub(in crate::device) fn fill(&self, ptr: DevicePtr, byte: u8, bytes: u64) -> Result<()> {
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.ours(|cuda| {
            cuda.call("cuMemsetD8Async", |driver| {
                // SAFETY: the caller passes a range of a tensor that is alive; the driver refuses others.
                unsafe { (driver.cuMemsetD8Async)(ptr.0, byte, size, cuda.stream) }
            })
        })
    }

    /// Copies to the GPU.
    pub(in crate::device) fn write(&self, ptr: DevicePtr, data: &[u8]) -> Result<()> {
        self.staged(|cuda, staging| staging.write(cuda, ptr.0, data))
    }

    /// Copies from the GPU, after all work queued so far.
    pub(in crate::device) fn read(&self, ptr: DevicePtr, data: &mut [u8]) -> Result<()> {
        self.staged(|cuda, staging| staging.read(cuda, ptr.0, data))
    }

    /// Launches a kernel.
    pub(in crate::device) fn launch(&self, launch: &Launch, params: &[u8]) -> Result<()> {
        if self.module == 0 {
            return Err(Error::Device {
                what: format!("{}: cannot launch {launch}: this build has no kernels: {NVCC}", self.label),
                fix: "build again with an nvcc".into(),
            });
        }
        self.ours(|cuda| cuda.start_kernel(launch, params))
    }

    fn start_kernel(&self, launch: &Launch, params: &[u8]) -> Result<(), Fault> {
        let Launch { kernel, grid: [x, y, z], dynamic_smem } = *launch;
        let function = self.function(kernel, dynamic_smem)?;
        // The driver copies the struct before the call returns, and only reads it.
        let mut arguments = [params.as_ptr().cast_mut().cast::<c_void>()];
        self.call("cuLaunchKernel", |driver| {
            // SAFETY: `Device::launch` has compared name and size of the params struct with the kernel's, whose layout both
            // compilers have asserted, so the one argument is as large as the kernel reads; grid and memory are checked there
            // too. What addresses in the struct point to is memory of the GPU and not of this process.
            unsafe {
                (driver.cuLaunchKernel)(
                    function,
                    x,
                    y,
                    z,
                    kernel.threads(),
                    1,
                    1,
                    dynamic_smem,
                    self.stream,
                    arguments.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
        })?;
        self.library.calls.launched(Some(*launch));
        Ok(())
    }

    /// The function of a kernel, with this much dynamic shared memory allowed. The default limit is 48 KiB in
    /// total.
    fn function(&self, kernel: Kernel, smem: u32) -> Result<Handle, Fault> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let known = functions.get(&kernel).copied();
        let mut function = match known {
            Some(function) => function,
            None => {
                let handle = self.lookup(kernel)?;
                if kernel.needs_carveout(self.arch) {
                    self.set_attribute(handle, PREFERRED_SHARED_MEMORY_CARVEOUT, MOST_SHARED_MEMORY)?;
                }
                Function { handle, allowed_smem: 0 }
            }
        };
        if smem > function.allowed_smem {
            let bytes = c_int::try_from(smem).unwrap_or(c_int::MAX);
            self.set_attribute(function.handle, MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)?;
            function.allowed_smem = smem;
        }
        functions.insert(kernel, function);
        Ok(function.handle)
    }

    fn set_attribute(&self, function: Handle, attribute: u32, value: c_int) -> Result<(), Fault> {
        self.call("cuFuncSetAttribute", |driver| {
            // SAFETY: the handle is a function of the loaded module.
            unsafe { (driver.cuFuncSetAttribute)(function, attribute, value) }
        })
    }

    /// Loads all kernels now. Otherwise the driver loads each at its first launch, which must not happen
    /// during a graph capture. Drivers without `cuFuncLoad` load a kernel with the module, or at the latest
    /// when it is looked up.
    pub(super) fn load_kernels(&self) -> Result<(), Fault> {
        if self.module == 0 {
            return Ok(());
        }
        for &kernel in Kernel::ALL {
            let function = self.function(kernel, 0)?;
            if let Some(load) = self.library.func_load {
                // SAFETY: the handle is a function of the loaded module.
                self.call("cuFuncLoad", |_| unsafe { load(function) })?;
            }
        }
        Ok(())
    }

    fn lookup(&self, kernel: Kernel) -> Result<Handle, Fault> {
        let mut handle = 0;
        // Symbols are C identifiers, so they contain no zero byte.
        let name = CString::new(kernel.symbol()).unwrap_or_default();
        self.call("cuModuleGetFunction", |driver| {
            // SAFETY: writes the handle that the pointer points to; the name ends in a zero byte and outlives the call.
            unsafe { (driver.cuModuleGetFunction)(&mut handle, self.module, name.as_ptr()) }
        })?;
        Ok(handle)
    }

    /// Waits until all queued work is done.
    pub(in crate::device) fn synchronize(&self) -> Result<()> {
        self.ours(Self::wait)
    }

    /// A new event. The context is current.
    pub(super) fn event(&self, flags: u32) -> Result<Handle, Fault> {
        let mut event = 0;
        self.call("cuEventCreate", |driver| {
            // SAFETY: writes the handle that the pointer points to.
            unsafe { (driver.cuEventCreate)(&mut event, flags) }
        })?;
        Ok(event)
    }

    /// Records `event` behind all work queued so far.
    pub(super) fn record(&self, event: Handle) -> Result<(), Fault> {
        // SAFETY: both handles belong to this context.
        self.call("cuEventRecord", |driver| unsafe { (driver.cuEventRecord)(event, self.stream) })
    }

    /// Messages name no kernel until the next launch.
    pub(super) fn forget_last_launch(&self) {
        self.library.calls.launched(None);
    }

    /// The stream.
    pub(super) fn stream(&self) -> Handle {
        self.stream
    }

    /// Calls the driver, see [`Library::call`].
    pub(super) fn call(
        &self,
        function: &'static str,
        call: impl FnOnce(&Functions) -> u32,
    ) -> Result<(), Fault> {
        self.library.call(function, call)
    }

    /// Calls a function of the driver that may block, see [`Library::call_waiting`].
    pub(super) fn call_waiting(
        &self,
        function: &'static str,
        call: impl FnOnce(&Functions) -> u32,
    ) -> Result<(), Fault> {
        self.library.call_waiting(function, call)
    }

    pub(super) fn wait(&self) -> Result<(), Fault> {
        // SAFETY: the handle is the stream of this context.
        self.call_waiting("cuStreamSynchronize", |driver| unsafe {
            (driver.cuStreamSynchronize)(self.stream)
        })
    }

    /// Makes the context current in this thread: calls may come from any thread, and other code may have set
    /// its own.
    fn bind(&self) -> Result<(), Fault> {
        // SAFETY: the context was retained and is not released before `drop`.
        self.call("cuCtxSetCurrent", |driver| unsafe { (driver.cuCtxSetCurrent)(self.context) })
    }

    /// Runs `work` with the context current; a failed call becomes an error that names this GPU.
    pub(super) fn ours<R>(&self, work: impl FnOnce(&Self) -> Result<R, Fault>) -> Result<R> {
        self.bind().and_then(|()| work(self)).map_err(|fault| fault.error(&self.label))
    }

    fn staged(&self, work: impl FnOnce(&Self, &mut Staging) -> Result<(), Fault>) -> Result<()> {
        self.ours(|cuda| {
            let mut staging = cuda.staging.lock().unwrap_or_else(PoisonError::into_inner);
            match staging.as_mut() {
                Some(staging) => work(cuda, staging),
                None => work(cuda, staging.insert(Staging::new(cuda)?)),
            }
        })
    }

    /// Releases everything, up to the first error.
    fn stop(&mut self) -> Result<(), Fault> {
        if self.context == 0 {
            return Ok(());
        }
        self.bind()?;
        if self.stream != 0 {
            self.wait()?;
        }
        if let Some(staging) = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            staging.free(self)?;
        }
        if self.module != 0 {
            // SAFETY: the module was loaded by `start`; its functions are not used again.
            self.call("cuModuleUnload", |driver| unsafe { (driver.cuModuleUnload)(self.module) })?;
        }
        if self.stream != 0 {
            // SAFETY: the stream was made by `start` and is not used again.
            self.call("cuStreamDestroy_v2", |driver| unsafe { (driver.cuStreamDestroy_v2)(self.stream) })?;
        }
        self.call("cuDevicePrimaryCtxRelease_v2", |driver| {
            // SAFETY: gives back the one use that `start` took.
            unsafe { (driver.cuDevicePrimaryCtxRelease_v2)(self.device) }
        })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // `drop` cannot return an error, and after a sticky error no call was made.
        let _ = self.stop();
    }
}
