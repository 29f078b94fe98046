//! Turns the kernel sources into the unit that both compilers read (`kernels_all.cu`) and the Rust side of it (`kernels.rs`).
//!
//! The unit includes every `kernels/*.cu` and then `params_check.hpp`, which asserts in C++ the very layout that `kernels.rs`
//! asserts in Rust.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Failure;
use crate::budgets::{self, Row};
use crate::nvcc::{Compiled, Image};
use crate::params::{self, Field, Kernel, Source, Struct, Table, Type};

/// Folder of the sources, from the root.
const FOLDER: &str = "kernels";

/// The kernel sources and what they declare.
pub(crate) struct Sources {
    /// All kernel sources, including the shared headers.
    all: Vec<Source>,
    table: Table,
    budgets: Vec<Row>,
}

impl Sources {
    /// Reads `kernels/`.
    ///
    /// # Errors
    /// File, line and rule of the first fault.
    pub(crate) fn read() -> Result<Self, Failure> {
        // Naming the folder covers all files in it, including added and removed ones.
        println!("cargo::rerun-if-changed={FOLDER}");
        let mut all = Vec::new();
        for folder in ["", "common/"] {
            let mut names: Vec<String> = Vec::new();
            for entry in fs::read_dir(Path::new(FOLDER).join(folder))? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.retain(|name| name.ends_with(".cu") || name.ends_with(".cuh"));
            names.sort();
            for name in names {
                let name = format!("{folder}{name}");
                let text = fs::read_to_string(Path::new(FOLDER).join(&name))?;
                all.push(Source { name, text });
            }
        }
        let own: Vec<Source> = all.iter().filter(|source| !source.name.contains('/')).cloned().collect();
        let table = params::read(&own)?;
        let budgets = budgets::read(&fs::read_to_string(Path::new(FOLDER).join("README.md"))?)?;
        Ok(Self { all, table, budgets })
    }

    /// Everything that the machine code depends on.
    pub(crate) fn everything(&self) -> String {
        self.all.iter().map(|source| format!("{}\n{}\n", source.name, source.text)).collect()
    }

