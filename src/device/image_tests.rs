//! Which driver loads which image on which GPU.

use super::*;
use Arch::{Sm80, Sm86, Sm89, Sm90, Sm120};

const fn version(major: u32, minor: u32) -> Version {
    Version { major, minor }
}

/// What `scripts/setup-nvcc.sh` installs.
const PINNED: Build<'static> = Build { code: &Arch::ALL, ptxas: version(12, 8), ptx: Sm80 };

/// The rows of a table of GPUs, and their images by driver.
fn check(build: Build<'_>, drivers: &[Version], rows: &[((u32, u32), &[Image])]) {
    for (capability, images) in rows {
        assert_eq!(drivers.len(), images.len(), "{capability:?}");
        for (driver, image) in drivers.iter().zip(*images) {
            let got = build.choose(*capability, *driver).unwrap();
            assert_eq!(got.image, *image, "{capability:?} with a driver for {driver}: {got}");
        }
    }
}

#[test]
fn images_are_chosen_by_gpu_and_driver() {
    let drivers =
        [version(12, 0), version(12, 2), version(12, 4), version(12, 7), version(12, 8), version(13, 0)];
    let (ptx, code) = (Image::Ptx(Sm80), Image::Code);
    let rows: [((u32, u32), &[Image]); 11] = [
        ((8, 0), &[code(Sm80); 6]),
        ((8, 6), &[code(Sm86); 6]),
        // A system on a chip, which cannot run machine code for cards.
        ((8, 7), &[ptx; 6]),
        ((8, 9), &[code(Sm89); 6]),
        ((9, 0), &[code(Sm90); 6]),
        ((10, 0), &[ptx; 6]),
        ((10, 3), &[ptx; 6]),
        ((11, 0), &[ptx; 6]),
        ((12, 0), &[ptx, ptx, ptx, ptx, code(Sm120), code(Sm120)]),
        ((12, 1), &[ptx, ptx, ptx, ptx, code(Sm120), code(Sm120)]),
        ((13, 0), &[ptx; 6]),
    ];
    check(PINNED, &drivers, &rows);
    for driver in drivers {
        assert_eq!(PINNED.choose((7, 5), driver), Err(Refusal::Gpu));
    }
    for capability in [(7, 5), (8, 6), (12, 0)] {
        for driver in [version(0, 0), version(11, 8), version(11, 9)] {
            assert_eq!(PINNED.choose(capability, driver), Err(Refusal::Driver(version(12, 0))));
        }
    }
}

#[test]
fn other_compilers_leave_more_to_the_compiler_of_the_driver() {
    let drivers = [version(12, 0), version(12, 8), version(13, 0), version(14, 0)];
    let (ptx, code) = (Image::Ptx(Sm80), Image::Code);
    // nvcc 13 alone: its machine code needs a driver for CUDA 13, its PTX does not.
    let new = Build { ptxas: version(13, 1), ..PINNED };
    let rows: [((u32, u32), &[Image]); 2] =
        [((8, 6), &[ptx, ptx, code(Sm86), code(Sm86)]), ((12, 0), &[ptx, ptx, code(Sm120), code(Sm120)])];
    check(new, &drivers, &rows);
    // CUDA 12.4 alone, which does not know sm_120.
    let old = Build { code: &[Sm80, Sm86, Sm89, Sm90], ptxas: version(12, 4), ptx: Sm80 };
    check(old, &drivers, &[((8, 6), &[code(Sm86); 4]), ((12, 0), &[ptx; 4])]);
}

#[test]
fn a_choice_says_why() {
    let said = |build: Build<'_>, capability, driver| build.choose(capability, driver).unwrap().reason;
    for (text, expected) in [
        (said(PINNED, (8, 6), version(12, 2)), "the driver is for CUDA 12.2, and 12.0 is enough"),
        (said(PINNED, (12, 1), version(13, 0)), "it runs on compute capability 12.1 too"),
        (said(PINNED, (10, 0), version(13, 0)), "there is no machine code for compute capability 10.0"),
        (
            said(PINNED, (8, 7), version(13, 0)),
            "machine code of cards does not run on compute capability 8.7",
        ),
        (said(PINNED, (12, 0), version(12, 4)), "needs a driver for CUDA 12.8, and this one is for 12.4"),
    ] {
        assert!(text.ends_with(expected), "{text}");
    }
}

#[test]
fn errors_name_the_driver_to_install() {
    for (cuda, driver) in [
        (version(12, 0), "525 or newer"),
        (version(12, 7), "570 or newer"),
        (version(13, 0), "580 or newer"),
        (version(14, 0), "for CUDA 14.0 or newer"),
    ] {
        assert_eq!(driver_for(cuda), driver);
    }
    let error = too_old(version(11, 8), OLDEST_DRIVER).to_string();
    assert!(error.contains("for CUDA 11.8, and 12.0 is needed") && error.contains("525 or newer"), "{error}");
}

#[test]
fn refusals_are_errors_of_the_device() {
    if IMAGES.is_empty() {
        let error = choose("cuda:0 (A)", (8, 6), version(13, 0)).unwrap_err().to_string();
        assert!(error.contains("cuda:0 (A): this build has no kernels"), "{error}");
        return;
    }
    let error = choose("cuda:0 (A)", (7, 5), version(12, 0)).unwrap_err().to_string();
    assert!(
        error.contains("cuda:0 (A): compute capability 7.5") && error.contains("8.0 or newer"),
        "{error}"
    );
    assert!(choose("cuda:0 (A)", (7, 5), version(11, 8)).unwrap_err().to_string().contains("525"));
}

#[cfg(feature = "cuda")]
#[test]
fn images_unpack_to_what_a_driver_reads() {
    for (image, packed) in IMAGES {
        let unpacked = image.unpack().unwrap();
        let bytes = unpacked.bytes();
        assert!(bytes.len() == packed.size && bytes.as_ptr().addr().is_multiple_of(16), "{image}");
        match image {
            Image::Code(_) => assert_eq!(bytes[..4], *b"\x7fELF", "{image}"),
            Image::Ptx(arch) => {
                let text = std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap()).unwrap();
                let target = format!("\n.version 7.8\n.target sm_{}\n", arch.number());
                assert!(text.contains(&target) && !text.contains('\0'), "{image}");
            }
        }
    }
    let good: &'static [u8] = Box::leak(miniz_oxide::deflate::compress_to_vec_zlib(b"kernels", 6).into());
    assert_eq!(unpack(Packed { bytes: good, size: 7 }).unwrap().bytes(), b"kernels");
    // Too short, too long, cut off, damaged.
    let damaged: &'static [u8] =
        Box::leak([&good[..good.len() - 1], &[good[good.len() - 1] ^ 1]].concat().into());
    for (bytes, size) in [(good, 6), (good, 8), (&good[..good.len() - 2], 7), (damaged, 7)] {
        assert_eq!(unpack(Packed { bytes, size }), None);
    }
    let missing = Image::Ptx(Arch::Sm90).unpack().unwrap_err().to_string();
    assert!(missing.contains("PTX for compute_90"), "{missing}");
}
