#![allow(clippy::unwrap_used)] // Set-up of tests: what fails here is the test's own fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use minitron::{
    python, root, run_python, shared, tiny_llama, with_context, write_tiny_with_tokenizer,
};
use minitron_core::checkpoint::Config;
use minitron_core::conversation::{Conversation, Example, Form, Message};
use minitron_core::evaluate::{Sampling, generate};
use minitron_core::windows::Tokenize;
use minitron_engine::chat::{ChatTemplate, Moment, Rendered};
use minitron_engine::data::Tokenizer;
use minitron_engine::jobs::{self, GenerateOptions};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Families whose prompt formats are published; each file is written anew, with marks.
const FAMILIES: [&str; 10] = [
    "chatml",
    "llama3",
    "mistral",
    "gemma",
    "phi3",
    "zephyr",
    "granite",
    "deepseek_r1",
    "qwen3",
    "hermes",
];

const NOW: &str = "2026-02-03T04:05:06";

fn now() -> Moment {
    NOW.parse().unwrap()
}

fn marked(family: &str) -> String {
    fs::read_to_string(root().join("tests/chat").join(format!("{family}.jinja"))).unwrap()
}

/// The same template without marks. Where a mark stands, the tags beside it trim what it would.
fn unmarked(family: &str) -> String {
    let mut text = marked(family);
    for tag in ["generation", "endgeneration"] {
        text = text
            .replace(&format!("{{%- {tag} -%}}"), "")
            .replace(&format!("{{% {tag} %}}"), "");
        text = text.replace(&format!("{{% {tag} +%}}"), "{{ '' }}");
    }
    assert!(
        !text.contains("generation %}") && !text.contains("generation -%}"),
        "{family}"
    );
    text
}

fn conversations() -> Map<String, Value> {
    let text = fs::read_to_string(root().join("tests/chat/conversations.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn conversation(record: &Value) -> Conversation {
    match Example::from_record(record, None).unwrap() {
        Some(Example::Chat(conversation)) => conversation,
        other => panic!("{other:?}"),
    }
}

/// A tokenizer of bytes, as GPT-2 writes them, with the words that templates put around turns.
fn byte_tokenizer() -> Value {
    let plain: Vec<u32> = (0x21..=0x7e)
        .chain(0xa1..=0xac)
        .chain(0xae..=0xff)
        .collect();
    let mut vocab = Map::new();
    let mut n_odd = 0;
    for byte in 0..256u32 {
        let letter = if plain.contains(&byte) {
            byte
        } else {
            256 + n_odd
        };
        n_odd += u32::from(!plain.contains(&byte));
        vocab.insert(char::from_u32(letter).unwrap().to_string(), byte.into());
    }
    let control = [
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "<|eot_id|>",
        "[INST]",
        "[/INST]",
        "<end_of_turn>",
        "<|end|>",
    ];
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "post_processor": null,
        "added_tokens": added(256, &control),
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
                "merges": []
        }
    })
}

/// Special tokens from an id on, as tokenizer.json lists them.
fn added(first: usize, contents: &[&str]) -> Vec<Value> {
    let token = |(idx, content): (usize, &&str)| {
        json!({
            "id": first + idx, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false,
            "normalized": false
        })
    };
    contents.iter().enumerate().map(token).collect()
}

/// Where a folder says what its template is.
enum Place {
    File,
    Config,
    List,
    /// A template for tools in a folder of its own, and special tokens in a map of their own.
    Further,
}

fn folder(dir: PathBuf, tokenizer: &Value, template: &str, place: Place) -> PathBuf {
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "pad_token": null,
        "unk_token": { "__type": "AddedToken", "content": "</s>", "lstrip": false,
            "normalized": false, "rstrip": false, "single_word": false, "special": true },
        "image_token": "<image>", "clean_up_tokenization_spaces": false,
            "model_max_length": 1000000,
    });
    match place {
        Place::File => {
            fs::write(dir.join("chat_template.jinja"), template).unwrap();
            config["chat_template"] = "not this one".into();
        }
        Place::Config => config["chat_template"] = template.into(),
        Place::Further => {
            fs::create_dir(dir.join("additional_chat_templates")).unwrap();
            let with_tools = format!("{{{{- 'tools: ' -}}}}{template}");
            fs::write(
                dir.join("additional_chat_templates/tool_use.jinja"),
                with_tools,
            )
            .unwrap();
            fs::write(dir.join("chat_template.jinja"), template).unwrap();
            config["bos_token"] = "</s>".into();
            let token = json!({ "content": "<s>", "lstrip": false, "normalized": false,
                "rstrip": false, "single_word": false });
            fs::write(
                dir.join("special_tokens_map.json"),
                json!({ "bos_token": token }).to_string(),
            )
            .unwrap();
        }
        Place::List => {
            let without_tools = json!({ "name": "default", "template": template });
            let template = format!("{{{{- 'tools: ' -}}}}{template}");
            let with_tools = json!({ "name": "tool_use", "template": template });
            config["chat_template"] = json!([without_tools, with_tools]);
        }
    }
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