    /// Writes `kernels_all.cu` and `params_check.hpp`, and gives the path of the first.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn write_unit(&self, out: &Path) -> Result<PathBuf, Failure> {
        let mut unit = String::from("// Written by build.rs: all kernels in one unit.\n");
        for source in self.all.iter().filter(|source| source.name.ends_with(".cu")) {
            writeln!(unit, "#include \"{}\"", source.name)?;
        }
        unit.push_str("#include \"params_check.hpp\"\n");
        let mut check =
            String::from("// Written by build.rs: the layout that the Rust side has.\n#include <stddef.h>\n");
        for Struct { name, fields, size, align, .. } in &self.table.structs {
            writeln!(check, "static_assert(sizeof({name}) == {size}, \"size of {name}\");")?;
            writeln!(check, "static_assert(alignof({name}) == {align}, \"alignment of {name}\");")?;
            for Field { name: field, offset, .. } in fields {
                let what = format!("offset of {name}::{field}");
                writeln!(check, "static_assert(offsetof({name}, {field}) == {offset}, \"{what}\");")?;
            }
        }
        fs::write(out.join("params_check.hpp"), check)?;
        let path = out.join("kernels_all.cu");
        fs::write(&path, unit)?;
        Ok(path)
    }

    /// Writes `kernels.rs`, which `src/device/kernels.rs` includes.
    ///
    /// # Errors
    /// If the compiler reports other kernels than the sources declare, or the file cannot be written.
    pub(crate) fn write_table(&self, out: &Path, compiled: &Compiled) -> Result<(), Failure> {
        let mut text = String::from("// Written by build.rs from kernels/*.cu and kernels/README.md.\n");
        self.kernels(&mut text, compiled)?;
        self.params(&mut text)?;
        writeln!(text, "\n/// Which nvcc read the kernels, or why none did and what helps.")?;
        writeln!(text, "pub const NVCC: &str = {:?};", compiled.nvcc)?;
        writeln!(text, "\n/// Which ptxas made the machine code; empty without nvcc.")?;
        writeln!(text, "pub const PTXAS: &str = {:?};", compiled.ptxas)?;
        writeln!(text, "\n/// All kernels: machine code by architecture, and PTX; nothing without nvcc.")?;
        writeln!(text, "pub static IMAGES: &[(Image, Packed)] = &[")?;
        for Image { arch, is_ptx, file, size } in &compiled.images {
            let kind = if *is_ptx { "Ptx" } else { "Code" };
            writeln!(
                text,
                "    (Image::{kind}(Arch::Sm{arch}), Packed {{ bytes: include_bytes!({file:?}), size: {size} }}),"
            )?;
        }
        writeln!(text, "];")?;
        fs::write(out.join("kernels.rs"), text)?;
        Ok(())
    }

    /// The enum, and the facts of each kernel.
    fn kernels(&self, text: &mut String, compiled: &Compiled) -> Result<(), Failure> {
        let (mut variants, mut rows, mut names) = (String::new(), String::new(), Vec::new());
        for kernel in &self.table.kernels {
            let name = kernel.variant();
            writeln!(variants, "    #[doc = {:?}]\n    {name},", kernel_doc(kernel))?;
            writeln!(rows, "            Self::{name} => &{},", self.facts(kernel, compiled)?)?;
            names.push(format!("Self::{name}"));
        }
        if let Some(usage) = compiled.usages.iter().find(|usage| self.kernel(&usage.symbol).is_none()) {
            let what =
                format!("nvcc compiled {}, which no KERNEL(...) line in kernels/*.cu names", usage.symbol);
            return Err(what.into());
        }
        let derives = "Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord";
        let names = names.join(", ");
        write!(
            text,
            "\n/// A kernel of `kernels/*.cu`.\n#[derive({derives})]\npub enum Kernel {{\n{variants}}}\n\n\
             impl Kernel {{\n    /// All kernels.\n    pub const ALL: &'static [Self] = &[{names}];\n\n    \
             const fn facts(self) -> &'static Facts {{\n        match self {{\n{rows}        }}\n    }}\n}}\n"
        )?;
        Ok(())
    }

    fn kernel(&self, symbol: &str) -> Option<&Kernel> {
        self.table.kernels.iter().find(|kernel| kernel.symbol == symbol)
    }

    /// The facts of a kernel, as Rust.
    fn facts(&self, kernel: &Kernel, compiled: &Compiled) -> Result<String, Failure> {
        let Kernel { place, symbol, params, threads, min_blocks, .. } = kernel;
        let size =
            self.table.structs.iter().find(|other| other.name == *params).map_or(0, |found| found.size);
        let budget = match self.budgets.iter().find(|row| row.symbol == *symbol) {
            Some(row) => format!("Budget {{ registers: {}, smem: {} }}", row.registers, row.smem),
            None => {
                println!("cargo::warning=kernels/README.md: no row for kernel {symbol}, so its budget is 0");
                "Budget { registers: 0, smem: 0 }".to_owned()
            }
        };
        let mut resources = String::new();
        for usage in compiled.usages.iter().filter(|usage| usage.symbol == *symbol) {
            let (sm, registers, smem) = (usage.sm, usage.registers, usage.static_smem);
            let (stack, spills) = (usage.stack, usage.spills);
            write!(
                resources,
                "(Arch::Sm{sm}, Resources {{ registers: {registers}, static_smem: {smem}, stack: {stack}, spills: {spills} }}), "
            )?;
        }
        if !compiled.images.is_empty() && resources.is_empty() {
            return Err(format!("kernels/{}:{}: nvcc compiled no {symbol}", place.file, place.line).into());
        }
        Ok(format!(
            "Facts {{ symbol: {symbol:?}, file: {:?}, threads: {threads}, min_blocks: {min_blocks}, params_name: {params:?}, \
             params_size: {size}, budget: {budget}, resources: &[{resources}] }}",
            place.file
        ))
    }

    /// The module of the params structs.
    fn params(&self, text: &mut String) -> Result<(), Failure> {
        text.push_str("\n/// The params structs of `kernels/*.cu`, field by field.\npub mod params {\n");
        if !self.table.structs.is_empty() {
            text.push_str("    use super::{DevicePtr, Params};\n    use bytemuck::{Pod, Zeroable};\n");
        }
        for found in &self.table.structs {
            let Struct { place, name, fields, size, align, .. } = found;
            let doc = or(&found.doc, &format!("Declared in `kernels/{}`.", place.file));
            let mut layout = format!("size_of::<{name}>() == {size} && align_of::<{name}>() == {align}");
            write!(
                text,
                "\n    #[doc = {doc:?}]\n    #[repr(C)]\n    #[derive(Debug, Clone, Copy, Pod, Zeroable)]\n"
            )?;
            writeln!(text, "    pub struct {name} {{")?;
            for Field { doc, name: field, kind, count, offset } in fields {
                let doc = or(doc, &format!("`{field}` of `{name}`."));
                let (rust, pointer) = match kind {
                    Type::Pointer(c) => ("DevicePtr", format!(" (`{c}`)")),
                    Type::Number(_, rust, _) => (*rust, String::new()),
                    Type::Struct(inner) => (inner.as_str(), String::new()),
                };
                let rust = count.map_or_else(|| rust.to_owned(), |count| format!("[{rust}; {count}]"));
                let doc = format!("{doc}{pointer}");
                writeln!(text, "        #[doc = {doc:?}]\n        pub {field}: {rust},")?;
                write!(layout, "\n        && std::mem::offset_of!({name}, {field}) == {offset}")?;
            }
            writeln!(text, "    }}\n    const _: () = assert!({layout});")?;
            if self.table.kernels.iter().any(|kernel| kernel.params == *name) {
                writeln!(
                    text,
                    "    impl Params for {name} {{\n        const NAME: &'static str = {name:?};\n    }}"
                )?;
            }
        }
        text.push_str("}\n");
        Ok(())
    }
}

/// The documentation of a kernel.
fn kernel_doc(kernel: &Kernel) -> String {
    let place = format!("`{}` of `kernels/{}`.", kernel.symbol, kernel.place.file);
    if kernel.doc.is_empty() { place } else { format!("{} ({place})", escape(&kernel.doc)) }
}

/// A comment as documentation, or a default text if it is missing.
fn or(comment: &str, missing: &str) -> String {
    if comment.is_empty() { missing.to_owned() } else { escape(comment) }
}

/// Escapes brackets and tags of comments, so that they are not read as links and HTML; text between backticks
/// is unchanged.
fn escape(comment: &str) -> String {
    let mut text = String::with_capacity(comment.len());
    let mut in_code = false;
    for c in comment.chars() {
        in_code ^= c == '`';
        if !in_code && "[]<>*_".contains(c) {
            text.push('\\');
        }
        text.push(c);
    }
    text
}
