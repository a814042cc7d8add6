//! Records of multiple-choice files as questions: whose fields they are, and how a question is put.

use minitron_core::error::{Error, Result};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::likely::{TextPair, is_space};
use super::text;

/// What stands before a choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuestionForm {
    /// What the evaluation harness does with a record of these fields: `question` for ARC's and
    /// PIQA's, `letters` for MMLU's, `plain` for all others.
    #[default]
    Auto,
    /// The context as it is.
    Plain,
    /// `Question: …`, and `Answer:` on a line of its own.
    Question,
    /// The question and a line a choice, `A. …`, then `Answer:`; the letters are the choices. Where
    /// the record names its `subject`, a line before says so.
    Letters,
}

const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// A question as it is scored.
#[derive(Debug)]
pub(super) struct Question {
    /// One a choice.
    pub pairs: Vec<TextPair>,
    /// Of which the length counts.
    pub choices: Vec<String>,
    pub gold: usize,
}

/// What a record asks.
struct Asked {
    context: String,
    choices: Vec<String>,
    gold: usize,
    form: QuestionForm,
}

/// Reads a record.
///
/// # Errors
/// `Data` naming the field that is missing, or not as expected.
pub(super) fn question(
    record: &Map<String, Value>,
    place: &str,
    form: QuestionForm,
) -> Result<Question> {
    if record.contains_key("sentence") && record.contains_key("option1") {
        return in_a_blank(record, place);
    }
    let Asked {
        context,
        choices,
        gold,
        form: natural,
    } = asked(record, place)?;
    let (context, choices) = match if form == QuestionForm::Auto {
        natural
    } else {
        form
    } {
        QuestionForm::Auto | QuestionForm::Plain => (context, choices),
        QuestionForm::Question => (format!("Question: {context}\nAnswer:"), choices),
        QuestionForm::Letters if choices.len() > LETTERS.len() => {
            let n = choices.len();
            return Err(Error::Data(format!(
                "{place}: expected at most 26 choices, one a letter, got {n}; use form=plain"
            )));
        }
        QuestionForm::Letters => lettered(record, &context, &choices),
    };
    let pairs = choices
        .iter()
        .map(|choice| TextPair::new(context.as_str(), format!(" {choice}")))
        .collect();
    Ok(Question {
        pairs,
        choices,
        gold,
    })
}

/// WinoGrande: each option stands in the blank, and what follows the blank is scored (Trinh and Le
/// 2018, partial).
fn in_a_blank(record: &Map<String, Value>, place: &str) -> Result<Question> {
    let sentence = text(record, &["sentence"], place)?;
    let Some((before, after)) = sentence.split_once('_') else {
        return Err(Error::Data(format!(
            "{place}: expected a blank `_` in `sentence`, got `{sentence}`"
        )));
    };
    let after = after.trim_matches(is_space);
    let mut pairs = Vec::new();
    for key in ["option1", "option2"] {
        pairs.push(TextPair::new(
            format!("{before}{}", text(record, &[key], place)?),
            format!(" {after}"),
        ));
    }
    let answer = record.get("answer").and_then(|answer| match answer {
        Value::String(word) => word.parse().ok(),
        number => number.as_u64(),
    });
    let gold = match answer {
        Some(number @ 1..=2) => number as usize - 1,
        _ => {
            return Err(Error::Data(format!(
                "{place}: expected 1 or 2 under `answer`, got {:?}",
                record.get("answer")
            )));
        }
    };
    Ok(Question {
        pairs,
        choices: vec![after.to_owned(), after.to_owned()],
        gold,
    })
}

