//! Compiles the kernels: nvcc turns the sources into PTX once, and ptxas that into machine code for every architecture.
//!
//! The two may be of different releases. PTX is made readable for old drivers (`build/ptx.rs`); the release
//! of ptxas decides which drivers load the machine code, so that of CUDA 12.8 is used if
//! `scripts/setup-nvcc.sh` has installed it. Without nvcc the build still succeeds: the library then has no
//! machine code and reports the reason. Results are cached with a key of all inputs, and rebuilt only if that
//! changed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use crate::Failure;
use crate::kernels::Sources;
use crate::ptx;
use crate::ptxas::{self, Usage};

/// A release of the toolkit: 12 and 8.
type Release = (u32, u32);

/// The architectures with machine code (86 is sm_86), and the first release whose ptxas supports them.
const ARCHITECTURES: [(u32, Release); 5] =
    [(80, (11, 0)), (86, (11, 1)), (89, (11, 8)), (90, (11, 8)), (120, (12, 8))];

/// The virtual architecture of the common PTX. All machine code is made from it: the front end runs once instead of once for
/// every architecture, and the emulator's reading of the sources (no `__CUDA_ARCH__` branches) is the only one.
const VIRTUAL: u32 = 80;

/// The oldest accepted release, for C++17 and sm_90.
const OLDEST: Release = (12, 0);

/// The ptxas that is preferred to that of nvcc's own release, in `.cuda/bin`.
const PINNED_PTXAS: &str = "ptxas-12.8";

/// No contraction of a * b + c; both nvcc and ptxas need the flag.
const NO_FUSING: &str = "-fmad=false";

/// All kernels for one architecture, or as PTX, in a compressed file.
pub(crate) struct Image {
    /// 86 for sm_86 or compute_86.
    pub(crate) arch: u32,
    /// Whether this is PTX.
    pub(crate) is_ptx: bool,
    /// The file in `OUT_DIR`, in the format of zlib.
    pub(crate) file: String,
    /// Bytes after decompression.
    pub(crate) size: usize,
}

/// The result of compiling the kernels.
pub(crate) struct Compiled {
    /// The images, or none.
    pub(crate) images: Vec<Image>,
    /// The compiler of the PTX, or the reason why there was none.
    pub(crate) nvcc: String,
    /// The compiler of the machine code; empty if none.
    pub(crate) ptxas: String,
    /// Resources of each kernel on each architecture.
    pub(crate) usages: Vec<Usage>,
}

impl Compiled {
    /// No kernels, for this reason.
    pub(crate) fn without(reason: &str) -> Self {
        Self { images: Vec::new(), nvcc: reason.to_owned(), ptxas: String::new(), usages: Vec::new() }
    }
}

