//! The time that templates may ask for.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::format::{Item, StrftimeItems};
use chrono::{DateTime, NaiveDate, NaiveDateTime};

use minitron_core::error::{Error, Result};

/// A moment in UTC, to the second. It is given to a template rather than asked for in it: what a
/// run renders must not depend on the day when it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(NaiveDateTime);

const WRITTEN: &str = "%Y-%m-%dT%H:%M:%S";

impl Moment {
    /// The system's clock.
    pub fn now() -> Self {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let moment = i64::try_from(seconds)
            .ok()
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0));
        Moment(moment.unwrap_or_default().naive_utc())
    }

    /// Today at midnight.
    pub fn today() -> Self {
        let Moment(now) = Self::now();
        Moment(now.date().and_hms_opt(0, 0, 0).unwrap_or(now))
    }

    /// As Python's `strftime` writes it; `None` for a format that has no meaning.
    pub(super) fn format(self, format: &str) -> Option<String> {
        // Rather than a panic of `to_string` on an unknown letter.
        let items: Vec<Item> = StrftimeItems::new(format).collect();
        let is_known = !items.iter().any(|item| matches!(item, Item::Error));
        is_known.then(|| {
            let mut text = String::new();
            let written = fmt::write(
                &mut text,
                format_args!("{}", self.0.format_with_items(items.iter())),
            );
            written.ok().map(|()| text)
        })?
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.format(WRITTEN))
    }
}

impl FromStr for Moment {
    type Err = Error;

    /// `2026-11-28`, or with a time: `2026-11-28T15:04:05`.
    fn from_str(text: &str) -> Result<Self> {
        if let Ok(moment) = NaiveDateTime::parse_from_str(text, WRITTEN) {
            return Ok(Moment(moment));
        }
        let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
        let midnight = day.and_then(|day| day.and_hms_opt(0, 0, 0));
        midnight.map(Moment).ok_or_else(|| {
            Error::Recipe(format!(
                "`{text}` is no time; expected 2026-11-28 or 2026-11-28T15:04:05, in UTC"
            ))
        })
    }
}
