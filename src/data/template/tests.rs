//! Templates in the styles of published families, compared with the text that Jinja2 renders.

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/templates");

fn messages(value: &Value) -> Vec<Message> {
    let turn = |turn: &Value| {
        let mut extra = turn.as_object().unwrap().clone();
        let mut text = |key: &str| extra.remove(key).and_then(|value| value.as_str().map(str::to_owned));
        let (role, content) = (text("role").unwrap(), text("content").unwrap_or_default());
        Message { extra, ..Message::new(role, content) }
    };
    value.as_array().unwrap().iter().map(turn).collect()
}

/// A conversation without turns.
fn nobody(variables: &Map<String, Value>) -> Scene<'_> {
    Scene { messages: &[], add_generation_prompt: false, variables }
}

#[test]
fn every_style_gives_the_bytes_of_jinja2() {
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 80);
    for case in &cases {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap();
        let template = ChatTemplate::compile(&source, name).unwrap();
        let variables = case["variables"].as_object().unwrap();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let result = template.render(&Scene {
            messages: &messages(&case["messages"]),
            add_generation_prompt: prompt,
            variables,
        });
        match (result, case["text"].as_str(), case["error"].as_str()) {
            (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{case}"),
            (Err(error), None, Some(expected)) => {
                assert!(error.to_string().contains(expected), "{error} {case}")
            }
            (result, ..) => panic!("{result:?} {case}"),
        }
    }
}

fn read(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(format!("{FOLDER}/{path}")).unwrap()).unwrap()
}

/// Compares `got` with the output of Jinja2; an error is allowed too. Returns whether it was an error.
fn check_text(source: &str, got: Result<String>, expected: Option<&str>) -> bool {
    match (got, expected) {
        (Ok(text), Some(expected)) => assert_eq!(text, expected, "{source}"),
        (Ok(text), None) => panic!("{source}: Jinja2 fails, not {text:?}"),
        (Err(_), Some(_)) => return true,
        (Err(_), None) => {}
    }
    false
}

#[test]
fn snippets_give_the_text_of_jinja2() {
    let file = read("python/snippets.json");
    let turns = messages(&serde_json::json!([file["message"]]));
    for case in file["snippets"].as_array().unwrap() {
        let source = format!("{{% set m = messages[0] %}}[[{}]]", case["snippet"].as_str().unwrap());
        let got = ChatTemplate::compile(&source, "m")
            .and_then(|t| t.render(&Scene { messages: &turns, ..nobody(&Map::new()) }));
        let expected = case["expected"].as_str().map(|text| format!("[[{text}]]"));
        assert!(!check_text(&source, got, expected.as_deref()), "{source} is refused");
    }
}

#[test]
fn expressions_give_the_text_of_jinja2_or_are_refused() {
    let file = read("python/expressions.json");
    let variables = Map::from_iter([("m".to_owned(), file["m"].clone())]);
    let cases = file["cases"].as_array().unwrap();
    let refused = cases.iter().filter(|case| {
        let source = case[0].as_str().unwrap();
        let got = ChatTemplate::compile(source, "m").and_then(|t| t.render(&nobody(&variables)));
        check_text(source, got, case[1].as_str())
    });
    assert!(cases.len() > 150 && refused.count() < 15);
}

#[test]
fn errors_name_origin_and_line() {
    let error = ChatTemplate::compile("a\n{% for %}", "m/chat_template.jinja").unwrap_err().to_string();
    assert!(error.starts_with("error[TEMPLATE] m/chat_template.jinja: chat template line 2: "), "{error}");
    let template = ChatTemplate::compile("\n\n{{ raise_exception('system first') }}", "m").unwrap();
    let error = template.render(&nobody(&Map::new())).unwrap_err().to_string();
    assert!(error.contains("chat template line 3: system first; fix: "), "{error}");
    assert!(ChatTemplate::compile(&"x".repeat(MAX_SOURCE_BYTES + 1), "m").is_err());
}

#[test]
fn loops_and_floods_end_in_process_too() {
    for source in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        let template = ChatTemplate::compile(source, "m").unwrap();
        assert!(template.render(&nobody(&Map::new())).is_err(), "{source}");
    }
}

#[test]
fn the_day_is_a_variable() {
    let template = ChatTemplate::compile("{{ strftime_now('%Y-%m-%d') }}", "m").unwrap();
    assert_eq!(template.render(&nobody(&Map::new())).unwrap(), "2024-07-26");
    let today = Map::from_iter([("today".into(), "2025-01-02".into())]);
    assert_eq!(template.render(&nobody(&today)).unwrap(), "2025-01-02");
}

#[test]
fn generation_tags_keep_their_white_space_control() {
    let source = "{{ '{%' }} {%- generation +%} a {%+ endgeneration -%} b {% raw %}{% x %}{% endraw %}";
    let expected = "{{ '{%' }} {%- if true +%} a {%+ endif -%} b {% raw %}{% x %}{% endraw %}";
    assert_eq!(without_generation_tags(source), expected);
    assert_eq!(without_generation_tags("{% generation"), "{% generation");
}