/// Compiles `unit` to compressed images in `out`.
///
/// # Errors
/// The output of a compiler that failed.
pub(crate) fn compile(out: &Path, unit: &Path, sources: &Sources) -> Result<Compiled, Failure> {
    let Compilers { nvcc, ptxas } = match find() {
        Ok(compilers) => compilers,
        Err(reason) => return Ok(Compiled::without(&reason)),
    };
    let architectures: Vec<u32> =
        ARCHITECTURES.iter().filter(|(_, first)| ptxas.release >= *first).map(|(arch, _)| *arch).collect();
    let (lowered, log, key) = (out.join("kernels.ptx"), out.join("ptxas.log"), out.join("kernels.key"));
    let mut front = Command::new(&nvcc.path);
    front.args(["-std=c++17", "-O3", NO_FUSING, "--ptx", "-x", "cu", "-I", "kernels"]);
    front.arg(format!("-arch=compute_{VIRTUAL}")).arg("-o").arg(out.join("front.ptx")).arg(unit);
    let backs: Vec<(u32, PathBuf)> =
        architectures.iter().map(|sm| (*sm, out.join(format!("sm_{sm}.cubin")))).collect();

    let names = (format!("nvcc {}", nvcc.version), format!("ptxas {}", ptxas.version));
    let wanted =
        format!("{front:?}\n{names:?} {architectures:?} {:?}\n{}", ptx::LANGUAGE, sources.everything());
    let kept = fs::read_to_string(&key).is_ok_and(|made| made == wanted)
        && lowered.exists()
        && backs.iter().all(|(_, file)| file.with_extension("z").exists());
    if !kept {
        // Without a key the leftovers of a failed run are ignored.
        let _ = fs::remove_file(&key);
        let warnings = run(&mut front)?;
        let text = fs::read_to_string(out.join("front.ptx"))?;
        let text = ptx::lower(&text).map_err(|what| {
            format!(
                "{} wrote PTX that older drivers may not read: {what}; build/ptx.rs has to learn it",
                names.0
            )
        })?;
        fs::write(&lowered, &text)?;
        let said = assemble(&ptxas.path, &lowered, &backs)?;
        for (_, file) in &backs {
            pack(file, fs::read(file)?)?;
        }
        // The driver reads text up to a zero byte.
        pack(&lowered, [text.as_bytes(), &[0]].concat())?;
        fs::write(&log, warnings + &said)?;
        fs::write(&key, wanted)?;
    }
    let log = fs::read_to_string(&log)?;
    let usages = ptxas::read(&log)?;
    warn(&log, &usages);
    let image = |arch: u32, is_ptx: bool, file: &Path, size: u64| Image {
        arch,
        is_ptx,
        file: file.with_extension("z").file_name().unwrap_or_default().to_string_lossy().into_owned(),
        size: usize::try_from(size).unwrap_or(usize::MAX),
    };
    let mut images = Vec::new();
    for (arch, file) in &backs {
        images.push(image(*arch, false, file, fs::metadata(file)?.len()));
    }
    images.push(image(VIRTUAL, true, &lowered, fs::metadata(&lowered)?.len() + 1));
    Ok(Compiled { images, nvcc: names.0, ptxas: names.1, usages })
}

