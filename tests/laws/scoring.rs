//! What scores may and may not depend on, and what they are.

use std::cell::Cell;
use std::ops::Range;

use minitron::{
    calibration, families, groups, metric, reads_no_file, registry, score, some_windows, tiny_bert,
    tiny_gpt2, tiny_llama, tiny_nemotron,
};
use minitron_core::calibrate::Scores;
use minitron_core::checkpoint::{MemorySource, TensorInfo, TensorSource};
use minitron_core::contract::Importance;
use minitron_core::error::{Error, Result};
use minitron_core::model::{LoadOptions, Port, Site, Tap};
use minitron_core::progress::Silent;
use minitron_core::registry::{Kind, PluginSpec};
use minitron_core::spec::{DEPTH, ModelSpec, Param, ParamKind, Role, Side};
use minitron_engine::ranks::Ranks;
use minitron_engine::score::{ActivationStore, Metric, ScorerSet, Streamed};
use tch::{Kind as Element, Reduction, Tensor};

use super::{Model, REORDERED, load, relative, relative_scores};

/// Every metric at its defaults that reads no file, runs of layers, and the nine aggregations.
fn specs() -> Vec<PluginSpec> {
    let registry = registry();
    let plugins = registry
        .of_kind(Kind::Importance)
        .filter(|plugin| reads_no_file(plugin));
    let mut specs: Vec<PluginSpec> = plugins.map(|plugin| PluginSpec::bare(plugin.tag)).collect();
    let of_runs = [
        "block_influence",
        "perplexity",
        "norm_ratio",
        "normalised_error",
    ];
    for tag in of_runs {
        specs.push(PluginSpec::bare(tag).with("span", 2));
    }
    for seq in ["mean", "l2", "var"] {
        for batch in ["mean", "l2", "var"] {
            specs.push(
                PluginSpec::bare("activation")
                    .with("seq", seq)
                    .with("batch", batch),
            );
        }
    }
    specs
}

fn metrics(model: &ModelSpec, keep: impl Fn(&PluginSpec) -> bool) -> Result<Vec<Metric>> {
    specs()
        .iter()
        .filter(|spec| keep(spec) && (model.has_idle() || spec.tag != "reap"))
        .map(|spec| metric(&spec.to_string()))
        .collect()
}

fn assert_same(one: &Scores, other: &Scores, what: &str) {
    assert_eq!(
        one.by_name.keys().collect::<Vec<_>>(),
        other.by_name.keys().collect::<Vec<_>>()
    );
    assert!(!one.by_name.is_empty());
    for (name, values) in &one.by_name {
        let difference = relative_scores(&other.by_name[name], values);
        assert!(difference <= REORDERED, "{name}, {what}: {difference:e}");
    }
}

#[test]
fn scores_do_not_depend_on_the_batch_size() {
    let windows = some_windows(12, 10, 61, 1).unwrap();
    for config in families() {
        let model = Model::new(&config, 20).unwrap();
        let by = |size| {
            score(
                &model.source,
                &model.spec,
                metrics(&model.spec, |_| true).unwrap(),
                &windows,
                size,
            )
            .unwrap()
        };
        let one_by_one = by(1);
        for batch_size in [3, 8] {
            assert_same(
                &one_by_one,
                &by(batch_size),
                &format!("{} by {batch_size}", model.family()),
            );
        }
    }
}

fn looks(spec: &PluginSpec) -> bool {
    let tags = [
        "activation",
        "block_influence",
        "perplexity",
        "normalised_error",
    ];
    tags.contains(&spec.tag.as_str())
}

#[test]
fn what_two_passes_saw_adds_up() {
    let (whole, halves) = (some_windows(6, 10, 61, 2).unwrap(), [0..20, 20..60]);
    let tokens: Vec<u32> = (0..6)
        .flat_map(|window| whole.window(window).unwrap().to_vec())
        .collect();
    for config in families() {
        let model = Model::new(&config, 21).unwrap();
        let loaded = model.load().unwrap();
        let over = |windows| {
            let mut scorers = ScorerSet::new(
                metrics(&model.spec, looks).unwrap(),
                &groups(&model.spec).unwrap(),
                0,
            )
            .unwrap();
            // Which positions of an encoder are masked follows from a window's number.
            let task = calibration(&model.spec, windows, 4).unwrap();
            scorers.run(&loaded, &task, Ranks::alone()).unwrap();
            scorers
        };
        if !model.spec.options.causal {
            continue;
        }
        let [left, right] = halves
            .clone()
            .map(|part: Range<usize>| minitron::windows(tokens[part].to_vec(), 10).unwrap());
        let (mut left, right) = (over(&left), over(&right));
        left.merge(&right.state()).unwrap();
        assert_same(
            &left.finish().unwrap(),
            &over(&whole).finish().unwrap(),
            model.family(),
        );
    }
}

