//! Drivers for several versions of CUDA: the image that the program loads on each, and that it runs on all
//! from 525 on.
//!
//! The stub (`stub_cuda/libcuda.c`) is compiled as the driver for a CUDA. It judges images by their content,
//! independent of the program's choice, so it refuses the images that such a driver would refuse.

#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tanren::device::arch::Arch;
use tanren::device::image::architectures;
use tanren::device::kernels::IMAGES;

use crate::device::{SELF_TEST, on, small, stub_code};
use crate::stub_cuda::{driver, in_parallel, judge, tanren};

/// CUDA 12.0 came with driver 525; `cuFuncLoad` with 12.4, sm_120 with 12.8.
const VERSIONS: [u32; 5] = [12_000, 12_020, 12_040, 12_080, 13_000];

/// `12.2` of 12020.
fn name(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[test]
fn every_driver_from_525_on_passes_the_self_test_and_trains_with_graphs() {
    if IMAGES.is_empty() {
        return;
    }
    in_parallel(&VERSIONS, |&version| {
        let driver = driver(version);
        let said = format!("for CUDA {}", name(version));
        let parts =
            ["passed  copies", "passed  memory", "passed  kernel", "sm_86 machine code by ptxas", &said];
        tanren(&driver, &SELF_TEST, &[]).expect(stub_code(), &parts);

        let (dir, [train, _]) = small();
        let train: Vec<String> = train.into_iter().filter(|arg| arg != "--dry-run").collect();
        let mut args = on(&train, "cuda");
        args.extend(["--max-steps", "4", "--tokens-per-batch", "64"]);
        let log = tempfile::NamedTempFile::new().unwrap();
        let stub = [("STUB_LOG", log.path().to_str().unwrap()), ("STUB_FILL", "0")];
        tanren(&driver, &args, &stub).expect(0, &["step 4/4"]);
        let text = fs::read_to_string(log.path()).unwrap();
        let count = |name: &str| text.lines().filter(|line| *line == name).count();
        assert_eq!((count("cuStreamBeginCapture_v2"), count("cuGraphLaunch")), (2, 8), "{version}");
        // Every kernel is loaded before launches are recorded, by the function that is for it where there is one.
        assert_eq!(count("cuFuncLoad") > 0, version >= 12_040, "{version}");
        let recorded = text.lines().position(|line| line == "cuStreamBeginCapture_v2").unwrap();
        let looked_up = text.lines().take(recorded).filter(|line| *line == "cuModuleGetFunction").count();
        assert_eq!(looked_up, tanren::device::kernels::Kernel::ALL.len(), "{version}");
        let left = "exit: memory 0 pinned 0 events 0 streams 0 modules 0 contexts 0 graphs 0";
        assert_eq!(text.lines().last(), Some(left), "{version}");
        assert!(dir.path().join("out/adapter_model.safetensors").is_file());
    });
}

#[test]
fn every_driver_loads_what_is_chosen_for_a_gpu() {
    // What `scripts/setup-nvcc.sh` installs; other compilers are in the tests of `device::image`.
    if architectures() != Arch::ALL || !tanren::device::kernels::PTXAS.starts_with("ptxas 12.") {
        return;
    }
    let ptx = "PTX for compute_80, compiled by the driver";
    let gpus = [
        ("8", "0", "sm_80 machine code"),
        ("8", "6", "sm_86 machine code"),
        ("8", "7", ptx),
        ("8", "9", "sm_89 machine code"),
        ("9", "0", "sm_90 machine code"),
        ("10", "0", ptx),
        ("12", "0", "sm_120 machine code"),
        ("12", "1", "sm_120 machine code"),
    ];
    let drivers: Vec<(u32, PathBuf)> = VERSIONS.iter().map(|version| (*version, driver(*version))).collect();
    let cases: Vec<_> = drivers.iter().flat_map(|driver| gpus.map(|gpu| (driver, gpu))).collect();
    let show = ["inspect", "device", "--device", "cuda"];
    in_parallel(&cases, |((version, driver), (major, minor, image))| {
        let run = tanren(driver, &show, &[("STUB_MAJOR", major), ("STUB_MINOR", minor)]);
        let image = if *major == "12" && *version < 12_080 { ptx } else { image };
        run.expect(0, &["usable", &format!("yes, with {image}")]);
        assert!(run.calls.contains(&"cuModuleLoadData".to_owned()), "{version}: {run:?}");
    });
    for (_, driver) in &drivers {
        let parts = ["compute capability 7.5 is older", "sm_80, sm_86", "8.0 or newer"];
        tanren(driver, &show, &[("STUB_MAJOR", "7"), ("STUB_MINOR", "5")]).expect(5, &parts);
    }
}

#[test]
fn older_drivers_are_refused_with_the_driver_to_install() {
    let show = ["inspect", "device", "--device", "cuda"];
    let old = driver(11_080);
    let parts = ["too old: it is for CUDA 11.8, and 12.0 is needed", "NVIDIA driver 525 or newer"];
    tanren(&old, &show, &[]).expect(5, &parts);
    tanren(&old, &SELF_TEST, &[]).expect(5, &parts);
    tanren(&old, &["inspect", "device"], &[]).expect(0, &["usable  no:", "11.8", "525"]);
    tanren(&old, &["inspect", "device", "--device", "auto"], &[])
        .expect(0, &["device: cpu (the CUDA driver is too old"]);
    let parts = ["too old", "has no function cuGraphInstantiateWithFlags", "driver 525"];
    tanren(&driver(11_000), &show, &[]).expect(5, &parts);
}

/// Loads a file with the stub for a CUDA and a GPU of this compute capability, and gives the driver's result.
fn load(judge: &Path, image: &[u8], (major, minor): (u32, u32)) -> u32 {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image).unwrap();
    let mut command = Command::new(judge);
    command.arg(file.path()).env("STUB_MAJOR", major.to_string()).env("STUB_MINOR", minor.to_string());
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim().parse().unwrap()
}

