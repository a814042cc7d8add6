//! The page: one HTML file that needs no other, for screens of any width, light and dark, and for
//! paper.
//!
//! Names, prompts and errors come out of files: everything is escaped by the template macro, and
//! the page's own policy allows no script but the one that sorts tables.

mod charts;
mod comparison;
mod curves;
mod parts;
mod run;
mod search;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use minitron_engine::report::{Folder, FolderKind, Repeat};

/// What a page begins with.
pub const PAGE_MARK: &str = "<!DOCTYPE html><!-- minitron report -->";

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("sort.js");
/// No script runs but that with the SHA-256 of [`SCRIPT`], which stands here in base64; the
/// browser's console names it anew.
const POLICY: &str = include_str!("policy.txt");

/// A page about these folders.
pub fn page(folders: &[Folder]) -> String {
    let title = match folders {
        [one] => format!("{} · minitron", one.title),
        _ => "minitron report".to_owned(),
    };
    let markup = html! {
        (DOCTYPE) (PreEscaped("<!-- minitron report -->"))
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.brand { "minitron " (env!("CARGO_PKG_VERSION")) " report" }
                    @if folders.len() > 1 {
                        h1 { (folders.len()) " folders" }
                        nav aria-label="Folders" { ul {
                            @for (idx, folder) in folders.iter().enumerate() {
                                li {
                                    a href={ "#f" (idx) } { (folder.title) }
                                    " " span.muted { (kind(folder.kind)) }
                                }
                            }
                        } }
                    }
                }
                main {
                    @for (idx, folder) in folders.iter().enumerate() {
                        (article(idx, folder, folders.len() == 1))
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

fn kind(kind: FolderKind) -> &'static str {
    match kind {
        FolderKind::Run => "run",
        FolderKind::Search => "search",
        FolderKind::Comparison => "comparison",
        FolderKind::Stage => "stage",
    }
}

fn article(idx: usize, folder: &Folder, is_alone: bool) -> Markup {
    html! {
        article id={ "f" (idx) } {
            @if is_alone { h1 { (folder.title) } } @else { h2.title { (folder.title) } }
            p.muted { (kind(folder.kind)) " in " code { (folder.dir.display()) } }
            @if !folder.facts.is_empty() {
                dl.facts { @for (name, value) in &folder.facts {
                    div { dt { (name) } dd { (value) } }
                } }
            }
            @if !folder.warnings.is_empty() {
                section.warn role="note" {
                    h3 { "Warnings" }
                    ul { @for warned in &folder.warnings { li {
                        @if !warned.of.is_empty() { strong { (warned.of.join(", ")) } ": " }
                        (warned.message)
                    } } }
                }
            }
            @if !folder.notes.is_empty() {
                section.warn role="note" {
                    h3 { "Not read" }
                    ul { @for note in &folder.notes { li { (note) } } }
                }
            }
            @if let Some(comparison) = &folder.comparison { (comparison::sections(comparison)) }
            @if let Some(search) = &folder.search { (search::sections(search)) }
            (run::evaluations(&folder.evaluations))
            (run::samples(&folder.samples))
            (run::trainings(&folder.trainings))
            (run::prunings(&folder.prunings))
            (run::importance(&folder.importance))
            (run::stages(&folder.stages))
            @if let Some(repeat) = &folder.repeat { (to_repeat(repeat)) }
        }
    }
}

fn to_repeat(repeat: &Repeat) -> Markup {
    html! {
        section {
            h3 { "To repeat it" }
            pre tabindex="0" aria-label="Command" { code { (repeat.command) } }
            @if let Some(note) = &repeat.note { p.muted { (note) } }
            @if let Some(file) = &repeat.file {
                pre tabindex="0" aria-label="File" { code { (file) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use minitron_engine::report::gather;
    use serde_json::{Value, json};

    use super::*;

    const EVIL: &str = "</title></style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>";
    /// As far as the name of a folder can be.
    const EVIL_NAME: &str = "<script>alert(1)<script>\"'><img src=x onerror=alert(2)>";

    fn page_of(name: &str, value: &Value) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        let page = page(&[gather(dir.path()).unwrap()]);
        assert!(page.starts_with(PAGE_MARK));
        page
    }

    /// Nothing out of a file becomes markup: the page has its own script and no other, and no
    /// image.
    fn assert_harmless(page: &str) {
        assert_eq!(page.matches("<script").count(), 1);
        assert!(
            !page.contains("<img") && page.contains("&lt;script"),
            "{page}"
        );
        for outside in ["http://", "https://", "<link", "@import", "url("] {
            assert!(
                !page.contains(outside),
                "the page names something outside: {outside}"
            );
        }
    }

    #[test]
    fn what_files_say_stays_text() {
        let stage = |name: &str, job: &str, result: Value, options: Value| {
            json!({ "name": name,
            "do": job, "inputs": EVIL, "seconds": 1.0, "result": result, "options": options })
        };
        assert_harmless(&page_of(
            "run.json",
            &json!({ "minitron": EVIL, "recipe": EVIL, "seed": 0, "device": EVIL, "dtype": "float",
                "stages": [
                { "name": EVIL_NAME, "do": EVIL, "inputs": EVIL, "result": {}, "warnings": [EVIL],
                    "options": { "model": EVIL } },
                stage("say", "generate", json!({ "prompt": EVIL, "text": EVIL }), json!({
                    "model": EVIL })),
                stage("eval", "eval", json!({ EVIL: 1.0, "tasks": { EVIL: { "acc": 0.5 } } }),
                    json!({ "model": EVIL })),
            ] }),
        ));
        let curve = json!([{ "tokens": 1, "loss": 2.0 }, { "tokens": 2, "loss": 1.0 }]);
        assert_harmless(&page_of(
            "search.json",
            &json!({ "model": EVIL, "versions": { EVIL: EVIL }, "winner": { "name": EVIL },
                "warnings": [EVIL], "candidates": [
                { "name": EVIL_NAME, "sizes": { EVIL: 3 }, "n_params": 10, "loss": 1.0,
                    "curve": curve },
            ] }),
        ));
        assert_harmless(&page_of(
            "compare.json",
            &json!({ "title": EVIL, "model": EVIL, "spec": { "title": EVIL }, "columns": [{
                "key": "loss", "title": EVIL }],
                "rows": [{ "name": EVIL, "error": EVIL, "samples": [EVIL], "curve": curve,
                    "values": { "loss": { "mean": 1.0 } } }],
                "teacher": { "name": EVIL, "error": EVIL }, "warnings": [EVIL], "checks": [{
                    "says": EVIL, "detail": EVIL }] }),
        ));
    }

    #[test]
    fn files_that_say_next_to_nothing_still_make_a_page() {
        for name in ["search.json", "compare.json"] {
            assert!(
                page_of(name, &json!({ "format": 1, "complete": false })).contains("under way")
            );
        }
        assert!(gather(Path::new("nowhere")).unwrap_err().is_usage());
    }
}