/// Our side of a comparison.
struct Loaded {
    template: ChatTemplate,
    tokenizer: Tokenizer,
}

fn load(dir: &Path) -> Loaded {
    let template = ChatTemplate::load(dir, now()).unwrap().unwrap();
    let config =
        Config::from_value(&dir.join("config.json"), json!({ "model_type": "llama" })).unwrap();
    Loaded {
        template,
        tokenizer: Tokenizer::load(dir, &config, 200_000, true).unwrap(),
    }
}

/// What transformers makes of cases.
fn theirs(work: &Path, cases: Value) -> Value {
    let (path, out) = (work.join("cases.json"), work.join("out.json"));
    fs::write(&path, cases.to_string()).unwrap();
    let output = run_python(&root().join("tests/interop/chats.py"), [&path, &out]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap()
}

#[test]
fn texts_tokens_and_masks_are_those_of_transformers() {
    if python().is_none() {
        eprintln!("absent, not tested: the Python of `make test`");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let conversations = conversations();
    let mut tokenizers = Vec::from([("bytes", byte_tokenizer())]);
    if let Some(model) = shared("models/prose-llama") {
        let text = fs::read_to_string(model.join("tokenizer.json")).unwrap();
        let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
        // transformers would add what a config names; a tokenizer that fits its model has them.
        tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .extend(added(8192, &["<s>", "</s>"]));
        tokenizers.push(("prose", tokenizer));
    }
    let mut folders = Vec::new();
    for (name, tokenizer) in &tokenizers {
        for (idx, family) in FAMILIES.into_iter().enumerate() {
            let places = [Place::File, Place::Config, Place::List, Place::Further];
            let place = places.into_iter().nth(idx % 4).unwrap();
            folders.push(folder(
                work.path().join(format!("{name}-{family}")),
                tokenizer,
                &marked(family),
                place,
            ));
        }
    }
    let cases = json!({ "now": NOW, "folders": folders, "conversations": conversations });
    let theirs = theirs(work.path(), cases);
    let theirs = theirs.as_object().unwrap();
    let (mut n_equal, mut n_refused, mut n_unmarked) = (0, 0, 0);
    let mut apart = Vec::new();
    for (key, expected) in theirs {
        let [dir, name, prompt] = key.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let dir = Path::new(dir);
        let Loaded {
            template,
            tokenizer,
        } = load(dir);
        let conversation = conversation(&conversations[name]);
        let rendered = template.render(&conversation, prompt == "True");
        let text = match (&rendered, expected["text"].as_str()) {
            (Err(_), None) => {
                n_refused += 1;
                continue;
            }
            (Ok(rendered), Some(text)) if rendered.text == text => text,
            _ => {
                apart.push(format!("{key}: {rendered:?}\n{expected}"));
                continue;
            }
        };
        let (ids, mask) = tokenizer
            .encode_conversation(rendered.as_ref().unwrap())
            .unwrap();
        let mask: Vec<u8> = mask.into_iter().map(u8::from).collect();
        if json!(ids) != expected["ids"] || json!(mask) != expected["mask"] {
            apart.push(format!("{key}: {rendered:?}\n{mask:?}\n{expected}"));
            continue;
        }
        n_equal += 1;
        // Without its marks, the same template gives the same text, and the same answers by
        // rendering prefixes.
        let family = dir
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .split_once('-')
            .unwrap()
            .1;
        let tools = if text.starts_with("tools: ") {
            "{{- 'tools: ' -}}"
        } else {
            ""
        };
        let tokens = json!({ "bos_token": "<s>", "eos_token": "</s>" })
            .as_object()
            .unwrap()
            .clone();
        let without = ChatTemplate::from_source(
            "unmarked",
            &format!("{tools}{}", unmarked(family)),
            tokens,
            now(),
        )
        .unwrap();
        match without.render(&conversation, prompt == "True") {
            Ok(found) => {
                n_unmarked += 1;
                let answers = &rendered.as_ref().unwrap().answers;
                if found.text != text || found.answers != *answers || found.marks {
                    let shown = |answers: &[std::ops::Range<usize>]| {
                        answers
                            .iter()
                            .map(|a| text[a.clone()].to_owned())
                            .collect::<Vec<_>>()
                    };
                    apart.push(format!(
                        "{key} unmarked: {:?} {:?}\n{text}",
                        shown(&found.answers),
                        shown(answers)
                    ));
                }
            }
            Err(error) => apart.push(format!("{key} unmarked: {error}\n{text}")),
        }
    }
    assert!(
        apart.is_empty(),
        "{} of {}:\n{}",
        apart.len(),
        theirs.len(),
        apart.join("\n\n")
    );
    assert!(
        n_equal > 200 * tokenizers.len() && n_refused >= 20 * tokenizers.len(),
        "{n_equal} {n_refused}"
    );
    println!(
        "{} families x {} conversations x 2 x {} tokenizers: {n_equal} equal, {n_refused} refused \
         by both; {n_unmarked} masks by prefixes",
        FAMILIES.len(),
        conversations.len(),
        tokenizers.len()
    );
}

#[test]
fn pieces_of_templates_print_what_jinja2_prints() {
    if python().is_none() {
        eprintln!("absent, not tested: the Python of `make test`");
        return;
    }
    let pieces = fs::read_to_string(root().join("tests/chat/pieces.txt")).unwrap();
    let pieces: Vec<String> = pieces
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.replace("\\N", "\n"))
        .collect();
    let variables: Value = serde_json::from_str(
        &fs::read_to_string(root().join("tests/chat/variables.json")).unwrap(),
    )
    .unwrap();
    let work = tempfile::tempdir().unwrap();
    let record = json!({ "messages": [{ "role": "user", "content": "hi" }],
        "chat_template_kwargs": variables });
    let dir = folder(
        work.path().join("model"),
        &byte_tokenizer(),
        "",
        Place::Config,
    );
    let cases = json!({ "now": NOW, "folders": [dir], "conversations": { "one": record },
        "pieces": pieces });
    let theirs = theirs(work.path(), cases);
    let conversation = conversation(&record);
    let tokens = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>" })
        .as_object()
        .unwrap()
        .clone();
    let mut apart = Vec::new();
    for (piece, expected) in pieces.iter().zip(theirs.as_array().unwrap()) {
        let template = ChatTemplate::from_source("piece", piece, tokens.clone(), now());
        let text = template.and_then(|template| template.text(&conversation, false));
        if text.as_ref().ok().map(String::as_str) != expected["text"].as_str() {
            apart.push(format!("{piece}\n  ours {text:?}\n  theirs {expected}"));
        }
    }
    assert!(
        apart.is_empty(),
        "{} of {}:\n{}",
        apart.len(),
        pieces.len(),
        apart.join("\n")
    );
    println!("{} pieces of templates: equal", pieces.len());
}

/// A model with the demo's tokenizer, where it puts special tokens around a text if one is given.
fn continuing(dir: PathBuf, around: Option<Value>) -> PathBuf {
    write_tiny_with_tokenizer(&dir, tiny_llama(), 5).unwrap();
    let change = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap();
        change(&mut value);
        fs::write(dir.join(name), value.to_string()).unwrap();
    };
    change("tokenizer.json", &|tokenizer| {
        if let Some(single) = &around {
            let token = tokenizer["added_tokens"][0].clone();
            let special = json!({ "id": token["content"], "ids": [token["id"]],
                "tokens": [token["content"]] });
            let name = token["content"].as_str().unwrap();
            let single: Value =
                serde_json::from_str(&single.to_string().replace("BEGIN", name)).unwrap();
            tokenizer["post_processor"] = json!({ "type": "TemplateProcessing", "single": single,
                "pair": single, "special_tokens": { name: special } });
        }
    });
    dir
}

