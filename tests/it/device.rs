//! Devices from outside: the real program with no CUDA driver, with a bad one, and with one that fails at every call.
//!
//! The driver is a stub (`stub_cuda.rs`) that writes down every call, which shows that no call is made after
//! a sticky error.

#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use half::bf16;
use tanren::batch::{Batch, Targets, TokenTarget};
use tanren::config::{LoraConfig, variant};
use tanren::device::arch::{Arch, Chip};
use tanren::device::kernels::params::SelfTestParams;
use tanren::device::kernels::{IMAGES, Kernel};
use tanren::device::{Device, Launch};
use tanren::model::{Adapter, Decoder, PassOptions, init};
use tempfile::TempDir;

use crate::source::root;
use crate::stub_cuda::{Outcome, in_parallel, no_driver, stub, tanren, with_stub};

/// The sticky results of cuda.h 13.0: no call may follow them.
const STICKY: &[u32] =
    &[4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 916, 999];

/// All other results of cuda.h 13.0.
const PASSING: &[u32] = &[
    1, 2, 3, 5, 6, 7, 8, 34, 36, 46, 100, 101, 102, 200, 201, 202, 205, 206, 207, 208, 209, 210, 211, 212,
    213, 215, 216, 217, 218, 219, 221, 222, 223, 224, 225, 300, 301, 302, 303, 304, 400, 401, 402, 500, 600,
    701, 703, 704, 705, 708, 711, 712, 713, 720, 800, 801, 802, 803, 804, 805, 806, 807, 808, 809, 811, 812,
    900, 901, 902, 903, 904, 905, 906, 907, 908, 909, 910, 912, 913, 914, 915,
];

/// Shows the GPU and tests it; [`stub_code`] is the exit code on the stub.
pub(crate) const SELF_TEST: [&str; 5] = ["inspect", "device", "--device", "cuda:0", "--self-test"];

/// The exit code of a self-test in which no call fails. The stub computes one kernel; the others have wrong results.
pub(crate) fn stub_code() -> i32 {
    if IMAGES.is_empty() { 0 } else { 5 }
}

