//! Durations as Go programs write them: `24h`, `10m`, `1h30m`, `1.5s`.
//!
//! Custom resources, chart values and flags of the original use this format. Invariant: parsing never panics and
//! never wraps; what does not fit is an error.

use std::time::Duration;

/// Longest text that is looked at; Go itself prints at most 25 bytes.
const MAX_LENGTH: usize = 64;

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a duration: {problem}; write numbers with units, such as 24h, 10m or 1h30m")]
pub struct DurationError {
    text: String,
    problem: &'static str,
}

/// Reads a Go duration (Go's `time.ParseDuration`): decimal numbers, each with a unit of `ns`, `us`, `µs`, `ms`, `s`,
/// `m` or `h`, or a bare `0`. Negative durations are refused: nothing in the mesh lasts less than no time.
///
/// # Errors
/// [`DurationError`] for an empty text, a number without unit, an unknown unit, a negative value or one beyond
/// 2^63 nanoseconds (Go's own bound, some 292 years).
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let fail = |problem| DurationError {
        text: text.chars().take(MAX_LENGTH).collect(),
        problem,
    };
    if text.len() > MAX_LENGTH {
        return Err(fail("it is too long"));
    }
    if text.starts_with('-') {
        return Err(fail("it is negative"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(fail("it is empty"));
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let number = take_while(&mut rest, |c| c.is_ascii_digit() || c == '.');
        let unit = take_while(&mut rest, |c| !c.is_ascii_digit() && c != '.');
        let scale = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(fail("a number has no unit")),
            _ => return Err(fail("a unit is unknown")),
        };
        let nanoseconds = scaled(number, scale).ok_or_else(|| fail("a number is malformed or too large"))?;
        total = total.saturating_add(nanoseconds);
    }
    match i64::try_from(total) {
        Ok(nanoseconds) => Ok(Duration::from_nanos(nanoseconds.unsigned_abs())),
        Err(_) => Err(fail("it is too large")),
    }
}

/// Splits the longest prefix whose characters all satisfy `accept` off `rest`.
fn take_while<'a>(rest: &mut &'a str, accept: impl Fn(char) -> bool) -> &'a str {
    let (taken, left) = rest.split_at(rest.find(|c| !accept(c)).unwrap_or(rest.len()));
    *rest = left;
    taken
}

/// A decimal number times `scale`, rounded down; `None` when it is malformed or does not fit.
fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut result = whole.checked_mul(scale)?;
    let mut place = scale;
    for digit in fraction.chars() {
        place /= 10;
        result = result.checked_add(place.checked_mul(u128::from(digit.to_digit(10)?))?)?;
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_prints_is_read() {
        for (text, milliseconds) in [
            ("24h", 86_400_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("1h0m0s", 3_600_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("300ms", 300),
            ("1500us", 1),
            ("+2s", 2_000),
            ("0", 0),
            ("0s", 0),
            ("87600h", 315_360_000_000),
        ] {
            assert_eq!(parse(text).map(|d| d.as_millis()), Ok(milliseconds), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        let long = "1".repeat(1_000_000);
        for text in [
            "",
            "+",
            "-1h",
            "1",
            "h",
            "1d",
            "1.h.",
            "1..5s",
            ".s",
            "1h 30m",
            "24H",
            "9999999999h",
            "é",
            &long,
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().len() < 300);
        }
    }
}