#[test]
fn prompts_begin_as_those_of_transformers_do() {
    if python().is_none() {
        eprintln!("absent, not tested: the Python of `make test`");
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let begin = json!([{ "SpecialToken": { "id": "BEGIN", "type_id": 0 } }, { "Sequence": {
        "id": "A", "type_id": 0 } }]);
    let at = |name: &str| work.path().join(name);
    let mut folders = vec![
        continuing(at("plain"), None),
        continuing(at("begins"), Some(begin.clone())),
    ];
    // What this key says beside tokenizer.json counts for nothing.
    for (name, around, add) in [("says-no", Some(begin), false), ("says-yes", None, true)] {
        folders.push(continuing(at(name), around));
        let mut beside: Value = match fs::read(at(name).join("tokenizer_config.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Err(_) => {
                json!({ "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": "<|endoftext|>" })
            }
        };
        beside["add_bos_token"] = json!(add);
        fs::write(at(name).join("tokenizer_config.json"), beside.to_string()).unwrap();
    }
    let models = ["stories260K", "prose-llama", "prose-nemotron", "capp-gpt"];
    folders.extend(
        models
            .iter()
            .filter_map(|model| shared(&format!("models/{model}"))),
    );
    let texts = ["Once upon a time", "The king", "", "one\n day"];
    let theirs = theirs(
        work.path(),
        json!({ "now": NOW, "folders": folders, "texts": texts }),
    );
    let mut n_begun = 0;
    for (dir, theirs) in folders.iter().zip(theirs.as_array().unwrap()) {
        let (folder, model) = minitron::load(dir).unwrap();
        let vocab = folder.spec.options.vocab;
        let tokenizer = Tokenizer::load(dir, &folder.checkpoint.config, vocab, true).unwrap();
        for (text, ids) in texts.iter().zip(theirs.as_array().unwrap()) {
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            n_begun += usize::from(ids.len() > tokenizer.encode(text).unwrap().len());
            // What transformers cannot continue, we begin with the end of a text.
            let ids = if ids.is_empty() {
                vec![tokenizer.eos().unwrap()]
            } else {
                ids
            };
            let sampling = Sampling {
                max_new_tokens: 12,
                ..Sampling::default()
            };
            let expected = generate(
                &model,
                std::slice::from_ref(&ids),
                tokenizer.ends(),
                &sampling,
            )
            .unwrap()
            .remove(0);
            let options = GenerateOptions {
                model: dir.display().to_string(),
                prompt: (*text).to_owned(),
                max_new_tokens: 12,
                ..GenerateOptions::default()
            };
            let found = with_context(false, |context| jobs::generate(context, &options)).unwrap();
            let place = format!("{} {text:?}: {ids:?}", dir.display());
            assert_eq!(found["n_prompt_tokens"], json!(ids.len()), "{place}");
            assert_eq!(
                found["completion"],
                json!(tokenizer.decode(&expected).unwrap()),
                "{place}"
            );
        }
    }
    assert!(n_begun >= texts.len(), "{n_begun}");
}

fn template(source: &str) -> minitron_core::error::Result<ChatTemplate> {
    ChatTemplate::from_source("some/folder/chat_template.jinja", source, Map::new(), now())
}

/// What a template that does harm says.
fn harm(source: &str) -> String {
    let hello = Conversation::ask(None, "hello");
    match template(source).and_then(|template| template.render(&hello, false)) {
        Ok(rendered) => panic!(
            "{} gave {} bytes",
            &source[..source.len().min(100)],
            rendered.text.len()
        ),
        Err(error) => error.to_string(),
    }
}

#[test]
fn templates_that_loop_explode_or_nest_are_stopped_by_name() {
    for source in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('ab') }}",
        "{{ 'x' * 10**9 }}",
        "{{ [0] * 10**8 }}",
        "{{ ['x' * 10**8] * 10 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}",
        "{% set ns = namespace(s=['ab']) %}{% for i in range(60) %}{% set ns.s = [ns.s | join(','), ns.s | join(',')] %}{% endfor %}",
        "{{ ('a\n' * 1000) | indent(10**8) }}",
        "{{ [1] | tojson(indent=10**9) }}",
        "{{ 'a'.center(10**12) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ ('{0}' * 10**6).format('x' * 10**6) }}",
        "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
        "{{ ('b' * 10**6).join(('a' * 10**5) | list) }}",
        "{% set ns = namespace(s='x' * 1000000) %}{% for i in range(100) %}{{ ns.s }}{% endfor %}",
    ] {
        let error = harm(source);
        let is_named = error.contains("some/folder/chat_template.jinja");
        assert!(
            is_named && (error.contains("stopped after") || error.contains("recursion limit")),
            "{source}: {error}"
        );
    }
    for (source, expected) in [
        (
            "{% for i in range(10**9) %}x{% endfor %}",
            "range has too many elements",
        ),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "recursion limit exceeded",
        ),
        (
            "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "recursion limit exceeded",
        ),
        (
            "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns == ns.ns }}",
            "cannot be kept in another",
        ),
        (
            "{% set a = namespace() %}{% set a.b = {'c': [a]} %}",
            "cannot be kept in another",
        ),
        (
            "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}",
            "nested more than",
        ),
        (
            "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x, y = [ns.x], 1 %}{% endfor %}",
            "nested more than",
        ),
        ("{{ [1][::-9223372036854775808] }}", "contradicts itself"),
        (
            "{{ raise_exception('Not\nlike this') }}",
            "refuses the conversation: Not\nlike this",
        ),
        ("{% include 'chat template' %}", "include"),
        ("{% generation %}x", "unexpected end of input"),
        ("{{ nothing.at.all }}", "undefined"),
    ] {
        let error = harm(source);
        assert!(error.contains(expected), "{source}: {error}");
    }
    for long in [
        "{{ 1".to_owned() + &"+1".repeat(8000) + " }}",
        "{{ a".to_owned() + &".b".repeat(8000) + " }}",
        format!("{{{{ {}1 }}}}", "-".repeat(16000)),
    ] {
        // Whatever comes of it, the process goes on.
        let _ =
            template(&long).map(|template| template.text(&Conversation::ask(None, "hello"), false));
    }
    let nested = "{% set x = [x] %}".repeat(15_000);
    let error = harm(&(nested + "{{ x ~ '' }}{{ x == [x] }}{{ raise_exception('end') }}"));
    assert!(
        error.contains("end") || error.contains("stopped"),
        "{error}"
    );
    assert!(harm(&"{{ 1 }}".repeat(100_000)).contains("at most"));
}

