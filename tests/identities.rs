#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};

use minitron::{Recorder, Workspace, add_demo_tokenizer, registry, tiny_llama, with_context};
use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{
    Checkpoint, MemorySource, TensorSource, WriteOptions, write_model,
};
use minitron_core::error::Result;
use minitron_core::plan::Count;
use minitron_core::registry::PluginSpec;
use minitron_core::spec::ModelFolder;
use minitron_engine::jobs::{
    Context, DistillOptions, EvalOptions, PruneOptions, ScoreOptions, TeacherOptions,
    TrainingOptions, distill, eval, prune, score,
};
use minitron_engine::recipe::{Recipe, run};
use minitron_engine::search::{SearchOptions, search};
use minitron_engine::train::CacheType;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Models of one shape and a text, in a folder.
struct Models {
    files: Workspace,
    heard: Recorder,
}

impl std::ops::Deref for Models {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        &self.files
    }
}

impl Models {
    fn new() -> Self {
        let ids: Vec<u8> = (0..400u16)
            .flat_map(|id| (id % 300).to_le_bytes())
            .collect();
        let files =
            Workspace::new()
                .model("base", &tiny_llama(), 3)
                .model("chat", &tiny_llama(), 4);
        Models {
            files: files.text("text.txt").file("ids.bin", ids),
            heard: Recorder::default(),
        }
    }

    /// A job, whose outputs may be replaced.
    fn with<T>(&self, job: impl FnOnce(&Context) -> T) -> T {
        with_context(true, |context| {
            job(&Context {
                progress: &self.heard,
                ..*context
            })
        })
    }

    /// What was warned of since the last time.
    fn warnings(&self) -> Vec<String> {
        self.heard.warnings()
    }

    fn notes(&self) -> Vec<String> {
        self.heard.notes()
    }

    fn score(&self, model: &str) -> PathBuf {
        let options = ScoreOptions {
            model: self.path(model),
            data: vec![self.path("text.txt").parse().unwrap()],
            samples: 4,
            seq_len: Some(16),
            ..ScoreOptions::default()
        };
        let out = self.at(&format!("{model}.safetensors"));
        self.with(|context| score(context, &options, &out)).unwrap();
        out
    }

    fn prune(&self, model: &str, change: impl FnOnce(&mut PruneOptions)) -> Result<Value> {
        let mut options = PruneOptions {
            model: self.path(model),
            rounds: 1,
            ..PruneOptions::default()
        };
        change(&mut options);
        self.with(|context| prune(context, &options, &self.at("pruned"), false))
    }

    fn by_scores(&self, model: &str, scores: &Path, any_model: bool) -> Result<Value> {
        let scores = Some(scores.display().to_string());
        self.prune(model, |o| {
            (o.scores, o.mlp, o.any_model) = (scores, Some(24), any_model)
        })
    }

    fn by_plan(&self, model: &str, plan: &Path, any_model: bool) -> Result<Value> {
        self.prune(model, |o| {
            (o.plan, o.any_model) = (Some(plan.to_path_buf()), any_model)
        })
    }

    fn distill(
        &self,
        teacher: &str,
        student: &str,
        change: impl FnOnce(&mut DistillOptions),
    ) -> Result<Value> {
        self.go_on(teacher, student, false, change)
    }

    fn go_on(
        &self,
        teacher: &str,
        student: &str,
        resume: bool,
        change: impl FnOnce(&mut DistillOptions),
    ) -> Result<Value> {
        let training = TrainingOptions {
            data: vec![self.path("text.txt").parse().unwrap()],
            tokens: Count(256),
            seq_len: Some(16),
            batch_size: 4,
            ..TrainingOptions::default()
        };
        let mut options = DistillOptions {
            teacher: self.path(teacher),
            student: self.path(student),
            teacher_options: TeacherOptions::default(),
            training,
        };
        change(&mut options);
        self.with(|context| distill(context, &options, &self.at("distilled"), resume))
    }

