//! Amounts of memory as options: `9.3GiB`, `10GB`, or a number of bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number of bytes, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct MemorySize(u64);

/// Units and their bytes; the first name of each is the usual one.
const UNITS: [(&[&str], u64); 7] = [
    (&["", "B"], 1),
    (&["kB", "KB"], 1000),
    (&["MB"], 1_000_000),
    (&["GB"], 1_000_000_000),
    (&["KiB"], 1 << 10),
    (&["MiB"], 1 << 20),
    (&["GiB"], 1 << 30),
];

/// Upper limit of a size: beyond 2^53 a float cannot count single bytes, and no machine has that much memory.
const MOST_BYTES: u64 = 9_000_000_000_000_000;

/// The accepted forms in a file or a flag.
#[derive(Deserialize)]
#[serde(untagged, expecting = "must be a size such as 9.3GiB, 10GB or 8000000000")]
enum Written {
    Bytes(u64),
    Text(String),
}

impl MemorySize {
    /// A size of this many bytes.
    pub fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    /// Prints the number of bytes, so that a written configuration reads back to the same one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<Written> for MemorySize {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        let bytes = match written {
            Written::Bytes(bytes) => Some(bytes),
            Written::Text(text) => parse(&text),
        };
        let expected = || "must be a size such as 9.3GiB, 10GB or 8000000000".to_owned();
        bytes.filter(|bytes| (1..MOST_BYTES).contains(bytes)).map(Self).ok_or_else(expected)
    }
}

impl From<MemorySize> for String {
    fn from(size: MemorySize) -> Self {
        size.to_string()
    }
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = UNITS.iter().find(|(names, _)| names.contains(&unit.trim()))?;
    let number: f64 = number.parse().ok()?;
    let bytes = number * *factor as f64;
    // The cast saturates, and the limit is checked behind it.
    Some(bytes.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<u64, String> {
        let table: toml::Table = format!("size = {text}").parse().unwrap();
        table["size"]
            .clone()
            .try_into()
            .map(MemorySize::bytes)
            .map_err(|e: toml::de::Error| e.message().to_owned())
    }

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, bytes) in [
            ("\"9.3GiB\"", 9_985_798_963),
            ("\"10 GB\"", 10_000_000_000),
            ("\"512MiB\"", 512 << 20),
            ("\"1.5kB\"", 1500),
            ("\"77\"", 77),
            ("8000000000", 8_000_000_000),
        ] {
            assert_eq!(read(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_what_is() {
        for text in
            ["\"\"", "\"GiB\"", "\"9.3G\"", "\"-1GB\"", "\"0\"", "\"1e9\"", "\"9e9GiB\"", "true", "9.5"]
        {
            assert!(read(text).unwrap_err().contains("9.3GiB"), "{text}");
        }
        assert!(read("\"1.2.3GB\"").is_err());
    }

    #[test]
    fn a_written_size_reads_back() {
        let size = MemorySize::from_bytes(9_985_798_963);
        assert_eq!(read(&format!("\"{}\"", String::from(size))), Ok(size.bytes()));
    }

    #[test]
    fn a_number_and_its_text_have_the_same_limit() {
        for bytes in ["8999999999999999", "9000000000000000", "9223372036854775807"] {
            assert_eq!(read(bytes), read(&format!("\"{bytes}\"")), "{bytes}");
            assert_eq!(read(bytes).is_ok(), bytes.starts_with('8'), "{bytes}");
        }
    }
}
