//! Filters and tests of Jinja2 that the engine lacks or answers otherwise.

use minijinja::Environment;

pub(super) fn install(_env: &mut Environment<'static>) {}
