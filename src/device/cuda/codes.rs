//! The driver's error codes: their names, whether the GPU can be used afterwards, and what to do.
//!
//! Names and numbers are those of `CUresult` in cuda.h (13.0). An error is *sticky* if the header says that
//! the process is left in an inconsistent state, or if experience shows it. An unknown number comes from a
//! newer driver; since its effect is not known, it counts as sticky too.

use Advice::{Driver, Hardware, Memory, Mps, NoDevice, Ours, Restart, Shared};

/// An error code and its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    /// As in cuda.h, without `CUDA_ERROR_`; empty for an unknown number.
    pub(super) name: &'static str,
    /// True if the driver must not be called again in this process.
    pub(super) sticky: bool,
    /// Explanation, if the name is not enough.
    pub(super) meaning: &'static str,
    /// The kind of fix.
    advice: Advice,
}

/// Kinds of fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Advice {
    /// Install another driver, or reinstall it.
    Driver,
    /// Check the hardware: card, bus, cooling.
    Hardware,
    /// Use less memory.
    Memory,
    /// Check the multi-process service (MPS).
    Mps,
    /// Make a GPU visible.
    NoDevice,
    /// Report a bug in this program.
    Ours,
    /// Start the program again.
    Restart,
    /// Another process uses the GPU.
    Shared,
}

impl Code {
    /// The fix, as text for the user.
    pub(super) fn fix(&self) -> &'static str {
        match self.advice {
            Driver => {
                "check that `nvidia-smi` works, reinstall the NVIDIA driver and reboot, or pass --device cpu"
            }
            Hardware => {
                "look for \"Xid\" in the kernel log (dmesg | grep -i xid): 48, 63, 64, 79, 94 and 95 mean a failing card, bus \
                 or power supply; then start the run again, it goes on with --resume auto"
            }
            Memory => "close other programs on the GPU, or lower --max-tokens-per-pass or --lora-r",
            Mps => "restart the CUDA MPS server, or run without it",
            NoDevice => "check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or pass --device cpu",
            Ours => "this is a mistake in tanren: please report the message and the command",
            Restart => {
                "start the run again, it goes on with --resume auto; look for \"Xid\" in the kernel log (dmesg | grep -i xid) to \
                 tell a failing card from a mistake in tanren, and report the latter"
            }
            Shared => "wait for the other program, or switch its exclusive mode off (nvidia-smi -c 0)",
        }
    }
}

/// The number `code`.
pub(super) fn lookup(code: u32) -> Code {
    let known = CODES.binary_search_by_key(&code, |row| row.0).ok().map(|i| CODES[i]);
    let (_, name, sticky, advice, meaning) = known.unwrap_or((
        code,
        "",
        true,
        Restart,
        "the driver is newer than this program, which does not know the number",
    ));
    Code { name, sticky, meaning, advice }
}

/// Ends up as part of [`Code`]: number, name, sticky, advice, meaning. Sorted by number.
type Row = (u32, &'static str, bool, Advice, &'static str);

const STICKY: bool = true;
const PASSES: bool = false;

