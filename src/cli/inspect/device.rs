//! `tanren inspect device`: the processor, the GPUs, which kernels of this build run on them, and the
//! self-test.

use crate::cli::console::Console;
use crate::cli::options::{DeviceArgs, WhichDevice};
use crate::cli::table;
use crate::cli::units::bytes;
use crate::config::DeviceChoice;
use crate::device::gpus::{Driver, GpuInfo, gpus};
use crate::device::image::{Choice, images};
use crate::device::self_test::{Finding, Outcome, self_test};
use crate::device::{Device, GpuMemory, primitives};
use crate::error::{Error, Result};
use crate::ops::lora_matmul;

/// A check of a device.
type Check = fn(&Device) -> Result<Vec<Finding>>;

/// The checks that `--self-test` runs after [`self_test`], in this order, on devices that run kernels.
const KERNEL_CHECKS: [Check; 2] = [primitives::self_test, lora_matmul::gpu::self_test];

/// Shows the requested devices, and tests them with `--self-test`.
///
/// # Errors
/// [`Error::Device`] if a device requested by name is missing or cannot be used, or if a test failed.
pub(super) fn show(args: &DeviceArgs, console: &Console) -> Result<()> {
    console.lines(table::pairs(&[("kernels", images())]));
    let mut tests = Tests { wanted: args.self_test, failed: Vec::new(), console };
    match args.device {
        WhichDevice::One(DeviceChoice::Cpu) => tests.run(&show_cpu(console)?)?,
        WhichDevice::One(DeviceChoice::Emulated) => tests.run(&show_emulated(console)?)?,
        WhichDevice::One(DeviceChoice::Cuda(index)) => {
            let driver = gpus()?;
            let gpu = Opened::new(&driver, index)?;
            show_gpu(driver.gpu(index)?, &driver, Ok(&gpu), console);
            tests.run(&gpu.device)?;
        }
        WhichDevice::One(DeviceChoice::Auto) => {
            let first = gpus().and_then(|driver| Ok((Opened::new(&driver, 0)?, driver)));
            match first {
                Ok((gpu, driver)) => {
                    show_gpu(driver.gpu(0)?, &driver, Ok(&gpu), console);
                    tests.run(&gpu.device)?;
                }
                Err(Error::Device { what, .. }) => {
                    console.note(format_args!("device: cpu ({what})"));
                    tests.run(&show_cpu(console)?)?;
                }
                Err(other) => return Err(other),
            }
        }
        WhichDevice::All => show_all(&mut tests)?,
    }
    tests.finish()
}

/// Shows all devices. A GPU that cannot be used is shown with the reason; it is an error only with
/// `--self-test`.
fn show_all(tests: &mut Tests<'_>) -> Result<()> {
    let console = tests.console;
    tests.run(&show_cpu(console)?)?;
    if cfg!(feature = "emulated") {
        tests.run(&show_emulated(console)?)?;
    }
    let driver = match gpus() {
        Ok(driver) => driver,
        Err(error) => {
            console.heading("cuda");
            console.lines(table::pairs(&[("usable", not_usable(&error))]));
            return Ok(());
        }
    };
    for gpu in &driver.gpus {
        let opened = Opened::new(&driver, gpu.index);
        show_gpu(gpu, &driver, opened.as_ref(), console);
        match opened {
            Ok(opened) => tests.run(&opened.device)?,
            Err(_) => tests.failed.push(gpu.to_string()),
        }
    }
    Ok(())
}

/// A GPU in use.
struct Opened {
    device: Device,
    /// The image with its kernels; `None` in a build without kernels.
    image: Option<Choice>,
    memory: Option<GpuMemory>,
}

impl Opened {
    fn new(driver: &Driver, index: usize) -> Result<Self> {
        let gpu = driver.gpu(index)?;
        let device = Device::cuda(index)?;
        let image = gpu.image(driver.version).ok();
        let memory = device.card_memory()?;
        Ok(Self { device, image, memory })
    }
}

/// The self-tests of one call.
struct Tests<'a> {
    wanted: bool,
    /// Devices that failed.
    failed: Vec<String>,
    console: &'a Console,
}

