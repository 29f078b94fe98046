//! The runner of `scripts/gpu-check` with programs that fail in every way: the table of results is always
//! correct.
//!
//! The test folder is packed as by `gpu-check build`, with shell scripts in place of the programs. A file
//! defines their behaviour: tests that pass, fail, break the driver for all later tests, hang or die.
//!
//! The name of this file must not begin with `gpu`, or the runner would treat these tests as tests for cards.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[cfg(all(feature = "cuda", feature = "cli"))]
use crate::device::stub_code;
use crate::source::root;

/// A fake of a test binary of Rust's harness. `$0.tests` has a line for each test: its name, what it does.
const TESTS: &str = r#"#!/bin/sh
if [ "$1" = --list ]; then
    case "$LD_LIBRARY_PATH" in "${0%/bin/*}/lib"*) [ ! -e "$0.helped" ] || rm -f "$0.broken" ;; esac
    cat "$0.broken" >&2 2>/dev/null && exit 127
    while read -r name does; do echo "$name: test"; done <"$0.tests"
    exit
fi
broken= failed=0
echo "running some tests"
for name in "$@"; do
    does="$(sed -n "s/^$name //p" "$0.tests")"
    [ "$does" ] || continue
    printf 'test %s ... ' "$name"
    [ -z "$broken" ] || does=breaks
    case "$does" in
        passes) ;;
        chats) printf 'a figure' ;;
        slow) sleep 2 ;;
        hangs) exec sleep 600 ;;
        dies) kill -SEGV $$ ;;
        breaks) broken=yes text='CUDA_ERROR_ILLEGAL_ADDRESS (700)' ;;
        fails) text='3 is not 4' ;;
        writes_outside) echo '========= Invalid __global__ write of size 4 bytes'; echo '=========     at kernel+0x10' ;;
    esac
    case "$does" in
        fails | breaks)
            failed=101
            printf "\nthread '%s' (7) panicked at src/a.rs:3:4:\n%s\nFAILED\n" "$name" "$text"
            ;;
        *) echo ok ;;
    esac
done
echo
echo 'test result: see above'
exit "$failed"
"#;

const TANREN: &str = r#"#!/bin/sh
sleep "$(cat "$0.seconds" 2>/dev/null || echo 0)"
cat "$0.error" >&2 2>/dev/null && exit 5
echo 'cuda:0 is a test'
"#;

const STEP_BENCHES: &str = "#!/bin/sh
echo '| step | tokens/s | ms |'
echo '|---|---:|---:|'
echo \"| step ${TANREN_BENCH_QUICK-full} $2 | 100000 | 21.76 |\"
";

const KERNEL_BENCHES: &str = "#!/bin/sh
echo '| kernel | ms |'
echo '|---|---:|'
echo \"| ${2}forward 2176, quick $TANREN_BENCH_QUICK | 0.5 |\"
case \"$*\" in *\" norm/\"*) echo 'error[DEVICE] broken' >&2; exit 5 ;; esac
";

/// Prints what the tool prints, and what the tests print.
const SANITIZER: &str = r#"#!/bin/sh
echo '========= COMPUTE-SANITIZER'
while [ "${1#-}" != "$1" ]; do
    case "$1" in --error-exitcode | --tool | --report-api-errors) shift ;; esac
    shift
done
"$@"
echo '========= ERROR SUMMARY: 0 errors'
"#;

/// A packed folder, and the other programs of the machine with a GPU.
struct Folder(TempDir);

