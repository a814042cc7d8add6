use std::fs;

use minitron_core::error::{IoContext, Result};
use minitron_core::output::write_atomic;
use minitron_engine::recipe::{Recipe, RunDir, run as run_recipe};

use crate::args::{Common, Demo};
use crate::output;
use crate::settings::with_context;

/// The demo's own files, so that the binary alone is enough.
const FILES: [(&str, &str); 4] = [
    (
        "demo.toml",
        include_str!("../../../examples/recipes/demo.toml"),
    ),
    (
        "config.json",
        include_str!("../../../examples/demo/config.json"),
    ),
    (
        "tokenizer.json",
        include_str!("../../../examples/demo/tokenizer.json"),
    ),
    (
        "tokenizer_config.json",
        include_str!("../../../examples/demo/tokenizer_config.json"),
    ),
];

pub fn run(common: &Common, args: &Demo) -> Result<()> {
    RunDir::open(&args.out, args.force)?;
    // The recipe as it lies in the repository, with the folder of its model beside it.
    let source = args.out.join("source");
    let (recipes, model) = (source.join("recipes"), source.join("demo"));
    for dir in [&recipes, &model] {
        fs::create_dir_all(dir).at_path(dir)?;
    }
    for (name, text) in FILES {
        let path = if name.ends_with(".toml") {
            recipes.join(name)
        } else {
            model.join(name)
        };
        write_atomic(&path, text)?;
    }
    let recipe = Recipe::load(&recipes.join("demo.toml"))?;
    let report = with_context(common, false, Some(&recipe), |context| {
        run_recipe(context, &recipe, &args.out)
    })?;
    output::say_how_to_go_on(&report, "the same command");
    output::show(common.json, &report, output::run_table)
}
