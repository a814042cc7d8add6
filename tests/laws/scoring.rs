//! What scores may and may not depend on.

use minitron::{families, groups, registry, some_windows, tiny_llama, tiny_nemotron};
use minitron_core::calibrate::{Metric, Observation, Pass, Scores, Site};
use minitron_core::contract::{Importance, Scorer};
use minitron_core::error::Result;
use minitron_core::model::{Tap, Transformer};
use minitron_core::progress::Silent;
use minitron_core::registry::{Kind, PluginSpec};
use tch::{Device, Tensor};

use super::{Model, REORDERED, relative_scores};

/// Every metric at its defaults, and the nine aggregations.
fn specs() -> Vec<PluginSpec> {
    let mut specs: Vec<PluginSpec> = registry().of_kind(Kind::Importance).map(|d| PluginSpec::bare(d.tag)).collect();
    for seq in ["mean", "l2", "var"] {
        for batch in ["mean", "l2", "var"] {
            specs.push(PluginSpec::bare("activation").with("seq", seq).with("batch", batch));
        }
    }
    specs
}

fn scores(model: &Transformer, batch_size: usize) -> Result<Scores> {
    let build = |spec: &PluginSpec| Ok(Metric { label: spec.to_string(), importance: registry().build(spec)? });
    // The defaults of `activation` are among the nine, under another name.
    let metrics = specs().iter().map(build).collect::<Result<Vec<_>>>()?;
    let mut pass = Pass::new(&metrics, &groups(&model.blueprint)?)?;
    pass.run(model, &some_windows(12, 10, 61, 1)?, batch_size, &Silent)?;
    pass.finish()
}

#[test]
fn scores_do_not_depend_on_the_batch_size() {
    for config in families() {
        let model = Model::new(&config, 20).unwrap().load().unwrap();
        let one_by_one = scores(&model, 1).unwrap();
        for batch_size in [3, 8] {
            let batched = scores(&model, batch_size).unwrap();
            assert_eq!(one_by_one.by_name.len(), batched.by_name.len());
            for (name, values) in &one_by_one.by_name {
                let difference = relative_scores(&batched.by_name[name], values);
                assert!(difference <= REORDERED, "{name} by {batch_size}: {difference:e}");
            }
        }
    }
}

/// One scorer, outside a pass.
struct Watching<'a> {
    sites: &'a [Site],
    scorer: Box<dyn Scorer>,
}

impl Tap for Watching<'_> {
    fn wants(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }

    fn see(&mut self, site: Site, x: &Tensor) -> Result<()> {
        self.scorer.observe(&Observation::new(site, x))
    }
}

#[test]
fn two_merged_halves_are_the_whole() {
    let windows = some_windows(6, 10, 61, 2).unwrap();
    for config in families() {
        let model = Model::new(&config, 21).unwrap().load().unwrap();
        for spec in specs() {
            let importance = registry().build::<dyn Importance>(&spec).unwrap();
            for group in groups(&model.blueprint).unwrap() {
                let sites = importance.watch(&group);
                if sites.is_empty() {
                    continue;
                }
                let over = |range: std::ops::Range<usize>| {
                    let mut watching = Watching { sites: &sites, scorer: importance.scorer(&group).unwrap() };
                    let ids_bt = windows.batch(range, Device::Cpu).unwrap();
                    let _ = tch::no_grad(|| model.hidden(&ids_bt, &mut watching, None)).unwrap();
                    watching.scorer
                };
                let mut left = over(0..2);
                left.merge(over(2..6).as_ref()).unwrap();
                let (merged, whole) = (left.finish().unwrap(), over(0..6).finish().unwrap());
                let difference = relative_scores(&merged, &whole);
                assert!(difference <= REORDERED, "{spec} {}: {difference:e}", group.dim);
            }
        }
    }
}

#[test]
fn scorers_of_two_metrics_do_not_merge() {
    let model = Model::new(&minitron::tiny_llama(), 22).unwrap();
    let groups = groups(&model.blueprint).unwrap();
    let depth = groups.iter().find(|group| group.kind() == "depth").unwrap();
    let scorer = |tag: &str| registry().build::<dyn Importance>(&PluginSpec::bare(tag)).unwrap().scorer(depth).unwrap();
    let error = scorer("activation").merge(scorer("block_influence").as_ref()).unwrap_err().to_string();
    assert!(error.contains("another metric"), "{error}");
}

#[test]
fn a_key_value_head_is_as_large_as_its_query_heads_together() {
    for config in [tiny_llama(), tiny_nemotron()] {
        let model = Model::new(&config, 24).unwrap();
        let scores = scores(&model.load().unwrap(), 4).unwrap();
        let label = PluginSpec::bare("activation").with("seq", "l2").with("batch", "l2").to_string();
        for layer in 0..3 {
            let of = |kind: &str| scores.of(&format!("{kind}.{layer}"), Some(&label)).unwrap();
            // Over squares, the norm of a whole is that of its parts' norms.
            let together: Vec<f32> = of("heads").chunks(2).map(|own| own[0].hypot(own[1])).collect();
            assert!(relative_scores(of("kv_heads"), &together) <= REORDERED, "{} {layer}", model.family());
        }
    }
}