#[test]
fn marks_are_found_wherever_they_end_up_or_refused() {
    let mut conversation = Conversation::ask(None, "a\u{fdd0}b");
    conversation.push("assistant", "answer \u{fdd1}");
    let answers = |source: &str| {
        let rendered = template(source)
            .unwrap()
            .render(&conversation, false)
            .map_err(|e| e.to_string())?;
        assert!(rendered.marks);
        Ok::<_, String>(
            rendered
                .answers
                .iter()
                .map(|answer| rendered.text[answer.clone()].to_owned())
                .collect::<Vec<_>>(),
        )
    };
    let each = "{% for m in messages %}{{ m.content }}|{% generation %}<{{ m.content \
                }}>{% endgeneration %}\n{% endfor %}";
    assert_eq!(
        answers(each).unwrap(),
        ["<a\u{fdd0}b>", "<answer \u{fdd1}>"]
    );
    // Called from a macro, or kept for later: transformers loses the place, here it is kept.
    let in_macro = "start {% macro m(x) %}says: {% generation %}{{ x \
                    }}{% endgeneration %}.{% endmacro %}{{ m(messages[1].content) }} end";
    assert_eq!(answers(in_macro).unwrap(), ["answer \u{fdd1}"]);
    let kept = "{% set x %}{% generation %}{{ messages[1].content \
                }}{% endgeneration %}{% endset %}before {{ x }}";
    assert_eq!(answers(kept).unwrap(), ["answer \u{fdd1}"]);
    let error = answers("{% filter trim %}  {% generation %}  x{% endgeneration %}{% endfilter %}")
        .unwrap_err();
    assert!(error.contains("works on the text"), "{error}");
    assert_eq!(
        answers(
            "{% raw %}{% generation %}{% endraw %}{# {% generation %} #}{{ \
             '{% generation %}' }}{% generation %}x{% endgeneration %}"
        )
        .unwrap(),
        ["x"]
    );
}

