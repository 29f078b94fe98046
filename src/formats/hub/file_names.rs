//! File names in a listing of the hub, checked before they are used as paths.
//!
//! The rules are those of the strictest system, so that a name that is accepted means the same file everywhere.

/// Maximum characters of a file name, including its folders.
const MAX_FILE_NAME: usize = 1024;
/// Maximum depth of folders.
const MAX_DEPTH: usize = 16;

/// Device names on Windows, reserved with any extension.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// True if a listed name stays inside the folder it is joined to, on every system.
pub(super) fn check_file_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > MAX_FILE_NAME {
        return Err("a file name has 1 to 1024 bytes");
    }
    if name.chars().any(|c| c.is_control() || c == '\\') {
        return Err("control characters and backslashes are refused");
    }
    if name.as_bytes().get(1) == Some(&b':') {
        return Err("a drive letter is refused");
    }
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > MAX_DEPTH + 1 {
        return Err("the file is in too many folders");
    }
    for part in parts {
        if part.is_empty() || part == "." || part == ".." {
            return Err("the name is not relative, or has an empty part, . or ..");
        }
        if part.len() > 255 {
            return Err("a part of the name is longer than 255 bytes");
        }
        let lower = part.to_ascii_lowercase();
        let stem = lower.split('.').next().unwrap_or_default().trim_end();
        let numbered = |prefix: &str| {
            stem.strip_prefix(prefix).is_some_and(|n| n.len() == 1 && n.bytes().all(|b| b.is_ascii_digit()))
        };
        if lower == ".git" || DEVICES.contains(&stem) || numbered("com") || numbered("lpt") {
            return Err("the name is reserved");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_file_names_are_refused() {
        for good in [
            "config.json",
            ".gitattributes",
            "a/b/c.txt",
            "模型 1.safetensors",
            "onnx/model.onnx",
            "com.txt",
            "console.md",
        ] {
            assert_eq!(check_file_name(good), Ok(()), "{good}");
        }
        let (long, deep) = ("a".repeat(256), "a/".repeat(17) + "b");
        for bad in [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "//host/x",
            "../x",
            "a/../../b",
            "a/./b",
            "a//b",
            "a/",
            "..\\x",
            "\\x",
            "C:x",
            "C:\\x",
            "a\0b",
            "a\nb",
            "a\u{7f}",
            "a\u{85}",
            ".git/config",
            "a/.GIT/hooks/x",
            "con",
            "NUL.txt",
            "a/aux",
            "com1",
            "LPT9.json",
            &long,
            &deep,
        ] {
            assert!(check_file_name(bad).is_err(), "{bad:?}");
        }
    }
}
