// Set-up of tests: what fails here is the test's own fault.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use minitron::{
    axes, config, forward, groups, load, python, registry, root, talk_to_python, with_context,
};
use minitron_core::checkpoint::{Config, Reader, TensorSource};
use minitron_core::contract::LogitLoss;
use minitron_core::error::{Error, Result};
use minitron_core::evaluate::{Sampling, generate};
use minitron_core::model::{Cache, Input, LoadOptions, NoTap, Transformer};
use minitron_core::plan::{Plan, Space};
use minitron_core::registry::PluginSpec;
use minitron_core::spec::{DEPTH, ModelSpec, ROPE_PAIRS, Sizes};
use minitron_core::windows::{Sample, Task};
use minitron_engine::jobs::{PruneOptions, prune};
use minitron_engine::train::{Counts, Objective, Term};
use minitron_plugins::laws::random_rankings;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// f32 on both sides, summed in another order; relative where numbers are above 1.
const TOLERANCE: f64 = 1e-4;

/// What an option changes at least, where it is at work.
const AT_WORK: f64 = 5e-3;

/// Options of linked families that are refused by name, and known to be: `family variant`.
const REFUSED: [&str; 0] = [];

/// Cuts that a family refuses with a reason: `family cut`.
const UNCUT: [&str; 1] = ["modernbert without the first layer"];

/// Families whose heads lose channels in rope pairs.
const PAIRED: [&str; 21] = [
    "bamba",
    "llama",
    "nemotron",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen2_moe",
    "mixtral",
    "gpt_oss",
    "mistral",
    "ministral",
    "ministral3",
    "mistral3",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "starcoder2",
];