/// A small model, rows, and the arguments of a dry run and of a scoring with them.
pub(crate) fn small() -> (TempDir, [Vec<String>; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let init = ["init", "--variant", "qwen3-tiny", "--output-dir", &path("tiny"), "--seed", "1"];
    with_stub(&init, &[]).expect(0, &[]);
    fs::write(
        path("rows.jsonl"),
        "{\"input\":\"2+2?\",\"output\":\"4\"}\n{\"input\":\"1+1?\",\"output\":\"2\"}\n",
    )
    .unwrap();
    let common = ["--model".to_owned(), path("tiny")];
    let train = ["train", "--dry-run", "--train-file", &path("rows.jsonl"), "--output-dir", &path("out")]
        .map(str::to_owned);
    let score =
        ["score", "--mode", "logprob", "--data-file", &path("rows.jsonl"), "--output", &path("scores")]
            .map(str::to_owned);
    (dir, [[&common[..0], &train, &common].concat(), [&common[..0], &score, &common].concat()])
}

/// `args` with a device.
pub(crate) fn on<'a>(args: &'a [String], device: &'a str) -> Vec<&'a str> {
    args.iter().map(String::as_str).chain(["--device", device]).collect()
}

#[test]
fn without_a_driver_auto_takes_the_cpu_and_cuda_is_an_error() {
    let nothing = no_driver();
    let run = |args: &[&str]| tanren(nothing.path(), args, &[]);
    let missing = ["error[DEVICE] no CUDA driver found", "install the NVIDIA driver"];
    run(&["inspect", "device"]).expect(0, &["cpu", "no CUDA driver found", "fix: install"]);
    run(&["inspect", "device", "--device", "auto"])
        .expect(0, &["device: cpu (no CUDA driver found)", "threads"]);
    run(&["inspect", "device", "--device", "cuda"]).expect(5, &missing);
    run(&["inspect", "device", "--device", "cpu", "--self-test"]).expect(0, &["passed", "copies"]);
    let wrong = run(&["inspect", "device", "--device", "tpu"]);
    assert!(wrong.code == Some(2) && wrong.err.contains("must be all, auto"), "{wrong:?}");
    let (_dir, commands) = small();
    for args in &commands {
        run(&on(args, "cuda")).expect(5, &missing);
        let auto = run(&on(args, "auto"));
        auto.expect(0, &["device: cpu (no CUDA driver found)"]);
        assert_eq!(auto.err.matches("CUDA").count(), 1, "{auto:?}");
        assert!(!run(&on(args, "cpu")).err.contains("CUDA"));
    }
}

#[test]
fn a_gpu_that_is_asked_for_is_used_or_says_why_not() {
    let (_dir, commands) = small();
    for args in &commands {
        with_stub(&on(args, "cuda"), &[("STUB_CODE", "999"), ("STUB_CALL", "1")]).expect(5, &["999"]);
        with_stub(&on(args, "cuda:1"), &[]).expect(5, &["there is no GPU cuda:1, only cuda:0"]);
        if !cfg!(feature = "emulated") {
            let parts = ["this build has no emulator", "--features emulated"];
            with_stub(&on(args, "emulated"), &[]).expect(5, &parts);
        }
        if IMAGES.is_empty() {
            with_stub(&on(args, "cuda"), &[])
                .expect(5, &["this build has no kernels", "build again with an nvcc"]);
            continue;
        }
        // A plan ends well; scores of a driver that computes nothing are no numbers in builds that fill memory with NaN.
        let used = with_stub(&on(args, "auto"), &[]);
        assert!(used.err.contains("device: cuda:0 (Stub GPU), bf16"), "{used:?}");
        assert!(matches!(used.code, Some(0 | 4)), "{used:?}");
        assert!(used.calls.contains(&"cuModuleLoadData".to_owned()), "{used:?}");
    }
}

/// The stub computes nothing: losses are those of scores that are all 0. The test shows which calls a
/// training makes.
#[test]
fn a_training_records_its_step_once_and_replays_it() {
    if IMAGES.is_empty() {
        return;
    }
    let (dir, [train, _]) = small();
    let train: Vec<String> = train.into_iter().filter(|arg| arg != "--dry-run").collect();
    let mut args = on(&train, "cuda");
    args.extend(["--max-steps", "5", "--tokens-per-batch", "64", "--save-steps", "5"]);
    let log = tempfile::NamedTempFile::new().unwrap();
    // Fresh memory is not NaN, and the stub computes no losses.
    let run = with_stub(&args, &[("STUB_LOG", log.path().to_str().unwrap()), ("STUB_FILL", "0")]);
    run.expect(0, &["device", "step 5/5"]);
    let text = fs::read_to_string(log.path()).unwrap();
    let calls: Vec<&str> = text.lines().collect();
    let count = |name: &str| calls.iter().filter(|call| **call == name).count();
    // A graph of a pass and one of an update; two graphs a step.
    assert_eq!((count("cuStreamBeginCapture_v2"), count("cuGraphLaunch")), (2, 10), "{calls:?}");
    let first = calls.iter().position(|call| *call == "cuGraphLaunch").unwrap();
    // Each is sent to the GPU once, before it runs.
    let uploads = calls[..first].iter().filter(|call| **call == "cuGraphUpload").count();
    assert!(uploads >= 1 && count("cuGraphUpload") == 2, "{calls:?}");
    for (at, _) in calls.iter().enumerate().filter(|(_, call)| **call == "cuGraphUpload") {
        assert!(calls[..at].ends_with(&["cuGraphInstantiateWithFlags", "cuGraphDestroy"]), "{calls:?}");
    }
    // Kernels whose blocks need more shared memory than the default request it when they are looked up.
    let asking = Kernel::ALL.iter().filter(|kernel| kernel.needs_carveout(Arch::Sm86)).count();
    assert!(asking > 20 && count("cuFuncSetAttribute") >= asking, "{asking}: {calls:?}");
    let last = calls.iter().rposition(|call| *call == "cuGraphLaunch").unwrap();
    for forbidden in ["cuLaunchKernel", "cuMemAlloc_v2", "cuMemFree_v2", "cuStreamSynchronize"] {
        assert!(!calls[first..last].contains(&forbidden), "{forbidden} between steps: {calls:?}");
    }
    // The only waits are for scores and norms of finished steps: two steps are in flight at once.
    let waits = calls[first..last].iter().filter(|call| **call == "cuEventSynchronize").count();
    assert_eq!(waits, 2 * 3, "{calls:?}");
    // Two steps are in flight at once; from the third step on their pending copies are reused.
    let third = calls.iter().enumerate().filter(|(_, call)| **call == "cuGraphLaunch").nth(6).unwrap().0;
    assert!(!calls[third..last].contains(&"cuMemHostAlloc"), "pinned memory in a step: {calls:?}");
    let left = "exit: memory 0 pinned 0 events 0 streams 0 modules 0 contexts 0 graphs 0";
    assert_eq!(calls.last(), Some(&left), "{calls:?}");
    assert!(dir.path().join("out/adapter_model.safetensors").is_file());
}

/// As above for scores, which are all 0.
#[test]
fn a_scoring_records_its_pass_once_and_replays_it() {
    if IMAGES.is_empty() {
        return;
    }
    let (_dir, [_, score]) = small();
    let mut args = on(&score, "cuda");
    args.extend(["--max-tokens-per-pass", "1"]);
    let log = tempfile::NamedTempFile::new().unwrap();
    let stub = [("STUB_LOG", log.path().to_str().unwrap()), ("STUB_FILL", "0")];
    with_stub(&args, &stub).expect(0, &["per supervised token"]);
    let text = fs::read_to_string(log.path()).unwrap();
    let calls: Vec<&str> = text.lines().collect();
    let launches: Vec<usize> =
        calls.iter().enumerate().filter(|(_, call)| **call == "cuGraphLaunch").map(|(at, _)| at).collect();
    assert_eq!(launches.len(), 2, "one for every row: {calls:?}");
    let between = &calls[launches[0]..launches[1]];
    for forbidden in
        ["cuLaunchKernel", "cuMemAlloc_v2", "cuMemFree_v2", "cuStreamSynchronize", "cuEventSynchronize"]
    {
        assert!(!between.contains(&forbidden), "{forbidden} between passes: {calls:?}");
    }
    let left = "exit: memory 0 pinned 0 events 0 streams 0 modules 0 contexts 0 graphs 0";
    assert_eq!(calls.last(), Some(&left), "{calls:?}");
}

#[test]
fn auto_takes_the_cpu_if_the_gpu_cannot_be_opened() {
    let (_dir, [train, _]) = small();
    let log = tempfile::NamedTempFile::new().unwrap();
    let args = on(&train, "auto");
    with_stub(&args, &[("STUB_LOG", log.path().to_str().unwrap())]).expect(0, &["device: cuda:0"]);
    let text = fs::read_to_string(log.path()).unwrap();
    let opened = text.lines().position(|call| call == "cuDevicePrimaryCtxRetain").unwrap() + 1;
    let failing = [("STUB_CODE", "2"), ("STUB_CALL", &opened.to_string())];
    with_stub(&args, &failing).expect(0, &["device: cpu (", "(2)"]);
}

#[cfg(feature = "emulated")]
#[test]
fn the_emulator_trains_goes_on_with_the_same_bytes_and_scores() {
    let (dir, [train, score]) = small();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let run = |output: &str, more: &[&str]| {
        let keep = |arg: &&String| *arg != "--dry-run" && **arg != path("out");
        let train: Vec<String> = train.iter().filter(keep).cloned().collect();
        let place = train.iter().position(|arg| arg == "--output-dir").unwrap();
        let train = [&train[..=place], &[path(output)], &train[place + 1..]].concat();
        let mut args = on(&train, "emulated");
        args.extend([
            "--max-steps",
            "4",
            "--tokens-per-batch",
            "64",
            "--save-steps",
            "2",
            "--lora-dropout",
            "0.1",
        ]);
        args.extend(more);
        with_stub(&args, &[]).expect(0, &["step 4/4"]);
    };
    run("whole", &[]);
    run("resumed", &["--resume", &path("whole/checkpoint-2")]);
    for file in ["adapter_model.safetensors", "checkpoint-4/optimizer.safetensors"] {
        let [whole, resumed] =
            ["whole", "resumed"].map(|run| fs::read(dir.path().join(run).join(file)).unwrap());
        assert!(whole == resumed, "{file}");
    }
    let mut args = on(&score, "emulated");
    let adapter = path("whole");
    args.extend(["--adapter", &adapter]);
    with_stub(&args, &[]).expect(0, &["per supervised token"]);
}

#[test]
fn a_healthy_gpu_passes_its_self_test_and_gets_everything_back() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let run = with_stub(&SELF_TEST, &[("STUB_LOG", log.path().to_str().unwrap())]);
    let parts = [
        "cuda:0 (Stub GPU)",
        "compute capability  8.6",
        "68, 99.0 KiB",
        "4.00 GiB",
        "passed  copies",
        "passed  memory",
    ];
    run.expect(stub_code(), &parts);
    assert_eq!(run.out.contains("passed  kernel"), !IMAGES.is_empty(), "{run:?}");
    assert_eq!(run.err.contains("the self-test failed on cuda:0"), !IMAGES.is_empty(), "{run:?}");
    let failed = run.out.lines().filter(|line| line.contains("FAILED"));
    assert!(
        failed.into_iter().all(|line| line.contains("LoRA matmul") || line.contains("primitives")),
        "{run:?}"
    );
    let log = fs::read_to_string(log.path()).unwrap();
    // All launches and copies are in one order.
    assert_eq!(log.matches("cuStreamCreate").count(), 1);
    let last = log.lines().last().unwrap();
    assert_eq!(last, "exit: memory 0 pinned 0 events 0 streams 0 modules 0 contexts 0 graphs 0");
    with_stub(&["inspect", "device", "--device", "auto"], &[]).expect(0, &["cuda:0 (Stub GPU)"]);
    let two = with_stub(&["inspect", "device"], &[("STUB_DEVICES", "2")]);
    two.expect(0, &["cpu", "cuda:0 (Stub GPU)", "cuda:1 (Stub GPU)"]);
}

