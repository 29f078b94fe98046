//! Runs the program with a CUDA driver that is a stub (`stub_cuda/libcuda.c`), found before any real one.

#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use crate::source::root;

/// Compiles the stub with some flags to a file `name` of the folder `folder`, which it gives.
fn compile(folder: &str, name: &str, flags: &[&str]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    fs::create_dir_all(&dir).unwrap();
    // Another test may be using it, so the new file replaces the old one atomically.
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let made = dir.join(format!("new-{name}-{}-{number}", std::process::id()));
    let source = root().join("tests/it/stub_cuda/libcuda.c");
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-O1"]).args(flags).arg("-o").arg(&made).arg(source);
    let output = cc.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(made, dir.join(name)).unwrap();
    dir
}

/// The stub as the driver for a CUDA (12020 is 12.2): the folder that holds it under the names of a driver.
pub(crate) fn driver(version: u32) -> PathBuf {
    let define = format!("-DVERSION={version}");
    let folder = format!("stub_cuda_{version}");
    let dir = compile(&folder, "libcuda.so.1", &["-shared", "-fPIC", &define]);
    let _ = std::os::unix::fs::symlink("libcuda.so.1", dir.join("libcuda.so"));
    dir
}

/// The program that prints the result of loading an image on this driver.
pub(crate) fn judge(version: u32) -> PathBuf {
    let define = format!("-DVERSION={version}");
    compile(&format!("stub_cuda_{version}"), "judge", &["-DJUDGE", &define]).join("judge")
}

/// The output of a run of the program.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    /// The functions of the driver that were called; a failing one ends in ` -> CODE`.
    pub(crate) calls: Vec<String>,
}

impl Outcome {
    /// Demands an exit code, parts of what was printed, and the form of an error where there is one.
    pub(crate) fn expect(&self, code: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        let all = format!("{}{}", self.out, self.err);
        for part in parts {
            assert!(all.contains(part), "no {part:?} in {self:#?}");
        }
        if code != 0 {
            assert!(self.err.contains("error[") && self.err.contains("fix: "), "{self:#?}");
        }
        assert!(!all.contains("panicked") && !all.contains("INTERNAL"), "{self:#?}");
        self
    }

    /// Calls behind the first one that failed.
    pub(crate) fn calls_after_failure(&self) -> &[String] {
        let failed = self.calls.iter().position(|call| call.contains(" -> "));
        failed.map_or(&[], |at| &self.calls[at + 1..])
    }
}

/// Runs the program with the driver of the folder `driver` and some variables of the stub.
pub(crate) fn tanren(driver: &Path, args: &[&str], variables: &[(&str, &str)]) -> Outcome {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let log = std::env::temp_dir().join(format!(
        "tanren-stub-{}-{}",
        std::process::id(),
        RUNS.fetch_add(1, Ordering::Relaxed)
    ));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tanren"));
    command.current_dir(root()).stdin(Stdio::null()).args(args).env_remove("RUST_BACKTRACE");
    command.env("LD_LIBRARY_PATH", driver).env("STUB_LOG", &log);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let calls = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    Outcome {
        code: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
        calls: calls.lines().map(str::to_owned).filter(|line| !line.starts_with("exit: ")).collect(),
    }
}

/// The folder of the stub.
pub(crate) fn stub() -> &'static Path {
    static STUB: OnceLock<PathBuf> = OnceLock::new();
    STUB.get_or_init(|| driver(13_000))
}

/// Runs with the stub.
pub(crate) fn with_stub(args: &[&str], variables: &[(&str, &str)]) -> Outcome {
    tanren(stub(), args, variables)
}

/// Runs `cases` on a few threads: most of a case is waiting for the program.
pub(crate) fn in_parallel<T: Sync>(cases: &[T], run: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(case);
                }
            });
        }
    });
}

/// A folder with files of a driver's names that are no libraries, which also hides a driver of the machine.
pub(crate) fn no_driver() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    dir
}
