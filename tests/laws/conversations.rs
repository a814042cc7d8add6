//! Windows of conversations: which tokens count, what stays whole, and what attention reaches.

use std::fs;
use std::path::{Path, PathBuf};

use minitron::{
    add_demo_tokenizer, config, metric, random_weights, registry, score, tiny_gpt2, tiny_llama,
    tiny_nemotron, with_demo_vocabulary,
};
use minitron_core::error::Result;
use minitron_core::model::{LoadOptions, NoTap, Transformer};
use minitron_core::spec::ModelSpec;
use minitron_core::windows::{Batch, Task, Tokenize, Windows};
use minitron_engine::data::{Attend, DataSpec, LossMask, Pack, TextOptions, Tokenizer};
use minitron_engine::train::{InMemoryTeacher, StreamedTeacher, Teacher};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use super::{REORDERED, relative};

/// Writes each message between words of its role; the demo's tokenizer has no token for any of
/// them.
const TEMPLATE: &str = "{%- for m in messages -%}{{ '[' + m.role + ']' + m.content + '[end]' \
                        }}{%- endfor -%}\
                        {%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}";

/// A folder with a tokenizer and a chat template, and data beside it.
struct Workspace {
    dir: tempfile::TempDir,
    text: TextOptions,
    seq_len: usize,
}

impl Workspace {
    fn new(seq_len: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        add_demo_tokenizer(dir.path()).unwrap();
        fs::write(dir.path().join("chat_template.jinja"), TEMPLATE).unwrap();
        Workspace {
            dir,
            text: TextOptions::default(),
            seq_len,
        }
    }

    fn tokenizer(&self) -> Tokenizer {
        let config = config(&json!({ "eos_token_id": 0 })).unwrap();
        Tokenizer::load(self.dir.path(), &config, 512, true).unwrap()
    }

    fn put(&self, name: &str, records: &[Value]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(
            &path,
            records
                .iter()
                .map(|record| format!("{record}\n"))
                .collect::<String>(),
        )
        .unwrap();
        path
    }

    fn windows(&self, path: &Path) -> Result<Windows> {
        let specs: Vec<DataSpec> = vec![path.display().to_string().parse()?];
        self.text
            .reading(self.seq_len, None, 0)
            .windows(&specs, &self.tokenizer(), &registry())
    }

    /// Texts of what the windows predict, window by window.
    fn predicted(&self, windows: &Windows) -> Vec<String> {
        let tokenizer = self.tokenizer();
        let text = |window: usize| {
            let targets = Task::NextToken
                .batch(windows, &[window], Device::Cpu)
                .unwrap();
            let labels = Vec::<i64>::try_from(&targets.labels_n).unwrap();
            tokenizer
                .decode(&labels.iter().map(|&id| id as u32).collect::<Vec<_>>())
                .unwrap()
        };
        (0..windows.len()).map(text).collect()
    }
}

fn talk(turns: &[(&str, &str)]) -> Value {
    let messages: Vec<Value> = turns
        .iter()
        .map(|(role, content)| json!({ "role": role, "content": content }))
        .collect();
    json!({ "messages": messages })
}

#[test]
fn answers_alone_are_predicted_each_with_the_end_of_its_turn() {
    let mut workspace = Workspace::new(200);
    let record = talk(&[
        ("user", "the cat"),
        ("assistant", "saw a ball"),
        ("user", "when"),
        ("assistant", "one day"),
    ]);
    let path = workspace.put("chat.jsonl", &[record]);
    let all = workspace.predicted(&workspace.windows(&path).unwrap());
    assert!(
        all[0].contains("ser]the cat[end][assistant]saw a ball[end][user]when[end]"),
        "{all:?}"
    );
    workspace.text.mask = LossMask::Answers;
    let windows = workspace.windows(&path).unwrap();
    assert_eq!(
        workspace.predicted(&windows),
        ["saw a ball[end]one day[end]"]
    );
    let targets = Task::NextToken.batch(&windows, &[0], Device::Cpu).unwrap();
    let compared = targets
        .compared_bt()
        .unwrap()
        .sum(tch::Kind::Int64)
        .int64_value(&[]);
    assert_eq!(
        compared,
        targets.n_rows(),
        "losses on states see the same positions"
    );
    let rows = targets.windows().unwrap().remove(0);
    let counted = windows
        .marks(0)
        .unwrap()
        .iter()
        .filter(|mark| mark.counts())
        .count();
    assert_eq!(
        (rows.positions.len(), targets.n_rows()),
        (counted, counted as i64)
    );
}

