//! Rewrites operators, slices and methods into calls of our functions, so that they behave as in Python.
//!
//! The template engine has operators of its own: `'%s' % n` is an error there, `~` writes floats in another
//! notation, `<` compares types that Python does not compare, a backward slice ends elsewhere. They cannot be
//! replaced in the engine, so the text of the template is rewritten: `a ~ b` becomes `py_concat(a, b)`. The
//! grammar is Jinja's. Everything but operators is kept verbatim, with its white space, so that line numbers
//! of errors stay right.

mod tokens;

use super::Failure;
use tokens::{Kind, Token, tokens};

/// Maximum nesting of brackets and operators. Published templates need about 10.
const MAX_DEPTH: usize = 100;

/// Names after a dot that Python finds on a string, list or dictionary before it looks for a key.
pub(super) const METHODS: &[&str] = &[
    "append",
    "capitalize",
    "casefold",
    "center",
    "clear",
    "copy",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "extend",
    "find",
    "format",
    "format_map",
    "fromkeys",
    "get",
    "index",
    "insert",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "items",
    "join",
    "keys",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "pop",
    "popitem",
    "remove",
    "removeprefix",
    "removesuffix",
    "replace",
    "reverse",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "setdefault",
    "sort",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "update",
    "upper",
    "values",
    "zfill",
];

/// Keywords, which are not names of values.
const KEYWORDS: &[&str] =
    &["and", "or", "not", "if", "else", "in", "is", "recursive", "import", "as", "with", "without"];

