//! What each cut is said to cost.

use minitron::{Workspace, alike, tiny_llama};
use minitron_core::reconstruct::{Fit, StudentEditor};
use minitron_core::spec::{At, dim_of_layer};
use serde_json::Value;

use super::reconstruction::{ATTENTION, Ward, linear_writers};

const MLP: At = At::Sublayer {
    layer: 0,
    sublayer: 1,
};

fn writers(editor: &StudentEditor) -> Vec<Fit> {
    let fits = editor.fits().iter();
    fits.filter(|fit| fit.projections.is_writer)
        .cloned()
        .collect()
}

/// Of those whose first layer is attention and an MLP.
fn linear_and_alike() -> Vec<Value> {
    let mut configs = linear_writers();
    configs.retain(|config| alike().contains(config));
    configs
}

#[test]
fn nothing_that_is_not_cut_costs_anything() {
    for config in linear_and_alike() {
        let whole = Ward::of(&config, &[]);
        assert!(whole.treated(&["least_squares"]).unwrap().fits().is_empty());
        // Before the first cut, what is read and written is the teacher's.
        let ward = Ward::of(&config, &[("mlp", 24)]);
        let editor = ward.treated(&["least_squares"]).unwrap();
        let of_attention = editor
            .fits()
            .iter()
            .filter(|fit| fit.projections.at == ATTENTION);
        let mut n_seen = 0;
        for fit in of_attention {
            n_seen += 1;
            assert!(fit.target > 0.0, "{fit:?}");
            assert_eq!(
                (fit.before, fit.lacking(), fit.error()),
                (0.0, 0.0, 0.0),
                "{fit:?}"
            );
        }
        assert_eq!(n_seen, 2);
        let of_mlp = writers(&editor)
            .into_iter()
            .find(|fit| fit.projections.at == MLP);
        let of_mlp = of_mlp.unwrap();
        assert!(of_mlp.error() > 0.0 && of_mlp.error() < 1.0, "{of_mlp:?}");
        // Against the student's own parts, attention is whole everywhere.
        let editor = ward.treated(&["least_squares:target=own"]).unwrap();
        for fit in writers(&editor) {
            let is_cut = matches!(fit.projections.at, At::Sublayer { sublayer: 1, .. });
            assert_eq!(fit.error() > 0.0, is_cut, "{fit:?}");
            assert_eq!(fit.error(), fit.lacking());
        }
    }
}

/// The neurons of a smaller MLP are among those of a larger one, so what they can say is too.
#[test]
fn a_larger_cut_never_costs_less_on_the_same_text() {
    for config in linear_and_alike() {
        let errors: Vec<f64> = [44, 36, 24, 12, 4]
            .into_iter()
            .map(|n| {
                let ward = Ward::of(&config, &[("mlp", n)]);
                let editor = ward.treated(&["least_squares:ridge=1e-6"]).unwrap();
                let fits = writers(&editor);
                let of_mlp = fits.iter().find(|fit| fit.projections.at == MLP);
                of_mlp.unwrap().error()
            })
            .collect();
        assert!(
            errors.is_sorted_by(|a, b| *a <= b * (1.0 + 1e-6)),
            "{errors:?}"
        );
        assert!(errors[0] > 0.0 && errors[4] < 1.0, "{errors:?}");
    }
}

/// What the stream lacks after a part is what it lacked before, and what came in there.
#[test]
fn errors_add_up_from_part_to_part() {
    let ward = Ward::of(&tiny_llama(), &[("hidden", 16), ("heads", 2), ("mlp", 24)]);
    let editor = ward.treated(&["least_squares", "least_squares"]).unwrap();
    let fits = writers(&editor);
    let (first, second) = fits.split_at(fits.len() / 2);
    for sweep in [first, second] {
        assert_eq!(sweep.len(), 6);
        let mut lacking = 0.0;
        for fit in sweep {
            assert_eq!(fit.entered, lacking);
            lacking += fit.error() * fit.target;
            assert!((lacking / fit.after - 1.0).abs() < 1e-9, "{fit:?}");
            lacking = fit.after;
        }
    }
}

#[test]
fn a_plan_says_what_each_of_its_cuts_costs() {
    let files = Workspace::new()
        .model("model", &tiny_llama(), 1)
        .text("text.txt");
    files.json("score model --data text.txt --samples 8 --seq-len 16 --out s.safetensors");
    let prune = "prune model --scores s.safetensors --hidden 24 --heads 2 --mlp 24 --layers 2";
    let text = "--data text.txt --samples 32 --seq-len 16";
    let report = files.json(&format!("{prune} {text} --out pruned"));
    let plan = files.value("pruned/plan.json");
    assert_eq!(plan["fits"], report["fits"]);
    let layers: Vec<u64> = serde_json::from_value(plan["kept"]["depth"].clone()).unwrap();
    assert_eq!(layers.len(), 2);
    let fits = plan["fits"].as_array().unwrap();
    let of = |part: &str, layer: u64| -> &Value {
        let mut fits = fits.iter();
        let is_it =
            |fit: &&Value| fit["part"] == part && fit["layer"] == layer && fit["writes"] == true;
        fits.find(is_it).unwrap()
    };
    for &layer in &layers {
        for (part, kind) in [("mlp", "mlp"), ("attention", "heads")] {
            let dim = dim_of_layer(kind, layer as usize);
            assert_eq!(
                plan["explained"][&dim]["error"],
                of(part, layer)["error"],
                "{dim}"
            );
            assert!(of(part, layer)["dims"].to_string().contains(&dim));
        }
    }
    let reads = fits.iter().filter(|fit| fit["writes"] == false);
    let largest = reads
        .map(|fit| fit["error"].as_f64().unwrap())
        .fold(0.0, f64::max);
    assert_eq!(plan["explained"]["hidden"]["error"], largest);
    // A plain cut says nothing of it.
    files.json(&format!("{prune} --out plain"));
    let plain = files.value("plain/plan.json");
    assert!(plain.get("fits").is_none() && plain["explained"]["hidden"].get("error").is_none());

    let shown = files.run(&format!("{prune} {text} --dry-run --quiet"));
    let shown = String::from_utf8(shown.stdout).unwrap();
    for words in [
        "lacking, layer",
        "attention reads",
        "by attention",
        "mlp writes",
        "by mlp",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let share = of("mlp", layers[1])["error"].as_f64().unwrap() * 100.0;
    let mut rows = shown
        .lines()
        .filter(|line| line.trim_end().ends_with(&format!("{share:.1} %")));
    assert!(
        rows.any(|row| row.trim_start().starts_with(&layers[1].to_string())),
        "{shown}"
    );
}
