//! What a student should measure, as people write it.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// So many parameters, give or take a share of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Wanted number.
    pub n_params: u64,
    /// Largest relative deviation.
    pub tolerance: f64,
}

/// Deviation that is accepted where none is stated.
const TOLERANCE: f64 = 0.05;

/// A count: `4B`, `4.19B`, `350M`, `12k`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberOrText")]
pub struct Count(pub u64);

/// A size in bytes: `8GiB`, `5GB`, `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberOrText")]
pub struct Bytes(pub u64);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl FromStr for Count {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        parse_count(text).map(Count)
    }
}

impl TryFrom<NumberOrText> for Count {
    type Error = Error;
    fn try_from(written: NumberOrText) -> Result<Self> {
        match written {
            NumberOrText::Number(n) => parse_count(&n.to_string()).map(Count),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Bytes {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        parse_bytes(text).map(Bytes)
    }
}

impl TryFrom<NumberOrText> for Bytes {
    type Error = Error;
    fn try_from(written: NumberOrText) -> Result<Self> {
        match written {
            NumberOrText::Number(n) => parse_bytes(&n.to_string()).map(Bytes),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

/// Reads a count with an optional k, M, B or T (powers of 1000).
pub fn parse_count(text: &str) -> Result<u64> {
    let scales = [
        ("k", 1e3),
        ("K", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("B", 1e9),
        ("T", 1e12),
    ];
    scaled(text, &scales, "a number such as 4B, 4.19B, 350M or 4096")
}

/// Reads a size with an optional B, kB, MB, GB, KiB, MiB, GiB.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let (kib, mib, gib) = (1024.0, 1024.0 * 1024.0, 1024.0 * 1024.0 * 1024.0);
    let scales = [
        ("KiB", kib),
        ("MiB", mib),
        ("GiB", gib),
        ("TiB", gib * 1024.0),
        ("kB", 1e3),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("B", 1.0),
    ];
    scaled(text, &scales, "a size such as 8GiB, 5GB or 4096")
}

fn scaled(text: &str, scales: &[(&str, f64)], expected: &str) -> Result<u64> {
    let trimmed = text.trim();
    let (number, scale) = scales
        .iter()
        .find_map(|(suffix, scale)| trimmed.strip_suffix(suffix).map(|number| (number, *scale)))
        .unwrap_or((trimmed, 1.0));
    let value = number
        .trim()
        .parse::<f64>()
        .ok()
        .map(|n| (n * scale).round());
    match value {
        Some(n) if (0.0..=1e18).contains(&n) => Ok(n as u64),
        _ => Err(Error::Recipe(format!("expected {expected}, got `{text}`"))),
    }
}

/// Reads `4B` or `4B+-5%` into a target; without a tolerance, 5 % are accepted.
pub fn parse_budget(text: &str) -> Result<Target> {
    let (count, tolerance) = match text.split_once("+-").or_else(|| text.split_once('±')) {
        None => (text, TOLERANCE),
        Some((count, share)) => {
            let percent = share
                .trim()
                .strip_suffix('%')
                .and_then(|p| p.trim().parse::<f64>().ok());
            match percent {
                Some(p) if (0.0..=100.0).contains(&p) => (count, p / 100.0),
                _ => {
                    return Err(Error::Recipe(format!(
                        "expected a budget such as 4B+-5%, got `{text}`"
                    )));
                }
            }
        }
    };
    let n_params = parse_count(count)?;
    if n_params == 0 {
        return Err(Error::Recipe(
            "a budget of 0 parameters leaves no model; expected for example 4B+-5%".into(),
        ));
    }
    Ok(Target {
        n_params,
        tolerance,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_sizes_read_as_people_write_them() {
        assert_eq!(parse_count("4.19B").unwrap(), 4_190_000_000);
        assert_eq!(parse_count(" 350M ").unwrap(), 350_000_000);
        assert_eq!(parse_count("1e3").unwrap(), 1000);
        assert_eq!(parse_bytes("8GiB").unwrap(), 8 << 30);
        for bad in ["", "B", "-1", "nan", "inf", "4X", "1e30"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn budgets_carry_a_tolerance() {
        assert_eq!(
            parse_budget("4B+-5%").unwrap(),
            Target {
                n_params: 4_000_000_000,
                tolerance: 0.05
            }
        );
        assert_eq!(
            parse_budget("120k±1%").unwrap(),
            Target {
                n_params: 120_000,
                tolerance: 0.01
            }
        );
        for bad in ["4B+-5", "4B+-x%", "0", "+-5%", "4B+-500%"] {
            assert!(parse_budget(bad).is_err(), "{bad}");
        }
    }
}
