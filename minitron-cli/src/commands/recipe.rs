use minitron_core::error::Result;
use minitron_engine::recipe::{Recipe, check_recipe, recipe_schema};

use crate::args::{Common, RecipeCommand};
use crate::output;
use crate::settings::registry;

pub fn run(common: &Common, command: &RecipeCommand) -> Result<()> {
    match command {
        RecipeCommand::Check { file } => {
            let recipe = Recipe::load(file)?;
            let found = check_recipe(&registry(common, Some(&recipe))?, &recipe)?;
            output::show(common.json, &found, output::facts_table)
        }
        // A schema is JSON, with or without --json.
        RecipeCommand::Schema => output::show(
            true,
            &recipe_schema(&registry(common, None)?),
            output::facts_table,
        ),
    }
}
