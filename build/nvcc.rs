//! Finds nvcc and compiles the kernels: machine code for every architecture of [`ARCHITECTURES`] and PTX for newer ones.
//!
//! A machine without nvcc still builds: the library then has no machine code and can say why. What nvcc made is kept with
//! everything it depends on, and made again only if that changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::Failure;
use crate::kernels::Sources;
use crate::ptxas::{self, Usage};

/// The architectures with machine code: 86 is sm_86.
pub(crate) const ARCHITECTURES: [u32; 4] = [80, 86, 89, 90];

/// The virtual architecture of the common PTX. All machine code is made from it: the front end runs once instead of once for
/// every architecture, and the emulator's reading of the sources (no `__CUDA_ARCH__` branches) is the only one.
const VIRTUAL: u32 = 80;

/// The oldest release that is taken, for C++17 and sm_90.
const OLDEST: (u32, u32) = (12, 0);

/// The first release with `--compress-mode`.
const COMPRESS_MODE: (u32, u32) = (12, 8);

/// What became of the kernels.
pub(crate) struct Compiled {
    /// The file in `OUT_DIR` that holds all machine code, or none.
    pub(crate) fatbin: Option<&'static str>,
    /// Which compiler it was, or why there was none.
    pub(crate) nvcc: String,
    /// What each kernel takes on each architecture.
    pub(crate) usages: Vec<Usage>,
}

impl Compiled {
    /// Nothing, for this reason.
    pub(crate) fn without(reason: &str) -> Self {
        Self { fatbin: None, nvcc: reason.to_owned(), usages: Vec::new() }
    }
}

/// Compiles `unit` to `OUT_DIR/kernels.fatbin`.
///
/// # Errors
/// What nvcc said if it failed.
pub(crate) fn compile(out: &Path, unit: &Path, sources: &Sources) -> Result<Compiled, Failure> {
    let compiler = match find() {
        Ok(compiler) => compiler,
        Err(reason) => return Ok(Compiled::without(&reason)),
    };
    let (fatbin, log, key) = (out.join("kernels.fatbin"), out.join("nvcc.log"), out.join("nvcc.key"));
    let mut command = Command::new(&compiler.path);
    command.args(["-std=c++17", "-O3", "-fmad=false", "--fatbin", "-x", "cu", "-I", "kernels"]);
    if compiler.release >= COMPRESS_MODE {
        command.arg("--compress-mode=size");
    }
    // One process for each architecture, as many at a time as there are processors.
    command.args(["-Xptxas", "-v", "--threads", "0"]);
    let targets: Vec<String> = ARCHITECTURES.iter().map(|sm| format!("sm_{sm}")).collect();
    let targets = targets.join(",");
    command.arg(format!("-gencode=arch=compute_{VIRTUAL},code=[{targets},compute_{VIRTUAL}]"));
    command.arg("-o").arg(&fatbin).arg(unit);

    let wanted = format!("{command:?}\n{}\n{}", compiler.version, sources.everything());
    let kept = fs::read_to_string(&key).is_ok_and(|made| made == wanted) && fatbin.exists();
    if !kept {
        // Without a key, what a failed run leaves behind counts for nothing.
        let _ = fs::remove_file(&key);
        let output = command.output().map_err(|e| format!("cannot run {}: {e}", compiler.path.display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        if !output.status.success() {
            return Err(format!("nvcc failed ({}):\n{said}", output.status).into());
        }
        fs::write(&log, said.as_bytes())?;
        fs::write(&key, wanted)?;
    }
    let log = fs::read_to_string(&log)?;
    let usages = ptxas::read(&log)?;
    warn(&log, &usages);
    Ok(Compiled { fatbin: Some("kernels.fatbin"), nvcc: compiler.version, usages })
}

/// Shows what the compiler warns of, each line once, and what a test will refuse.
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
    release: (u32, u32),
    version: String,
}

/// Looks for nvcc below `$CUDA_HOME`, on the `PATH`, and where `scripts/setup-nvcc.sh` puts it. The first one counts.
fn find() -> Result<Compiler, String> {
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let home = env::var_os("CUDA_HOME").filter(|home| !home.is_empty());
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if let Some(home) = &home
        && !Path::new(home).join("bin").join(&name).is_file()
    {
        println!("cargo::warning=CUDA_HOME is set, but there is no bin/{name} below it");
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let own = env::current_dir().map(|root| root.join(".cuda")).ok();
    let folders = home.map(|home| Path::new(&home).join("bin")).into_iter();
    let folders = folders.chain(env::split_paths(&path)).chain(own.map(|own| own.join("bin")));
    let found = folders.map(|folder| folder.join(&name)).find(|candidate| candidate.is_file());
    let Some(path) = found else {
        // A new compiler on the PATH shall be noticed; one below .cuda is, because the script touches kernels/.
        println!("cargo::rerun-if-env-changed=PATH");
        return Err("no nvcc was found below $CUDA_HOME, on the PATH or in .cuda when this was built; \
             scripts/setup-nvcc.sh installs one into .cuda, then build again"
            .to_owned());
    };
    println!("cargo::rerun-if-changed={}", path.display());
    let output = Command::new(&path).arg("--version").output();
    let output = output.map_err(|e| format!("the nvcc that was found cannot be run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().find_map(|line| line.split_once("release ")).map(|(_, rest)| rest.trim());
    let release = words.and_then(|words| words.split_once(',')?.0.split_once('.'));
    let release = release.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match (release, words) {
        (Some(release), Some(words)) if release >= OLDEST => {
            Ok(Compiler { path, release, version: format!("nvcc {words}") })
        }
        (Some((major, minor)), _) => Err(format!(
            "the nvcc that was found is of CUDA {major}.{minor}, and {}.{} is the oldest that can compile the kernels; \
             scripts/setup-nvcc.sh installs a newer one into .cuda: build again with CUDA_HOME=.cuda",
            OLDEST.0, OLDEST.1
        )),
        _ => Err("the nvcc that was found does not say its version".to_owned()),
    }
}