#[test]
fn a_driver_without_gpus_is_named() {
    let show = &["inspect", "device", "--device", "cuda"];
    with_stub(show, &[("STUB_DEVICES", "0")]).expect(5, &["shows no GPU", "CUDA_VISIBLE_DEVICES"]);
    let auto = &["inspect", "device", "--device", "auto"];
    with_stub(auto, &[("STUB_DEVICES", "0")]).expect(0, &["device: cpu (the CUDA driver shows no GPU)"]);
}

#[test]
fn the_name_of_a_card_cannot_steer_a_terminal() {
    let run = with_stub(&["inspect", "device"], &[("STUB_NAME", "\u{1b}[2JCard")]);
    assert!(run.expect(0, &["Card"]).out.lines().all(|line| !line.contains('\u{1b}')), "{run:?}");
}

#[test]
fn too_little_memory_is_an_error_with_numbers() {
    let parts = ["out of memory", "needed in one piece", "of 20 MiB are free", "--max-tokens-per-pass"];
    with_stub(&SELF_TEST, &[("STUB_MEMORY", "20000000")]).expect(5, &parts);
}

/// The requirements if the driver fails with `code`: exit code, message, and no calls after a sticky error.
fn check_failure(run: &Outcome, code: u32, calls: &[String]) {
    let Some(at) = run.calls.iter().position(|call| call.contains(" -> ")) else {
        panic!("no call failed: {run:#?}");
    };
    // Calls that free resources may fail without consequence: memory of a tensor, and everything after the
    // last result.
    let end = calls.iter().rposition(|call| call == "cuEventSynchronize").unwrap();
    let frees =
        calls[at..].iter().find(|call| *call != "cuCtxSetCurrent").is_some_and(|call| call == "cuMemFree_v2");
    let out_of_memory = code == 2 && run.calls[at].starts_with("cuMemAlloc_v2");
    let said = if out_of_memory { "out of memory".to_owned() } else { format!("({code})") };
    match at > end || frees {
        // A sticky error is returned by the next call, if there is one.
        true if PASSING.contains(&code) || !run.err.contains(&said) => run.expect(stub_code(), &[]),
        _ => run.expect(5, &["error[DEVICE]", &said]),
    };
    if !PASSING.contains(&code) {
        assert_eq!(run.calls_after_failure(), [""; 0], "{code}: {run:#?}");
    }
}

