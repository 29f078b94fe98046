//! The CUDA driver: finding its library, the functions used, and the guard that stops all calls after a
//! sticky error.
//!
//! This is the only file that names cudarc, which finds and loads the library at run time, so that one binary
//! runs with and without a GPU. Functions are looked up here and not through cudarc's wrappers, for two
//! reasons. A wrapper panics where the driver lacks its symbol, but a driver that is too old must give an
//! error. And a wrapper returns a Rust `enum`, for which an unknown code of a newer driver would be undefined
//! behaviour. Here a result is a plain integer, as in C.
//!
//! After a sticky error (see `codes`) every call returns that error at once, without asking the driver
//! (`calls`). This holds for the whole process, and also while values are dropped: resources that the GPU
//! still holds are freed when the process ends.

#![allow(unsafe_code, reason = "the driver is a library of C")]

mod calls;
mod codes;
mod context;
mod devices;
mod graph;
mod staging;

pub(super) use context::Cuda;
pub(super) use devices::list;
pub(super) use graph::GraphHandle;
pub(super) use staging::Buffer;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::launch::Launch;
use crate::error::{Error, Result};

/// An opaque handle of the driver (context, stream, event, module, function).
type Handle = usize;

/// An address in the memory of the GPU.
type Address = u64;

/// Declares the functions that are used, with their types in cuda.h, where a result is an `int`. Expands to a struct of function
/// pointers and to `Functions::load`, which finds them all or says which one is missing.
macro_rules! functions {
    ($($symbol:ident($($arg:ty),*);)+) => {
        #[allow(non_snake_case, reason = "the names of cuda.h")]
        struct Functions { $($symbol: unsafe extern "C" fn($($arg),*) -> u32,)+ }
        impl Functions {
            fn load() -> Result<Self, &'static str> {
                Ok(Self { $($symbol: symbol(concat!(stringify!($symbol), "\0"))?,)+ })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceGetAttribute(*mut c_int, c_uint, c_int);
    cuDeviceTotalMem_v2(*mut usize, c_int);
    cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxSetCurrent(Handle);
    cuStreamCreate(*mut Handle, c_uint);
    cuStreamDestroy_v2(Handle);
    cuStreamSynchronize(Handle);
    cuStreamBeginCapture_v2(Handle, c_int);
    cuStreamEndCapture(Handle, *mut Handle);
    cuGraphInstantiateWithFlags(*mut Handle, Handle, u64);
    cuGraphUpload(Handle, Handle);
    cuGraphLaunch(Handle, Handle);
    cuGraphDestroy(Handle);
    cuGraphExecDestroy(Handle);
    cuEventCreate(*mut Handle, c_uint);
    cuEventDestroy_v2(Handle);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuEventElapsedTime(*mut f32, Handle, Handle);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut Address, usize);
    cuMemFree_v2(Address);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle);
    cuMemsetD8Async(Address, u8, usize, Handle);
    cuModuleLoadData(*mut Handle, *const c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuFuncSetAttribute(Handle, c_uint, c_int);
    cuLaunchKernel(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
}

/// The function called `name`, which ends in a zero byte, as a function pointer `F`.
fn symbol<F: Copy>(name: &'static str) -> Result<F, &'static str> {
    // SAFETY: loading a library runs its initialisers; the caller has seen that it is there, and it is the driver of the system.
    let library = unsafe { sys::culib() };
    // SAFETY: `F` is the type that cuda.h gives the function of this name, by the list above; the library is never unloaded.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|function| *function).map_err(|_| name.trim_end_matches('\0'))
}

/// The loaded driver.
struct Library {
    functions: Functions,
    /// `cuFuncLoad`, since CUDA 12.4.
    func_load: Option<unsafe extern "C" fn(Handle) -> u32>,
    /// The newest CUDA version that the driver supports: 13000 is 13.0.
    version: c_int,
    calls: calls::Calls,
}

/// A call that failed.
#[derive(Debug, Clone, Copy)]
struct Fault {
    function: &'static str,
    code: u32,
    last_launch: Option<Launch>,
}

/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: u32 = 2;

/// Why there is no driver.
#[derive(Debug, Clone)]
struct Missing {
    what: String,
    fix: &'static str,
}

const INSTALL: &str = "install the NVIDIA driver 525 or newer, so that `nvidia-smi` works and libcuda.so.1 can be loaded, \
                       or pass --device cpu";

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Self::Device { what: missing.what, fix: missing.fix.into() }
    }
}

impl Fault {
    /// The error for the user, on the device called `label`.
    fn error(self, label: &str) -> Error {
        let Self { function, code, last_launch } = self;
        let known = codes::lookup(code);
        let name =
            if known.name.is_empty() { "unknown error" } else { &format!("CUDA_ERROR_{}", known.name) };
        let mut what = format!("{label}: {function} failed: {name} ({code})");
        if !known.meaning.is_empty() {
            what += &format!(": {}", known.meaning);
        }
        if let (true, Some(launch)) = (known.sticky, last_launch) {
            what += &format!("; the last kernel started was {launch}");
        }
        Error::Device { what, fix: known.fix().into() }
    }
}

impl Library {
    /// The driver of this process, loaded at the first call.
    ///
    /// # Errors
    /// [`Error::Device`]: there is none, or it is too old.
    fn get() -> Result<&'static Self> {
        static LIBRARY: OnceLock<Result<Library, Missing>> = OnceLock::new();
        LIBRARY.get_or_init(Self::load).as_ref().map_err(|missing| missing.clone().into())
    }

    fn load() -> Result<Self, Missing> {
        // SAFETY: as in `symbol`; cudarc looks under the names that drivers have, and closes what it opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Missing { what: "no CUDA driver found".into(), fix: INSTALL });
        }
        let functions = Functions::load().map_err(|name| Missing {
            what: format!("the CUDA driver is too old: its library has no function {name}"),
            fix: INSTALL,
        })?;
        let func_load = symbol("cuFuncLoad\0").ok();
        let mut library = Self { functions, func_load, version: 0, calls: calls::Calls::default() };
        let mut version = 0;
        // SAFETY: writes the number that the pointer points to; may be called before anything else.
        let result =
            library.call("cuDriverGetVersion", |driver| unsafe { (driver.cuDriverGetVersion)(&mut version) });
        result.map_err(|fault| match fault.error("CUDA driver") {
            Error::Device { what, .. } => Missing { what, fix: INSTALL },
            other => Missing { what: other.to_string(), fix: INSTALL },
        })?;
        library.version = version;
        Ok(library)
    }

    /// Calls a driver function that returns at once, unless a sticky error has occurred.
    fn call(&self, function: &'static str, call: impl FnOnce(&Functions) -> u32) -> Result<(), Fault> {
        self.calls.make(function, || call(&self.functions))
    }

    /// As [`Library::call`], for functions that may block. Calls of other threads proceed meanwhile.
    fn call_waiting(
        &self,
        function: &'static str,
        call: impl FnOnce(&Functions) -> u32,
    ) -> Result<(), Fault> {
        self.calls.wait(function, || call(&self.functions))
    }
}
