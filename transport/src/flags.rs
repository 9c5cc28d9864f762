//! What the flags of nodes and routers have in common.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A bound on all times, so that no sum of them can overflow: a year.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Parses a time that may be none.
///
/// # Errors
/// What a time has to be.
pub fn duration(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::ZERO..=DURATION_MAX)
}

/// Parses a time after which something is done again, or given up: there has to be some.
///
/// # Errors
/// As above.
pub fn period(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_millis(1)..=DURATION_MAX)
}

/// Parses a time within these bounds.
///
/// # Errors
/// As above.
pub fn duration_within(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if bounds.contains(&parsed) {
        return Ok(parsed);
    }
    let [least, most] = [bounds.start(), bounds.end()].map(|bound| humantime::format_duration(*bound));
    Err(format!("it has to be between {least} and {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_bounded_on_both_sides() {
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(period("1ms"), Ok(Duration::from_millis(1)));
        for (wrong, what) in
            [("0s", "between 1ms"), ("18446744073709551615s", "and 1year"), ("5", "unit"), ("", "empty")]
        {
            let error = period(wrong).expect_err(wrong);
            assert!(error.contains(what), "{wrong}: {error}");
        }
    }
}
