//! Where a cuBLASLt may be that the loader does not find: PyTorch's packages bring one along, in folders of their own.

use std::path::{Path, PathBuf};

/// The folders of NVIDIA's packages below `sites` (Python's `sys.path`), if one of them has a cuBLASLt. The library needs others
/// of them, so they come together.
pub(crate) fn folders(sites: &[PathBuf]) -> Vec<PathBuf> {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let found = std::fs::read_dir(folder).into_iter().flatten();
        let mut paths: Vec<PathBuf> =
            found.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        paths.sort();
        paths
    };
    let has_cublaslt = |folder: &PathBuf| {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        entries(folder).iter().any(|path| name(path).starts_with("libcublasLt.so"))
    };
    for site in sites {
        let packages = entries(&site.join("nvidia"));
        let found: Vec<PathBuf> =
            packages.iter().map(|package| package.join("lib")).filter(|lib| lib.is_dir()).collect();
        if found.iter().any(has_cublaslt) {
            return found;
        }
    }
    Vec::new()
}

/// Starts this program again, in this process, with PyTorch's folders on the loader's path, which is read once at the start. Comes
/// back if there are none, if that was done before, or if it cannot be done.
#[cfg(unix)]
pub(crate) fn restart_with_pytorch() {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    const RESTARTED: &str = "TANREN_BENCH_RESTARTED";
    if std::env::var_os(RESTARTED).is_some() {
        return;
    }
    let python = Command::new("python3").args(["-c", "import sys; print('\\n'.join(sys.path))"]).output();
    let sites = python.map_or(String::new(), |python| String::from_utf8_lossy(&python.stdout).into_owned());
    let mut path = folders(&sites.lines().map(PathBuf::from).collect::<Vec<_>>());
    if path.is_empty() {
        return;
    }
    if let Some(old) = std::env::var_os("LD_LIBRARY_PATH") {
        path.extend(std::env::split_paths(&old));
    }
    let (Ok(program), Ok(path)) = (std::env::current_exe(), std::env::join_paths(path)) else { return };
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).env(RESTARTED, "1").env("LD_LIBRARY_PATH", path);
    eprintln!("cuBLASLt of PyTorch: {}", again.exec());
}

/// Elsewhere a process cannot take the place of another.
#[cfg(not(unix))]
pub(crate) fn restart_with_pytorch() {}