#[test]
fn every_layout_gives_the_same_windows() {
    let workspace = Workspace::new(100);
    let (user, assistant) = ("the dog", "found it near house 3");
    let records = [
        talk(&[("user", user), ("assistant", assistant)]),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": user }] },
                             { "role": "assistant", "content": assistant }] }),
        json!({ "conversations": [{ "from": "human", "value": user }, { "from": "gpt",
            "value": assistant }] }),
        json!({ "prompt": [{ "role": "user", "content": user }],
                "completion": [{ "role": "assistant", "content": assistant }] }),
        json!({ "instruction": user, "input": "", "output": assistant }),
    ];
    let digest = |(idx, record): (usize, &Value)| {
        let mut workspace = Workspace {
            text: workspace.text.clone(),
            ..Workspace::new(100)
        };
        workspace.text.mask = LossMask::Answers;
        let mut record = record.clone();
        if idx == 1 {
            // Parts are joined by templates that know them; this one does not.
            record["messages"][0]["content"] = user.into();
        }
        let path = workspace.put("one.jsonl", &[record]);
        workspace.windows(&path).unwrap().digest().to_owned()
    };
    let mut digests: Vec<String> = records.iter().enumerate().map(digest).collect();
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

#[test]
fn a_completion_counts_and_its_prompt_does_not() {
    let mut workspace = Workspace::new(100);
    workspace.text.mask = LossMask::Answers;
    let path = workspace.put(
        "pairs.jsonl",
        &[json!({ "prompt": "One day, ", "completion": "the cat saw a ball" })],
    );
    let windows = workspace.windows(&path).unwrap();
    assert_eq!(workspace.predicted(&windows), [" the cat saw a ball"]);
    let window = windows.window(0).unwrap();
    assert_eq!(
        window.last(),
        Some(&0),
        "the end of the text is learned too"
    );
}

/// The same with marks.
const MARKED: &str = "{%- for m in messages -%}{{ '[' + m.role + ']' }}\
                      {%- if m.role == 'assistant' -%}{%- generation -%}{{ m.content + '[end]' \
                      }}{%- endgeneration -%}\
                      {%- else -%}{{ m.content + '[end]' }}{%- endif -%}{%- endfor -%}\
                      {%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}";

#[test]
fn answers_of_weight_0_do_not_count_and_other_weights_are_refused() {
    let mut workspace = Workspace::new(200);
    let turns = [
        ("user", "the cat"),
        ("assistant", "saw a ball"),
        ("user", "when"),
        ("assistant", "one day"),
    ];
    let weighted = |weights: [Value; 2]| {
        let mut record = talk(&turns);
        let [first, second] = weights;
        (
            record["messages"][1]["weight"],
            record["messages"][3]["weight"],
        ) = (first, second);
        record
    };
    for template in [TEMPLATE, MARKED] {
        fs::write(workspace.dir.path().join("chat_template.jinja"), template).unwrap();
        for (weights, counted) in [
            ([Value::Null, Value::Null], "saw a ball[end]one day[end]"),
            ([json!(1), json!(1.0)], "saw a ball[end]one day[end]"),
            ([json!(0), json!(1)], "one day[end]"),
            ([json!(1), json!(0)], "saw a ball[end]"),
            ([json!(0.0), Value::Null], "one day[end]"),
        ] {
            workspace.text.mask = LossMask::Answers;
            let path = workspace.put("chat.jsonl", &[weighted(weights)]);
            assert_eq!(
                workspace.predicted(&workspace.windows(&path).unwrap()),
                [counted]
            );
            workspace.text.mask = LossMask::None;
            let all = workspace.windows(&path).unwrap();
            let path = workspace.put("plain.jsonl", &[talk(&turns)]);
            assert_eq!(
                all.digest(),
                workspace.windows(&path).unwrap().digest(),
                "without the mask, all count"
            );
        }
    }
    workspace.text.mask = LossMask::Answers;
    // In ShareGPT's layout too.
    let said = |from: &str, value: &str, weight: Value| json!({ "from": from, "value": value, "weight": weight });
    let record = json!({ "conversations": [
        said("human", "the cat", json!(0)),
        said("gpt", "saw", json!(0)),
        said("human", "when", Value::Null),
        said("gpt", "one day", json!(1)),
    ] });
    let path = workspace.put("share.jsonl", &[record]);
    assert_eq!(
        workspace.predicted(&workspace.windows(&path).unwrap()),
        ["one day[end]"]
    );
    for weight in [
        json!(0.5),
        json!(2),
        json!(-1),
        json!("0"),
        json!(true),
        json!([]),
    ] {
        let path = workspace.put("chat.jsonl", &[weighted([json!(1), weight.clone()])]);
        let error = workspace.windows(&path).unwrap_err().to_string();
        let says = format!(
            "message 4: data: `weight`: expected 0 (the answer does not count) or 1, got {weight}"
        );
        assert!(
            error.contains("chat.jsonl") && error.ends_with(&says),
            "{error}"
        );
    }
}