#[test]
fn answers_that_cannot_be_told_are_refused() {
    // What is written of an answer depends on how many come after it.
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ messages | length }}{{ \
                  '\\n' }}{% endfor %}";
    let mut conversation = Conversation::ask(None, "a");
    conversation.push("assistant", "b");
    conversation.push("user", "c");
    let error = template(source)
        .unwrap()
        .render(&conversation, false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("message 2") && error.contains("{% generation %}"),
        "{error}"
    );
}

#[test]
fn layouts_of_records_are_read_and_named() {
    let chat = |record: Value| conversation(&record);
    let hello = |role: &str| {
        json!({ "role": role, "content": "hello" })
            .as_object()
            .unwrap()
            .clone()
    };
    let both: Vec<Message> = Vec::from([hello("user"), hello("assistant")]);
    let turns = json!([{ "from": "human", "value": "hello" }, { "from": "gpt", "value": "hello" }]);
    assert_eq!(chat(json!({ "messages": both })).messages, both);
    assert_eq!(chat(json!({ "dialog": both, "id": 1 })).messages, both);
    assert_eq!(chat(json!(both)).messages, both);
    assert_eq!(chat(json!({ "conversations": turns })).messages, both);
    assert_eq!(chat(json!({ "conversations": both })).messages, both);
    let with_system =
        chat(json!({ "conversations": turns, "system": "hello", "tools": "[{\"name\": \"f\"}]" }));
    assert_eq!(with_system.messages[0], hello("system"));
    assert_eq!(with_system.tools, Some(Vec::from([json!({ "name": "f" })])));
    let call = chat(json!({ "conversations": [
        { "from": "human", "value": "x" }, { "from": "function_call",
            "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}" }, { "from": "observation",
                "value": "2" },
    ] }));
    assert_eq!(
        call.messages[1]["tool_calls"][0]["function"]["arguments"]["a"],
        1
    );
    let alpaca = chat(
        json!({ "instruction": "Add.", "input": "1 2", "output": "3", "history": [["q", "a"]],
            "system": "s" }),
    );
    let said: Vec<_> = alpaca
        .messages
        .iter()
        .map(|message| message["content"].as_str().unwrap())
        .collect();
    assert_eq!(said, ["s", "q", "a", "Add.\n\n1 2", "3"]);
    let turns = chat(json!({ "prompt": both, "completion": both }));
    assert_eq!((turns.n_prompt, turns.messages.len()), (2, 4));
    let plain = Example::from_record(&json!({ "prompt": "p", "completion": "c" }), None)
        .unwrap()
        .unwrap();
    assert_eq!(
        plain,
        Example::Completion {
            prompt: "p".into(),
            completion: "c".into()
        }
    );
    assert_eq!(
        Example::from_record(&json!({ "text": "no conversation" }), None).unwrap(),
        None
    );
    assert_eq!(
        Form::ALL.map(|form| form.to_string().parse::<Form>().unwrap()),
        Form::ALL
    );
    for (record, named, expected) in [
        (json!({ "messages": [] }), None, "the conversation is empty"),
        (
            json!({ "messages": [{ "role": "asistant", "content": "x" }] }),
            None,
            "message 1: data: no role is called `asistant`",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": 3 }] }),
            None,
            "`content`: expected a string or a list of parts, got 3",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "content": null }] }),
            None,
            "no `content` for assistant",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }),
            None,
            "missing field `text`",
        ),
        (
            json!({ "chosen": both, "rejected": both }),
            None,
            "chosen, rejected all hold conversations",
        ),
        (
            json!({ "conversations": [{ "from": "hooman", "value": "x" }] }),
            None,
            "no speaker is called `hooman`",
        ),
        (
            json!({ "prompt": "x", "completion": both }),
            None,
            "`completion`: expected text, as `prompt` is",
        ),
        (
            json!({ "text": "x" }),
            Some(Form::Messages),
            "no `messages` beside text",
        ),
        (
            json!({ "text": "x" }),
            Some(Form::ShareGpt),
            "no `conversations` beside text",
        ),
        (
            json!({ "instruction": "x" }),
            Some(Form::Alpaca),
            "no `output` beside instruction",
        ),
        (
            json!({ "prompt": "x" }),
            Some(Form::PromptCompletion),
            "no `completion` beside prompt",
        ),
        (
            json!({ "messages": both, "tools": 3 }),
            None,
            "`tools`: expected a list, got 3",
        ),
        (
            json!("text"),
            Some(Form::Messages),
            "expected a JSON object",
        ),
    ] {
        let error = Example::from_record(&record, named)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{record}: {error}");
    }
}