    fn eval(
        &self,
        model: &str,
        teacher: &str,
        change: impl FnOnce(&mut EvalOptions),
    ) -> Result<Value> {
        let mut options = EvalOptions {
            model: self.path(model),
            teacher: Some(self.path(teacher)),
            data: vec![self.path("text.txt").parse().unwrap()],
            samples: Some(4),
            seq_len: Some(16),
            ..EvalOptions::default()
        };
        change(&mut options);
        self.with(|context| eval(context, &options))
    }

    /// A copy of a model with other tensors.
    fn rewritten(
        &self,
        model: &str,
        copy: &str,
        change: impl Fn(&str, Tensor) -> Tensor,
        max_shard_bytes: u64,
    ) {
        let opened = Checkpoint::open(&self.at(model)).unwrap();
        let (mut config, mut source) = (opened.config.clone(), MemorySource::default());
        for name in opened.tensors.names() {
            source
                .insert(
                    name.as_str(),
                    &change(&name, opened.tensors.read(&name).unwrap()),
                )
                .unwrap();
        }
        let n_rows = ModelFolder::open(&self.at(model), &registry())
            .unwrap()
            .spec
            .options
            .vocab;
        let tables = source
            .names()
            .into_iter()
            .filter_map(|name| source.info(&name))
            .map(|info| info.shape[0]);
        config.set(
            "vocab_size",
            tables.filter(|&rows| rows >= n_rows - 50).max().unwrap(),
        );
        fs::create_dir_all(self.at(copy)).unwrap();
        let options = WriteOptions {
            max_shard_bytes,
            ..WriteOptions::default()
        };
        write_model(
            &self.at(copy),
            &config,
            &source,
            Some(&self.at(model)),
            options,
        )
        .unwrap();
    }

    /// The same with so many rows in both tables; new ones are far from all others.
    fn with_rows(&self, model: &str, copy: &str, n_rows: i64) {
        let resize = |_: &str, x: Tensor| match x.size().as_slice() {
            [512, width] if n_rows > 512 => Tensor::cat(
                &[
                    &x,
                    &Tensor::full([n_rows - 512, *width], 0.7, (x.kind(), x.device())),
                ],
                0,
            ),
            [512, _] => x.narrow(0, 0, n_rows),
            _ => x,
        };
        self.rewritten(model, copy, resize, u64::MAX);
    }

    fn change_json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&fs::read(self.at(file)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.at(file), value.to_string()).unwrap();
    }

    fn value(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.at(file)).unwrap()).unwrap()
    }
}

/// A wrong request that says all of it.
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, says: &[&str]) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(error.is_usage(), "{text}");
    assert!(says.iter().all(|says| text.contains(says)), "{text}");
}

fn assert_said(said: &[String], says: &[&str]) {
    assert!(
        said.iter()
            .any(|line| says.iter().all(|says| line.contains(says))),
        "{says:?} in {said:#?}"
    );
}

// --- scores and plans
// ------------------------------------------------------------------------------------------------

#[test]
fn scores_of_other_weights_are_refused_by_name() {
    let desk = Models::new();
    let path = desk.score("base");
    let scores = Scores::load(&path).unwrap();
    let whose = scores.model.clone().unwrap();
    assert_eq!(
        (
            whose.model.as_str(),
            whose.weights.len(),
            whose.tokenizer.is_some()
        ),
        ("base", 64, true)
    );
    assert_eq!(scores.data.as_ref().map(String::len), Some(64));
    desk.by_scores("base", &path, false).unwrap();
    assert_eq!(desk.warnings(), [""; 0]);

    let says = [
        "base.safetensors",
        "scores of `base` (weights ",
        "the model is `chat` (weights ",
        "--any-model",
    ];
    assert_refused(desk.by_scores("chat", &path, false), &says);
    assert_eq!(desk.warnings(), [""; 0]);
    desk.by_scores("chat", &path, true).unwrap();
    assert_said(
        &desk.warnings(),
        &["scores of `base`", "`chat`", "taken anyway"],
    );

    // The same weights in other files are the same model; a copy in another type is not.
    desk.rewritten("base", "sharded", |_, x| x, 10_000);
    assert!(desk.at("sharded/model.safetensors.index.json").is_file());
    desk.by_scores("sharded", &path, false).unwrap();
    assert_eq!(desk.warnings(), [""; 0]);
    desk.rewritten("base", "narrow", |_, x| x.to_kind(Kind::BFloat16), u64::MAX);
    assert_refused(
        desk.by_scores("narrow", &path, false),
        &["`base`", "`narrow`"],
    );
    desk.rewritten("base", "stepped", |_, x| x * 1.000_1, u64::MAX);
    assert_refused(
        desk.by_scores("stepped", &path, false),
        &["`base`", "`stepped`"],
    );

    desk.change_json("base/tokenizer.json", |_| {});
    desk.by_scores("base", &path, false).unwrap();
    assert_said(
        &desk.warnings(),
        &["scores made with another tokenizer.json than `base`"],
    );

    Scores {
        model: None,
        data: None,
        ..scores
    }
    .save(&path)
    .unwrap();
    desk.by_scores("chat", &path, false).unwrap();
    assert_said(
        &desk.warnings(),
        &[
            "base.safetensors: does not say which model it is of",
            "`chat`",
        ],
    );
}