#[rustfmt::skip]
const CODES: &[Row] = &[
    (1, "INVALID_VALUE", PASSES, Ours, "an argument is out of range"),
    (2, "OUT_OF_MEMORY", PASSES, Memory, "not enough memory on the GPU, or not enough that can be pinned on the host"),
    (3, "NOT_INITIALIZED", PASSES, Ours, "the driver was not initialized"),
    // Nothing works any more, and calls may crash.
    (4, "DEINITIALIZED", STICKY, Restart, "the driver is shutting down"),
    (5, "PROFILER_DISABLED", PASSES, Ours, ""),
    (6, "PROFILER_NOT_INITIALIZED", PASSES, Ours, ""),
    (7, "PROFILER_ALREADY_STARTED", PASSES, Ours, ""),
    (8, "PROFILER_ALREADY_STOPPED", PASSES, Ours, ""),
    (34, "STUB_LIBRARY", PASSES, Driver, "libcuda.so is the stub of the CUDA toolkit and not a driver; take its folder out of LD_LIBRARY_PATH"),
    (36, "CALL_REQUIRES_NEWER_DRIVER", PASSES, Driver, "the driver is too old"),
    (46, "DEVICE_UNAVAILABLE", PASSES, Shared, "the GPU is busy or in exclusive mode"),
    (100, "NO_DEVICE", PASSES, NoDevice, "there is no GPU that CUDA can use"),
    (101, "INVALID_DEVICE", PASSES, NoDevice, "there is no such GPU"),
    (102, "DEVICE_NOT_LICENSED", PASSES, Driver, "the virtual GPU has no licence"),
    (200, "INVALID_IMAGE", PASSES, Ours, "the machine code of the kernels is damaged"),
    (201, "INVALID_CONTEXT", PASSES, Ours, "no context is current"),
    (202, "CONTEXT_ALREADY_CURRENT", PASSES, Ours, ""),
    (205, "MAP_FAILED", PASSES, Ours, ""),
    (206, "UNMAP_FAILED", PASSES, Ours, ""),
    (207, "ARRAY_IS_MAPPED", PASSES, Ours, ""),
    (208, "ALREADY_MAPPED", PASSES, Ours, ""),
    (209, "NO_BINARY_FOR_GPU", PASSES, Driver, "the kernels of this build do not run on this GPU"),
    (210, "ALREADY_ACQUIRED", PASSES, Ours, ""),
    (211, "NOT_MAPPED", PASSES, Ours, ""),
    (212, "NOT_MAPPED_AS_ARRAY", PASSES, Ours, ""),
    (213, "NOT_MAPPED_AS_POINTER", PASSES, Ours, ""),
    // The header does not call it sticky, but the driver destroys the context of the faulty page.
    (214, "ECC_UNCORRECTABLE", STICKY, Hardware, "the memory of the GPU lost data"),
    (215, "UNSUPPORTED_LIMIT", PASSES, Ours, ""),
    (216, "CONTEXT_ALREADY_IN_USE", PASSES, Shared, "the context belongs to another thread"),
    (217, "PEER_ACCESS_UNSUPPORTED", PASSES, Ours, ""),
    (218, "INVALID_PTX", PASSES, Driver, "the driver cannot compile the kernels for this GPU"),
    (219, "INVALID_GRAPHICS_CONTEXT", PASSES, Ours, ""),
    // As ECC_UNCORRECTABLE.
    (220, "NVLINK_UNCORRECTABLE", STICKY, Hardware, "an NVLink lost data"),
    (221, "JIT_COMPILER_NOT_FOUND", PASSES, Driver, "libnvidia-ptxjitcompiler is missing, and this GPU needs it"),
    (222, "UNSUPPORTED_PTX_VERSION", PASSES, Driver, "the driver is too old for the kernels of this build"),
    (223, "JIT_COMPILATION_DISABLED", PASSES, Driver, "CUDA_DISABLE_PTX_JIT is set, and this GPU needs the compiler of the driver"),
    (224, "UNSUPPORTED_EXEC_AFFINITY", PASSES, Ours, ""),
    (225, "UNSUPPORTED_DEVSIDE_SYNC", PASSES, Ours, ""),
    (226, "CONTAINED", STICKY, Hardware, "the GPU contained a hardware error"),
    (300, "INVALID_SOURCE", PASSES, Ours, ""),
    (301, "FILE_NOT_FOUND", PASSES, Driver, "a file of the driver is missing"),
    (302, "SHARED_OBJECT_SYMBOL_NOT_FOUND", PASSES, Driver, "the libraries of the driver do not fit each other"),
    (303, "SHARED_OBJECT_INIT_FAILED", PASSES, Driver, "a library of the driver cannot start"),
    (304, "OPERATING_SYSTEM", PASSES, Driver, "the operating system refused something to the driver"),
    (400, "INVALID_HANDLE", PASSES, Ours, "a handle is not valid"),
    (401, "ILLEGAL_STATE", PASSES, Ours, ""),
    (402, "LOSSY_QUERY", PASSES, Ours, ""),
    (500, "NOT_FOUND", PASSES, Ours, "the kernels of this build have no such name"),
    (600, "NOT_READY", PASSES, Ours, "the work is still under way"),
    (700, "ILLEGAL_ADDRESS", STICKY, Restart, "a kernel read or wrote memory that is not there"),
    // Refused before any work ran, so the context is unchanged.
    (701, "LAUNCH_OUT_OF_RESOURCES", PASSES, Ours, "the kernel needs more registers or shared memory than there are"),
    (702, "LAUNCH_TIMEOUT", STICKY, Restart, "a kernel took longer than the display of this GPU allows"),
    (703, "LAUNCH_INCOMPATIBLE_TEXTURING", PASSES, Ours, ""),
    (704, "PEER_ACCESS_ALREADY_ENABLED", PASSES, Ours, ""),
    (705, "PEER_ACCESS_NOT_ENABLED", PASSES, Ours, ""),
    (708, "PRIMARY_CONTEXT_ACTIVE", PASSES, Ours, ""),
    // Every handle is gone with the context.
    (709, "CONTEXT_IS_DESTROYED", STICKY, Restart, "the GPU was reset"),
    (710, "ASSERT", STICKY, Restart, "a kernel found something that must not be"),
    (711, "TOO_MANY_PEERS", PASSES, Ours, ""),
    (712, "HOST_MEMORY_ALREADY_REGISTERED", PASSES, Ours, ""),
    (713, "HOST_MEMORY_NOT_REGISTERED", PASSES, Ours, ""),
    (714, "HARDWARE_STACK_ERROR", STICKY, Restart, "the stack of a kernel is damaged"),
    (715, "ILLEGAL_INSTRUCTION", STICKY, Restart, "a kernel met an instruction that this GPU does not have"),
    (716, "MISALIGNED_ADDRESS", STICKY, Restart, "a kernel read or wrote at an address that is not aligned"),
    (717, "INVALID_ADDRESS_SPACE", STICKY, Restart, "a kernel used an address of another kind of memory"),
    (718, "INVALID_PC", STICKY, Restart, "a kernel left its code"),
    (719, "LAUNCH_FAILED", STICKY, Restart, "a kernel failed, or the GPU did"),
    (720, "COOPERATIVE_LAUNCH_TOO_LARGE", PASSES, Ours, ""),
    (721, "TENSOR_MEMORY_LEAK", STICKY, Restart, "a kernel kept tensor memory"),
    (800, "NOT_PERMITTED", PASSES, Shared, "the driver does not permit it"),
    (801, "NOT_SUPPORTED", PASSES, Driver, "this GPU or driver cannot do it"),
    (802, "SYSTEM_NOT_READY", PASSES, Driver, "a service of the driver does not run (nvidia-fabricmanager on NVSwitch machines)"),
    (803, "SYSTEM_DRIVER_MISMATCH", PASSES, Driver, "the library and the kernel module of the driver have different versions; reboot after an update"),
    (804, "COMPAT_NOT_SUPPORTED_ON_DEVICE", PASSES, Driver, "the forward compatibility package does not support this GPU; take it out of LD_LIBRARY_PATH"),
    (805, "MPS_CONNECTION_FAILED", PASSES, Mps, ""),
    (806, "MPS_RPC_FAILURE", PASSES, Mps, ""),
    (807, "MPS_SERVER_NOT_READY", PASSES, Mps, ""),
    (808, "MPS_MAX_CLIENTS_REACHED", PASSES, Mps, ""),
    (809, "MPS_MAX_CONNECTIONS_REACHED", PASSES, Mps, ""),
    (810, "MPS_CLIENT_TERMINATED", STICKY, Mps, "the MPS server ended this program's access, often because another program failed"),
    (811, "CDP_NOT_SUPPORTED", PASSES, Ours, ""),
    (812, "CDP_VERSION_MISMATCH", PASSES, Ours, ""),
    (900, "STREAM_CAPTURE_UNSUPPORTED", PASSES, Ours, ""),
    (901, "STREAM_CAPTURE_INVALIDATED", PASSES, Ours, ""),
    (902, "STREAM_CAPTURE_MERGE", PASSES, Ours, ""),
    (903, "STREAM_CAPTURE_UNMATCHED", PASSES, Ours, ""),
    (904, "STREAM_CAPTURE_UNJOINED", PASSES, Ours, ""),
    (905, "STREAM_CAPTURE_ISOLATION", PASSES, Ours, ""),
    (906, "STREAM_CAPTURE_IMPLICIT", PASSES, Ours, ""),
    (907, "CAPTURED_EVENT", PASSES, Ours, ""),
    (908, "STREAM_CAPTURE_WRONG_THREAD", PASSES, Ours, ""),
    (909, "TIMEOUT", PASSES, Ours, ""),
    (910, "GRAPH_EXEC_UPDATE_FAILURE", PASSES, Ours, ""),
    (911, "EXTERNAL_DEVICE", STICKY, Hardware, "a device beside the GPU failed"),
    (912, "INVALID_CLUSTER_SIZE", PASSES, Ours, ""),
    (913, "FUNCTION_NOT_LOADED", PASSES, Ours, ""),
    (914, "INVALID_RESOURCE_TYPE", PASSES, Ours, ""),
    (915, "INVALID_RESOURCE_CONFIGURATION", PASSES, Ours, ""),
    // Confidential computing: data encrypted with the old key is lost.
    (916, "KEY_ROTATION", STICKY, Restart, "the encryption key of the GPU could not be changed"),
    // Seen after a suspend, a lost card and a crashed driver; no later call succeeded.
    (999, "UNKNOWN", STICKY, Hardware, "the driver failed, after a suspend, a lost card or an error of its own"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_sticky_where_the_header_says_so() {
        assert!(CODES.is_sorted_by_key(|row| row.0));
        let in_header = [226, 700, 702, 714, 715, 716, 717, 718, 719, 721, 810, 911];
        let by_experience = [4, 214, 220, 709, 710, 916, 999];
        let sticky: Vec<u32> = CODES.iter().filter(|row| row.2).map(|row| row.0).collect();
        let mut expected = [&in_header[..], &by_experience[..]].concat();
        expected.sort_unstable();
        assert_eq!(sticky, expected);
    }

    #[test]
    fn what_nobody_knows_is_sticky() {
        for code in [9, 722, 1000, u32::MAX] {
            assert!(lookup(code).sticky, "{code}");
        }
        let known = lookup(700);
        assert!(known.sticky && known.name == "ILLEGAL_ADDRESS" && known.fix().contains("Xid"), "{known:?}");
    }
}