impl Folder {
    /// With the tests of `lib-tests`: a name and what it does on each line.
    fn new(tests: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let scripts = root().join("scripts/gpu_check");
        for dir in ["bin", "gpu_check", "lib", "out", "path", "tmp", "work"] {
            fs::create_dir(folder.path(dir)).unwrap();
        }
        for entry in fs::read_dir(scripts).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            let to = if name == "run" { folder.0.path().to_owned() } else { folder.path("gpu_check") };
            if path.is_file() {
                fs::copy(&path, to.join(name)).unwrap();
            }
        }
        folder.program("bin/lib-tests", TESTS);
        folder.program("bin/it-tests", TESTS);
        folder.program("bin/tanren", TANREN);
        folder.program("bin/step-benches", STEP_BENCHES);
        folder.program("bin/kernel-benches", KERNEL_BENCHES);
        folder.program("path/nvidia-smi", "#!/bin/sh\necho 'Card of a test, 580.1, 1000 MiB'\n");
        folder.file("bin/lib-tests.tests", tests);
        folder.file("bin/it-tests.tests", "golden::gpu_case passes\n");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn program(&self, name: &str, text: &str) {
        self.file(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The runner, with programs of `path` before those of the system.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("python3");
        let path = format!("{}:{}", self.path("path").display(), std::env::var("PATH").unwrap());
        command.arg(self.path("run")).args(["--test-seconds", "4"]).args(args).current_dir(self.0.path());
        command.env("PATH", path).env("OUT", self.path("out")).env("WORK", self.path("work"));
        for name in ["LD_LIBRARY_PATH", "FILTER", "KINDS", "PEERS", "PYTHON", "TANREN_TEST_REPEATS"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::new(self.command(args).output().unwrap(), self)
    }

    /// Starts the runner, waits until the table has all of `parts`, and kills it.
    fn killed_at(&self, args: &[&str], parts: &[&str]) -> String {
        let mut child = self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let wait = |child: &mut Child| {
            let start = Instant::now();
            while !parts.iter().all(|part| self.table().contains(part)) {
                assert!(start.elapsed() < Duration::from_secs(60), "no {parts:?} in {}", self.table());
                assert!(child.try_wait().unwrap().is_none(), "ended by itself: {}", self.table());
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait(&mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        self.table()
    }

    fn table(&self) -> String {
        fs::read_to_string(self.path("out/results.md")).unwrap_or_default()
    }
}

/// The output of a run.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    table: String,
    /// The lines of `results.jsonl`.
    records: Vec<serde_json::Value>,
}

impl Ran {
    fn new(output: Output, folder: &Folder) -> Self {
        let lines = fs::read_to_string(folder.path("out/results.jsonl")).unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(!said.contains("Traceback"), "{said}");
        let names = fs::read_dir(folder.path("out")).unwrap().count();
        assert!(names <= 8, "{names} files");
        Self {
            code: output.status.code(),
            table: folder.table(),
            records: lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        }
    }

    /// Demands an exit code and parts of the table.
    fn expect(&self, code: i32, parts: &[&str]) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for part in parts {
            assert!(self.table.contains(part), "no {part:?} in {self:#?}\n{}", self.table);
        }
        self
    }

    /// The result of a test, by the records.
    fn test(&self, name: &str) -> &str {
        let of = |record: &&serde_json::Value| record["kind"] == "test" && record["name"] == name;
        self.records.iter().rfind(of).map_or("none", |record| record["result"].as_str().unwrap())
    }

    fn demand(&self, tests: &[(&str, &str)]) {
        for (name, result) in tests {
            assert_eq!(self.test(name), *result, "{name} in {self:#?}\n{}", self.table);
        }
    }
}

const GOOD: &str = "ops::norm::gpu_tests::ragged passes
ops::norm::gpu_tests::real_shapes_0_6b passes
ops::norm::gpu_tests::gpu_repeats_have_the_same_bits chats
ops::lora_matmul::gpu::tests::ragged chats
device::primitives::devices::gpu_gives_what_is_stored passes
ops::lora_matmul::gpu::tests::emulator_counters fails
ops::norm::tests::on_the_processor fails
";

#[test]
fn a_check_without_faults_is_complete() {
    let folder = Folder::new(GOOD);
    let ran = folder.run(&["device", "kernels", "goldens", "train_step", "--limit", "120"]);
    ran.expect(
        0,
        &[
            "Complete after",
            "nvidia-smi: Card of a test, 580.1",
            "| device | passed |",
            "| 5 passed |",
            "| goldens | passed |",
            "| step 1 | 100000 | 21.76 |",
            "| step full qwen3-1.7b | 100000 | 21.76 |",
        ],
    );
    // Cheap tests of all ops before real shapes, repeats last; tests for the emulator or the CPU are left
    // out.
    let names: Vec<&str> =
        ran.records.iter().filter(|r| r["kind"] == "test").map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "device::primitives::devices::gpu_gives_what_is_stored",
            "ops::lora_matmul::gpu::tests::ragged",
            "ops::norm::gpu_tests::ragged",
            "ops::norm::gpu_tests::real_shapes_0_6b",
            "ops::norm::gpu_tests::gpu_repeats_have_the_same_bits",
            "golden::gpu_case",
        ]
    );
}

#[test]
fn one_bad_kernel_fails_alone() {
    let folder = Folder::new(
        "ops::attention::gpu::tests::before passes
ops::attention::gpu::tests::breaks breaks
ops::attention::gpu::tests::behind passes
ops::attention::gpu::tests::wrong fails
ops::lora_matmul::gpu::tests::hangs hangs
ops::lora_matmul::gpu::tests::behind passes
ops::activation::gpu_tests::dies dies
ops::activation::gpu_tests::behind passes
ops::activation::gpu_tests::real_shapes passes
",
    );
    let ran = folder.run(&["kernels", "--limit", "120"]);
    ran.demand(&[
        ("ops::attention::gpu::tests::before", "ok"),
        ("ops::attention::gpu::tests::breaks", "FAILED"),
        ("ops::attention::gpu::tests::behind", "ok"),
        ("ops::attention::gpu::tests::wrong", "FAILED"),
        ("ops::lora_matmul::gpu::tests::hangs", "HUNG"),
        ("ops::lora_matmul::gpu::tests::behind", "ok"),
        ("ops::activation::gpu_tests::dies", "CRASHED"),
        ("ops::activation::gpu_tests::behind", "ok"),
        ("ops::activation::gpu_tests::real_shapes", "ok"),
    ]);
    ran.expect(
        1,
        &[
            "| kernels | FAILED |",
            "5 passed, 2 failed, 1 hung, 1 crashed",
            "**kernels: ops::attention::gpu::tests::breaks**: failed, CUDA_ERROR_ILLEGAL_ADDRESS (700)",
            "**kernels: ops::attention::gpu::tests::wrong**: failed, 3 is not 4",
            "hangs**: hung, no result after 4 s",
            "dies**: crashed, the process ended here: ended by SIGSEGV",
        ],
    );
}

#[test]
fn a_killed_run_leaves_a_true_table() {
    let folder = Folder::new(
        "ops::attention::gpu::tests::done passes
ops::attention::gpu::tests::endless hangs
ops::norm::gpu_tests::later passes
",
    );
    let parts = ["| attention, cheap | 1 |"];
    let table = folder.killed_at(&["device", "kernels", "goldens", "--test-seconds", "600"], &parts);
    for part in [
        "NOT COMPLETE: written after",
        "while `kernels` ran",
        "| device | passed |",
        "| kernels | running |",
        "| goldens | not reached |",
        "Not reached: `ops::attention::gpu::tests::endless`, `ops::norm::gpu_tests::later`.",
    ] {
        assert!(table.contains(part), "no {part:?} in {table}");
    }
}

#[test]
fn time_that_is_up_is_no_failure() {
    let tests: String = (0..40).map(|i| format!("ops::norm::gpu_tests::t{i} slow\n")).collect();
    let folder = Folder::new(&tests);
    let ran = folder.run(&["kernels", "goldens", "--limit", "16"]);
    ran.expect(
        3,
        &[
            "Complete after",
            "| kernels | cut short |",
            "| goldens | passed |",
            "Not reached: `ops::norm::gpu_tests::t",
        ],
    );
    assert!(!ran.table.contains("What failed"), "{}", ran.table);
}

#[test]
fn a_slow_start_and_a_missing_library_waste_nothing() {
    // The time share of `device` alone would end long before the program answers.
    let folder = Folder::new(GOOD);
    folder.file("bin/tanren.seconds", "2");
    folder.run(&["kernels", "--limit", "30"]).expect(0, &["| device | passed |", "| kernels | passed |"]);

    // The packed libstdc++ is used only if it helps.
    let broken = "lib-tests: version `GLIBCXX_3.4.99' not found\n";
    folder.file("bin/lib-tests.broken", broken);
    let ran = folder.run(&["kernels", "bars", "--limit", "30"]);
    ran.expect(1, &["| device | FAILED |", "| kernels | skipped |", "GLIBCXX_3.4.99", "| bars | "]);
    assert!(!ran.table.contains("| bars | skipped | 0.0 | the test programs"), "{}", ran.table);
    folder.file("bin/lib-tests.helped", "");
    folder.file("bin/tanren.seconds", "0");
    folder.run(&["kernels", "--limit", "30"]).expect(0, &["| kernels | passed |"]);
}

#[test]
fn without_a_card_everything_is_skipped() {
    let folder = Folder::new(GOOD);
    folder.file("bin/tanren.error", "error[DEVICE] no CUDA driver found; fix: install one\n");
    folder
        .run(&["kernels", "--limit", "30"])
        .expect(1, &["the program does not use the GPU: no CUDA driver found"]);
    folder.program("path/nvidia-smi", "#!/bin/sh\nexit 9\n");
    let ran = folder.run(&["kernels", "bars", "--limit", "30"]);
    ran.expect(3, &["| kernels | skipped |", "| bars | skipped |", "no CUDA driver found |"]);
}

#[test]
fn benchmarks_are_rows_and_one_that_fails_is_one() {
    let folder = Folder::new(GOOD);
    let ran = folder.run(&["quick_benches", "--limit", "60"]);
    ran.expect(
        1,
        &[
            "| quick_benches | FAILED |",
            "10 figures; failed: norm",
            "| lora_matmul/forward 2176, quick 1 | 0.5 |",
            "| dora/forward 2176, quick 1 | 0.5 |",
            "error[DEVICE] broken",
        ],
    );
}

#[test]
fn findings_are_told_apart_from_time_outs() {
    let folder = Folder::new(
        "ops::attention::gpu::tests::good passes
ops::norm::gpu_tests::bad writes_outside
ops::norm::gpu_tests::behind passes
ops::activation::gpu_tests::slow hangs
ops::activation::gpu_tests::real_shapes hangs
",
    );
    let without = folder.run(&["sanitizer", "--limit", "20"]);
    if !without.table.contains("| sanitizer | skipped |") {
        // This machine has the tool; what follows brings another one.
        assert!(without.table.contains("memcheck"), "{}", without.table);
    }
    folder.program("path/compute-sanitizer", SANITIZER);
    let ran = folder.run(&["sanitizer", "--limit", "20"]);
    ran.expect(1, &[
        "| sanitizer | FAILED |",
        "**sanitizer: memcheck ops::norm::gpu_tests::bad**: failed, Invalid __global__ write of size 4 bytes",
        "Not reached: `memcheck ops::activation::gpu_tests::slow`",
    ]);
    ran.demand(&[
        ("memcheck ops::attention::gpu::tests::good", "ok"),
        ("racecheck ops::attention::gpu::tests::good", "ok"),
        ("memcheck ops::norm::gpu_tests::bad", "FAILED"),
        ("memcheck ops::norm::gpu_tests::behind", "ok"),
        ("memcheck ops::activation::gpu_tests::slow", "none"),
        ("memcheck ops::activation::gpu_tests::real_shapes", "none"),
    ]);
}

/// The program itself with a driver that only `ldconfig` knows, and with one that fails.
#[cfg(all(feature = "cuda", feature = "cli"))]
#[test]
fn a_hidden_driver_is_found() {
    use crate::stub_cuda::driver;

    let stub = driver(13_000);
    let folder = Folder::new(GOOD);
    fs::remove_file(folder.path("bin/tanren")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tanren"), folder.path("bin/tanren")).unwrap();
    let library = stub.join("libcuda.so.1");
    let listed = format!("#!/bin/sh\necho '    libcuda.so.1 (libc6,x86-64) => {}'\n", library.display());
    folder.program("path/ldconfig", &listed);
    let ran = folder.run(&["kernels", "--limit", "120"]);
    let fact = format!("libcuda.so.1: {}, which the loader does not know of", library.display());
    if ran.table.contains("found by the loader") {
        // This machine has a real driver.
        return;
    }
    // The stub computes one kernel: where the build has others, their results are wrong, and the self-test says so.
    let (code, device) =
        if stub_code() == 0 { (0, "| device | passed |") } else { (1, "| device | FAILED |") };
    ran.expect(code, &[&fact, device, "Stub GPU", "| kernels | passed |"]);

    let mut command = folder.command(&["kernels", "--limit", "120"]);
    command.env("LD_LIBRARY_PATH", &stub);
    command.envs([("STUB_FUNCTION", "cuStreamSynchronize"), ("STUB_CALL", "1"), ("STUB_CODE", "700")]);
    let ran = Ran::new(command.output().unwrap(), &folder);
    let fact = format!("libcuda.so.1: {}, found by the loader", library.display());
    ran.expect(1, &[&fact, "| device | FAILED |", "CUDA_ERROR_ILLEGAL_ADDRESS", "| kernels | passed |"]);
}