#[test]
fn a_search_by_scores_of_another_model_is_refused() {
    let desk = Models::new();
    let scores = desk.score("base").display().to_string();
    let training = TrainingOptions {
        data: vec![desk.path("text.txt").parse().unwrap()],
        tokens: Count(512),
        seq_len: Some(16),
        batch_size: 4,
        ..TrainingOptions::default()
    };
    let mut options = SearchOptions {
        model: desk.path("chat"),
        scores,
        candidates: 2,
        rungs: 1,
        training,
        ..SearchOptions::default()
    };
    options.grid.insert("mlp".into(), "16,24".parse().unwrap());
    let find = |options: &SearchOptions, resume| {
        desk.with(|context| {
            search(
                &Context {
                    force: false,
                    ..*context
                },
                options,
                &desk.at("found"),
                resume,
                false,
            )
        })
    };
    assert_refused(
        find(&options, false),
        &["scores of `base`", "the model is `chat`", "--any-model"],
    );
    assert!(!desk.at("found").exists());
    options.teacher_options.any_model = true;
    find(&options, false).unwrap();
    assert_said(&desk.warnings(), &["scores of `base`", "taken anyway"]);
    assert_eq!(desk.value("found/winner/plan.json")["model"], "chat");
    options.model = desk.path("base");
    assert_refused(
        find(&options, true),
        &["holds a search of another model (`", "chat`)"],
    );
}

#[test]
fn a_plan_of_another_model_is_refused_by_name() {
    let desk = Models::new();
    let scores = desk.score("base");
    desk.by_scores("base", &scores, false).unwrap();
    let plan = desk.at("plan.json");
    fs::copy(desk.at("pruned/plan.json"), &plan).unwrap();
    let whose = Scores::load(&scores).unwrap().model.unwrap();
    let saved = desk.value("plan.json");
    assert_eq!(
        (&saved["model"], &saved["weights"]),
        (&json!("base"), &json!(whose.weights))
    );
    assert_eq!(saved["tokenizer"], json!(whose.tokenizer));

    desk.by_plan("base", &plan, false).unwrap();
    assert_eq!(desk.warnings(), [""; 0]);
    let says = [
        "plan.json: a plan of `base` (weights ",
        "the model is `chat`",
        "--any-model",
    ];
    assert_refused(desk.by_plan("chat", &plan, false), &says);
    desk.by_plan("chat", &plan, true).unwrap();
    assert_said(&desk.warnings(), &["a plan of `base`", "taken anyway"]);
    // What was made of a plan is of the model that was cut.
    assert_eq!(desk.value("pruned/plan.json")["model"], "chat");

    fs::write(&plan, json!({ "kept": saved["kept"] }).to_string()).unwrap();
    desk.by_plan("chat", &plan, false).unwrap();
    assert_said(
        &desk.warnings(),
        &["plan.json: does not say which model it is of"],
    );

    let in_rounds = |o: &mut PruneOptions| {
        (o.scores, o.mlp, o.rounds) = (Some(scores.display().to_string()), Some(16), 3);
        o.reconstruction.data = vec![desk.path("text.txt").parse().unwrap()];
        (o.reconstruction.samples, o.reconstruction.seq_len) = (4, Some(16));
    };
    desk.prune("base", in_rounds).unwrap();
    assert_eq!(
        desk.value("pruned/plan.json")["weights"],
        json!(whose.weights),
        "all rounds are one plan on the source"
    );
    assert_eq!(desk.warnings(), [""; 0]);
}

