//! Numbers as people read them, each in the unit that its key says.

/// A number of a measurement: bytes in MiB, seconds with one or two decimals, shares as percent,
/// counts in groups of three.
pub fn in_units(key: &str, x: f64) -> String {
    match key {
        _ if has_unit(key, "bytes") => bytes(x.max(0.0) as u64),
        _ if has_unit(key, "seconds") || has_unit(key, "s") => seconds(x),
        _ if has_unit(key, "share") => percent(x),
        _ if has_unit(key, "per_second") => whole(x),
        _ => number(x),
    }
}

/// Whether a key is a unit, or ends with one.
fn has_unit(key: &str, unit: &str) -> bool {
    match key.strip_suffix(unit) {
        Some(before) => before.is_empty() || before.ends_with('_'),
        None => false,
    }
}

/// A mean and how far it spreads, in the same unit and to the same decimals; no spread where there
/// is none.
pub fn spread(key: &str, mean: f64, std: Option<f64>) -> String {
    let text = in_units(key, mean);
    let Some(std) = std.filter(|std| *std > 0.0) else {
        return text;
    };
    let is_plain = text
        .bytes()
        .all(|b| b.is_ascii_digit() || b == b'.' || b == b'-');
    let digits = text.split_once('.').map_or(0, |(_, digits)| digits.len());
    match text.split_once(' ') {
        _ if is_plain => format!("{text} ± {std:.digits$}"),
        // The unit stands once, behind both.
        Some((number, unit)) if in_units(key, std).ends_with(unit) => {
            let std = in_units(key, std);
            format!("{number} ± {std}")
        }
        _ => format!("{text} ± {}", in_units(key, std)),
    }
}

/// A number without a unit.
pub fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if x.fract() == 0.0 && size < 1e15 => whole(x),
        size if !(1e-3..1e6).contains(&size) => format!("{x:.2e}"),
        size if size >= 1000.0 => whole(x),
        _ => format!("{x:.4}"),
    }
}

/// A share as percent.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent.abs() {
        // A cut between a score and 0.
        size if size >= 1e6 => "very large".into(),
        size if size >= 99.95 || size == 0.0 => format!("{percent:.0} %"),
        size if size >= 0.1 => format!("{percent:.1} %"),
        _ => format!("{percent:.2} %"),
    }
}

/// 786391040 as 750.0 MiB.
pub fn bytes(n: u64) -> String {
    let mut size = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" {
                format!("{size} B")
            } else {
                format!("{size:.1} {unit}")
            };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

fn seconds(x: f64) -> String {
    match x.abs() {
        size if size < 10.0 => format!("{x:.2}"),
        size if size < 1000.0 => format!("{x:.1}"),
        _ => whole(x),
    }
}

/// Rounded, in groups of three.
fn whole(x: f64) -> String {
    let sign = if x <= -0.5 { "-" } else { "" };
    format!("{sign}{}", grouped(x.abs().round() as u64))
}

/// 1234567 as 1,234,567.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_the_unit_of_its_key() {
        let all = [
            ("peak_bytes", 786_391_040.0, "750.0 MiB"),
            ("training_seconds", 12.34567, "12.3"),
            ("seconds", 1.23456, "1.23"),
            ("seconds", 4321.5, "4,322"),
            ("params_share", 0.43125, "43.1 %"),
            ("params_share", 1.0, "100 %"),
            ("tokens_per_second", 4321.987, "4,322"),
            ("n_params", 4_344_448.0, "4,344,448"),
            ("loss", 5.04123, "5.0412"),
            ("loss", -5.04123, "-5.0412"),
            ("perplexity", 1234567.5, "1.23e6"),
            ("hellaswag_acc", 0.25, "0.2500"),
        ];
        for (key, x, expected) in all {
            assert_eq!(in_units(key, x), expected, "{key}");
        }
        assert_eq!(spread("loss", 5.0, Some(0.01)), "5 ± 0");
        assert_eq!(spread("loss", 5.5, Some(0.01234)), "5.5000 ± 0.0123");
        assert_eq!(spread("params_share", 0.5, Some(0.01)), "50.0 ± 1.0 %");
        assert_eq!(spread("seconds", 5.0, None), "5.00");
    }
}