#[test]
fn a_state_of_another_metric_is_refused() {
    let model = Model::new(&tiny_llama(), 22).unwrap();
    let groups = groups(&model.spec).unwrap();
    let depth = groups.iter().find(|group| group.kind() == DEPTH).unwrap();
    let scorer = |tag: &str| {
        registry()
            .build::<dyn Importance>(&PluginSpec::bare(tag))
            .unwrap()
            .scorer(depth)
            .unwrap()
    };
    let error = scorer("magnitude")
        .merge(&scorer("block_influence").state())
        .unwrap_err()
        .to_string();
    assert!(error.contains("of another metric"), "{error}");
}

/// A source that gives out after some reads, as when the program is killed.
struct Failing<'a> {
    source: &'a MemorySource,
    left: Cell<usize>,
}

impl TensorSource for Failing<'_> {
    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.source.info(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Tensor> {
        // Single rows are the tokens' embeddings.
        let left = self.left.get();
        self.left
            .set(left.saturating_sub(usize::from(rows.len() > 1)));
        if left == 0 {
            Err(Error::Data("killed".into()))
        } else {
            self.source.read_rows(name, rows)
        }
    }
}

#[test]
fn streamed_scores_are_those_in_memory_also_after_an_interruption_anywhere() {
    let windows = some_windows(7, 10, 61, 3).unwrap();
    let streams = |spec: &PluginSpec| spec.tag != "taylor";
    for config in families() {
        let model = Model::new(&config, 23).unwrap();
        let whole = score(
            &model.source,
            &model.spec,
            metrics(&model.spec, streams).unwrap(),
            &windows,
            3,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (mut n_attempts, mut reached) = (0, Vec::new());
        let streamed = loop {
            let activations =
                ActivationStore::open(&dir.path().join("activations"), "same".into()).unwrap();
            reached.extend(activations.reached());
            // Enough for what stands around the layers and one layer, never for all of them.
            let of = |layer| {
                model
                    .spec
                    .params
                    .iter()
                    .filter(|param| param.layer() == layer)
                    .count()
            };
            let widest = (0..model.spec.n_layers())
                .map(|layer| of(Some(layer)))
                .max();
            let widest = widest.unwrap();
            let source = Failing {
                source: &model.source,
                left: Cell::new(of(None) + widest + 3),
            };
            let options = LoadOptions::default();
            let from = Streamed {
                source: &source,
                spec: &model.spec,
                options,
                activations: &activations,
            };
            let mut scorers = ScorerSet::new(
                metrics(&model.spec, streams).unwrap(),
                &groups(&model.spec).unwrap(),
                0,
            )
            .unwrap();
            let input = calibration(&model.spec, &windows, 3).unwrap();
            let done = scorers.stream(&from, &input, Ranks::alone());
            n_attempts += 1;
            assert!(n_attempts < 20, "{}: never done", model.family());
            if done.is_ok() {
                scorers
                    .observe_weights(&model.source, None, &model.spec, &Silent)
                    .unwrap();
                break scorers.finish().unwrap();
            }
        };
        assert!(
            n_attempts > 1 && reached.iter().any(|&layer| layer > 0),
            "{}: never interrupted",
            model.family()
        );
        assert_same(&whole, &streamed, model.family());
        assert!(
            !dir.path().join("activations").exists(),
            "the spilled activations stay behind"
        );
    }
}

#[test]
fn a_spill_of_other_inputs_is_not_gone_on_from() {
    let model = Model::new(&tiny_llama(), 24).unwrap();
    let windows = some_windows(4, 10, 61, 3).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("activations");
    let activations = ActivationStore::open(&place, "one".into()).unwrap();
    let source = Failing {
        source: &model.source,
        left: Cell::new(13),
    };
    let options = LoadOptions::default();
    let from = Streamed {
        source: &source,
        spec: &model.spec,
        options,
        activations: &activations,
    };
    let mut scorers = ScorerSet::new(
        metrics(&model.spec, looks).unwrap(),
        &groups(&model.spec).unwrap(),
        0,
    )
    .unwrap();
    let input = calibration(&model.spec, &windows, 2).unwrap();
    assert!(scorers.stream(&from, &input, Ranks::alone()).is_err());
    assert!(
        ActivationStore::open(&place, "one".into())
            .unwrap()
            .reached()
            .is_some()
    );
    assert_eq!(
        ActivationStore::open(&place, "two".into())
            .unwrap()
            .reached(),
        None
    );
}

#[test]
fn a_layers_perplexity_score_is_the_loss_of_the_model_without_it() {
    let windows = some_windows(5, 12, 61, 4).unwrap();
    for config in [tiny_llama(), tiny_bert()] {
        let model = Model::new(&config, 25).unwrap();
        let loaded = model.load().unwrap();
        let specs = ["perplexity", "perplexity:span=2"].map(|spec| metric(spec).unwrap());
        let scores = score(&model.source, &model.spec, specs.into(), &windows, 2).unwrap();
        let input = calibration(&model.spec, &windows, 2).unwrap();
        let loss_without = |layers: Range<usize>| {
            let without = loaded.without(layers);
            let (mut sum, mut n) = (0.0, 0.0);
            for batch in windows.batches(5) {
                let targets = input
                    .task
                    .unwrap()
                    .batch(&windows, &batch.collect::<Vec<_>>(), tch::Device::Cpu)
                    .unwrap();
                let rows = tch::no_grad(|| {
                    let hidden = without
                        .hidden(&targets.ids_bt, &mut minitron_core::model::NoTap, None)
                        .unwrap();
                    without.logits(&targets.rows(&hidden).unwrap()).unwrap()
                });
                let loss = rows.cross_entropy_loss(
                    &targets.labels_n,
                    None::<Tensor>,
                    Reduction::Sum,
                    -100,
                    0.0,
                );
                sum += loss.double_value(&[]);
                n += targets.n_rows() as f64;
            }
            (sum / n) as f32
        };
        let single: Vec<f32> = (0..3).map(|layer| loss_without(layer..layer + 1)).collect();
        assert!(
            relative_scores(&scores.by_name["perplexity/depth"], &single) <= REORDERED,
            "{}",
            model.family()
        );
        let (first, last) = (loss_without(0..2), loss_without(1..3));
        let pairs = [first, first.min(last), last];
        assert!(
            relative_scores(&scores.by_name["perplexity:span=2/depth"], &pairs) <= REORDERED,
            "{}",
            model.family()
        );
    }
}

#[test]
fn magnitude_is_the_norm_of_all_that_goes_with_a_unit() {
    for config in families() {
        let model = Model::new(&config, 26).unwrap();
        let windows = some_windows(1, 4, 61, 4).unwrap();
        let specs = ["magnitude", "magnitude:norm=l1"].map(|spec| metric(spec).unwrap());
        let scores = score(&model.source, &model.spec, specs.into(), &windows, 1).unwrap();
        // Neuron 5 of layer 1, by the roles of its tensors.
        let (mut squares, mut sum) = (0.0, 0.0);
        for param in model
            .spec
            .params
            .iter()
            .filter(|param| param.layer() == Some(1))
        {
            let weight = model.source.read(&param.name()).unwrap();
            let of_output = matches!(param.role, Role::GATE | Role::UP);
            if !of_output && param.role != Role::DOWN
                || param.role == Role::DOWN && param.sides.len() == 1
            {
                continue;
            }
            let side = i64::from(param.sides.len() > 1 && of_output == param.transposed);
            let row = weight.select(side, 5).to_kind(tch::Kind::Double);
            squares += row.square().sum(tch::Kind::Double).double_value(&[]);
            sum += row.abs().sum(tch::Kind::Double).double_value(&[]);
        }
        let close =
            |score: f32, expected: f64| (f64::from(score) - expected).abs() <= 1e-5 * expected;
        assert!(
            close(scores.by_name["magnitude/mlp.1"][5], squares.sqrt()),
            "{}",
            model.family()
        );
        assert!(
            close(scores.by_name["magnitude:norm=l1/mlp.1"][5], sum),
            "{}",
            model.family()
        );
        // All heads, and all neurons, together are the whole of their tensors.
        let layer: f64 = f64::from(scores.by_name["magnitude/depth"][1]).powi(2);
        let mut expected = 0.0;
        for param in model
            .spec
            .params
            .iter()
            .filter(|param| param.layer() == Some(1))
        {
            let weight = model
                .source
                .read(&param.name())
                .unwrap()
                .to_kind(tch::Kind::Double);
            expected += weight.square().sum(tch::Kind::Double).double_value(&[]);
        }
        assert!(
            (layer - expected).abs() <= 1e-5 * expected,
            "{}",
            model.family()
        );
    }
}

/// The model's weights with those that carry one unit scaled: what the loss's slope is taken of.
fn scaled(model: &Model, dim: &str, unit: usize, factor: f64) -> MemorySource {
    let mut source = MemorySource::default();
    for param in &model.spec.params {
        let tensor = model.source.read(&param.name()).unwrap().copy();
        for (side, of) in param.sides.iter().enumerate() {
            let size_of = |name: &str| model.spec.dims.get(name).map(|dim| dim.size);
            let (units, mut start) = ([unit], 0);
            for part in &of.0 {
                let own = Side(vec![part.clone()]);
                let is_asked = part.dims().contains(&dim);
                let positions =
                    own.positions(&size_of, &|name| (name == dim).then_some(&units[..]));
                for position in positions.into_iter().filter(|_| is_asked) {
                    let _ = tensor
                        .narrow(side as i64, (start + position) as i64, 1)
                        .g_mul_scalar_(factor);
                }
                start += part.len(&size_of);
            }
        }
        source.insert(param.name(), &tensor).unwrap();
    }
    source
}

#[test]
fn taylor_per_unit_is_the_slope_of_the_loss_as_the_unit_fades() {
    let windows = some_windows(4, 12, 61, 6).unwrap();
    for config in families() {
        let model = Model::new(&config, 27).unwrap();
        let scores = score(
            &model.source,
            &model.spec,
            vec![metric("taylor:per=unit").unwrap()],
            &windows,
            3,
        )
        .unwrap();
        let input = calibration(&model.spec, &windows, 4).unwrap();
        let loss = |source: &MemorySource| {
            let loaded = load(source, &model.spec).unwrap();
            let targets = input
                .task
                .unwrap()
                .batch(&windows, &[0, 1, 2, 3], tch::Device::Cpu)
                .unwrap();
            tch::no_grad(|| {
                let hidden = loaded
                    .hidden(&targets.ids_bt, &mut minitron_core::model::NoTap, None)
                    .unwrap();
                let logits = loaded.logits(&targets.rows(&hidden).unwrap()).unwrap();
                let logits = logits.to_kind(tch::Kind::Double);
                logits
                    .cross_entropy_loss(
                        &targets.labels_n,
                        None::<Tensor>,
                        Reduction::Mean,
                        -100,
                        0.0,
                    )
                    .double_value(&[])
            })
        };
        let mut checked = 0;
        let mut units = vec![("mlp.1", 7), ("mlp.0", 3), ("heads.1", 2), ("hidden", 4)];
        units.extend([("mamba_heads.0", 2), ("mamba_head_dim.0", 3)]);
        units.retain(|(dim, _)| model.spec.dims.contains_key(*dim));
        for (dim, unit) in units {
            const STEP: f64 = 0.005;
            let [up, down] =
                [1.0 + STEP, 1.0 - STEP].map(|factor| loss(&scaled(&model, dim, unit, factor)));
            let slope = ((up - down) / (2.0 * STEP)).abs();
            let score = f64::from(scores.by_name[&format!("taylor:per=unit/{dim}")][unit]);
            // A coupled unit's tensors multiply, so the slope is of their product: second order in
            // the step.
            assert!(
                (score - slope).abs() <= 0.03 * slope.max(0.01),
                "{} {dim}: {score} {slope}",
                model.family()
            );
            checked += usize::from(slope > 1e-3);
        }
        assert!(checked >= 2, "{}: nothing to see", model.family());
    }
}

#[test]
fn random_scores_follow_from_seed_and_dim_alone() {
    let windows = some_windows(2, 4, 61, 4).unwrap();
    let of = |seed: u64, spec: &str| {
        let model = Model::new(&tiny_llama(), seed).unwrap();
        let metric = Metric {
            label: "random".into(),
            importance: metric(spec).unwrap().importance,
        };
        score(&model.source, &model.spec, vec![metric], &windows, 1).unwrap()
    };
    let one = of(1, "random");
    assert_eq!(one, of(2, "random"));
    assert_ne!(one, of(1, "random:seed=1"));
    assert_ne!(one.by_name["random/mlp.0"], one.by_name["random/mlp.1"]);
}

#[test]
fn resamples_spread_around_the_score_and_are_drawn_together() {
    let windows = some_windows(16, 10, 61, 7).unwrap();
    let model = Model::new(&tiny_llama(), 28).unwrap();
    // A mean over windows, whose expectation over resamples it is itself.
    let specs =
        ["activation:batch=mean", "block_influence", "magnitude"].map(|spec| metric(spec).unwrap());
    let mut scorers = ScorerSet::new(specs.into(), &groups(&model.spec).unwrap(), 16).unwrap();
    scorers
        .run(
            &model.load().unwrap(),
            &calibration(&model.spec, &windows, 5).unwrap(),
            Ranks::alone(),
        )
        .unwrap();
    let (scores, replicates) = (
        scorers.finish().unwrap(),
        scorers.replicates(200, 1).unwrap(),
    );
    assert_eq!(replicates, scorers.replicates(200, 1).unwrap());
    assert_ne!(replicates, scorers.replicates(200, 2).unwrap());
    assert!(
        !replicates.keys().any(|name| name.starts_with("magnitude")),
        "weights have no samples"
    );
    for (name, drawn) in &replicates {
        for (unit, &score) in scores.by_name[name].iter().enumerate() {
            let values: Vec<f32> = drawn.iter().map(|scores| scores[unit]).collect();
            let mean = values.iter().sum::<f32>() / 200.0;
            assert!(
                (mean - score).abs() <= 0.1 * score.abs(),
                "{name} {unit}: {mean} {score}"
            );
            assert!(values.iter().any(|value| *value != score), "{name} {unit}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let scores = Scores {
        replicates,
        ..scores
    };
    scores.save(&dir.path().join("s.safetensors")).unwrap();
    assert_eq!(
        Scores::load(&dir.path().join("s.safetensors")).unwrap(),
        scores
    );
}

#[test]
fn a_run_of_layers_longer_than_the_model_is_refused() {
    let model = Model::new(&tiny_llama(), 29).unwrap();
    for spec in [
        "block_influence:span=3",
        "perplexity:span=0",
        "task_accuracy:span=9",
    ] {
        let error = ScorerSet::new(
            vec![metric(spec).unwrap()],
            &groups(&model.spec).unwrap(),
            0,
        )
        .unwrap_err();
        assert!(
            error.is_usage() && error.to_string().contains("span: expected 1 to 2"),
            "{error}"
        );
    }
}

#[test]
fn a_key_value_head_is_as_large_as_its_query_heads_together() {
    for config in [tiny_llama(), tiny_nemotron()] {
        let model = Model::new(&config, 24).unwrap();
        let is_output =
            |param: &Param| param.role == Role::ATTENTION_OUTPUT && param.kind == ParamKind::Weight;
        let label = "activation:seq=l2,batch=l2";
        let windows = some_windows(12, 10, 61, 1).unwrap();
        let scored = |spec| {
            score(
                &model.source,
                &model.spec,
                vec![metric(spec).unwrap()],
                &windows,
                4,
            )
            .unwrap()
        };
        let (scores, weights) = (scored(label), scored("magnitude"));
        for layer in 0..3 {
            let of = |kind: &str| scores.of(&format!("{kind}.{layer}"), Some(label)).unwrap();
            // Over squares, the norm of a whole is that of its parts' norms.
            let together: Vec<f32> = of("heads")
                .chunks(2)
                .map(|own| own[0].hypot(own[1]))
                .collect();
            assert!(
                relative_scores(of("kv_heads"), &together) <= REORDERED,
                "{} {layer}",
                model.family()
            );
            // And its weights are its own and theirs.
            let squares = |name: &str| {
                weights.by_name[name]
                    .iter()
                    .map(|&x| f64::from(x).powi(2))
                    .sum::<f64>()
            };
            let expected: f64 = model
                .spec
                .params
                .iter()
                .filter(|param| param.layer() == Some(layer))
                .filter(|param| {
                    [Role::QUERY, Role::KEY, Role::VALUE].contains(&param.role) || is_output(param)
                })
                .map(|param| {
                    model
                        .source
                        .read(&param.name())
                        .unwrap()
                        .to_kind(tch::Kind::Double)
                        .square()
                        .sum(tch::Kind::Double)
                        .double_value(&[])
                })
                .sum();
            let found = squares(&format!("magnitude/kv_heads.{layer}"));
            assert!(
                (found - expected).abs() <= 1e-5 * expected,
                "{} {layer}: {found} {expected}",
                model.family()
            );
        }
    }
}

/// Scores of neurons and heads by hand: activations as a tap sees them, the projection's own
/// columns.
#[test]
fn channel_metrics_are_activations_times_the_weights_that_read_them() {
    struct Seen(Site, Vec<Tensor>);
    impl Tap for Seen {
        fn wants(&self, site: Site) -> bool {
            site == self.0
        }
        fn see(&mut self, _site: Site, x: &Tensor) -> Result<()> {
            self.1.push(x.copy());
            Ok(())
        }
    }
    // GPT-2 stores its projections the other way round.
    for (config, transposed) in [(tiny_llama(), false), (tiny_gpt2(), true)] {
        let model = Model::new(&config, 31).unwrap();
        let windows = some_windows(5, 12, 61, 3).unwrap();
        let metrics = ["wanda", "fluctuation"].map(|spec| metric(spec).unwrap());
        let scores = score(&model.source, &model.spec, metrics.into(), &windows, 2).unwrap();
        let loaded = model.load().unwrap();
        for (dim, port, role) in [
            ("mlp.1", Port::NEURONS, Role::DOWN),
            ("heads.1", Port::HEADS, Role::ATTENTION_OUTPUT),
        ] {
            let mut seen = Seen(model.spec.site(1, port).unwrap(), Vec::new());
            let ids_bt = Tensor::from_slice(
                &(0..5)
                    .flat_map(|w| windows.window(w).unwrap())
                    .map(|&id| i64::from(id))
                    .collect::<Vec<_>>(),
            );
            let _ = tch::no_grad(|| loaded.hidden(&ids_bt.view([5, -1]), &mut seen, None)).unwrap();
            let x_nc = Tensor::cat(&seen.1, 0)
                .flatten(0, 1)
                .to_kind(Element::Double);
            let param = model
                .spec
                .find(
                    model.spec.part_with(1, role).unwrap(),
                    role,
                    ParamKind::Weight,
                )
                .unwrap();
            let weight = model
                .source
                .read(&param.name())
                .unwrap()
                .to_kind(Element::Double);
            let weight_rc = if transposed { weight.tr() } else { weight };
            let norms_c = x_nc
                .square()
                .sum_dim_intlist(0, false, Element::Double)
                .sqrt();
            let n_units = model.spec.dim(dim).unwrap().size as i64;
            let per_unit = |of_channels: Tensor| {
                of_channels
                    .view([n_units, -1])
                    .sum_dim_intlist(1, false, Element::Double)
            };
            let wanda =
                per_unit(norms_c * weight_rc.abs().sum_dim_intlist(0, false, Element::Double));
            let squares_c = weight_rc
                .square()
                .sum_dim_intlist(0, false, Element::Double);
            let fluctuation = per_unit(x_nc.var_dim(0, false, false) * squares_c);
            for (metric, expected) in [("wanda", wanda), ("fluctuation", fluctuation)] {
                let found = Tensor::from_slice(&scores.by_name[&format!("{metric}/{dim}")])
                    .to_kind(Element::Double);
                let differs = relative(&found, &expected);
                assert!(differs <= 1e-5, "{metric}/{dim}: {differs:e}");
            }
        }
    }
}

#[test]
fn a_layer_that_writes_nothing_leaves_the_states_and_their_norms() {
    let windows = some_windows(3, 10, 61, 6).unwrap();
    for config in [tiny_llama(), tiny_gpt2()] {
        let mut model = Model::new(&config, 33).unwrap();
        let mut scaled = MemorySource::default();
        for param in &model.spec.params {
            let (name, mut tensor) = (param.name(), model.source.read(&param.name()).unwrap());
            let writes = [Role::DOWN, Role::ATTENTION_OUTPUT].contains(&param.role);
            if param.layer() == Some(1) && writes {
                tensor = tensor.zeros_like();
            }
            model.source.insert(name.clone(), &tensor).unwrap();
            if param.role == Role::FINAL_NORM {
                tensor = tensor.multiply_scalar(3.0);
            }
            scaled.insert(name, &tensor).unwrap();
        }
        let scores = |source: &MemorySource| {
            let specs = ["normalised_error", "norm_ratio"].map(|spec| metric(spec).unwrap());
            let scores = score(source, &model.spec, specs.into(), &windows, 2).unwrap();
            ["normalised_error/depth", "norm_ratio/depth"].map(|name| scores.by_name[name].clone())
        };
        let [errors, ratios] = scores(&model.source);
        assert_eq!((errors[1], ratios[1]), (0.0, 1.0), "{}", model.family());
        assert!(errors[0] > 0.01 && errors[2] > 0.01, "{errors:?}");
        let [scaled, _] = scores(&scaled);
        assert!(relative_scores(&scaled, &errors) < REORDERED, "{scaled:?}");
    }
}