#[test]
fn conversations_stay_whole_and_long_ones_are_cut_where_a_turn_ends() {
    let mut workspace = Workspace::new(40);
    let short = talk(&[("user", "the cat"), ("assistant", "saw it")]);
    let turn = [("user", "where is the ball"), ("assistant", "near house 2")];
    let path = workspace.put("chat.jsonl", &[short.clone(), talk(&turn.repeat(6)), short]);
    for mask in [LossMask::None, LossMask::Answers] {
        workspace.text.mask = mask;
        let windows = workspace.windows(&path).unwrap();
        let tokenizer = workspace.tokenizer();
        assert!(windows.len() > 2);
        for window in 0..windows.len() {
            let text = tokenizer.decode(windows.window(window).unwrap()).unwrap();
            assert!(
                text.starts_with("[user]") && text.ends_with("[end]"),
                "{mask:?}: {text}"
            );
            assert!(windows.window(window).unwrap().len() <= 40);
        }
    }
}

/// Counts messages and letters in each message's head, so what is said is nowhere the same between
/// the same words.
const UNTELLABLE: &str = "{%- for m in messages -%}{{ '[' ~ messages | length ~ m.role ~ m.content \
                          | length ~ ']' }}\
                          {{- m.content ~ '[end]' }}{%- endfor -%}";

#[test]
fn a_template_that_cannot_tell_answers_is_refused_only_where_they_are_asked_for() {
    let mut workspace = Workspace::new(40);
    fs::write(workspace.dir.path().join("chat_template.jinja"), UNTELLABLE).unwrap();
    let turn = [("user", "where is the ball"), ("assistant", "near house 2")];
    let path = workspace.put("chat.jsonl", &[talk(&turn.repeat(3))]);
    let mut texts = Vec::new();
    for pack in [Pack::Stream, Pack::Documents, Pack::Whole, Pack::Auto] {
        workspace.text.pack = pack;
        let windows = workspace.windows(&path).unwrap();
        texts.push(
            (0..windows.len())
                .flat_map(|idx| windows.window(idx).unwrap().to_vec())
                .collect::<Vec<_>>(),
        );
    }
    let tokenizer = workspace.tokenizer();
    let text = tokenizer.decode(&texts[2]).unwrap();
    assert!(
        text.contains("]where is the ball[end]") && text.contains("]near house"),
        "{text}"
    );
    assert_eq!(texts[2], texts[3]);
    assert!(
        texts[2].len() > 40,
        "a conversation longer than a window goes on in the next one"
    );
    workspace.text.mask = LossMask::Answers;
    let error = workspace.windows(&path).unwrap_err().to_string();
    assert!(
        error.contains("chat.jsonl") && error.contains("cannot be told from the rest"),
        "{error}"
    );
}

#[test]
fn what_has_no_answers_is_refused_by_name() {
    let mut workspace = Workspace::new(16);
    workspace.text.mask = LossMask::Answers;
    let path = workspace.put(
        "plain.jsonl",
        &[json!({ "text": "the cat saw a ball near the house" })],
    );
    let error = workspace.windows(&path).unwrap_err().to_string();
    assert!(
        error.contains("plain.jsonl") && error.contains("plain text"),
        "{error}"
    );
    fs::remove_file(workspace.dir.path().join("chat_template.jinja")).unwrap();
    let path = workspace.put("chat.jsonl", &[talk(&[("user", "a"), ("assistant", "b")])]);
    let error = workspace.windows(&path).unwrap_err().to_string();
    assert!(error.contains("has no chat template"), "{error}");
    let mut encoder = workspace.tokenizer();
    encoder.special_tokens = Some((1, 2));
    let reading = workspace.text.reading(16, None, 0);
    let error = reading.windows(&[], &encoder, &registry()).unwrap_err();
    assert!(
        error.is_usage()
            && error
                .to_string()
                .contains("an encoder predicts masked tokens"),
        "{error}"
    );
}

/// Documents of these many ids.
fn documents(workspace: &Workspace, lengths: &[usize]) -> PathBuf {
    let ids =
        |(idx, len): (usize, &usize)| (0..*len).map(move |place| 1 + (idx * 37 + place * 11) % 500);
    let record = |document| json!({ "text": ids(document).collect::<Vec<_>>() });
    workspace.put(
        "ids.jsonl",
        &lengths.iter().enumerate().map(record).collect::<Vec<_>>(),
    )
}

fn causal_families() -> [Value; 3] {
    [tiny_llama(), tiny_gpt2(), tiny_nemotron()].map(with_demo_vocabulary)
}

