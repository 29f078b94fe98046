//! `strftime_now` without a clock: the same files give the same text on every day.

use minijinja::{Error, State};

use super::fail;

/// The day of `strftime_now` unless the variable `today` is given: the default date of Llama 3 templates.
const DEFAULT_TODAY: &str = "2024-07-26";

pub(super) fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    let today = state.lookup("today").and_then(|day| day.as_str().map(str::to_owned));
    strftime(today.as_deref().unwrap_or(DEFAULT_TODAY), format)
        .ok_or_else(|| fail(format!("strftime_now: cannot format {format:?}")))
}

/// `format` at midnight of `day` (`YYYY-MM-DD`), in English.
fn strftime(day: &str, format: &str) -> Option<String> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let mut parts = day.splitn(3, '-').map(|part| part.parse::<usize>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1583..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Sakamoto's method for the day of the week.
    let shifted = year - usize::from(month < 3);
    let offset = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4][month - 1];
    let weekday = DAYS[(shifted + shifted / 4 - shifted / 100 + shifted / 400 + offset + day) % 7];
    let month_name = MONTHS[month - 1];
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next()? {
            'Y' => text.push_str(&format!("{year:04}")),
            'y' => text.push_str(&format!("{:02}", year % 100)),
            'm' => text.push_str(&format!("{month:02}")),
            'd' => text.push_str(&format!("{day:02}")),
            'e' => text.push_str(&format!("{day:2}")),
            'B' => text.push_str(month_name),
            'b' | 'h' => text.push_str(&month_name[..3]),
            'A' => text.push_str(weekday),
            'a' => text.push_str(&weekday[..3]),
            'F' => text.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            'H' | 'M' | 'S' => text.push_str("00"),
            '%' => text.push('%'),
            _ => return None,
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_pinned() {
        assert_eq!(strftime("2024-07-26", "%d %b %Y").as_deref(), Some("26 Jul 2024"));
        assert_eq!(
            strftime("2025-02-28", "%A, %B %e, %y %H:%M %% %F").as_deref(),
            Some("Friday, February 28, 25 00:00 % 2025-02-28")
        );
        for (day, format) in
            [("2024-07-26", "%Q"), ("2024-07-26", "%"), ("2024-13-01", "%Y"), ("today", "%Y")]
        {
            assert_eq!(strftime(day, format), None);
        }
    }
}