#[test]
fn a_prompt_never_counts() {
    let record = json!({
        "prompt": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }, {
            "role": "user", "content": "c" }],
        "completion": [{ "role": "assistant", "content": "d" }],
    });
    for source in [marked("chatml"), unmarked("chatml")] {
        let rendered = template(&source)
            .unwrap()
            .render(&conversation(&record), false)
            .unwrap();
        let answers: Vec<&str> = rendered
            .answers
            .iter()
            .map(|answer| &rendered.text[answer.clone()])
            .collect();
        assert_eq!(answers, ["d<|im_end|>"]);
    }
}

fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,12}",
        "\\PC{0,8}",
        "[\\n\\t <>{%}|/_a-z]{0,16}",
        "<think>[a-z\\n]{0,5}</think>[a-z\\n ]{0,5}"
    ]
}

fn message() -> impl Strategy<Value = Value> {
    let role = prop_oneof![
        Just("user"),
        Just("assistant"),
        Just("system"),
        Just("tool"),
        Just("nobody")
    ];
    let content = prop_oneof![
        8 => words().prop_map(Value::from),
        1 => words().prop_map(|text| json!([{ "type": "text", "text": text }])),
        1 => Just(Value::Null),
        1 => Just(json!(3)),
    ];
    (role, content, prop::option::of(words())).prop_map(|(role, content, call)| {
        // Templates take whoever calls for the assistant.
        let call = call.filter(|_| role == "assistant");
        let calls = call.map(|name| {
            json!([{ "id": "123456789", "type": "function", "function": {
            "name": name, "arguments": { "x": name } } }])
        });
        json!({ "role": role, "content": content, "tool_calls": calls })
    })
}