fn asked(record: &Map<String, Value>, place: &str) -> Result<Asked> {
    // ARC as its authors publish it holds stem and choices under `question`.
    let inner = record.get("question").and_then(Value::as_object);
    let raw = ["choices", "endings"].iter().find_map(|key| {
        let inside = inner.and_then(|inner| inner.get(*key));
        record.get(*key).or(inside)
    });
    let choices = match (raw, record.get("sol1"), record.get("sol2")) {
        (None, Some(one), Some(two)) => {
            strings(&Value::from(vec![one.clone(), two.clone()]), "text")
        }
        _ => raw.and_then(|raw| strings(raw.get("text").unwrap_or(raw), "text")),
    };
    let Some(choices) = choices.filter(|choices| !choices.is_empty()) else {
        return Err(Error::Data(format!(
            "{place}: expected a list of strings under `choices` or `endings`"
        )));
    };
    let answer = ["gold", "label", "answerKey", "answer"]
        .iter()
        .find_map(|key| record.get(*key));
    let gold =
        answer.and_then(|answer| place_of(answer, raw.and_then(labels).as_deref(), choices.len()));
    let Some(gold) = gold else {
        return Err(Error::Data(format!(
            "{place}: expected the right choice's index under `gold` or `label`, got {answer:?}"
        )));
    };
    if record.contains_key("activity_label") && record.contains_key("ctx_a") {
        let choices = choices
            .iter()
            .map(|choice| hellaswag(choice))
            .collect::<Result<_>>()?;
        return Ok(Asked {
            context: hellaswag_context(record, place)?,
            choices,
            gold,
            form: QuestionForm::Plain,
        });
    }
    let (context, form) = context(record, inner, place)?;
    Ok(Asked {
        context: context.to_owned(),
        choices,
        gold,
        form,
    })
}

/// A list of strings, or of objects that hold one each.
fn strings(raw: &Value, key: &str) -> Option<Vec<String>> {
    let mut strings = Vec::new();
    for value in raw.as_array()? {
        strings.push(value.get(key).unwrap_or(value).as_str()?.to_owned());
    }
    Some(strings)
}

/// What choices are called, where they have names.
fn labels(raw: &Value) -> Option<Vec<String>> {
    match raw {
        Value::Object(choices) => strings(choices.get("label")?, "label"),
        Value::Array(list) if list.iter().all(Value::is_object) => strings(raw, "label"),
        _ => None,
    }
}

/// The index of the right choice: of its label, where they have some, else a number or a letter.
fn place_of(answer: &Value, labels: Option<&[String]>, n_choices: usize) -> Option<usize> {
    let word = answer.as_str().map(str::trim);
    if let (Some(word), Some(labels)) = (word, labels) {
        return labels.iter().position(|label| label == word);
    }
    let index = answer
        .as_u64()
        .or_else(|| word?.parse().ok())
        .or_else(|| place_of_letter(word?))?;
    usize::try_from(index)
        .ok()
        .filter(|&index| index < n_choices)
}

fn place_of_letter(word: &str) -> Option<u64> {
    match word.as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(u64::from(letter - b'A')),
        _ => None,
    }
}

/// The text before the choices, and the form of records with such fields.
fn context<'a>(
    record: &'a Map<String, Value>,
    inner: Option<&'a Map<String, Value>>,
    place: &str,
) -> Result<(&'a str, QuestionForm)> {
    if let Some(inner) = inner {
        return Ok((text(inner, &["stem"], place)?, QuestionForm::Question));
    }
    let keys = ["context", "ctx", "question_stem", "question", "goal"];
    Ok((text(record, &keys, place)?, form_of(record)))
}

/// The form of the first of these fields that the record has.
fn form_of(record: &Map<String, Value>) -> QuestionForm {
    const FORMS: [(&str, QuestionForm); 6] = [
        ("context", QuestionForm::Plain),
        ("ctx", QuestionForm::Plain),
        ("question_stem", QuestionForm::Plain),
        ("answerKey", QuestionForm::Question),
        ("sol1", QuestionForm::Question),
        ("subject", QuestionForm::Letters),
    ];
    let found = FORMS.iter().find(|(key, _)| record.contains_key(*key));
    found.map_or(QuestionForm::Plain, |(_, form)| *form)
}

/// Activity and both parts of the context, the second with a capital.
fn hellaswag_context(record: &Map<String, Value>, place: &str) -> Result<String> {
    let mut second = text(record, &["ctx_b"], place)?.chars();
    let first_letter: String = second
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    let second = format!("{first_letter}{}", second.as_str().to_lowercase());
    let activity = text(record, &["activity_label"], place)?;
    let first = text(record, &["ctx_a"], place)?;
    hellaswag(&format!("{activity}: {first} {second}"))
}

/// HellaSwag's texts have marks of WikiHow's in brackets.
fn hellaswag(raw: &str) -> Result<String> {
    let marks = Regex::new(r"\[.*?\]").map_err(|e| Error::Internal(e.to_string()))?;
    let titled = raw.trim_matches(is_space).replace(" [title]", ". ");
    Ok(marks.replace_all(&titled, "").replace("  ", " "))
}

