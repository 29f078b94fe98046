//! Places in compiled kernels as `file:line`.

/// Replaces every `<pc:0x...>` of a message by the place in the source.
pub(super) fn resolve_all(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<pc:") {
        result.push_str(before);
        let Some((address, after)) = after.split_once('>') else {
            result.push_str("<pc:");
            rest = after;
            continue;
        };
        result.push_str(&place_of(address));
        rest = after;
    }
    result.push_str(rest);
    result
}

fn place_of(address: &str) -> String {
    let pc = usize::from_str_radix(address.trim_start_matches("0x"), 16).unwrap_or(0);
    match resolve(pc) {
        Some((file, line)) => format!("{file}:{line}"),
        None => format!("an unknown place ({address})"),
    }
}

/// The innermost frame at `pc` that is in a kernel file, inlined ones included, as the name of the file and the line.
pub(super) fn resolve(pc: usize) -> Option<(String, u32)> {
    let mut found = None;
    backtrace::resolve(std::ptr::without_provenance_mut(pc), |symbol| {
        let Some((path, line)) = symbol.filename().zip(symbol.lineno()) else { return };
        let is_kernel = path.extension().is_some_and(|e| e == "cu" || e == "cuh");
        if is_kernel && found.is_none() {
            found = path.file_name().map(|name| (name.to_string_lossy().into_owned(), line));
        }
    });
    found
}