#[test]
fn every_result_of_the_driver_is_an_error_that_names_it() {
    // The first call, one during the query of the GPU, and one during work. Unknown numbers are sticky.
    let functions = ["cuInit", "cuDeviceGetName", "cuMemcpyHtoDAsync_v2"];
    let clean = with_stub(&SELF_TEST, &[]).calls;
    let codes = STICKY.iter().chain(PASSING).chain(&[9, 722, 1234, 99_999]);
    let cases: Vec<(u32, &str)> =
        codes.flat_map(|&code| functions.map(|function| (code, function))).collect();
    in_parallel(&cases, |&(code, function)| {
        let number = code.to_string();
        let failing = [("STUB_CODE", number.as_str()), ("STUB_CALL", "1"), ("STUB_FUNCTION", function)];
        let run = with_stub(&SELF_TEST, &failing);
        check_failure(&run, code, &clean);
        assert!(run.err.contains(function), "{run:#?}");
    });
}

#[test]
fn auto_falls_back_to_the_cpu_whatever_the_driver_says() {
    let cases: Vec<u32> = STICKY.iter().chain(PASSING).step_by(7).copied().collect();
    in_parallel(&cases, |code| {
        let number = code.to_string();
        let failing = [("STUB_CODE", number.as_str()), ("STUB_CALL", "2")];
        let run = with_stub(&["inspect", "device", "--device", "auto"], &failing);
        run.expect(0, &["device: cpu (", &format!("({code})")]);
        assert!(PASSING.contains(code) || run.calls_after_failure().is_empty(), "{run:#?}");
    });
}

