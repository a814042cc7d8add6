//! WikiText's pages stand apart at every mark; as running text they are what a tokenizer of today
//! expects.

use minitron_core::error::{Error, Result};
use regex::Regex;

/// Taken one after another, each over the whole page.
const MARKS: [(&str, &str); 10] = [
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
];

/// What encloses loses the space inside.
const PAIRS: [(&str, &str); 5] = [
    (r"\(\s*([^\)]*?)\s*\)", "($1)"),
    (r"\[\s*([^\]]*?)\s*\]", "[$1]"),
    (r"\{\s*([^}]*?)\s*\}", "{$1}"),
    (r#""\s*([^"]*?)\s*""#, "\"$1\""),
    (r"'\s*([^']*?)\s*'", "'$1'"),
];

/// After them: headings, degrees, ends of lines, and a number of unknown size.
const REST: [(&str, &str); 8] = [
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
];

/// A page as the evaluation harness' `wikitext` task scores it.
pub(super) fn running(page: &str) -> Result<String> {
    let mut text = page.to_owned();
    for (mark, plain) in MARKS {
        text = text.replace(mark, plain);
    }
    for (pair, inside) in PAIRS {
        let pair = Regex::new(pair).map_err(|e| Error::Internal(e.to_string()))?;
        text = pair.replace_all(&text, inside).into_owned();
    }
    for (mark, plain) in REST {
        text = text.replace(mark, plain);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_where_running_text_has_them() {
        let page = " = Lobster = \n It ( the crab 's kin ) weighs 6 @.@ 2 kg , \" often \" . = = \
                    Size = = \n 20 ° wide";
        let expected =
            " = Lobster =\nIt (the crab's kin) weighs 6.2 kg, \"often\". == Size ==\n20°wide";
        assert_eq!(running(page).unwrap(), expected);
    }
}
