//! Aligned tables for people.

/// `name  value` lines with aligned values.
pub(super) fn pairs(rows: &[(&str, String)]) -> Vec<String> {
    let widest = rows.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("  {name}{}  {value}", spaces(name, widest));
    rows.iter().map(|row| line(row).trim_end().to_owned()).collect()
}

/// Columns with heads. A head that starts with `>` aligns its column to the right.
pub(super) fn columns(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let titles = heads.iter().map(|head| head.trim_start_matches('>').to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&titles).chain(rows).collect();
    let widest =
        |i: usize| all.iter().filter_map(|row| row.get(i)).map(|cell| width(cell)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(widest).collect();
    let line = |row: &&Vec<String>| {
        let mut line = String::new();
        for ((cell, &width), head) in row.iter().zip(&widths).zip(heads) {
            let spaces = spaces(cell, width);
            line.extend(match head.starts_with('>') {
                true => ["  ", &spaces, cell],
                false => ["  ", cell, &spaces],
            });
        }
        line.trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

/// The spaces that pad `cell` to `width` columns.
fn spaces(cell: &str, columns: usize) -> String {
    " ".repeat(columns.saturating_sub(width(cell)))
}

/// Width on a terminal: East Asian characters take two columns.
fn width(text: &str) -> usize {
    let wide = |c: char| {
        matches!(c, '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}'
            | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe6f}' | '\u{ff00}'..='\u{ff60}'
            | '\u{ffe0}'..='\u{ffe6}' | '\u{1f300}'..='\u{1faff}' | '\u{20000}'..='\u{3fffd}')
    };
    text.chars().map(|c| if wide(c) { 2 } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_columns_are_aligned() {
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into())]), ["  a     1", "  long  2"]);
        let rows = [vec!["x".into(), "1".into()], vec!["yyy".into(), "22".into()]];
        assert_eq!(pairs(&[("民法", "1".into()), ("abcde", "2".into())]), ["  民法   1", "  abcde  2"]);
        assert_eq!(columns(&["op", ">n"], &rows), ["  op    n", "  x     1", "  yyy  22"]);
    }
}
