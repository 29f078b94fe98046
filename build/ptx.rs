//! Makes PTX of a newer nvcc readable for older compilers: those of other toolkits, and those inside drivers.
//!
//! nvcc declares its own release's version of the PTX language, although the kernels use none of its new
//! features. A driver refuses an unknown version, so the version is set to [`LANGUAGE`], and hints from later
//! versions are removed. It is not checked here that the rest conforms to that version: ptxas refuses
//! instructions that are newer than the declared version. Included by path in tests, like `params.rs`.

/// The declared version of the language: that of CUDA 11.8, the first one with sm_89 and sm_90.
pub(crate) const LANGUAGE: (u32, u32) = (7, 8);

/// Hints for the optimiser that are newer than [`LANGUAGE`] and change no result: which bytes of a wide load are used (8.3).
const DROPPED: &str = "used_bytes_mask ";

/// Hints that [`LANGUAGE`] has: loops that are not to be unrolled.
const KEPT: [&str; 1] = ["nounroll"];

/// The text for compilers from [`LANGUAGE`] on.
///
/// # Errors
/// The first unsupported line.
pub(crate) fn lower(ptx: &str) -> Result<String, String> {
    let mut lowered = String::with_capacity(ptx.len());
    let mut versions = 0;
    for (index, line) in ptx.lines().enumerate() {
        let fault = |what: &str| Err(format!("line {} of the PTX: {what}: {}", index + 1, line.trim()));
        if let Some(rest) = line.trim().strip_prefix(".version ") {
            let version = rest.trim().split_once('.');
            let version = version.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
            let Some(version) = version else { return fault("this is no version") };
            versions += 1;
            let (major, minor) = LANGUAGE.min(version);
            lowered.push_str(&format!(".version {major}.{minor}"));
        } else if line.contains(".pragma") {
            let hint = line.trim().strip_prefix(".pragma \"").and_then(|rest| rest.strip_suffix("\";"));
            match hint {
                Some(hint) if hint.starts_with(DROPPED) => continue,
                Some(hint) if KEPT.contains(&hint) => lowered.push_str(line),
                _ => return fault("this hint is not known here, so whether older compilers read it is not"),
            }
        } else {
            lowered.push_str(line);
        }
        lowered.push('\n');
    }
    match versions {
        1 => Ok(lowered),
        _ => Err(format!("the PTX has {versions} lines with a version; expected one")),
    }
}