impl Tests<'_> {
    /// Tests `device` if requested, and shows the results.
    fn run(&mut self, device: &Device) -> Result<()> {
        if !self.wanted {
            return Ok(());
        }
        let mut findings = self_test(device)?;
        // Findings before an error are shown too.
        let result = KERNEL_CHECKS.into_iter().filter(|_| device.runs_kernels()).try_for_each(|check| {
            findings.extend(check(device)?);
            Ok(())
        });
        if findings.iter().any(|finding| finding.outcome == Outcome::Failed) {
            self.failed.push(device.label().to_owned());
        }
        let row = |Finding { check, detail, outcome }: Finding| {
            let word = match outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            vec![word.to_owned(), check.to_owned(), detail]
        };
        let rows: Vec<_> = findings.into_iter().map(row).collect();
        self.console.heading(format_args!("self-test of {}", device.label()));
        self.console.lines(table::columns(&["", "check", ""], &rows));
        result
    }

    fn finish(self) -> Result<()> {
        if !self.wanted || self.failed.is_empty() {
            return Ok(());
        }
        Err(Error::Device {
            what: format!("the self-test failed on {}", self.failed.join(", ")),
            fix: "do not trust results of this device; look for \"Xid\" in the kernel log (dmesg | grep -i xid), update the \
                  driver, and report it if that does not help"
                .into(),
        })
    }
}

fn show_cpu(console: &Console) -> Result<Device> {
    let device = Device::cpu(0)?;
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |n| n.to_string());
    console.heading(device.label());
    console.lines(table::pairs(&[
        ("threads", format!("{} on {cores} cores", device.num_threads())),
        ("vector units", vector_units()),
        ("memory", host_memory()),
        ("usable", "yes: training and scoring in f32".to_owned()),
    ]));
    Ok(device)
}

#[cfg(feature = "emulated")]
fn show_emulated(console: &Console) -> Result<Device> {
    use crate::device::EmulatorOptions;
    let device = Device::emulated(EmulatorOptions { check: true, ..EmulatorOptions::default() })?;
    console.heading(device.label());
    console.lines(table::pairs(&[
        ("kernels", "run on the processor, and every access is checked".to_owned()),
        ("usable", "for tests of kernels; not for training and scoring".to_owned()),
    ]));
    Ok(device)
}

#[cfg(not(feature = "emulated"))]
fn show_emulated(_: &Console) -> Result<Device> {
    Err(Error::Device {
        what: "this build has no emulator of GPU kernels: it was made without the feature `emulated`".into(),
        fix: "build with --features emulated".into(),
    })
}

fn show_gpu(gpu: &GpuInfo, driver: &Driver, opened: Result<&Opened, &Error>, console: &Console) {
    let (major, minor) = gpu.compute_capability;
    let memory = opened.ok().and_then(|opened| opened.memory);
    console.heading(gpu);
    console.lines(table::pairs(&[
        ("driver", format!("for CUDA {}", driver.version)),
        ("compute capability", format!("{major}.{minor}")),
        (
            "multiprocessors",
            format!(
                "{}, {} of shared memory per block",
                gpu.num_multiprocessors,
                bytes(gpu.smem_per_block.into())
            ),
        ),
        (
            "memory",
            match memory {
                Some(memory) => {
                    format!("{}, {} free", bytes(memory.total_bytes), bytes(memory.free_bytes))
                }
                None => bytes(gpu.total_bytes),
            },
        ),
        (
            "usable",
            match opened {
                Ok(Opened { image: Some(choice), .. }) => format!("yes, with {choice}"),
                Ok(Opened { image: None, .. }) => "for copies only: this build has no kernels".to_owned(),
                Err(error) => not_usable(error),
            },
        ),
    ]));
}

/// The reason, and the fix.
fn not_usable(error: &Error) -> String {
    match error {
        Error::Device { what, fix } => format!("no: {what}; fix: {fix}"),
        other => format!("no: {other}"),
    }
}

/// The instruction sets that the ops use and this processor has.
fn vector_units() -> String {
    #[cfg(target_arch = "x86_64")]
    let units = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let units = [("NEON", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let units: [(&str, bool); 0] = [];
    let names: Vec<&str> = units.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    if names.is_empty() { "none that the ops use".to_owned() } else { names.join(", ") }
}

/// Memory of the machine, if the system reports it.
fn host_memory() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    match (field("MemTotal"), field("MemAvailable")) {
        (Some(total), Some(available)) => format!("{}, {} available", bytes(total), bytes(available)),
        _ => "?".to_owned(),
    }
}
