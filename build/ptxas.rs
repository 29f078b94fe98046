//! Reads what `ptxas -v` says about each kernel and architecture: registers, shared memory, stack, spills.
//!
//! Included by path in tests, like `params.rs`.

/// Resources of one kernel on one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The kernel.
    pub(crate) symbol: String,
    /// The architecture: 86 for sm_86.
    pub(crate) sm: u32,
    /// Registers per thread.
    pub(crate) registers: u32,
    /// Shared memory of fixed size, in bytes per block.
    pub(crate) static_smem: u32,
    /// Local memory in bytes per thread.
    pub(crate) stack: u32,
    /// Register spills: bytes stored and loaded per thread.
    pub(crate) spills: u32,
}

/// Reads the output of the compiler. Its architectures may come in any order, the lines of one kernel come together.
///
/// # Errors
/// A line that is not as expected.
pub(crate) fn read(log: &str) -> Result<Vec<Usage>, String> {
    let mut all: Vec<Usage> = Vec::new();
    // The one whose lines are being read; numbers of other functions than kernels are not of interest.
    let mut open: Option<Usage> = None;
    for line in log.lines() {
        let unreadable = || format!("cannot read this line of ptxas -v: {line}");
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let (symbol, rest) = rest.split_once("' for 'sm_").ok_or_else(unreadable)?;
            let sm = rest.trim_end_matches('\'').parse().map_err(|_| unreadable())?;
            let symbol = symbol.to_owned();
            open = Some(Usage { symbol, sm, registers: 0, static_smem: 0, stack: 0, spills: 0 });
        } else if let Some(usage) = &mut open {
            if line.contains("bytes stack frame") {
                let [stack, stores, loads] = numbers(line)[..] else { return Err(unreadable()) };
                (usage.stack, usage.spills) = (stack, stores + loads);
            } else if let Some((_, rest)) = line.split_once(": Used ") {
                let registers = rest.split_once(" registers").ok_or_else(unreadable)?.0;
                usage.registers = registers.parse().map_err(|_| unreadable())?;
                let smem = rest.split(", ").find_map(|part| part.strip_suffix(" bytes smem"));
                usage.static_smem = smem.unwrap_or("0").parse().map_err(|_| unreadable())?;
                all.extend(open.take());
            }
        }
    }
    match open {
        Some(usage) => Err(format!("ptxas -v gave no registers for {} on sm_{}", usage.symbol, usage.sm)),
        None => Ok(all),
    }
}

/// The numbers among the words of a line.
fn numbers(line: &str) -> Vec<u32> {
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}