/// The head of an ELF file of machine code, as ptxas writes it.
fn code(format: u8, flags: u32) -> Vec<u8> {
    let mut head = vec![0; 64];
    head[..9].copy_from_slice(&[
        0x7f,
        b'E',
        b'L',
        b'F',
        2,
        1,
        1,
        if format == 7 { 0x33 } else { 0x41 },
        format,
    ]);
    head[18] = 190;
    head[48..52].copy_from_slice(&flags.to_le_bytes());
    head
}

#[test]
fn the_stub_refuses_what_a_driver_of_its_release_would_refuse() {
    let ptx = |version: &str, more: &str| {
        format!("//\n// {:60}\n.version {version}\n.target sm_80\n{more}", "").into_bytes()
    };
    // Heads of files that ptxas 12.8 and 13.0 wrote for sm_86 and sm_120.
    let (old_86, new_86, sm_120) = (code(7, 0x50_0556), code(8, 0x600_5604), code(8, 0x600_7802));
    let hint = ptx("7.8", ".pragma \"used_bytes_mask 15\";\n");
    let compressed = [0x50, 0xed, 0x55, 0xba].into_iter().chain([0; 60]).collect::<Vec<u8>>();
    type Row<'a> = (&'a str, &'a [u8], (u32, u32), [u32; 4]);
    let rows: [Row<'_>; 12] = [
        // By drivers for CUDA 11.8, 12.0, 12.8 and 13.0.
        ("code of 12.8", &old_86, (8, 6), [0, 0, 0, 0]),
        ("the same on a later card", &old_86, (8, 9), [0, 0, 0, 0]),
        ("the same on an earlier one", &old_86, (8, 0), [209, 209, 209, 209]),
        ("the same on a system on a chip", &old_86, (8, 7), [209, 209, 209, 209]),
        ("code of 13.0", &new_86, (8, 6), [200, 200, 200, 0]),
        ("code for sm_120", &sm_120, (12, 0), [200, 200, 0, 0]),
        ("the same on another card", &sm_120, (9, 0), [200, 200, 209, 209]),
        ("PTX 7.8", &ptx("7.8", ""), (8, 6), [0, 0, 0, 0]),
        ("PTX 7.8 with a later hint", &hint, (8, 6), [218, 218, 218, 218]),
        ("PTX 9.0", &ptx("9.0", ""), (8, 6), [222, 222, 222, 0]),
        ("PTX on an earlier card", &ptx("7.8", ""), (7, 5), [209, 209, 209, 209]),
        ("a compressed file of images", &compressed, (8, 6), [200, 200, 200, 200]),
    ];
    let judges = [11_080, 12_000, 12_080, 13_000].map(judge);
    for (what, image, gpu, results) in rows {
        let got = judges.each_ref().map(|judge| load(judge, image, gpu));
        assert_eq!(got, results, "{what}");
    }
}
