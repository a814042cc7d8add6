//! Sizes to try, as people write them.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use minitron_core::error::{Error, Result};

/// Sizes to try: `[2560, 3072]`, `"24,32,48"`, `"29-32"` (both ends), `"4096-6144/512"` (in steps).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberListOrText")]
pub struct SizeList(pub Vec<f64>);

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum NumberListOrText {
    One(f64),
    List(Vec<f64>),
    Text(String),
}

impl TryFrom<NumberListOrText> for SizeList {
    type Error = Error;
    fn try_from(written: NumberListOrText) -> Result<Self> {
        match written {
            NumberListOrText::One(size) => Ok(SizeList(vec![size])),
            NumberListOrText::List(sizes) => Ok(SizeList(sizes)),
            NumberListOrText::Text(text) => text.parse(),
        }
    }
}

/// Sizes of one range: more are a slip of the pen.
const MAX_SIZES: usize = 4096;

impl FromStr for SizeList {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let mut sizes = Vec::new();
        for word in text.split(',') {
            sizes.extend(sizes_of(word.trim()).ok_or_else(|| {
                Error::Recipe(format!(
                    "expected sizes such as 24,32,48 or 29-32 or 4096-6144/512, got `{text}`"
                ))
            })?);
        }
        Ok(SizeList(sizes))
    }
}

/// One size, or those of a range; none for anything else.
fn sizes_of(word: &str) -> Option<Vec<f64>> {
    let Some((from, to)) = word.split_once('-') else {
        return Some(vec![word.parse().ok()?]);
    };
    let (to, step) = to.split_once('/').unwrap_or((to, "1"));
    let (from, to, step) = (whole_number(from)?, whole_number(to)?, whole_number(step)?);
    if step == 0 || from > to || ((to - from) / step) as usize >= MAX_SIZES {
        return None;
    }
    Some((from..=to).step_by(step as usize).map(f64::from).collect())
}

fn whole_number(word: &str) -> Option<u32> {
    word.trim().parse().ok()
}

impl SizeList {
    /// As sizes of a kind.
    ///
    /// # Errors
    /// `Recipe` for what no unit count can be.
    pub(super) fn whole(&self, kind: &str) -> Result<Vec<usize>> {
        let mut sizes = Vec::with_capacity(self.0.len());
        for &size in &self.0 {
            if !(size >= 1.0 && size.fract() == 0.0 && size < 1e9) {
                return Err(Error::Recipe(format!(
                    "grid: {kind}: expected whole numbers, got {size}"
                )));
            }
            sizes.push(size as usize);
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let read = |text: &str| text.parse::<SizeList>().map(|list| list.0);
        assert_eq!(read("24, 32,48").unwrap(), [24.0, 32.0, 48.0]);
        assert_eq!(read("29-32").unwrap(), [29.0, 30.0, 31.0, 32.0]);
        assert_eq!(
            read("4096-6144/1024,7").unwrap(),
            [4096.0, 5120.0, 6144.0, 7.0]
        );
        assert_eq!(read("2.5,3").unwrap(), [2.5, 3.0]);
        for bad in ["", "a", "5-3", "1-9/0", "1-", "1-100000"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::from_str::<SizeList>("[1, 2]").unwrap().0,
            [1.0, 2.0]
        );
        assert_eq!(serde_json::from_str::<SizeList>("3").unwrap().0, [3.0]);
    }
}