#[test]
fn a_student_of_one_model_under_another_is_said() {
    let desk = Models::new();
    let scores = desk.score("base").display().to_string();
    desk.prune("base", |o| (o.scores, o.hidden) = (Some(scores), Some(16)))
        .unwrap();
    desk.eval("pruned", "base", |_| {}).unwrap();
    assert!(!desk.notes().iter().any(|note| note.contains("pruned from")));
    desk.eval("pruned", "chat", |_| {}).unwrap();
    assert_said(
        &desk.notes(),
        &["`pruned` was pruned from `base`", "its teacher is `chat`"],
    );
}

// --- teachers
// --------------------------------------------------------------------------------------------------------

#[test]
fn draws_serve_what_is_linear_in_the_teachers_distribution() {
    let desk = Models::new();
    let drawn = |n: usize, losses: &'static [&str]| {
        let dir = desk.at("drawn");
        move |o: &mut DistillOptions| {
            o.teacher_options.teacher_cache = Some(dir);
            o.teacher_options.cache_samples = Some(n);
            o.training.losses = losses.iter().map(|loss| loss.parse().unwrap()).collect();
        }
    };
    desk.distill("base", "chat", drawn(12, &["forward_kl", "cross_entropy"]))
        .unwrap();
    assert_eq!(desk.value("drawn/cache.json")["draws"]["n"], 12);
    for (n, losses, says) in [
        (12, &["reverse_kl"][..], "`reverse_kl` is not linear"),
        (12, &["forward_kl:temperature=2"], "is not linear"),
        (12, &["logit_mse"], "compares logits as they are"),
        (0, &["forward_kl"], "cache_samples: expected 1 to"),
        (16, &["forward_kl"], "draws: stored {\"n\":12"),
    ] {
        let refused = desk.distill("base", "chat", drawn(n, losses)).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
    }
}

#[test]
fn a_length_stage_is_part_of_what_a_resumed_run_shares() {
    let desk = Models::new();
    let staged = |seq_len| {
        move |o: &mut DistillOptions| {
            (o.training.seq_len, o.training.batch_size) = (Some(8), 4);
            o.training.length_stage = Some(format!("0.5:{seq_len}").parse().unwrap());
            o.training.stop_after = Some(1);
        }
    };
    desk.distill("base", "chat", staged(16)).unwrap();
    assert_refused(
        desk.go_on("base", "chat", true, staged(32)),
        &["other settings", "length_stage"],
    );
    desk.go_on("base", "chat", true, staged(16)).unwrap();
    let refused = desk.distill("base", "chat", staged(12)).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("32 tokens, which are no whole")
    );
}

#[test]
fn caches_and_states_name_the_other_teacher() {
    let desk = Models::new();
    let cached = |o: &mut DistillOptions| o.teacher_options.teacher_cache = Some(desk.at("said"));
    desk.distill("base", "chat", cached).unwrap();
    assert_eq!(desk.value("said/cache.json")["model"], "base");
    let refused = desk
        .distill("chat", "base", cached)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("a teacher cache of `base`, not of `chat` (teacher: stored"),
        "{refused}"
    );
    // Those of earlier versions do not name anybody.
    desk.change_json("said/cache.json", |header| {
        _ = header.as_object_mut().unwrap().remove("model")
    });
    desk.distill("base", "chat", cached).unwrap();
    assert_eq!(desk.warnings(), [""; 0]);

    let stopped = |o: &mut DistillOptions| o.training.stop_after = Some(2);
    desk.distill("base", "chat", stopped).unwrap();
    let says = [
        "other settings",
        "inputs.teacher: `base` then, `chat` now",
        "inputs.student: `chat` then, `base` now",
    ];
    assert_refused(desk.go_on("chat", "base", true, stopped), &says);
    // A copy is the same model.
    desk.rewritten("chat", "copy", |_, x| x, u64::MAX);
    fs::copy(desk.at("chat/config.json"), desk.at("copy/config.json")).unwrap();
    desk.go_on("base", "copy", true, |_| {}).unwrap();
    assert_eq!(desk.warnings(), [""; 0]);
}

