//! Reads the table of `kernels/README.md`: the function and the resource limits of each kernel.
//!
//! The table is written by hand, so that a kernel takes more resources only on purpose. The build hands its
//! numbers to the library (`Kernel::budget`), and a test compares them with what the compiler used. Included
//! by path in tests, like `params.rs`.

use super::params::{Fault, Place};

/// The head of the table.
pub(crate) const HEAD: [&str; 7] =
    ["kernel", "what it does", "params", "threads", "registers (sm_86)", "shared memory", "emulated"];

/// A row: a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Line of the file, from 1.
    pub(crate) line: usize,
    /// The kernel.
    pub(crate) symbol: String,
    /// Its params struct.
    pub(crate) params: String,
    /// Threads per block.
    pub(crate) threads: u32,
    /// Maximum registers per thread on sm_86.
    pub(crate) registers: u32,
    /// Maximum shared memory of a block in bytes, static and dynamic together.
    pub(crate) smem: u32,
}

/// Reads the rows below [`HEAD`]; returns no rows without such a head.
///
/// # Errors
/// The first row that cannot be read, or that names a kernel a second time.
pub(crate) fn read(text: &str) -> Result<Vec<Row>, Fault> {
    let mut rows: Vec<Row> = Vec::new();
    let mut lines = text.lines().enumerate().skip_while(|(_, line)| cells(line) != HEAD);
    lines.next();
    for (index, line) in lines.skip(1).take_while(|(_, line)| line.starts_with('|')) {
        let place = Place { file: "README.md".to_owned(), line: index + 1 };
        let row = row(&cells(line), index + 1).map_err(|what| Fault { place: place.clone(), what })?;
        if rows.iter().any(|other| other.symbol == row.symbol) {
            return Err(Fault { place, what: format!("a second row of {}", row.symbol) });
        }
        rows.push(row);
    }
    Ok(rows)
}

fn row(cells: &[&str], line: usize) -> Result<Row, String> {
    let [symbol, what, params, threads, registers, smem, emulated] = *cells else {
        return Err(format!("a row needs {} columns: {}", HEAD.len(), HEAD.join(", ")));
    };
    let number = |name: &str, text: &str| {
        text.parse::<u32>().map_err(|_| format!("{name} of {symbol}: got {text:?}, expected an integer"))
    };
    let name = |text: &str| text.trim_matches('`').to_owned();
    if what.is_empty() || emulated.is_empty() {
        return Err(format!("{symbol}: say what it does, and whether the emulator runs it"));
    }
    Ok(Row {
        line,
        symbol: name(symbol),
        params: name(params),
        threads: number("threads", threads)?,
        registers: number("registers", registers)?,
        smem: number("shared memory in bytes", smem)?,
    })
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<&str> {
    let inside = line.trim().strip_prefix('|').and_then(|rest| rest.strip_suffix('|'));
    inside.map(|inside| inside.split('|').map(str::trim).collect()).unwrap_or_default()
}