/// The question with its choices, and their letters.
fn lettered(
    record: &Map<String, Value>,
    question: &str,
    choices: &[String],
) -> (String, Vec<String>) {
    let letters: Vec<String> = LETTERS
        .chars()
        .take(choices.len())
        .map(String::from)
        .collect();
    let mut context = match record.get("subject").and_then(Value::as_str) {
        Some(subject) => {
            let subject = subject.replace('_', " ");
            format!(
                "The following are multiple choice questions (with answers) about {subject}.\n\n"
            )
        }
        None => String::new(),
    };
    context.push_str(question.trim_matches(is_space));
    for (letter, choice) in letters.iter().zip(choices) {
        context.push_str(&format!("\n{letter}. {choice}"));
    }
    (context + "\nAnswer:", letters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(record: Value, form: QuestionForm) -> Result<Question> {
        question(record.as_object().unwrap(), "items.jsonl:1", form)
    }

    fn first(record: Value, form: QuestionForm) -> (String, String, usize) {
        let question = of(record, form).unwrap();
        let pair = question.pairs.first().unwrap();
        (
            pair.context.clone(),
            pair.continuation.clone(),
            question.gold,
        )
    }

    #[test]
    fn records_are_put_as_their_benchmark_puts_them() {
        let plain = json!({ "context": "It is", "choices": ["hot", "cold"], "gold": 1 });
        assert_eq!(
            first(plain.clone(), QuestionForm::Auto),
            ("It is".into(), " hot".into(), 1)
        );
        assert_eq!(
            first(plain, QuestionForm::Question).0,
            "Question: It is\nAnswer:"
        );
        let arc = json!({ "question": "Why?", "choices": { "text": ["so", "no"], "label": ["1",
            "2"] }, "answerKey": "2" });
        assert_eq!(
            first(arc, QuestionForm::Auto),
            ("Question: Why?\nAnswer:".into(), " so".into(), 1)
        );
        let stem = json!({ "question": { "stem": "Why?", "choices": [{ "text": "so",
            "label": "A" }] }, "answerKey": "A" });
        assert_eq!(
            first(stem, QuestionForm::Auto),
            ("Question: Why?\nAnswer:".into(), " so".into(), 0)
        );
        let openbook = json!({ "question_stem": "Fog is", "choices": { "text": ["a", "b"],
            "label": ["A", "B"] }, "answerKey": "B" });
        assert_eq!(
            first(openbook, QuestionForm::Auto),
            ("Fog is".into(), " a".into(), 1)
        );
        let piqa = json!({ "goal": "Boil", "sol1": "heat", "sol2": "cool", "label": 0 });
        assert_eq!(
            first(piqa, QuestionForm::Auto),
            ("Question: Boil\nAnswer:".into(), " heat".into(), 0)
        );
        let mmlu = json!({ "question": " 1 + 1? ", "subject": "abstract_algebra", "choices": ["1",
            "2"], "answer": "B" });
        let context = "The following are multiple choice questions (with answers) about abstract \
                       algebra.\n\n\
                       1 + 1?\nA. 1\nB. 2\nAnswer:";
        assert_eq!(
            first(mmlu, QuestionForm::Auto),
            (context.into(), " A".into(), 1)
        );
        let hellaswag = json!({
            "activity_label": "Roofing", "ctx_a": "A man sits.", "ctx_b": "he Then", "ctx": "",
            "endings": [" falls [step] down [title] Up", "x"], "label": "0"
        });
        assert_eq!(
            first(hellaswag, QuestionForm::Auto),
            (
                "Roofing: A man sits. He then".into(),
                " falls down. Up".into(),
                0
            )
        );
    }

    #[test]
    fn an_option_stands_in_the_blank() {
        let record = |answer: Value| {
            json!({ "sentence": "The mug hid the pea as _ was big. ", "option1": "it",
                "option2": "the pea", "answer": answer })
        };
        let found = of(record("2".into()), QuestionForm::Auto).unwrap();
        assert_eq!(
            found.pairs,
            ["it", "the pea"]
                .map(|it| TextPair::new(format!("The mug hid the pea as {it}"), " was big."))
        );
        assert_eq!(found.gold, 1);
        let error = of(record("".into()), QuestionForm::Auto)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("items.jsonl:1: expected 1 or 2 under `answer`"),
            "{error}"
        );
    }
}
