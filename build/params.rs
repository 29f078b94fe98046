//! Reads kernel sources: which kernels there are, and the memory layout of the params struct of each.
//!
//! The C side is the source of truth, because it is what the GPU runs; the Rust side is generated from it.
//! This is not a C++ parser: it supports two forms, a `KERNEL(...)` line and a struct of one `type name;` per
//! line, and refuses anything else in their place. It is a pure function of the text, so that tests of the
//! library can include this file by path.

use std::collections::BTreeMap;
use std::fmt;

/// A source file.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Path below `kernels/`.
    pub(crate) name: String,
    /// The text.
    pub(crate) text: String,
}

/// What the sources declare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// The kernels, in the order of files and lines.
    pub(crate) kernels: Vec<Kernel>,
    /// The params structs and the structs inside them, each after those that it contains.
    pub(crate) structs: Vec<Struct>,
}

/// A line `KERNEL(symbol, Params, threads, min_blocks)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Its place in the source.
    pub(crate) place: Place,
    /// The comment above it.
    pub(crate) doc: String,
    /// The symbol that the driver looks up.
    pub(crate) symbol: String,
    /// Name of its params struct.
    pub(crate) params: String,
    /// Threads per block.
    pub(crate) threads: u32,
    /// Blocks that have to fit on one multiprocessor.
    pub(crate) min_blocks: u32,
}

impl Kernel {
    /// The symbol as the name of an enum's variant: `rms_norm_fwd_bf16` is `RmsNormFwdBf16`.
    pub(crate) fn variant(&self) -> String {
        let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
        self.symbol.split('_').map(capital).collect()
    }
}

/// A struct with its layout, the same for C++ and for `repr(C)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Struct {
    /// Its place in the source.
    pub(crate) place: Place,
    /// The comment above it.
    pub(crate) doc: String,
    /// Its name, the same on both sides.
    pub(crate) name: String,
    /// The fields in their order.
    pub(crate) fields: Vec<Field>,
    /// Bytes.
    pub(crate) size: usize,
    /// Alignment in bytes.
    pub(crate) align: usize,
}

/// A field of a struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// The comment above and behind it.
    pub(crate) doc: String,
    /// Its name.
    pub(crate) name: String,
    /// Its type, or the type of its elements.
    pub(crate) kind: Type,
    /// Number of elements of an array.
    pub(crate) count: Option<usize>,
    /// Bytes before it.
    pub(crate) offset: usize,
}

/// A type that fields may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    /// An address in device memory, with the text of the C type.
    Pointer(String),
    /// A number: its name in C, its name in Rust, its size in bytes.
    Number(&'static str, &'static str, usize),
    /// A struct.
    Struct(String),
}

/// The numbers that fields may be.
const NUMBERS: [(&str, &str, usize); 5] = [
    ("int32_t", "i32", 4),
    ("uint32_t", "u32", 4),
    ("int64_t", "i64", 8),
    ("uint64_t", "u64", 8),
    ("float", "f32", 4),
];

/// Names that a field cannot have on the Rust side.
const KEYWORDS: [&str; 20] = [
    "as", "async", "await", "box", "crate", "dyn", "fn", "impl", "in", "let", "loop", "match", "mod", "move",
    "mut", "pub", "ref", "self", "type", "where",
];

/// A file and a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Path below `kernels/`.
    pub(crate) file: String,
    /// Line, from 1.
    pub(crate) line: usize,
}

/// A fault of the sources, and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The place.
    pub(crate) place: Place,
    /// The fault, and the fix.
    pub(crate) what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernels/{}:{}: {}", self.place.file, self.place.line, self.what)
    }
}

impl std::error::Error for Fault {}