#[test]
fn a_model_that_changed_in_its_place_is_noticed() {
    let desk = Models::new();
    let text = "[[stages]]\nname = \"scores\"\ndo = \"score\"\nmodel = \"base\"\ndata = \
                [\"text.txt\"]\nsamples = 4\nseq_len = 16\n";
    let recipe = Recipe::parse(text, &desk.at("recipe.toml")).unwrap();
    let again = || {
        desk.with(|context| {
            run(
                &Context {
                    force: false,
                    ..*context
                },
                &recipe,
                &desk.at("run"),
            )
        })
        .unwrap();
        !desk
            .notes()
            .iter()
            .any(|note| note.contains("unchanged, skipped"))
    };
    assert!(again() && !again());
    // One element, in a file of the same length and, for all that its name and time tell, the same.
    let path = desk.at("base/model.safetensors");
    let (mut bytes, time) = (
        fs::read(&path).unwrap(),
        fs::metadata(&path).unwrap().modified().unwrap(),
    );
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert!(again() && !again());
    // What goes along into outputs counts.
    fs::write(desk.at("base/chat_template.jinja"), "{{ messages }}").unwrap();
    assert!(again() && !again());
    fs::write(desk.at("base/chat_template.jinja"), "{{ messages[0] }}").unwrap();
    assert!(again() && !again());
}

// --- tokenizers
// ------------------------------------------------------------------------------------------------------

fn swap_two_tokens(file: &mut Value) {
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let token = |id: u64| {
        vocab
            .iter()
            .find(|(_, found)| **found == json!(id))
            .unwrap()
            .0
            .clone()
    };
    let (a, b) = (token(300), token(301));
    (vocab[&a], vocab[&b]) = (json!(301), json!(300));
}

#[test]
fn a_teacher_with_other_tokens_is_refused_by_example() {
    let desk = Models::new();
    desk.change_json("chat/tokenizer.json", swap_two_tokens);
    let says = [
        "the tokenizer of `chat` is not that of its teacher `base`: id 300 is `",
        "2 ids differ",
        "--any-model",
    ];
    assert_refused(desk.distill("base", "chat", |_| {}), &says);
    assert!(!desk.at("distilled/config.json").exists());
    assert_refused(desk.eval("chat", "base", |_| {}), &says);

    desk.distill("base", "chat", |o| o.teacher_options.any_model = true)
        .unwrap();
    assert_said(&desk.warnings(), &["id 300 is `", "compared anyway"]);
    desk.eval("chat", "base", |o| o.any_model = true).unwrap();
    assert_said(&desk.warnings(), &["id 300 is `", "compared anyway"]);
    // Token files have no words.
    let ids = || vec![desk.path("ids.bin").parse().unwrap()];
    desk.distill("base", "chat", |o| o.training.data = ids())
        .unwrap();
    assert_said(&desk.warnings(), &["id 300 is `", "the data are token ids"]);
    desk.eval("chat", "base", |o| o.data = ids()).unwrap();
    assert_said(&desk.warnings(), &["id 300 is `", "the data are token ids"]);
}

