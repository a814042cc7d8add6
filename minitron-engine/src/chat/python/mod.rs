//! Where Jinja templates meet Python: how values are printed, and the methods, filters and tests
//! that Jinja2 has beyond or unlike those of the engine.

mod arguments;
mod cutting;
mod filters;
mod json;
pub(super) mod kept;
mod methods;
mod printing;

use minijinja::Environment;

/// Makes an environment answer as Jinja2 does in `transformers`.
pub(super) fn install(env: &mut Environment<'static>) {
    env.set_formatter(|out, state, value| {
        // Strings, most of all, go straight through.
        match printing::needs_python(value) {
            true => {
                let text = printing::str_of(state, value)?;
                minijinja::escape_formatter(out, state, &text.into())
            }
            false => minijinja::escape_formatter(out, state, value),
        }
    });
    env.set_unknown_method_callback(methods::call);
    env.add_filter("tojson", json::to_json);
    env.add_function(kept::FUNCTION, kept::kept);
    filters::install(env);
}