/// Reads all sources: the `.cu` files, and the `.cuh` files beside them, which hold structs that several kernels use.
///
/// # Errors
/// The first line that breaks a rule.
pub(crate) fn read(sources: &[Source]) -> Result<Table, Fault> {
    let mut table = Table::default();
    let mut bodies: BTreeMap<String, Vec<Body>> = BTreeMap::new();
    for source in sources {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let place = Place { file: source.name.clone(), line: index + 1 };
            if let Some(body) = body(&lines, index, &place) {
                bodies.entry(body.name.clone()).or_default().push(body);
            } else if line.starts_with("KERNEL(") {
                if !source.name.ends_with(".cu") {
                    return fault(&place, "a kernel belongs to a .cu file");
                }
                table.kernels.push(kernel(&lines, index, place)?);
            } else if code(line).contains("KERNEL(") {
                return fault(&place, "KERNEL(...) must start its line: build.rs reads it there");
            }
        }
    }
    unique(&table.kernels)?;
    for kernel in &table.kernels {
        let asker = Asker { place: &kernel.place, what: format!("kernel {}", kernel.symbol), depth: 0 };
        let home = layout(&kernel.params, &asker, &bodies, &mut table.structs)?.place.file.clone();
        if home != kernel.place.file && home.ends_with(".cu") {
            let what = format!(
                "{} takes {}, which is declared in {home}: declare it in this file, or in a .cuh that both include",
                kernel.symbol, kernel.params
            );
            return fault(&kernel.place, &what);
        }
    }
    // Tables that params point to are filled by the host: their rows have twins as well.
    let mut next = 0;
    while next < table.structs.len() {
        let fields = table.structs[next].fields.clone();
        let place = table.structs[next].place.clone();
        for field in fields {
            let Type::Pointer(text) = &field.kind else { continue };
            let name = text.trim_start_matches("const ").trim_end_matches(['*', ' ']);
            if bodies.contains_key(name) {
                let asker = Asker { place: &place, what: format!("field {}", field.name), depth: 0 };
                layout(name, &asker, &bodies, &mut table.structs)?;
            }
        }
        next += 1;
    }
    Ok(table)
}

/// Refuses symbols that the linker or the Rust enum could not tell apart.
fn unique(kernels: &[Kernel]) -> Result<(), Fault> {
    for (index, kernel) in kernels.iter().enumerate() {
        if let Some(first) = kernels[..index].iter().find(|other| other.variant() == kernel.variant()) {
            let Place { file, line } = &first.place;
            let what =
                format!("duplicate kernel {}: {} stands at {file}:{line}", kernel.symbol, first.symbol);
            return fault(&kernel.place, &what);
        }
    }
    Ok(())
}

/// Reads the `KERNEL(...)` that starts at a line.
fn kernel(lines: &[&str], index: usize, place: Place) -> Result<Kernel, Fault> {
    let text = lines[index..].iter().take(4).map(|line| code(line)).collect::<Vec<_>>().join(" ");
    let Some((inside, _)) = text["KERNEL(".len()..].split_once(')') else {
        return fault(&place, "KERNEL(...) does not end within four lines");
    };
    let parts: Vec<&str> = inside.split(',').map(str::trim).collect();
    let [symbol, params, threads, min_blocks] = parts[..] else {
        return fault(&place, "expected KERNEL(symbol, Params, threads, min_blocks)");
    };
    let words_are_words = symbol.split('_').all(|word| !word.is_empty());
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !symbol.starts_with(|c: char| c.is_ascii_lowercase()) || !symbol.chars().all(plain) || !words_are_words
    {
        return fault(&place, &format!("{symbol:?} is no kernel name: expected <op>_<pass>_<dtype>"));
    }
    if !params.chars().all(is_name) || !params.ends_with("Params") {
        return fault(&place, &format!("{params:?} is no name of a params struct: expected <Kernel>Params"));
    }
    let number = |name: &str, text: &str| match text.parse::<u32>() {
        Ok(number) => Ok(number),
        Err(_) => fault(&place, &format!("{name} of {symbol} must be an integer literal: got {text:?}")),
    };
    let (threads, min_blocks) = (number("threads", threads)?, number("min_blocks", min_blocks)?);
    if !threads.is_multiple_of(32) || !(32..=1024).contains(&threads) {
        let what = format!("threads of {symbol}: got {threads}, expected a multiple of 32 of at most 1024");
        return fault(&place, &what);
    }
    if !(1..=32).contains(&min_blocks) {
        return fault(&place, &format!("min_blocks of {symbol}: got {min_blocks}, expected 1 to 32"));
    }
    let (symbol, params) = (symbol.to_owned(), params.to_owned());
    Ok(Kernel { doc: doc_above(lines, index), place, symbol, params, threads, min_blocks })
}