/// The process that answers for `transformers`.
struct Reference {
    asked: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Reference {
    /// Where there is a Python.
    fn start() -> Option<Self> {
        if python().is_none() {
            eprintln!("absent, not tested: the Python of `make test`");
            return None;
        }
        let asked = talk_to_python(&root().join("tests/interop/families.py"), &["serve"]);
        let answers = BufReader::new(asked.try_clone().unwrap());
        Some(Reference { asked, answers })
    }

    fn ask(&mut self, question: &Value) -> std::result::Result<Value, String> {
        writeln!(self.asked, "{question}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value =
            serde_json::from_str(&line).map_err(|e| format!("{question}: {e}: {line}"))?;
        match answer.get("error") {
            Some(error) => Err(format!("{question}: {error}")),
            None => Ok(answer),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Variant {
    family: String,
    variant: String,
    slow: bool,
}

/// What one variant came to.
#[derive(Debug, Default)]
struct Row {
    name: String,
    logits: f64,
    gradients: Option<f64>,
    pruned: f64,
    cuts: Vec<String>,
    refused: Vec<String>,
}

/// Largest difference, relative to the largest number where that is above 1; of numbers that are
/// none, infinite.
fn apart(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.size(), theirs.size());
    let [ours, theirs] = [ours, theirs].map(|x| x.to_kind(Kind::Double));
    let difference = (&ours - &theirs).abs().max().double_value(&[])
        / theirs.abs().max().double_value(&[]).max(1.0);
    if difference.is_nan() {
        f64::INFINITY
    } else {
        difference
    }
}

/// The model of one variant, and what `transformers` says of it.
struct Case<'r> {
    reference: &'r mut Reference,
    variant: &'r Variant,
    dir: &'r Path,
    given: Reader,
    answer: Value,
}

impl<'r> Case<'r> {
    fn new(
        reference: &'r mut Reference,
        variant: &'r Variant,
        dir: &'r Path,
    ) -> std::result::Result<Self, String> {
        let question = json!({ "do": "make", "family": variant.family, "variant": variant.variant,
            "dir": dir.display().to_string() });
        let answer = reference.ask(&question)?;
        let given = Reader::open_file(&dir.join("reference.safetensors")).unwrap();
        Ok(Case {
            reference,
            variant,
            dir,
            given,
            answer,
        })
    }

    fn model(&self) -> PathBuf {
        self.dir.join("model")
    }

    /// Differences of the batch with padding and of the short one from what a file says.
    fn said(&self, model: &Transformer, by: &Reader) -> Result<f64> {
        let (ids_bt, attention_mask_bt) = (
            self.given.read("ids")?,
            self.given.read("mask")?.to_kind(Kind::Bool),
        );
        let ours = forward(
            model,
            Input {
                ids_bt: &ids_bt,
                attention_mask_bt: Some(&attention_mask_bt),
                positions_bt: None,
            },
        )?;
        let at_tokens =
            |x: Tensor| x.where_self(&attention_mask_bt.unsqueeze(-1), &Tensor::from(0f32));
        let long = apart(&at_tokens(ours), &at_tokens(by.read("said")?));
        let short = apart(
            &forward(model, &self.given.read("short_ids")?)?,
            &by.read("short_said")?,
        );
        Ok(long.max(short))
    }

    /// Beyond the table of positions a model may refuse, but not say something else.
    fn beyond(&self, model: &Transformer) -> Result<f64> {
        let Ok(ids_bt) = self.given.read("beyond_ids") else {
            return Ok(0.0);
        };
        match forward(model, &ids_bt) {
            Ok(ours) => Ok(apart(&ours, &self.given.read("beyond_said")?)),
            Err(Error::Data(reason)) => {
                println!("{} {}: {reason}", self.variant.family, self.variant.variant);
                Ok(0.0)
            }
            Err(other) => Err(other),
        }
    }

    /// Of the mean loss of next tokens: each tensor's difference relative to its largest number.
    fn gradients(&self) -> Result<f64> {
        let folder = load(&self.model())?.0;
        let options = LoadOptions {
            trainable: true,
            ..LoadOptions::default()
        };
        let model = Transformer::load(&folder.checkpoint.tensors, &folder.spec, options)?;
        let (ids_bt, lengths_b) = (
            self.given.read("ids")?,
            self.given
                .read("mask")?
                .sum_dim_intlist(1, false, Kind::Int64),
        );
        let rows = 0..ids_bt.size()[0];
        let piece = |row: i64| {
            let tokens =
                Vec::<i64>::try_from(ids_bt.get(row).narrow(0, 0, lengths_b.int64_value(&[row])))
                    .unwrap();
            Sample {
                id: row as u64,
                tokens: tokens.into_iter().map(|id| id as u32).collect(),
                marks: Vec::new(),
            }
        };
        let targets =
            Task::NextToken.batch_of(&rows.map(piece).collect::<Vec<_>>(), 0, Device::Cpu)?;
        let loss = registry().build::<dyn LogitLoss>(&PluginSpec::bare("cross_entropy"))?;
        let terms = vec![Term {
            label: "cross_entropy".into(),
            weight: 1.0,
            loss: loss.into(),
        }];
        let objective = Objective {
            terms,
            ..Objective::default()
        };
        let total = objective
            .backward(&model, None, &targets, Counts::of(&targets)?)?
            .total;
        let mut worst = (total - self.given.read("loss")?.double_value(&[0])).abs();
        let expected = Reader::open(&self.dir.join("gradients"))?;
        let mut left: BTreeSet<String> = expected.names().into_iter().collect();
        let of_all = left
            .iter()
            .map(|name| largest(&expected, name))
            .fold(0.0, f64::max);
        for parameter in model.parameters() {
            // No gradient moves what routers choose by.
            if parameter.name.ends_with("e_score_correction_bias") {
                let _ = left.remove(&parameter.name);
                continue;
            }
            assert!(
                left.remove(&parameter.name),
                "{} is no parameter of theirs",
                parameter.name
            );
            let theirs = expected.read(&parameter.name)?.to_kind(Kind::Double);
            let difference = (parameter.gradient()?.to_kind(Kind::Double) - &theirs)
                .abs()
                .max()
                .double_value(&[]);
            worst = worst.max(difference / theirs.abs().max().double_value(&[]).max(1e-2 * of_all));
        }
        // What nothing flows through, a tower of another kind, we need not have.
        left.retain(|name| largest(&expected, name) > 0.0);
        assert!(left.is_empty(), "no gradient of {left:?}");
        Ok(worst)
    }

    /// Token for token, and with a cache the logits that each was chosen by.
    fn generation(&self, model: &Transformer) -> Result<f64> {
        let ids = |name: &str| Vec::<i64>::try_from(self.given.read(name).unwrap()).unwrap();
        let (prompt, continued) = (ids("prompt"), ids("continued"));
        let as_tokens = |ids: &[i64]| ids.iter().map(|&id| id as u32).collect::<Vec<u32>>();
        let sampling = Sampling {
            max_new_tokens: continued.len(),
            ..Sampling::default()
        };
        let ours = generate(model, &[as_tokens(&prompt)], &[], &sampling)?.remove(0);
        assert_eq!(
            ours,
            as_tokens(&continued),
            "{} {}: generated",
            self.variant.family,
            self.variant.variant
        );
        if self.answer["crosses"] == true {
            // What turns positions changes on the way: `transformers` begins anew there.
            return Ok(0.0);
        }
        let _no_grad = tch::no_grad_guard();
        let (mut cache, mut fed, mut steps) = (Cache::new(model), prompt.clone(), Vec::new());
        let mut whole = prompt;
        let mut worst = 0.0_f64;
        for &next in &continued {
            let ids_bt = Tensor::from_slice(&fed).unsqueeze(0);
            let hidden = model.hidden(&ids_bt, &mut NoTap, Some(&mut cache))?;
            let logits_bv = model.logits(&hidden.select(1, -1))?;
            let all = forward(model, &Tensor::from_slice(&whole).unsqueeze(0))?;
            worst = worst.max(apart(&logits_bv, &all.select(1, -1)));
            steps.push(logits_bv);
            whole.push(next);
            fed = vec![next];
        }
        Ok(worst.max(apart(
            &Tensor::cat(&steps, 0),
            &self.given.read("step_logits")?,
        )))
    }

    /// A student by a plan, ours against what `transformers` reloads.
    fn cut(&mut self, cut: &str, plan: &Plan, row: &mut Row) {
        let (plan_file, out) = (self.dir.join("plan.json"), self.dir.join("pruned"));
        std::fs::write(&plan_file, serde_json::to_string(plan).unwrap()).unwrap();
        let options = PruneOptions {
            model: self.model().display().to_string(),
            plan: Some(plan_file),
            ..PruneOptions::default()
        };
        let name = format!("{} {cut}", self.variant.family);
        if let Err(error) = with_context(true, |context| prune(context, &options, &out, false)) {
            assert!(
                UNCUT.contains(&name.as_str()),
                "{} {cut}: {error}",
                row.name
            );
            row.refused.push(cut.to_owned());
            return;
        }
        let (ids, said) = (
            self.dir.join("reference.safetensors"),
            self.dir.join("said.safetensors"),
        );
        let path = |path: &Path| path.display().to_string();
        let question = json!({
            "do": "reload", "model": path(&out), "ids": path(&ids), "out": path(&said),
            "family": self.variant.family, "variant": self.variant.variant,
        });
        let answer = self
            .reference
            .ask(&question)
            .unwrap_or_else(|error| unreachable!("{} {cut}: {error}", row.name));
        let tensors = Reader::open(&out).unwrap();
        let held: BTreeMap<String, Vec<i64>> = tensors
            .names()
            .into_iter()
            .map(|name| (name.clone(), tensors.read(&name).unwrap().size()))
            .collect();
        let written: BTreeMap<String, Vec<i64>> =
            serde_json::from_value(answer["written"].clone()).unwrap();
        // What is beside a language model travels under the file's own names, old or new.
        let own = |tensors: BTreeMap<String, Vec<i64>>| -> BTreeMap<String, Vec<i64>> {
            tensors
                .into_iter()
                .filter(|(name, _)| !name.starts_with("vision_tower."))
                .collect()
        };
        assert_eq!(
            own(held),
            own(written),
            "{} {cut}: names and shapes",
            row.name
        );
        let difference = self
            .said(&load(&out).unwrap().1, &Reader::open_file(&said).unwrap())
            .unwrap();
        assert!(
            difference <= TOLERANCE,
            "{} {cut}: reloaded, {difference:e} apart",
            row.name
        );
        row.pruned = row.pruned.max(difference);
        row.cuts.push(cut.to_owned());
        std::fs::remove_dir_all(&out).unwrap();
    }

    /// Each axis alone, all together, and layers at each end and in the middle.
    fn cuts(&mut self, is_wanted: impl Fn(&str) -> bool, row: &mut Row) {
        let spec = load(&self.model()).unwrap().0.spec;
        let space = Space::new(&spec, &axes(&registry()).unwrap()).unwrap();
        let rankings = random_rankings(&groups(&spec).unwrap(), 11).unwrap();
        let alone = two_thirds(&space);
        let mut together = Sizes::new();
        for sizes in &alone {
            let both: Sizes = together.clone().into_iter().chain(sizes.clone()).collect();
            together = if space.complete(&both).is_ok() {
                both
            } else {
                together
            };
        }
        let cuts = alone
            .into_iter()
            .map(|sizes| (sizes.keys().cloned().collect::<String>(), sizes));
        for (cut, sizes) in cuts
            .chain([("together".to_owned(), together)])
            .filter(|(cut, _)| is_wanted(cut))
        {
            let plan = space.plan(&sizes, &rankings, &spec).unwrap();
            self.cut(&cut, &plan, row);
        }
        let n_layers = spec.n_layers();
        let layers = [
            ("first", 0),
            ("middle", n_layers / 2),
            ("last", n_layers - 1),
        ];
        let layers = layers.map(|(which, layer)| (format!("without the {which} layer"), layer));
        for (cut, gone) in layers.into_iter().filter(|(cut, _)| is_wanted(cut)) {
            let kept = (0..n_layers).filter(|&layer| layer != gone).collect();
            let plan = Plan {
                kept: BTreeMap::from([(DEPTH.to_owned(), kept)]),
            };
            self.cut(&cut, &plan, row);
        }
    }
}

/// A variant whose options do nothing would test nothing.
fn check_options(
    reference: &mut Reference,
    Variant {
        family, variant, ..
    }: &Variant,
) {
    let answer = reference
        .ask(&json!({ "do": "effects", "family": family, "variant": variant }))
        .unwrap();
    for (option, effect) in answer.as_object().unwrap() {
        assert!(
            effect.as_f64().unwrap() > AT_WORK,
            "{family} {variant}: {option} changes nothing"
        );
    }
}

fn largest(reader: &Reader, name: &str) -> f64 {
    reader.read(name).unwrap().abs().max().double_value(&[])
}

/// About two thirds of each axis alone, where the family has such a student.
fn two_thirds(space: &Space) -> Vec<Sizes> {
    let cut = |axis: &minitron_core::plan::AxisSizes| {
        let mut sizes = axis.legal();
        sizes.retain(|&size| size < axis.full);
        sizes.sort_by_key(|size| (3 * size).abs_diff(2 * axis.full));
        sizes
            .into_iter()
            .map(|size| Sizes::from([(axis.kind.clone(), size)]))
            .find(|one| space.complete(one).is_ok())
    };
    space.axes.iter().filter_map(cut).collect()
}

/// One variant; nothing where the family is not linked. All cuts, or those two that change most.
fn compare(reference: &mut Reference, variant: &Variant, all: bool) -> Option<Row> {
    let work = tempfile::tempdir().unwrap();
    let name = format!("{} {}", variant.family, variant.variant);
    let mut case = Case::new(reference, variant, work.path())
        .unwrap_or_else(|error| unreachable!("{name}: {error}"));
    let found = Config::load(&case.model().join("config.json")).unwrap();
    if registry().architecture_for(&found).is_err() {
        return None;
    }
    let mut row = Row {
        name,
        ..Row::default()
    };
    let model = match load(&case.model()) {
        Ok((_, model)) => model,
        Err(error) => {
            assert!(
                REFUSED.contains(&row.name.as_str()),
                "{}: {error}",
                row.name
            );
            row.refused.push("the folder".to_owned());
            return Some(row);
        }
    };
    row.logits = case
        .said(&model, &case.given)
        .unwrap()
        .max(case.beyond(&model).unwrap());
    assert!(
        row.logits <= TOLERANCE,
        "{}: outputs, {:e} apart",
        row.name,
        row.logits
    );
    if case.answer["decoder"] == true {
        let generation = case.generation(&model).unwrap();
        assert!(
            generation <= TOLERANCE,
            "{}: logits with a cache, {generation:e} apart",
            row.name
        );
        row.logits = row.logits.max(generation);
        let gradients = case.gradients().unwrap();
        assert!(
            gradients <= TOLERANCE,
            "{}: gradients, {gradients:e} apart",
            row.name
        );
        row.gradients = Some(gradients);
    }
    case.cuts(
        |cut| all || ["together", "without the first layer"].contains(&cut),
        &mut row,
    );
    let stated = std::fs::read_to_string(case.model().join("config.json")).unwrap();
    let is_dynamic = stated.contains("\"dynamic\"");
    if all && !is_dynamic {
        let is_cut = row.cuts.iter().any(|cut| cut == ROPE_PAIRS);
        assert_eq!(
            is_cut,
            PAIRED.contains(&variant.family.as_str()),
            "{}: rope pairs",
            row.name
        );
    }
    Some(row)
}

/// Families in the order of the script, each with its variants; the table is printed even where one
/// fails. Without the slow ones, only the first variant of a family gets all cuts.
/// `MINITRON_FAMILY=qwen3` looks at that one alone, for who writes it.
fn sweep(slow: bool) {
    let Some(mut reference) = Reference::start() else {
        return;
    };
    let listed = reference.ask(&json!({ "do": "variants" })).unwrap();
    let listed: Vec<Variant> = serde_json::from_value(listed["variants"].clone()).unwrap();
    assert!(listed.len() > 80, "variants are missing");
    let (mut rows, mut absent, mut failed) = (Vec::new(), BTreeSet::new(), Vec::new());
    let mut begun = BTreeSet::new();
    let only = std::env::var("MINITRON_FAMILY").ok();
    for variant in listed.iter().filter(|variant| slow || !variant.slow) {
        if only.as_ref().is_some_and(|only| *only != variant.family) {
            continue;
        }
        let is_first = begun.insert(&variant.family);
        if absent.contains(&variant.family) {
            continue;
        }
        let attempt = std::panic::AssertUnwindSafe(|| {
            if slow {
                check_options(&mut reference, variant);
            }
            compare(&mut reference, variant, slow || is_first)
        });
        match std::panic::catch_unwind(attempt) {
            Ok(Some(row)) => rows.push(row),
            Ok(None) => _ = absent.insert(variant.family.clone()),
            Err(_) => failed.push(format!("{} {}", variant.family, variant.variant)),
        }
    }
    for family in absent {
        eprintln!("absent, not tested: {family}");
    }
    println!("{}", table(&rows));
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(!rows.is_empty());
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:28} {:>8} {:>9} {:>8}  cuts\n",
        "family, variant", "logits", "gradients", "pruned"
    );
    for row in rows {
        let gradients = row
            .gradients
            .map_or("-".to_owned(), |worst| format!("{worst:.1e}"));
        let refused = if row.refused.is_empty() {
            String::new()
        } else {
            format!("; refused: {}", row.refused.join(", "))
        };
        let (logits, pruned, cuts) = (row.logits, row.pruned, row.cuts.join(", "));
        let _ = writeln!(
            text,
            "{:28} {logits:8.1e} {gradients:>9} {pruned:8.1e}  {cuts}{refused}",
            row.name
        );
    }
    text
}

#[test]
fn every_family_is_that_of_transformers_whole_and_pruned() {
    sweep(false);
}

#[test]
#[ignore = "slow: every variant of every family, every kind of rope, every cut"]
fn every_variant_of_every_family_is_that_of_transformers_under_every_cut() {
    sweep(true);
}

/// A config of a published model's sizes; nothing of it is downloaded.
#[derive(Debug, Deserialize)]
struct Published {
    name: String,
    #[serde(default)]
    weights: Option<f64>,
    config: Value,
}

#[test]
fn published_sizes_have_the_parameters_of_transformers() {
    let text = std::fs::read_to_string(root().join("tests/interop/published.json")).unwrap();
    let listed: Vec<Published> = serde_json::from_str(&text).unwrap();
    assert!(listed.len() >= 22);
    let Some(mut reference) = Reference::start() else {
        return;
    };
    let mut absent = BTreeSet::new();
    for Published {
        name,
        weights,
        config: of,
    } in &listed
    {
        let answer = reference
            .ask(&json!({ "do": "count", "config": of }))
            .unwrap();
        let count = |what: &str| answer[what].as_u64().unwrap();
        // What its authors say, in billions.
        if let Some(weights) = weights {
            let whole = count("whole") as f64 / 1e9;
            assert!(
                (whole / weights - 1.0).abs() < 0.006,
                "{name}: {whole} of {weights} billion published"
            );
        }
        let found = config(of).unwrap();
        if registry().architecture_for(&found).is_err() {
            absent.insert(of["model_type"].to_string());
            continue;
        }
        let spec = ModelSpec::from_config(&found, &registry())
            .unwrap_or_else(|error| unreachable!("{name}: {error}"));
        assert_eq!(spec.n_params(), count("total"), "{name}");
        assert_eq!(
            spec.n_non_embedding_at(&Sizes::new()),
            count("without_embeddings"),
            "{name}: without embeddings"
        );
        let active = spec.n_active_at(&Sizes::new());
        assert_eq!(active, count("active"), "{name}: of one token");
        println!(
            "{name:28} {:>15} {:>15} {active:>15}",
            count("total"),
            count("without_embeddings")
        );
    }
    for family in absent {
        eprintln!("absent, not tested: {family}");
    }
}
