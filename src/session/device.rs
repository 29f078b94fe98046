//! Choosing the device of a run, and the notice to the user about it.

use super::Notice;
use crate::config::DeviceChoice;
use crate::device::Device;
use crate::device::gpus::{Driver, gpus};
use crate::error::{Error, Result};

/// Opens the device of a training or scoring run, with `threads` threads if it is the CPU (`None`: all).
///
/// `auto` takes the first GPU that this build has kernels for, and reports its choice and the reason in one
/// line.
///
/// # Errors
/// [`Error::Device`]: a GPU was requested, but there is no driver, no such GPU, no kernels for it, or no
/// emulator in this build.
pub fn open_device(
    choice: DeviceChoice,
    threads: Option<usize>,
    notify: &mut dyn FnMut(Notice),
) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => {}
        DeviceChoice::Auto => match usable(gpus(), Device::cuda) {
            Ok((gpu, device)) => {
                notify(Notice::Device(format!("{gpu}, bf16")));
                return Ok(device);
            }
            Err(why) => notify(Notice::Device(format!("cpu ({why})"))),
        },
        DeviceChoice::Cuda(index) => {
            let driver = gpus()?;
            driver.gpu(index)?.image(driver.version)?;
            return Device::cuda(index);
        }
        DeviceChoice::Emulated => return emulated(threads),
    }
    Device::cpu(threads.unwrap_or(0))
}

#[cfg(feature = "emulated")]
fn emulated(threads: Option<usize>) -> Result<Device> {
    use crate::device::EmulatorOptions;

    // A long time limit: it is for kernels that hang, and a launch on the emulator may take minutes.
    let options =
        EmulatorOptions { threads: threads.unwrap_or(0), watchdog_secs: 600.0, ..EmulatorOptions::default() };
    Device::emulated(options)
}

#[cfg(not(feature = "emulated"))]
fn emulated(_threads: Option<usize>) -> Result<Device> {
    Err(Error::Device {
        what: "this build has no emulator of GPU kernels: it was made without the feature `emulated`".into(),
        fix: "build with --features emulated, or pass --device cpu".into(),
    })
}

/// The GPU that `auto` takes, opened with `open`, or the reason why there is none.
fn usable<D>(driver: Result<Driver>, open: impl FnOnce(usize) -> Result<D>) -> Result<(String, D), String> {
    let found = driver.and_then(|driver| {
        let gpu = driver.gpu(0)?;
        gpu.image(driver.version)?;
        Ok((gpu.to_string(), open(0)?))
    });
    found.map_err(|error| match error {
        Error::Device { what, .. } => what,
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Error {
        Error::Device { what: "no CUDA driver found".into(), fix: "install it".into() }
    }

    #[test]
    fn auto_says_why_it_takes_the_processor() {
        assert_eq!(usable(Err(missing()), |_| Ok(())), Err("no CUDA driver found".into()));
        let version = crate::device::gpus::Version { major: 13, minor: 0 };
        let driver = Driver { version, gpus: Vec::new() };
        assert!(usable(Ok(driver), |_| Ok(())).unwrap_err().contains("shows no GPU"));
    }

    #[test]
    fn the_processor_is_taken_without_a_word() {
        let device = open_device(DeviceChoice::Cpu, Some(1), &mut |notice| panic!("{notice:?}")).unwrap();
        assert_eq!((device.label(), device.num_threads()), ("cpu", 1));
    }
}