/// A struct in the file, its lines not yet parsed.
struct Body {
    place: Place,
    doc: String,
    name: String,
    lines: Vec<String>,
}

/// The struct that starts at a line, if one does.
fn body(lines: &[&str], index: usize, place: &Place) -> Option<Body> {
    let name = code(lines[index]).strip_prefix("struct ")?.trim_end().strip_suffix('{')?.trim();
    let inside = lines[index + 1..].iter().take_while(|line| !line.starts_with('}'));
    let lines_inside = inside.map(|line| (*line).to_owned()).collect();
    let (place, name) = (place.clone(), name.to_owned());
    Some(Body { place, doc: doc_above(lines, index), name, lines: lines_inside })
}

/// The user of a struct.
struct Asker<'a> {
    place: &'a Place,
    what: String,
    depth: usize,
}

/// The layout of a struct, from `done` or read now; those inside it come first.
fn layout<'a>(
    name: &str,
    asker: &Asker<'_>,
    bodies: &BTreeMap<String, Vec<Body>>,
    done: &'a mut Vec<Struct>,
) -> Result<&'a Struct, Fault> {
    if let Some(index) = done.iter().position(|other| other.name == name) {
        return Ok(&done[index]);
    }
    let body = match bodies.get(name).map(Vec::as_slice) {
        Some([body]) if asker.depth < 8 => body,
        Some([body]) => return fault(&body.place, &format!("{name} is nested too deeply")),
        Some([first, second, ..]) => {
            let Place { file, line } = &first.place;
            return fault(
                &second.place,
                &format!("duplicate struct {name}: the first stands at {file}:{line}"),
            );
        }
        _ => {
            let what = format!(
                "{} needs `struct {name} {{ ... }};`, spelled at the start of a line in kernels/*.cu or *.cuh",
                asker.what
            );
            return fault(asker.place, &what);
        }
    };
    let read = fields(body, asker.depth, bodies, done)?;
    done.push(read);
    Ok(&done[done.len() - 1])
}

/// Reads the fields of a struct and lays them out.
fn fields(
    body: &Body,
    depth: usize,
    bodies: &BTreeMap<String, Vec<Body>>,
    done: &mut Vec<Struct>,
) -> Result<Struct, Fault> {
    let Body { place, doc, name, lines } = body;
    let (mut fields, mut above): (Vec<Field>, Vec<&str>) = (Vec::new(), Vec::new());
    let (mut size, mut align, mut comment_column) = (0usize, 1, None);
    for (index, line) in lines.iter().enumerate() {
        let here = Place { file: place.file.clone(), line: place.line + 1 + index };
        let (text, comment) = (code(line).trim(), comment(line));
        if text.is_empty() {
            match (comment, fields.last_mut()) {
                // Goes on below the comment behind the last field.
                (Some((column, more)), Some(last)) if comment_column == Some(column) => {
                    last.doc = format!("{} {more}", last.doc);
                }
                (Some((_, more)), _) => above.push(more),
                (None, _) => above.clear(),
            }
            continue;
        }
        let (kind, field_name, count) = declaration(text, name, &here)?;
        let (one, alignment) = match &kind {
            Type::Pointer(_) => (8, 8),
            Type::Number(_, _, size) => (*size, *size),
            Type::Struct(inner) => {
                let what = format!("field {name}::{field_name} is of no known type, or");
                let inner = layout(inner, &Asker { place: &here, what, depth: depth + 1 }, bodies, done)?;
                (inner.size, inner.align)
            }
        };
        if fields.iter().any(|field| field.name == field_name) {
            return fault(&here, &format!("duplicate field {name}::{field_name}"));
        }
        let padding = size.next_multiple_of(alignment) - size;
        if padding > 0 {
            let what = format!(
                "{padding} bytes of implicit padding before {name}::{field_name}: put wider fields first, or add {}",
                filler(padding)
            );
            return fault(&here, &what);
        }
        let trailing = comment.map(|(_, text)| text);
        comment_column = comment.map(|(column, _)| column);
        let doc = above.drain(..).chain(trailing).collect::<Vec<_>>().join(" ");
        fields.push(Field { doc, name: field_name, kind, count, offset: size });
        size += one * count.unwrap_or(1);
        align = align.max(alignment);
    }
    if fields.is_empty() {
        return fault(place, &format!("{name} has no fields"));
    }
    let padding = size.next_multiple_of(align) - size;
    if padding > 0 {
        let what =
            format!("{padding} bytes of implicit padding at the end of {name}: add {}", filler(padding));
        return fault(place, &what);
    }
    Ok(Struct { place: place.clone(), doc: doc.clone(), name: name.clone(), fields, size, align })
}