static TEMPLATES: LazyLock<Vec<[ChatTemplate; 2]>> = LazyLock::new(|| {
    FAMILIES
        .into_iter()
        .map(|family| [marked(family), unmarked(family)].map(|source| template(&source).unwrap()))
        .collect()
});

/// Whether all that counts, white space at its ends aside, lies in what counts by marks.
fn is_within(found: &Rendered, marked: &Rendered) -> bool {
    found.answers.iter().all(|answer| {
        let said = &found.text[answer.clone()];
        let start = answer.start + said.len() - said.trim_start().len();
        let end = start + said.trim().len();
        said.trim().is_empty()
            || marked
                .answers
                .iter()
                .any(|answer| answer.start <= start && end <= answer.end)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_conversation_panics_and_answers_by_prefixes_lie_in_those_of_marks(
        messages in prop::collection::vec(message(), 0..6),
        prompt: bool,
    ) {
        let record = json!({ "messages": messages });
        let Ok(Some(Example::Chat(conversation))) = Example::from_record(&record, None) else {
            return Ok(());
        };
        // Behind a tool's answer, this one's prompt writes no header, but calls do: without marks,
        // it is part of what is said.
        let role = |message: &Value| message["role"].as_str().map(str::to_owned);
        let calls_behind_tool = messages.windows(2).any(|pair| {
            role(&pair[0]).as_deref() == Some("tool") && pair[1].get("tool_calls").is_some()
        });
        for (family, [marked, unmarked]) in FAMILIES.into_iter().zip(TEMPLATES.iter()) {
            if calls_behind_tool && family == "deepseek_r1" {
                continue;
            }
            match (marked.render(&conversation, prompt), unmarked.render(&conversation, prompt)) {
                (Ok(marked), Ok(unmarked)) => {
                    prop_assert_eq!(&marked.text, &unmarked.text);
                    let is_within = is_within(&unmarked, &marked);
                    prop_assert!(is_within, "{family}: {unmarked:?} {marked:?}");
                }
                (Err(error), Ok(_)) => prop_assert!(false, "{family}: {error}"),
                // What cannot be told is refused.
                (_, Err(_)) => {}
            }
        }
    }
}