#[test]
fn a_failure_of_any_call_ends_the_run_and_a_sticky_one_all_calls() {
    let clean = with_stub(&SELF_TEST, &[]).calls;
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, call) in clean.iter().enumerate() {
        first.entry(call).or_insert(at);
    }
    // The first call of every function with three results; with one, the beginning, the end, and some of the many in between.
    let last = clean.len();
    let mut cases: Vec<(usize, u32)> =
        first.into_values().flat_map(|at| [700, 2, 1].map(|code| (at, code))).collect();
    let more = (0..30).chain(last - 15..last).chain((30..last).step_by(last / 12));
    cases.extend(more.map(|at| (at, 700)));
    cases.sort_unstable();
    cases.dedup();
    in_parallel(&cases, |&(at, code)| {
        let (call, number) = ((at + 1).to_string(), code.to_string());
        let run = with_stub(&SELF_TEST, &[("STUB_CODE", &number), ("STUB_CALL", &call)]);
        assert_eq!(run.calls[..at], clean[..at], "the calls before {at} are always the same");
        check_failure(&run, code, &clean);
    });
}

#[test]
fn what_a_device_has_when_it_cannot_be_made_is_given_back() {
    // Two pinned buffers with an event each, and any of the four may be missing.
    for (function, call) in
        [("cuMemHostAlloc", "1"), ("cuEventCreate", "1"), ("cuMemHostAlloc", "2"), ("cuEventCreate", "2")]
    {
        let log = tempfile::NamedTempFile::new().unwrap();
        let failing = [
            ("STUB_CODE", "2"),
            ("STUB_CALL", call),
            ("STUB_FUNCTION", function),
            ("STUB_LOG", log.path().to_str().unwrap()),
        ];
        with_stub(&SELF_TEST, &failing).expect(5, &[function]);
        let log = fs::read_to_string(log.path()).unwrap();
        let last = log.lines().last().unwrap();
        assert_eq!(last, "exit: memory 0 pinned 0 events 0 streams 0 modules 0 contexts 0 graphs 0");
    }
}

#[test]
fn an_error_in_a_kernel_names_the_last_launch() {
    if IMAGES.is_empty() {
        return;
    }
    // Kernels fail while they run, and the driver reports it at a later call: here at the copy that waits for
    // the kernel.
    let clean = with_stub(&SELF_TEST, &[]).calls;
    let launch = clean.iter().position(|call| call == "cuLaunchKernel").unwrap();
    let wait = launch + clean[launch..].iter().position(|call| call == "cuEventSynchronize").unwrap();
    let run = with_stub(&SELF_TEST, &[("STUB_CODE", "700"), ("STUB_CALL", &(wait + 1).to_string())]);
    let parts =
        ["CUDA_ERROR_ILLEGAL_ADDRESS (700)", "last kernel started was self_test (1 x 1 x 1 blocks", "Xid"];
    run.expect(5, &parts);
    assert!(run.calls_after_failure().is_empty(), "{run:#?}");
}

