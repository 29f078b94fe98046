//! Human-readable numbers: bytes, counts, operations, times.

use crate::config::Batching;

/// Bytes as B, KiB, MiB, GiB or TiB.
pub(super) fn bytes(count: u64) -> String {
    scaled(count as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Floating-point operations as FLOP to PFLOP.
pub(super) fn flops(count: u64) -> String {
    scaled(count as f64, 1000.0, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"])
}

/// A count with a comma between groups of three digits.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The size of a batch, as `8 rows` or `4,096 tokens`.
pub(super) fn batch(batching: Batching) -> String {
    match batching {
        Batching::Samples(rows) => format!("{rows} rows"),
        Batching::Tokens(tokens) => format!("{} tokens", count(tokens as u64)),
    }
}

/// Seconds as `1.2 s`, `3m 05s` or `2h 03m`.
pub(super) fn seconds(secs: f64) -> String {
    // Casts saturate, and no time is negative.
    let whole = secs.round() as u64;
    match whole {
        _ if secs < 60.0 => format!("{secs:.1} s"),
        0..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// `before` and `sol` as a percentage; empty if `sol` is not known.
pub(super) fn sol(before: &str, share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| match 100.0 * share {
        percent if percent < 9.95 => format!("{before}sol {percent:.1}%"),
        percent => format!("{before}sol {percent:.0}%"),
    })
}

/// A word of a shell command, quoted if it needs to be.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:,=+@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// Text that is safe for a terminal: control characters are escaped; line ends stay if `multi_line`.
pub(super) fn harmless(text: &str, multi_line: bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' if multi_line => safe.push(c),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// Three digits and a unit.
fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while number >= step && unit + 1 < units.len() {
        number /= step;
        unit += 1;
    }
    let decimals = match number {
        _ if unit == 0 => 0,
        n if n < 9.995 => 2,
        n if n < 99.95 => 1,
        _ => 0,
    };
    format!("{number:.decimals$} {}", units.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!((bytes(0).as_str(), bytes(1023).as_str()), ("0 B", "1023 B"));
        assert_eq!((bytes(1536).as_str(), bytes(10 << 30).as_str()), ("1.50 KiB", "10.0 GiB"));
        assert_eq!(flops(1_234_000_000_000), "1.23 TFLOP");
        assert_eq!((count(7).as_str(), count(1_234_567).as_str()), ("7", "1,234,567"));
        assert_eq!((sol(", ", Some(0.4142)).as_str(), sol(", ", None).as_str()), (", sol 41%", ""));
        assert_eq!((sol("", Some(0.0994)).as_str(), sol("", Some(0.0995)).as_str()), ("sol 9.9%", "sol 10%"));
        assert_eq!(seconds(59.94), "59.9 s");
        assert_eq!((seconds(185.0).as_str(), seconds(7380.0).as_str()), ("3m 05s", "2h 03m"));
    }

    #[test]
    fn words_of_a_command_survive_the_shell() {
        assert_eq!(shell_word("runs/a-1"), "runs/a-1");
        assert_eq!(shell_word("it's a run"), "'it'\\''s a run'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn text_cannot_control_the_terminal() {
        assert_eq!(harmless("a\x1b[2J\nb", true), "a\\u{1b}[2J\nb");
        assert_eq!(harmless("a\nb", false), "a\\nb");
    }
}