/// Runs ptxas for every architecture, in parallel on all processors, and returns their output.
fn assemble(ptxas: &Path, ptx: &Path, files: &[(u32, PathBuf)]) -> Result<String, Failure> {
    let next = AtomicUsize::new(0);
    let said: Mutex<Vec<Result<String, String>>> = Mutex::default();
    let work = || {
        while let Some((sm, cubin)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut command = Command::new(ptxas);
            command.args(["-v", "-m64", NO_FUSING]).arg(format!("-arch=sm_{sm}"));
            let result = run(command.arg("-o").arg(cubin).arg(ptx)).map_err(|failure| failure.to_string());
            said.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(result);
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(files.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    let said = said.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(said.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

/// Runs a compiler and returns its output.
fn run(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("cannot run {name}: {e}"))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(format!("{name} failed ({}):\n{said}", output.status).into()),
    }
}

/// Writes `bytes` compressed beside `file`, as `.z`. The library decompresses the image that it loads, so it
/// does not depend on the formats that a driver supports.
fn pack(file: &Path, bytes: Vec<u8>) -> Result<(), Failure> {
    // Without the feature nothing is compiled, and the compression crate is not available.
    #[cfg(feature = "cuda")]
    let bytes = miniz_oxide::deflate::compress_to_vec_zlib(&bytes, 6);
    fs::write(file.with_extension("z"), bytes)?;
    Ok(())
}

/// Shows the warnings of the compilers, each line once, and faults that a test will refuse.
fn warn(log: &str, usages: &[Usage]) {
    let warnings: BTreeSet<&str> = log.lines().filter(|line| line.contains("warning")).collect();
    for warning in warnings {
        println!("cargo::warning={warning}");
    }
    for Usage { symbol, sm, stack, spills, .. } in
        usages.iter().filter(|usage| usage.stack + usage.spills > 0)
    {
        println!("cargo::warning={symbol} on sm_{sm}: {stack} bytes of stack, {spills} bytes of spills");
    }
}

/// A compiler.
struct Compiler {
    path: PathBuf,
    release: Release,
    /// `13.0, V13.0.88`.
    version: String,
}

/// The fix.
struct Compilers {
    nvcc: Compiler,
    ptxas: Compiler,
}

/// Looks for nvcc below `$CUDA_HOME`, on the `PATH`, and where `scripts/setup-nvcc.sh` installs it; the first
/// one found is used. ptxas is the pinned one, else that of nvcc.
fn find() -> Result<Compilers, String> {
    let executable = |name: &str| format!("{name}{}", env::consts::EXE_SUFFIX);
    let name = executable("nvcc");
    let home = env::var_os("CUDA_HOME").filter(|home: &OsString| !home.is_empty());
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if let Some(home) = &home
        && !Path::new(home).join("bin").join(&name).is_file()
    {
        println!("cargo::warning=CUDA_HOME is set, but there is no bin/{name} below it");
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::current_dir().map(|root| root.join(".cuda/bin")).ok();
    let folders = home.map(|home| Path::new(&home).join("bin")).into_iter();
    let folders = folders.chain(env::split_paths(&path)).chain(own.clone());
    let found = folders.map(|folder| folder.join(&name)).find(|candidate| candidate.is_file());
    let Some(path) = found else {
        // A new compiler on the PATH must be noticed; one in .cuda is noticed because the script touches
        // kernels/.
        println!("cargo::rerun-if-env-changed=PATH");
        return Err("no nvcc was found below $CUDA_HOME, on the PATH or in .cuda when this was built; \
             scripts/setup-nvcc.sh installs one into .cuda, then build again"
            .to_owned());
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let nvcc = open(path, "nvcc")?;
    if nvcc.release < OLDEST {
        return Err(format!(
            "the nvcc that was found is of CUDA {}.{}, and {}.{} is the oldest that can compile the kernels; \
             scripts/setup-nvcc.sh installs a newer one into .cuda: build again with CUDA_HOME=.cuda",
            nvcc.release.0, nvcc.release.1, OLDEST.0, OLDEST.1
        ));
    }
    // nvcc may be a link into the folder where the others are.
    let places = [Some(nvcc.path.clone()), fs::canonicalize(&nvcc.path).ok()];
    let beside = places.into_iter().flatten().map(|path| path.with_file_name(executable("ptxas")));
    let pinned = own.map(|own| own.join(executable(PINNED_PTXAS)));
    let Some(path) = pinned.into_iter().chain(beside).find(|candidate| candidate.is_file()) else {
        return Err("an nvcc was found, but no ptxas beside it".to_owned());
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let ptxas = open(path, "ptxas")?;
    if ptxas.release.0 > 12 {
        println!(
            "cargo::warning=machine code by ptxas {}.{} needs an NVIDIA driver for CUDA {}.0; older drivers compile the PTX \
             when they load it. scripts/setup-nvcc.sh installs a ptxas whose code drivers from 525 on load",
            ptxas.release.0, ptxas.release.1, ptxas.release.0
        );
    }
    Ok(Compilers { nvcc, ptxas })
}

/// Asks a compiler for its version.
fn open(path: PathBuf, name: &str) -> Result<Compiler, String> {
    let output = Command::new(&path).arg("--version").output();
    let output = output.map_err(|e| format!("the {name} that was found cannot be run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().find_map(|line| line.split_once("release ")).map(|(_, rest)| rest.trim());
    let release = words.and_then(|words| words.split_once(',')?.0.split_once('.'));
    let release = release.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match (release, words) {
        (Some(release), Some(words)) => Ok(Compiler { release, version: words.to_owned(), path }),
        _ => Err(format!("the {name} that was found does not say its version")),
    }
}
