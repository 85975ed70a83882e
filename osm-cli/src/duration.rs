//! Durations as Go writes them: `5m`, `1h30m`, `90s`.

use std::time::Duration;

/// Reads a duration of more than nothing.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    read(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "give a duration such as 90s, 5m or 1h30m".to_owned())
}

fn read(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, seconds) in [
            ("5m", 300.0),
            ("1h30m", 5400.0),
            ("90s", 90.0),
            ("1.5s", 1.5),
            ("250ms", 0.25),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in ["", "0s", "5", "m", "-5m", "5 m", "5d", "1e400h", "1..5s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