/// Fields that would fill a gap of `bytes`.
fn filler(bytes: usize) -> String {
    match bytes / 4 {
        1 => "`uint32_t reserved;`".to_owned(),
        words => format!("`uint32_t reserved[{words}];`"),
    }
}

/// Reads `type name;` or `type name[N];`.
fn declaration(text: &str, owner: &str, place: &Place) -> Result<(Type, String, Option<usize>), Fault> {
    let form = || format!("in {owner}: expected `type name;` or `type name[N];`, one a line: got {text:?}");
    let Some(rest) = text.strip_suffix(';') else { return fault(place, &form()) };
    let (rest, count) = match rest.trim_end().strip_suffix(']').map(|rest| rest.split_once('[')) {
        None => (rest, None),
        Some(Some((rest, count))) => match count.trim().parse::<usize>() {
            Ok(count) if count > 0 => (rest, Some(count)),
            _ => return fault(place, &form()),
        },
        Some(None) => return fault(place, &form()),
    };
    let rest = rest.trim_end();
    let kind = rest.trim_end_matches(is_name);
    let name = &rest[kind.len()..];
    let kind = kind.trim();
    let words: Vec<&str> = kind.split(['*', ' ']).filter(|word| !word.is_empty()).collect();
    let kinds: Vec<&str> = words.iter().copied().filter(|word| *word != "const").collect();
    let [base] = kinds[..] else { return fault(place, &form()) };
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !base.chars().all(is_name) {
        return fault(place, &form());
    }
    if KEYWORDS.contains(&name) {
        return fault(place, &format!("{owner}::{name}: this name is a keyword of Rust; choose another"));
    }
    let number = NUMBERS.iter().find(|(c, _, _)| *c == kind);
    let kind = if kind.contains('*') {
        Type::Pointer(kind.to_owned())
    } else if let Some((c, rust, size)) = number {
        Type::Number(c, rust, *size)
    } else if words.len() == 1 && base.starts_with(|c: char| c.is_ascii_uppercase()) {
        Type::Struct(base.to_owned())
    } else {
        let what = format!(
            "{owner}::{name}: unknown type {kind:?}; expected a pointer, int32_t, uint32_t, int64_t, uint64_t, float, or a struct"
        );
        return fault(place, &what);
    };
    Ok((kind, name.to_owned(), count))
}

/// The comment lines right above a line, as one text.
fn doc_above(lines: &[&str], index: usize) -> String {
    let above = lines[..index].iter().rev().map_while(|line| line.strip_prefix("//")).map(str::trim);
    let mut doc: Vec<&str> = above.collect();
    doc.reverse();
    doc.join(" ")
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// The comment of a line and its column.
fn comment(line: &str) -> Option<(usize, &str)> {
    line.split_once("//").map(|(code, comment)| (code.len(), comment.trim()))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn fault<T>(place: &Place, what: &str) -> Result<T, Fault> {
    Err(Fault { place: place.clone(), what: what.to_owned() })
}
