#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use minitron::{minitron, python, root, run_python, shared};
use serde_json::{Value, json};

/// Of accuracies and their errors absolute, of perplexities relative.
const TOLERANCE: f64 = 1e-3;

/// Threads of both sides wait for each other actively, which takes ages where other tests run
/// beside.
const ONE_THREAD: &str = "1";

/// Sentences whose blank only their end decides.
const BLANKS: [(&str, &str, &str, u8); 6] = [
    (
        "The mug would not go into the bag because _ was too wide.",
        "the mug",
        "the bag",
        1,
    ),
    (
        "Lily gave Tom the last cake since _ had asked for it.",
        "Lily",
        "Tom",
        2,
    ),
    (
        "The dog ran from the goose when _ began to hiss at it.",
        "the dog",
        "the goose",
        2,
    ),
    (
        "Sam lost the race to Ben although _ had trained all summer. ",
        "Sam",
        "Ben",
        1,
    ),
    (
        "They moved the sofa off the rug so that the _ could be washed.",
        "sofa",
        "rug",
        2,
    ),
    (
        "The rope held the boat for years, until the _ sank in the storm.",
        "rope",
        "boat",
        2,
    ),
];

/// The first records of a file, where it lies beside the repository.
fn records(file: &str, n: usize) -> Option<Vec<Value>> {
    let text = fs::read_to_string(shared(file)?).unwrap();
    Some(
        text.lines()
            .take(n)
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

/// Where WikiText begins a page: a heading of the first rank.
fn pages(n: usize) -> Option<Vec<Value>> {
    let text = fs::read_to_string(shared("text/wikitext-2/wiki.valid.tokens")?).unwrap();
    let mut pages: Vec<String> = Vec::new();
    for line in text.lines() {
        let is_title = line.starts_with(" = ") && !line.starts_with(" = =");
        if is_title {
            pages.push(String::new());
        }
        if let Some(page) = pages.last_mut() {
            page.push_str(line);
            page.push('\n');
        }
    }
    // Several windows each, but for one that is a part of its window.
    pages.sort_by_key(String::len);
    pages
        .iter_mut()
        .take(1)
        .for_each(|page| page.truncate(page.find(" . ").unwrap_or(0) + 3));
    Some(
        pages
            .into_iter()
            .take(n)
            .map(|page| json!({ "page": page }))
            .collect(),
    )
}

/// Something measured on both sides.
struct Measured {
    name: &'static str,
    /// Path of the harness' own definition.
    task: &'static str,
    /// The evaluator by the file's fields, or as it is named.
    ours: &'static str,
    items: Vec<Value>,
}

/// Items with the fields under which their benchmarks publish them.
fn measured() -> Option<Vec<Measured>> {
    let lettered = |r: &Value| {
        let labels = ["A", "B", "C", "D", "E"];
        let n_choices = r["choices"].as_array().unwrap().len();
        let choices = json!({ "text": r["choices"], "label": labels[..n_choices] });
        (choices, labels[r["gold"].as_u64().unwrap() as usize])
    };
    let as_hellaswag = |r: Value| {
        let (activity, context) = r["context"].as_str().unwrap().split_once(": ").unwrap();
        let (first, second) = context.rsplit_once(". ").unwrap_or((context, ""));
        json!({ "activity_label": activity, "ctx_a": format!("{first}."), "ctx_b": second,
            "endings": r["choices"],
                "label": r["gold"].to_string() })
    };
    let as_arc = |r: Value| {
        let (choices, answer) = lettered(&r);
        json!({ "question": r["context"], "choices": choices, "answerKey": answer })
    };
    let as_openbook = |r: Value| {
        let (choices, answer) = lettered(&r);
        json!({ "question_stem": r["context"], "choices": choices, "answerKey": answer })
    };
    let as_piqa = |r: Value| {
        json!({ "goal": r["context"], "sol1": r["choices"][0],
        "sol2": r["choices"][1], "label": r["gold"] })
    };
    let as_mmlu = |r: Value| {
        json!({ "question": r["context"], "subject": "abstract_algebra",
        "choices": r["choices"], "answer": r["gold"] })
    };
    let as_lambada = |r: Value| {
        json!({ "text": format!("{} {}", r["context"].as_str().unwrap(),
        r["target"].as_str().unwrap()) })
    };
    // Words that these models know.
    let as_story = |r: Value| {
        let words: Vec<&str> = r["text"].as_str().unwrap().split(' ').collect();
        json!({ "text": words[..words.len().min(30)].join(" ") })
    };
    let blanks = BLANKS.map(|(sentence, option1, option2, answer)| {
        json!({ "sentence": sentence, "option1": option1, "option2": option2,
            "answer": answer.to_string() })
    });
    let of = |file: &str, n, as_published: &dyn Fn(Value) -> Value| {
        Some(
            records(file, n)?
                .into_iter()
                .map(as_published)
                .collect::<Vec<_>>(),
        )
    };
    let new = |name, task, ours, items| Measured {
        name,
        task,
        ours,
        items,
    };
    let characters = "multiple_choice:length=characters,path=";
    let wikitext = "rolling_perplexity:wikitext=true,field=page,path=";
    Some(vec![
        new(
            "hellaswag",
            "hellaswag/hellaswag",
            "",
            of("eval/hellaswag_val_even.jsonl", 20, &as_hellaswag)?,
        ),
        new(
            "characters",
            "hellaswag/hellaswag",
            characters,
            of("eval/hellaswag_val_even.jsonl", 15, &as_hellaswag)?,
        ),
        new(
            "arc",
            "arc/arc_easy",
            "",
            of("eval/arc_easy_test.jsonl", 40, &as_arc)?,
        ),
        new(
            "piqa",
            "piqa/piqa",
            "",
            of("eval/piqa_val.jsonl", 30, &as_piqa)?,
        ),
        new(
            "openbookqa",
            "openbookqa/openbookqa",
            "",
            of("eval/openbookqa_test.jsonl", 40, &as_openbook)?,
        ),
        new(
            "mmlu",
            "mmlu/default/mmlu_abstract_algebra",
            "",
            of("eval/mmlu_test_even_subjects.jsonl", 20, &as_mmlu)?,
        ),
        new("winogrande", "winogrande/default", "", blanks.to_vec()),
        new(
            "lambada",
            "lambada/lambada_openai",
            "last_word:path=",
            of("eval/lambada_openai_test_even.jsonl", 20, &as_lambada)?,
        ),
        new(
            "stories",
            "lambada/lambada_openai",
            "last_word:path=",
            of("text/tinystories_800.jsonl", 50, &as_story)?,
        ),
        new("wikitext", "wikitext/wikitext", wikitext, pages(4)?),
    ])
}

impl Measured {
    fn write(&self, dir: &Path) -> PathBuf {
        let path = dir.join(format!("{}.jsonl", self.name));
        fs::write(
            &path,
            self.items
                .iter()
                .map(Value::to_string)
                .collect::<Vec<_>>()
                .join("\n"),
        )
        .unwrap();
        path
    }

    /// Ours, the harness', and how far they are from each other.
    fn differences(&self, ours: &Value, theirs: &Value) -> Vec<(String, f64, f64, f64)> {
        let norm = if self.name == "characters" {
            "acc_norm"
        } else {
            "acc_bytes"
        };
        let names = [
            ("acc", "acc"),
            ("acc_stderr", "acc_stderr"),
            ("acc_norm", norm),
            ("acc_norm_stderr", &format!("{norm}_stderr")),
            ("perplexity", "perplexity"),
            ("word_perplexity", "word_perplexity"),
            ("byte_perplexity", "byte_perplexity"),
            ("bits_per_byte", "bits_per_byte"),
        ];
        let both = names.map(|(our_name, their_name)| {
            // In a blank, the harness divides by the length of what stands before it.
            let is_theirs = self.name == "winogrande" && our_name.contains("norm");
            let our = ours.get(our_name).filter(|_| !is_theirs)?.as_f64()?;
            let their = theirs[format!("{their_name},none")].as_f64().unwrap();
            let scale = if our_name.starts_with("acc") {
                1.0
            } else {
                their
            };
            Some((
                format!("{} {our_name}", self.name),
                our,
                their,
                (our - their).abs() / scale,
            ))
        });
        both.into_iter().flatten().collect()
    }
}

/// What the harness measures of both models, one Python process for all.
fn harness(models: &[PathBuf], tasks: &[(&Measured, PathBuf)], out: &Path) -> Vec<Value> {
    let word = |path: &Path| path.display().to_string();
    let task = |(measured, path): &(&Measured, PathBuf)| {
        format!("{}={}:{}", measured.name, measured.task, word(path))
    };
    let words = [word(out)]
        .into_iter()
        .chain(models.iter().map(|model| word(model)))
        .chain(tasks.iter().map(task));
    let output = run_python(&root().join("tests/interop/harness.py"), words);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&fs::read(out).unwrap()).unwrap()
}

fn has_harness(python: &Path) -> bool {
    let question = "import importlib.util as u; exit(u.find_spec('lm_eval') is None)";
    Command::new(python)
        .args(["-c", question])
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn evaluators_give_the_numbers_of_the_evaluation_harness() {
    let models = ["models/prose-llama", "models/stories260K"].map(shared);
    let (Some(python), [Some(prose), Some(stories)], Some(measured)) =
        (python(), models, measured())
    else {
        eprintln!("absent, not tested: the Python of `make test`, or the data");
        return;
    };
    if !has_harness(&python) {
        eprintln!("absent, not tested: lm-eval in the Python of `make test`");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let models = [prose, stories];
    let tasks: Vec<(&Measured, PathBuf)> = measured
        .iter()
        .map(|one| (one, one.write(work.path())))
        .collect();
    let theirs = harness(&models, &tasks, &work.path().join("out.json"));
    let mut worst = 0f64;
    for (model, theirs) in models.iter().zip(&theirs) {
        let mut args = [
            "eval",
            &model.display().to_string(),
            "--json",
            "--threads",
            ONE_THREAD,
        ]
        .map(str::to_owned)
        .to_vec();
        for (measured, path) in &tasks {
            args.extend([
                "--task".to_owned(),
                format!("{}={}{}", measured.name, measured.ours, path.display()),
            ]);
        }
        let output = minitron(&args.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let ours: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of_tasks = measured
            .iter()
            .flat_map(|one| one.differences(&ours["tasks"][one.name], &theirs[one.name]));
        let differences: Vec<_> = of_tasks.collect();
        assert_eq!(differences.len(), 6 * 4 + 2 + 2 * 3 + 3, "{differences:#?}");
        let apart = differences
            .iter()
            .filter(|(.., difference)| difference.is_nan() || *difference > TOLERANCE);
        assert_eq!(apart.count(), 0, "{}: {differences:#?}", model.display());
        worst = differences
            .iter()
            .map(|(.., difference)| *difference)
            .fold(worst, f64::max);
    }
    println!(
        "worst difference from lm-eval, {} tasks, {} models: {worst:e}",
        measured.len(),
        models.len()
    );
}