/// Last hidden states at the predicting rows, and what they predict.
fn rows(model: &Transformer, windows: &Windows) -> (Tensor, Tensor) {
    let all = |window: usize| {
        Task::NextToken
            .batch(windows, &[window], Device::Cpu)
            .unwrap()
    };
    let hidden = |targets: &Batch| {
        let hidden_bte = tch::no_grad(|| model.hidden(targets.input(), &mut NoTap, None)).unwrap();
        targets.rows(&hidden_bte).unwrap()
    };
    let targets: Vec<Batch> = (0..windows.len()).map(all).collect();
    let labels: Vec<&Tensor> = targets.iter().map(|targets| &targets.labels_n).collect();
    (
        Tensor::cat(&targets.iter().map(hidden).collect::<Vec<_>>(), 0),
        Tensor::cat(&labels, 0),
    )
}

#[test]
fn documents_in_one_window_are_as_if_each_had_it_alone() {
    let mut workspace = Workspace::new(32);
    workspace.text.attend = Attend::Documents;
    let path = documents(&workspace, &[5, 7, 9, 10]);
    workspace.text.pack = Pack::Whole;
    let together = workspace.windows(&path).unwrap();
    assert_eq!(together.len(), 1);
    workspace.text.pack = Pack::Documents;
    let alone = workspace.windows(&path).unwrap();
    for config in causal_families() {
        let model = super::Model::new(&config, 90).unwrap().load().unwrap();
        let ((found, found_labels), (expected, labels)) =
            (rows(&model, &together), rows(&model, &alone));
        assert!(found_labels.equal(&labels));
        let difference = relative(&found, &expected);
        assert!(
            difference <= REORDERED,
            "{}: {difference}",
            model.spec.architecture
        );
    }
    // Where attention crosses documents, it shows.
    workspace.text = TextOptions {
        pack: Pack::Whole,
        ..TextOptions::default()
    };
    let crossing = workspace.windows(&path).unwrap();
    let model = super::Model::new(&causal_families()[0], 90)
        .unwrap()
        .load()
        .unwrap();
    let (found, _) = rows(&model, &crossing);
    assert!(
        relative(
            &found.narrow(0, 20, 5),
            &rows(&model, &together).0.narrow(0, 17, 5)
        ) > 1e-2
    );
}

#[test]
fn scores_of_documents_in_one_window_are_those_of_each_alone() {
    let mut workspace = Workspace::new(32);
    workspace.text.attend = Attend::Documents;
    // Equally long ones, so that a mean over a window's tokens is one over its documents.
    let path = documents(&workspace, &[8; 8]);
    for config in causal_families() {
        let spec =
            ModelSpec::from_config(&minitron::config(&config).unwrap(), &registry()).unwrap();
        let source = random_weights(&spec, 91).unwrap();
        let scores = |workspace: &Workspace| {
            let windows = workspace.windows(&path).unwrap();
            let metrics = vec![
                metric("activation:batch=mean,seq=mean").unwrap(),
                metric("perplexity").unwrap(),
            ];
            score(&source, &spec, metrics, &windows, 2).unwrap()
        };
        workspace.text.pack = Pack::Whole;
        let together = scores(&workspace);
        workspace.text.pack = Pack::Documents;
        let alone = scores(&workspace);
        for (name, found) in &together.by_name {
            let difference = super::relative_scores(found, &alone.by_name[name]);
            assert!(
                difference <= 10.0 * REORDERED,
                "{} {name}: {difference}",
                spec.architecture
            );
        }
    }
}

#[test]
fn a_streamed_teacher_sees_documents_apart_too() {
    let mut workspace = Workspace::new(32);
    workspace.text = TextOptions {
        attend: Attend::Documents,
        pack: Pack::Whole,
        ..TextOptions::default()
    };
    let windows = workspace
        .windows(&documents(&workspace, &[5, 7, 9, 10]))
        .unwrap();
    let targets = Task::NextToken.batch(&windows, &[0], Device::Cpu).unwrap();
    for config in causal_families() {
        let model = super::Model::new(&config, 92).unwrap();
        let logits = |teacher: &mut dyn Teacher| {
            let lesson = teacher
                .forward(&targets, true, &std::collections::BTreeSet::new())
                .unwrap();
            lesson.logits(0, targets.n_rows(), &Tensor::new()).unwrap()
        };
        let in_memory = logits(&mut InMemoryTeacher(model.load().unwrap()));
        let streamed = logits(&mut StreamedTeacher::new(
            &model.source,
            &model.spec,
            LoadOptions::default(),
        ));
        assert!(in_memory.equal(&streamed), "{}", model.family());
    }
}