/// `source` with its operators as calls, and with line ends normalized as in Jinja.
pub(super) fn rewrite(source: &str) -> Result<String, Failure> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut result = String::with_capacity(source.len() * 2);
    let mut rest = source.as_str();
    let line = |rest: &str| source[..source.len() - rest.len()].matches('\n').count() + 1;
    while let Some(open) = next_tag(rest) {
        let (before, tag) = rest.split_at(open);
        result.push_str(before);
        if tag.starts_with("{#") {
            let end = tag.find("#}").map_or(tag.len(), |end| end + 2);
            result.push_str(&tag[..end]);
            rest = &tag[end..];
            continue;
        }
        let (tokens, after) = tokens(tag).map_err(|what| Failure { what, line: Some(line(tag)) })?;
        let raw = tag.starts_with("{%") && tokens.first().is_some_and(|token| token.text == "raw");
        let mut rewriter = Rewriter { tokens, at: 0, depth: 0 };
        let text = if tag.starts_with("{{") { rewriter.expression() } else { rewriter.statement() };
        let text = text.map_err(|what| Failure { what, line: Some(line(tag)) })?;
        let sign = tag[2..].chars().next().filter(|c| matches!(c, '-' | '+'));
        result.push_str(&tag[..2]);
        result.extend(sign);
        result.push_str(&text);
        let end = tag.len() - after.len();
        let closing = if matches!(tag.as_bytes()[end - 3], b'-' | b'+') { 3 } else { 2 };
        // The space separates the rewritten text from the sign of the tag.
        result.push(' ');
        result.push_str(&tag[end - closing..end]);
        rest = after;
        if raw {
            let end = end_of_raw(rest);
            result.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    result.push_str(rest);
    Ok(result)
}

/// Where the next tag or comment begins.
fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

/// Where the `{% endraw %}` begins that closes a raw block.
fn end_of_raw(text: &str) -> usize {
    let mut from = 0;
    while let Some(open) = text[from..].find("{%") {
        let inside = text[from + open + 2..].trim_start_matches(['-', '+']).trim_start();
        if inside.starts_with("endraw") {
            return from + open;
        }
        from += open + 2;
    }
    text.len()
}

/// Reads the tokens of one tag by Jinja's grammar of operators.
struct Rewriter {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

type Rewritten = Result<String, String>;

impl Rewriter {
    fn statement(&mut self) -> Rewritten {
        let mut result = String::new();
        match self.peek() {
            Some("autoescape") => return Err("autoescape is not supported in chat templates".into()),
            Some("with") => self.check_with()?,
            _ => {}
        }
        // The target of an assignment is kept verbatim.
        let until = match self.peek() {
            Some("for") => Some("in"),
            Some("set") => Some("="),
            _ => None,
        };
        self.take(&mut result);
        if let Some(until) = until {
            while let Some(text) = self.peek().map(str::to_owned) {
                self.take(&mut result);
                if text == until {
                    break;
                }
            }
        }
        if until == Some("in") {
            result.push_str(&self.iterated()?);
        }
        result.push_str(&self.expression()?);
        Ok(result)
    }

    /// The values of `with` do not see its names; in the engine they would.
    fn check_with(&self) -> Result<(), String> {
        let words: Vec<&str> =
            self.tokens.iter().filter(|token| token.kind != Kind::Text).map(|t| t.text.as_str()).collect();
        let names: Vec<&str> = words.windows(2).filter(|pair| pair[1] == "=").map(|pair| pair[0]).collect();
        let used = |name: &str| words.iter().filter(|word| **word == name).count() > 1;
        match names.iter().find(|name| used(name)) {
            Some(name) if names.len() > 1 => {
                Err(format!("with that sets {name:?} and uses it is not supported"))
            }
            _ => Ok(()),
        }
    }

    /// The iterable of a loop, up to its condition.
    fn iterated(&mut self) -> Rewritten {
        let mut value = String::new();
        let mut is_tuple = false;
        while self.at < self.tokens.len() && !matches!(self.peek(), Some("if" | "recursive")) {
            is_tuple |= self.peek() == Some(",");
            self.part(&mut value)?;
        }
        Ok(if is_tuple || value.is_empty() { value } else { call("py_iter", &[&value]) })
    }

    fn expression(&mut self) -> Rewritten {
        let mut result = String::new();
        self.list(&mut result)?;
        match self.tokens.get(self.at) {
            Some(token) => Err(format!("{:?} is not expected here", token.text)),
            None => Ok(result),
        }
    }

    fn peek(&self) -> Option<&str> {
        self.tokens.get(self.at).map(|token| token.text.as_str()).filter(|_| !self.is_text())
    }

    fn is_text(&self) -> bool {
        self.tokens.get(self.at).is_some_and(|token| token.kind == Kind::Text)
    }

    fn kind(&self) -> Option<Kind> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    /// Appends the next token as it is.
    fn take(&mut self, result: &mut String) {
        if let Some(token) = self.tokens.get(self.at) {
            result.push_str(&token.space);
            result.push_str(&token.text);
            self.at += 1;
        }
    }

    /// Drops the next token and returns its white space.
    fn drop_token(&mut self) -> String {
        self.at += 1;
        self.tokens.get(self.at - 1).map_or(String::new(), |token| token.space.clone())
    }

    /// Expressions and the tokens between them, up to a closing bracket or the end.
    fn list(&mut self, result: &mut String) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("expressions are nested more than {MAX_DEPTH} deep"));
        }
        while self.at < self.tokens.len() && !matches!(self.peek(), Some(")" | "]" | "}")) {
            self.part(result)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn compare(&mut self) -> Rewritten {
        let first = self.math1()?;
        let mut operands = vec![first];
        let mut operators = Vec::new();
        loop {
            let name = match self.peek() {
                Some("<") => "py_lt",
                Some("<=") => "py_le",
                Some(">") => "py_gt",
                Some(">=") => "py_ge",
                Some("==") => "py_eq",
                Some("!=") => "py_ne",
                Some("in") => "py_in",
                Some("not") if self.tokens.get(self.at + 1).is_some_and(|next| next.text == "in") => {
                    "py_not_in"
                }
                _ => break,
            };
            let mut space = self.drop_token();
            if name == "py_not_in" {
                space.push_str(&self.drop_token());
            }
            operators.push(name);
            operands.push(format!("{space}{}", self.math1()?));
        }
        let pair = |(idx, name): (usize, &&str)| call(name, &[&operands[idx], &operands[idx + 1]]);
        let calls: Vec<String> = operators.iter().enumerate().map(pair).collect();
        Ok(match calls.as_slice() {
            [] => operands.swap_remove(0),
            [one] => one.clone(),
            many => format!(" ({})", many.join(" and ")),
        })
    }

    fn math1(&mut self) -> Rewritten {
        self.binary(&[("+", "py_add"), ("-", "py_sub")], |this| {
            this.binary(&[("~", "py_concat")], |this| {
                let products = [("*", "py_mul"), ("/", "py_div"), ("//", "py_floordiv"), ("%", "py_mod")];
                this.binary(&products, |this| this.binary(&[("**", "py_pow")], |this| this.unary(true)))
            })
        })
    }

    fn binary(&mut self, operators: &[(&str, &str)], operand: impl Fn(&mut Self) -> Rewritten) -> Rewritten {
        let mut left = operand(self)?;
        let mut count = 0;
        while let Some((_, name)) = operators.iter().find(|(sign, _)| self.peek() == Some(sign)) {
            // Each operator adds one level of nesting.
            count += 1;
            if count > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} operators in one expression"));
            }
            let space = self.drop_token();
            let right = format!("{space}{}", operand(self)?);
            left = call(name, &[&left, &right]);
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Rewritten {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("expressions are nested more than {MAX_DEPTH} deep"));
        }
        let mut value = match self.peek() {
            Some("-") => {
                let space = self.drop_token();
                format!("{space}{}", call("py_neg", &[&self.unary(false)?]))
            }
            Some("+") => {
                let space = self.drop_token();
                format!("{space}{}", call("py_pos", &[&self.unary(false)?]))
            }
            _ => self.primary()?,
        };
        value = self.postfix(value)?;
        if with_filters {
            value = self.filters(value)?;
        }
        self.depth -= 1;
        Ok(value)
    }

    fn primary(&mut self) -> Rewritten {
        let mut result = String::new();
        match (self.kind(), self.peek()) {
            (Some(Kind::Name), Some(word)) if KEYWORDS.contains(&word) => {
                Err(format!("{word:?} is not expected here"))
            }
            (Some(Kind::Text), _) => {
                // Adjacent string literals are concatenated.
                let mut whole = String::new();
                let mut space = String::new();
                while self.is_text() {
                    let token = &self.tokens[self.at];
                    space.push_str(&token.space);
                    whole.push_str(&token.text[1..token.text.len() - 1]);
                    self.at += 1;
                }
                Ok(format!("{space}\"{whole}\""))
            }
            (Some(Kind::Name | Kind::Int | Kind::Float), _) => {
                self.take(&mut result);
                Ok(result)
            }
            (_, Some("(" | "[" | "{")) => {
                self.bracket(&mut result)?;
                Ok(result)
            }
            (_, Some(other)) => Err(format!("{other:?} is not expected here")),
            _ => Err("the expression ends too early".into()),
        }
    }

    /// A bracket with its content.
    fn bracket(&mut self, result: &mut String) -> Result<(), String> {
        let close = match self.peek() {
            Some("(") => ")",
            Some("[") => "]",
            _ => "}",
        };
        self.take(result);
        self.list(result)?;
        if self.peek() != Some(close) {
            return Err(format!("{close:?} is missing"));
        }
        self.take(result);
        Ok(())
    }

    fn postfix(&mut self, mut value: String) -> Rewritten {
        loop {
            match self.peek() {
                Some(".") => value = self.attribute(value)?,
                Some("[") => value = self.subscript(value)?,
                Some("(") => self.bracket(&mut value)?,
                _ => return Ok(value),
            }
        }
    }

    fn attribute(&mut self, mut value: String) -> Rewritten {
        let name = self.tokens.get(self.at + 1).filter(|token| METHODS.contains(&token.text.as_str()));
        let Some(name) = name.map(|token| token.text.clone()) else {
            self.take(&mut value);
            self.take(&mut value);
            return Ok(value);
        };
        let space = self.drop_token() + &self.drop_token();
        if self.peek() != Some("(") {
            return Ok(call("py_attr", &[&value, &format!("{space}\"{name}\"")]));
        }
        let mut arguments = String::new();
        self.bracket(&mut arguments)?;
        let inside = arguments
            .trim_start()
            .strip_prefix('(')
            .and_then(|rest| rest.strip_suffix(')'))
            .unwrap_or_default();
        let separator = if inside.trim().is_empty() { "" } else { "," };
        Ok(call("py_call", &[&value, &format!("{space}\"{name}\"{separator}{inside}")]))
    }

    fn subscript(&mut self, value: String) -> Rewritten {
        let mut inside = self.drop_token();
        let mut parts = Vec::new();
        loop {
            match self.peek() {
                Some("]") => break,
                Some(":") => {
                    let space = self.drop_token();
                    parts.push(std::mem::replace(&mut inside, space));
                }
                None if self.kind().is_none() => return Err("\"]\" is missing".into()),
                _ => self.part(&mut inside)?,
            }
        }
        inside.push_str(&self.drop_token());
        if parts.is_empty() {
            return Ok(call("py_item", &[&value, &inside]));
        }
        parts.push(inside);
        if parts.len() > 3 {
            return Err("a slice has three parts at most".into());
        }
        let parts = parts
            .iter()
            .map(|part| if part.trim().is_empty() { format!("{part}none") } else { part.clone() });
        let arguments: Vec<String> = parts.collect();
        Ok(call("py_slice", &[&value, &arguments.join(",")]))
    }

    /// One expression, or one word between expressions.
    fn part(&mut self, result: &mut String) -> Result<(), String> {
        let kind = self.kind();
        match self.peek() {
            Some("-" | "+" | "(" | "[" | "{") => result.push_str(&self.compare()?),
            Some(word) if kind == Some(Kind::Name) && KEYWORDS.contains(&word) => self.take(result),
            _ if kind == Some(Kind::Op) => self.take(result),
            _ => result.push_str(&self.compare()?),
        }
        Ok(())
    }

    fn filters(&mut self, mut value: String) -> Rewritten {
        loop {
            match self.peek() {
                Some("|") => {
                    self.take(&mut value);
                    self.take(&mut value);
                    if self.peek() == Some("(") {
                        self.bracket(&mut value)?;
                    }
                }
                Some("is") => {
                    self.take(&mut value);
                    if self.peek() == Some("not") {
                        self.take(&mut value);
                    }
                    self.take(&mut value);
                    self.test_argument(&mut value)?;
                }
                Some("(") => self.bracket(&mut value)?,
                _ => return Ok(value),
            }
        }
    }

    /// `is divisibleby 3` has its argument without brackets.
    fn test_argument(&mut self, value: &mut String) -> Result<(), String> {
        match (self.kind(), self.peek()) {
            (_, Some("(")) => self.bracket(value),
            (Some(Kind::Name), Some(word)) if KEYWORDS.contains(&word) => Ok(()),
            (Some(Kind::Op), Some("[" | "{"))
            | (Some(Kind::Name | Kind::Int | Kind::Float | Kind::Text), _) => {
                let argument = self.primary()?;
                let argument = self.postfix(argument)?;
                value.push_str(&format!("({argument})"));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A call, with the white space of its first argument before it.
fn call(name: &str, arguments: &[&str]) -> String {
    let first = arguments.first().copied().unwrap_or_default();
    let space = &first[..first.len() - first.trim_start().len()];
    // Directly after a word, the name would become part of it.
    let space = if space.is_empty() { " " } else { space };
    format!("{space}{name}({})", arguments.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_become_calls() {
        let cases = [
            ("{{ a }}", "{{ a }}"),
            ("{{a~b}}", "{{ py_concat(a,b) }}"),
            ("{{- a + b * -c|f -}}", "{{- py_add( a, py_mul( b, py_neg(c)|f)) -}}"),
            ("{{ x[1:] }}", "{{ py_slice( x,1,none) }}"),
            ("{{ a.b[0].items() }}", "{{ py_call( py_item( a.b,0),\"items\") }}"),
            ("{{ a.strip('x').title }}", "{{ py_attr( py_call( a,\"strip\",\"x\"),\"title\") }}"),
            ("{% for k in d if k -%}", "{% for k in py_iter( d) if k -%}"),
            (
                "{% set ns.index = ns.index - 1 -%}",
                "{% set ns.index = py_sub( py_attr( ns,\"index\"), 1) -%}",
            ),
            ("{% if a is not none and b == 1 %}", "{% if a is not none and py_eq( b, 1) %}"),
            ("{% if loop.first is divisibleby 3 %}", "{% if loop.first is divisibleby( 3) %}"),
            ("{{ 1 < x <= 3 }}", "{{ ( py_lt( 1, x) and  py_le( x, 3)) }}"),
            ("{{ 'a\\x41' \"b\" }}", "{{  \"aAb\" }}"),
            ("{# a ~ b #}{% raw %}{{ a ~ b }}{% endraw %}", "{# a ~ b #}{% raw %}{{ a ~ b }}{% endraw %}"),
            ("{{ {'a': {'b': 1}}}}", "{{ {\"a\": {\"b\": 1}} }}"),
            ("{% macro f(a, b='z') %}", "{% macro f(a, b=\"z\") %}"),
            ("a\r\n{{ 0x1F }}", "a\n{{ 31 }}"),
            ("{{ a if b not in c else d }}", "{{ a if py_not_in( b, c) else d }}"),
        ];
        for (source, expected) in cases {
            let spaces =
                |text: &str| text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
            assert_eq!(spaces(&rewrite(source).unwrap()), spaces(expected), "{source}");
        }
    }

    #[test]
    fn what_is_not_understood_has_its_line() {
        for (source, words) in [
            ("\n{{ a + }}", "ends too early"),
            ("\n{{ 'a }}", "string is not closed"),
            ("\n{{ (a }}", "not closed"),
            ("\n{{ a + and b }}", "not expected here"),
            ("\n{{ x[1:2:3:4] }}", "three parts"),
            ("\n{{ '\\N{DASH}' }}", "names of characters"),
        ] {
            let failure = rewrite(source).unwrap_err();
            assert!(failure.what.contains(words) && failure.line == Some(2), "{source}: {failure:?}");
        }
        for deep in ["(", "[", "-"] {
            assert!(rewrite(&format!("{{{{ {}1", deep.repeat(5000))).is_err());
            assert!(rewrite(&format!("{{{{ {}1 }}}}", deep.repeat(5000))).is_err());
        }
        assert!(rewrite(&format!("{{{{ 1{} }}}}", " + 1".repeat(5000))).is_err());
    }
}