#[test]
fn tokenizers_that_cut_otherwise_or_know_more_are_said() {
    let desk = Models::new();
    desk.change_json("chat/tokenizer.json", |file| {
        file["model"]["merges"].as_array_mut().unwrap().swap(0, 1)
    });
    desk.eval("chat", "base", |_| {}).unwrap();
    assert_said(
        &desk.warnings(),
        &["`chat` and its teacher `base` cut text into tokens by other rules (model.merges)"],
    );
    add_demo_tokenizer(&desk.at("chat")).unwrap();
    desk.change_json("base/tokenizer.json", |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let last = vocab
            .iter()
            .find(|(_, id)| **id == json!(511))
            .unwrap()
            .0
            .clone();
        vocab.remove(&last);
        let merges = file["model"]["merges"].as_array_mut().unwrap();
        merges.retain(|pair| match pair {
            Value::String(pair) => pair.replace(' ', "") != last,
            pair => {
                pair.as_array()
                    .unwrap()
                    .iter()
                    .map(|part| part.as_str().unwrap())
                    .collect::<String>()
                    != last
            }
        });
    });
    desk.eval("chat", "base", |_| {}).unwrap();
    assert_said(
        &desk.warnings(),
        &[
            "tokens of `chat` that its teacher `base` does not know: 1",
            "(id 511)",
        ],
    );
    desk.eval("base", "chat", |_| {}).unwrap();
    assert!(
        !desk
            .warnings()
            .iter()
            .any(|said| said.contains("does not know")),
        "what the teacher knows besides is no harm"
    );
}

#[test]
fn a_student_without_a_tokenizer_takes_its_teachers() {
    let desk = Models::new();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(desk.at("chat").join(name)).unwrap();
    }
    desk.distill("base", "chat", |_| {}).unwrap();
    assert_said(
        &desk.notes(),
        &["`chat` has no tokenizer.json: that of its teacher `base` is taken"],
    );
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let bytes = |dir: &str| fs::read(desk.at(dir).join(name)).unwrap();
        assert_eq!(bytes("distilled"), bytes("base"), "{name}");
    }
    let own = desk.eval("distilled", "base", |_| {}).unwrap();
    fs::remove_file(desk.at("distilled/tokenizer.json")).unwrap();
    assert_eq!(desk.eval("distilled", "base", |_| {}).unwrap(), own);
    assert_eq!(desk.warnings(), [""; 0]);

    // Nobody has one, and nobody needs it.
    fs::remove_file(desk.at("base/tokenizer.json")).unwrap();
    let ids = || vec![desk.path("ids.bin").parse().unwrap()];
    desk.eval("chat", "base", |o| o.data = ids()).unwrap();
    desk.distill("base", "chat", |o| o.training.data = ids())
        .unwrap();
    assert_eq!(desk.warnings(), [""; 0]);
}

// --- tables of different sizes
// ---------------------------------------------------------------------------------------

#[test]
fn padded_vocabularies_are_compared_over_the_ids_that_both_have() {
    let desk = Models::new();
    desk.with_rows("base", "padded", 520);
    for (model, teacher) in [("base", "padded"), ("padded", "base")] {
        let report = desk.eval(model, teacher, |_| {}).unwrap();
        assert!(
            report["kl_to_teacher"].as_f64().unwrap().abs() < 1e-9,
            "{report}"
        );
        let alone = desk.eval(model, model, |_| {}).unwrap();
        assert_eq!(
            report["loss"], alone["loss"],
            "a model's own loss is over its own rows"
        );
        assert_said(
            &desk.notes(),
            &["compared over the 512 token ids that both have"],
        );
    }
    let loss = |model: &str| {
        desk.eval(model, model, |_| {}).unwrap()["loss"]
            .as_f64()
            .unwrap()
    };
    assert!(
        (loss("padded") - loss("base")).abs() > 1e-4,
        "the rows beyond count in a model's own loss"
    );

    // A student of the same logits over the shared ids has nothing to learn, whatever the rows
    // beyond say.
    for (student, teacher) in [("padded", "base"), ("base", "padded")] {
        for cache in [None, Some(desk.at(&format!("said-by-{teacher}")))] {
            let with = |o: &mut DistillOptions| {
                (
                    o.teacher_options.teacher_cache,
                    o.teacher_options.cache_top_k,
                ) = (cache.clone(), 600);
                (o.teacher_options.cache_type, o.training.lr) = (CacheType::F32, Some(1e-9));
            };
            let report = desk.distill(teacher, student, with).unwrap();
            assert!(
                report["loss"].as_f64().unwrap().abs() < 1e-5,
                "{student} {cache:?}: {report}"
            );
        }
        assert_eq!(
            desk.value(&format!("said-by-{teacher}/cache.json"))["vocab"],
            512
        );
    }
    assert_eq!(desk.warnings(), [""; 0]);

    // A cache over other ids is another one.
    let cached = |o: &mut DistillOptions| {
        (
            o.teacher_options.teacher_cache,
            o.teacher_options.cache_top_k,
        ) = (Some(desk.at("said-by-padded")), 600)
    };
    let error = desk
        .distill("padded", "padded", cached)
        .unwrap_err()
        .to_string();
    assert!(error.contains("vocab: stored 512, wanted 520"), "{error}");
}

