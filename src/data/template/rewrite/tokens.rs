//! The tokens of a tag, by Jinja's rules: numbers with `_`, strings with Python's escapes.

/// The kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Name,
    Int,
    Float,
    Text,
    Op,
}

/// A word, number, string or sign.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) text: String,
    /// White space before it.
    pub(super) space: String,
}

/// Operators, longest first.
const OPERATORS: &[&str] = &["**", "//", "==", "!=", "<=", ">="];

/// The tokens of the tag that `tag` begins with, and what follows the tag.
pub(super) fn tokens(tag: &str) -> Result<(Vec<Token>, &str), String> {
    let end = if tag.starts_with("{{") { "}}" } else { "%}" };
    let mut rest = tag[2..].strip_prefix(['-', '+']).unwrap_or(&tag[2..]);
    let mut tokens = Vec::new();
    let mut open = 0usize;
    loop {
        let trimmed = rest.trim_start();
        let space = rest[..rest.len() - trimmed.len()].to_owned();
        rest = trimmed;
        if open == 0 {
            let closed = rest
                .strip_prefix(['-', '+'])
                .unwrap_or(rest)
                .strip_prefix(end)
                .or_else(|| rest.strip_prefix(end));
            if let Some(after) = closed {
                return Ok((tokens, after));
            }
        }
        let Some(first) = rest.chars().next() else { return Err("a tag is not closed".into()) };
        let (kind, text, len) = if first.is_alphabetic() || first == '_' {
            let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            (Kind::Name, rest[..len].to_owned(), len)
        } else if first.is_ascii_digit() {
            number(rest)?
        } else if matches!(first, '\'' | '"') {
            let len = 2 + string_end(&rest[1..], first).ok_or("a string is not closed")?;
            (Kind::Text, quoted(&unescaped(&rest[1..len - 1])?), len)
        } else {
            let long = OPERATORS.iter().find(|op| rest.starts_with(**op));
            let len = long.map_or(first.len_utf8(), |op| op.len());
            (Kind::Op, rest[..len].to_owned(), len)
        };
        match (kind, first) {
            (Kind::Op, '(' | '[' | '{') => open += 1,
            (Kind::Op, ')' | ']' | '}') => open = open.saturating_sub(1),
            _ => {}
        }
        rest = &rest[len..];
        tokens.push(Token { kind, text, space });
    }
}

/// The number that `text` begins with.
fn number(text: &str) -> Result<(Kind, String, usize), String> {
    let digits =
        |text: &str, base: u32| text.find(|c: char| !(c.is_digit(base) || c == '_')).unwrap_or(text.len());
    for (prefix, base) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if text.len() > 2 && text.is_char_boundary(2) && text[..2].eq_ignore_ascii_case(prefix) {
            let len = 2 + digits(&text[2..], base);
            let value = i128::from_str_radix(&text[2..len].replace('_', ""), base);
            return Ok((Kind::Int, value.map_err(|_| "a number is not understood")?.to_string(), len));
        }
    }
    let mut len = digits(text, 10);
    let mut kind = Kind::Int;
    if text[len..].starts_with('.') && text[len + 1..].starts_with(|c: char| c.is_ascii_digit()) {
        len += 1 + digits(&text[len + 1..], 10);
        kind = Kind::Float;
    }
    if text[len..].starts_with(['e', 'E']) {
        let power = text[len + 1..].strip_prefix(['-', '+']).unwrap_or(&text[len + 1..]);
        if power.starts_with(|c: char| c.is_ascii_digit()) {
            len = text.len() - power.len() + digits(power, 10);
            kind = Kind::Float;
        }
    }
    let plain = text[..len].replace('_', "");
    let plain = match kind {
        // Leading zeros do not mean octal here.
        Kind::Int => plain.parse::<i128>().map_err(|_| "a number is too large")?.to_string(),
        _ if plain.parse::<f64>().is_ok_and(f64::is_finite) => plain,
        _ => return Err("a number is too large".into()),
    };
    Ok((kind, plain, len))
}

/// Bytes up to the quote that ends a string.
fn string_end(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// The text of a Python string literal.
fn unescaped(text: &str) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            result.push(c);
            continue;
        }
        let Some(escape) = chars.next() else { return Err("a string ends in a backslash".into()) };
        let hex = |chars: &mut std::str::Chars<'_>, len: usize| {
            let digits: String = chars.by_ref().take(len).collect();
            let code = if digits.len() == len { u32::from_str_radix(&digits, 16).ok() } else { None };
            code.and_then(char::from_u32)
                .ok_or_else(|| format!("the escape \\{escape}{digits} is not a character"))
        };
        match escape {
            '\n' => {}
            '\\' | '\'' | '"' => result.push(escape),
            'a' => result.push('\u{7}'),
            'b' => result.push('\u{8}'),
            'f' => result.push('\u{c}'),
            'n' => result.push('\n'),
            'r' => result.push('\r'),
            't' => result.push('\t'),
            'v' => result.push('\u{b}'),
            'x' => result.push(hex(&mut chars, 2)?),
            'u' => result.push(hex(&mut chars, 4)?),
            'U' => result.push(hex(&mut chars, 8)?),
            'N' => return Err("names of characters (\\N) are not supported".into()),
            '0'..='7' => {
                let mut code = escape.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.clone().next().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    chars.next();
                }
                result.extend(char::from_u32(code));
            }
            other => result.extend(['\\', other]),
        }
    }
    Ok(result)
}

/// `text` as a string literal of the template engine.
fn quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len() + 2);
    result.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => result.extend(['\\', c]),
            '\r' => result.push_str("\\r"),
            c => result.push(c),
        }
    }
    result.push('"');
    result
}
