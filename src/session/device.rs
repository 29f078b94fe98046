//! Which device a run gets, and what the user hears about it.

use super::Notice;
use crate::config::DeviceChoice;
use crate::device::Device;
use crate::device::gpus::{Driver, gpus};
use crate::error::{Error, Result};

/// The device of a training or a scoring, with `threads` threads where it is the processor (`None`: all).
///
/// Both compute on the processor today. `auto` says in one line why, and a GPU that was asked for is opened before it is refused,
/// so that a machine whose driver is the problem is told so first.
///
/// # Errors
/// [`Error::Device`]: a GPU was asked for, and there is no driver, no such GPU, no kernels for it, or no emulator in this build.
/// An input error of class `CONFIG` if there is.
pub fn open_device(
    choice: DeviceChoice,
    threads: Option<usize>,
    notify: &mut dyn FnMut(Notice),
) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => {}
        DeviceChoice::Auto => notify(Notice::Device(format!("cpu ({})", why_cpu(gpus())))),
        DeviceChoice::Cuda(index) => {
            let driver = gpus()?;
            let gpu = driver.gpu(index)?;
            gpu.image(driver.version)?;
            Device::cuda(index)?;
            return Err(not_there_yet(choice, gpu));
        }
        DeviceChoice::Emulated if cfg!(feature = "emulated") => {
            return Err(not_there_yet(choice, &"the emulator"));
        }
        DeviceChoice::Emulated => {
            return Err(Error::Device {
                what: "this build has no emulator of GPU kernels: it was made without the feature `emulated`"
                    .into(),
                fix: "build with --features emulated, or pass --device cpu".into(),
            });
        }
    }
    Device::cpu(threads.unwrap_or(0))
}

/// Why `auto` takes the processor, given what the driver says.
fn why_cpu(driver: Result<Driver>) -> String {
    let usable = driver.and_then(|driver| {
        let gpu = driver.gpu(0)?;
        gpu.image(driver.version)?;
        Ok(gpu.to_string())
    });
    match usable {
        Ok(gpu) => format!("{gpu} is there, but training and scoring do not run on GPUs yet"),
        Err(Error::Device { what, .. }) => what,
        Err(other) => other.to_string(),
    }
}

fn not_there_yet(choice: DeviceChoice, on: &dyn std::fmt::Display) -> Error {
    Error::input(
        "CONFIG",
        format!("training and scoring do not run on {on} yet; only `tanren inspect device` uses it"),
    )
    .field("device")
    .got(choice)
    .expected("auto or cpu")
    .fix("pass --device cpu")
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Error {
        Error::Device { what: "no CUDA driver found".into(), fix: "install it".into() }
    }

    #[test]
    fn auto_says_why_it_takes_the_processor() {
        assert_eq!(why_cpu(Err(missing())), "no CUDA driver found");
        let version = crate::device::gpus::Version { major: 13, minor: 0 };
        assert!(why_cpu(Ok(Driver { version, gpus: Vec::new() })).contains("shows no GPU"));
    }

    #[test]
    fn the_processor_is_taken_without_a_word() {
        let device = open_device(DeviceChoice::Cpu, Some(1), &mut |notice| panic!("{notice:?}")).unwrap();
        assert_eq!((device.label(), device.num_threads()), ("cpu", 1));
    }
}
