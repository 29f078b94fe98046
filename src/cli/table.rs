//! Aligned tables for people.

/// `name  value` lines with the values below each other.
pub(super) fn pairs(rows: &[(&str, String)]) -> Vec<String> {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("  {name:width$}  {value}").trim_end().to_owned()).collect()
}

/// Columns under their heads. A head that starts with `>` has its numbers on the right.
pub(super) fn columns(heads: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let titles = heads.iter().map(|head| head.trim_start_matches('>').to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&titles).chain(rows).collect();
    let width = |i: usize| {
        all.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |row: &&Vec<String>| {
        let mut line = String::new();
        for ((cell, width), head) in row.iter().zip(&widths).zip(heads) {
            line += "  ";
            line += &match head.starts_with('>') {
                true => format!("{cell:>width$}"),
                false => format!("{cell:width$}"),
            };
        }
        line.trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_columns_are_aligned() {
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into())]), ["  a     1", "  long  2"]);
        let rows = [vec!["x".into(), "1".into()], vec!["yyy".into(), "22".into()]];
        assert_eq!(columns(&["op", ">n"], &rows), ["  op    n", "  x     1", "  yyy  22"]);
    }
}