/// Runs in a child process, which finds the stub: one thread waits for the GPU until another one has started
/// a kernel.
#[test]
fn a_thread_that_waits_for_the_gpu_holds_up_no_other() {
    if IMAGES.is_empty() {
        return;
    }
    if std::env::var_os("STUB_WAIT").is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "device::a_thread_that_waits_for_the_gpu_holds_up_no_other"]);
        again.env("LD_LIBRARY_PATH", stub()).env("STUB_WAIT", "1");
        let output = again.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let device = Device::cuda(0).unwrap();
    let [x, y] = [7u32, 0].map(|value| device.tensor(1, 128, &[value; 128]).unwrap());
    let launch = Launch { kernel: Kernel::SelfTest, grid: [1, 1, 1], dynamic_smem: 4 * 128 };
    let params =
        SelfTestParams { x: x.ptr(), y: y.ptr(), factor: 1, addend: 0.0, offset: 0, stride: 1, fault: 0 };
    thread::scope(|scope| {
        let waiting = scope.spawn(|| device.read(&x));
        while !waiting.is_finished() {
            device.launch(&launch, &params).unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(waiting.join().unwrap().unwrap(), [7; 128]);
    });
}

#[test]
fn the_stub_knows_what_the_program_calls() {
    // Otherwise a missing function of a rare path would be noticed only when it is needed.
    let source = fs::read_to_string(root().join("tests/it/stub_cuda/libcuda.c")).unwrap();
    let program = fs::read_to_string(root().join("src/device/cuda.rs")).unwrap();
    let table = program.split_once("\nfunctions! {\n").unwrap().1.split_once("\n}\n").unwrap().0;
    let names: Vec<&str> =
        table.lines().filter_map(|line| line.trim().split_once('(').map(|(name, _)| name)).collect();
    assert!(names.len() > 25 && names.contains(&"cuLaunchKernel"), "{names:?}");
    // Looked up apart, because drivers before CUDA 12.4 do not have it.
    assert!(program.contains("symbol(\"cuFuncLoad\\0\").ok()"));
    for name in names.into_iter().chain(["cuFuncLoad"]) {
        assert!(source.contains(&format!("\nint {name}(")), "{name}");
    }
}

/// The header that the numbers above are from, where it was installed.
#[test]
fn the_numbers_are_those_of_the_header() {
    let Ok(text) = fs::read_to_string(root().join(".cuda/include/cuda.h")) else { return };
    let results =
        text.split_once("typedef enum cudaError_enum").unwrap().1.split_once("} CUresult;").unwrap().0;
    let mut numbers: Vec<u32> = results
        .lines()
        .filter(|line| line.trim().starts_with("CUDA_ERROR_"))
        .map(|line| line.split_once('=').unwrap().1.trim().trim_end_matches(',').parse().unwrap())
        .collect();
    let mut known = [STICKY, PASSING].concat();
    numbers.sort_unstable();
    known.sort_unstable();
    assert_eq!(known, numbers);
}

/// A whole step of Qwen3-0.6B in bf16, with passes of different lengths: the overhead of the arena beyond the
/// tensors.
#[test]
fn a_planned_step_fits_into_hardly_more_than_its_tensors() {
    let device = Device::dry_gpu(Chip::RTX_3080);
    let model = variant("Qwen3-0.6B").unwrap().model_config().unwrap();
    let decoder = Decoder { weights: init::dry::<bf16>(&device, &model).unwrap(), config: model };
    let lora = LoraConfig::default();
    let adapters = vec![Adapter::new(&device, &lora, &decoder.config, &decoder.weights, 0).unwrap()];
    let mut grads = vec![adapters[0].zeros_like(&device).unwrap()];
    let options = PassOptions { scale: 1.0, dropout: None, policies: &[] };
    for tokens in [2176, 1500, 2176, 700, 33, 2000] {
        let mut batch = Batch::default();
        batch.push_segment(&vec![1; tokens], None, 0);
        let target = |row| TokenTarget { row, token: 1, weight: 1.0 };
        batch.targets = Targets::Tokens((0..tokens - 1).map(target).collect());
        decoder.score_and_backward(&device, &batch, &adapters, &mut grads, options).unwrap();
    }
    let (arena, peak) = (device.arena().unwrap(), device.memory().peak_bytes);
    let waste = arena.high_water_bytes as f64 / peak as f64 - 1.0;
    assert!(waste < 0.01, "{:.2}% of {peak} bytes", 100.0 * waste);
}