#[test]
fn a_tokenizer_that_needs_more_rows_than_one_of_the_models_has_is_refused() {
    let desk = Models::new();
    desk.with_rows("base", "padded", 520);
    desk.change_json("padded/tokenizer.json", |file| {
        let mut added = file["added_tokens"][0].clone();
        (added["id"], added["content"]) = (json!(512), json!("<|tool|>"));
        file["added_tokens"].as_array_mut().unwrap().push(added);
    });
    fs::copy(
        desk.at("padded/tokenizer.json"),
        desk.at("base/tokenizer.json"),
    )
    .unwrap();
    let says = [
        " has 512 rows",
        "520",
        "the tokenizer needs 513",
        "`<|tool|>`, id 512",
        "resize_token_embeddings",
    ];
    assert_refused(desk.eval("base", "padded", |_| {}), &says[1..]);
    assert_refused(desk.distill("padded", "base", |_| {}), &says);
    // Ids that only one of them has are refused where they occur.
    add_demo_tokenizer(&desk.at("base")).unwrap();
    add_demo_tokenizer(&desk.at("padded")).unwrap();
    fs::write(
        desk.at("ids.bin"),
        [1u16, 515]
            .repeat(64)
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect::<Vec<_>>(),
    )
    .unwrap();
    let ids = || vec![desk.path("ids.bin").parse().unwrap()];
    let error = desk
        .eval("padded", "base", |o| o.data = ids())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("token 515 lies outside") && error.contains("512"),
        "{error}"
    );
    let error = desk
        .distill("base", "padded", |o| o.training.data = ids())
        .unwrap_err()
        .to_string();
    assert!(error.contains("token 515 lies outside"), "{error}");
}

#[test]
fn without_any_tokenizer_tables_of_different_sizes_are_compared_and_that_is_said() {
    let desk = Models::new();
    fs::remove_file(desk.at("base/tokenizer.json")).unwrap();
    desk.with_rows("base", "padded", 520);
    desk.eval("padded", "base", |o| {
        o.data = vec![desk.path("ids.bin").parse().unwrap()]
    })
    .unwrap();
    assert_said(
        &desk.warnings(),
        &["520 rows", "512", "compared over the 512 first"],
    );
}

#[test]
fn losses_on_labels_see_a_students_whole_table_beside_those_on_the_teacher() {
    let desk = Models::new();
    desk.with_rows("base", "padded", 520);
    let losses = |o: &mut DistillOptions| {
        o.training.losses = ["forward_kl", "cross_entropy", "logit_mse"]
            .map(PluginSpec::bare)
            .to_vec();
        (o.training.eval_data, o.training.eval_samples) = (o.training.data.clone(), Some(4));
        o.training.lr = Some(1e-9);
    };
    desk.distill("base", "padded", losses).unwrap();
    let metrics = fs::read_to_string(desk.at("distilled/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    for key in ["eval/forward_kl", "eval/logit_mse", "loss/forward_kl"] {
        assert!(last[key].as_f64().unwrap().abs() < 1e-5, "{key}: {last}");
    }
    let own = desk.eval("padded", "padded", |_| {}).unwrap()["loss"]
        .as_f64()
        .unwrap();
    for key in ["eval/cross_entropy", "eval/loss"] {
        assert!(
            (last[key].as_f64().unwrap() - own).abs() < 1e-4,
            "{key}: {last} {own}"
        );
    }
}
