//! Maps addresses in compiled kernels to `file:line`.

/// A line of a kernel source.
pub type Place = (String, u32);

/// Replaces every `<pc:0x... 0x...>` in a message by the first of these addresses that is in a kernel source.
pub(super) fn resolve_all(text: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<pc:") {
        let (places, after) = after.split_once('>').unwrap_or((after, ""));
        result.push_str(before);
        result.push_str(&first_known(places));
        rest = after;
    }
    result + rest
}

fn first_known(places: &str) -> String {
    for address in places.split(' ') {
        let pc = usize::from_str_radix(address.trim_start_matches("0x"), 16).unwrap_or(0);
        let frames = frames(pc);
        let Some((file, line)) = frames.first() else { continue };
        // A line of a shared header says little without the line of the kernel that it was inlined into.
        return match frames.iter().find(|frame| frame.0 != *file) {
            Some((caller, from)) => format!("{file}:{line} (from {caller}:{from})"),
            None => format!("{file}:{line}"),
        };
    }
    format!("an unknown place ({places})")
}

/// The line of a kernel source at `pc`: of the innermost function that is in one.
pub(super) fn place(pc: usize) -> Option<Place> {
    frames(pc).into_iter().next()
}

/// The lines of kernel sources at `pc`, inlined functions first.
fn frames(pc: usize) -> Vec<Place> {
    let mut found = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(pc), |symbol| {
        let Some((path, line)) = symbol.filename().zip(symbol.lineno()) else { return };
        if path.extension().is_some_and(|e| e == "cu" || e == "cuh")
            && let Some(name) = path.file_name()
        {
            found.push((name.to_string_lossy().into_owned(), line));
        }
    });
    found
}
