//! Hostile templates in the sandbox: each gives an error that names its origin, and the parent survives.

use super::*;
use crate::data::record::Message;
use crate::data::template::ChatTemplate;
use serde_json::Map;
use std::sync::Arc;

/// This test binary as a helper: it runs only the test [`helper_process`], which serves when the variable is set.
pub(in crate::data) fn helper_command() -> HelperCommand {
    let exe = std::env::current_exe().unwrap();
    let args = ["TANREN_TEMPLATE_HELPER=1".into(), exe.into_os_string()];
    let filter =
        ["data::template::sandbox::tests::helper_process", "--exact", "--nocapture", "--test-threads=1"];
    HelperCommand { program: "env".into(), args: args.into_iter().chain(filter.map(Into::into)).collect() }
}

#[test]
fn helper_process() {
    if std::env::var_os("TANREN_TEMPLATE_HELPER").is_some() {
        serve_template(std::io::stdin().lock(), std::io::stdout().lock()).unwrap();
    }
}

fn hello() -> Vec<Message> {
    vec![Message::new("user", "hello あ")]
}

/// Turns that ask for an answer.
fn scene<'a>(messages: &'a [Message], variables: &'a Map<String, Value>) -> Scene<'a> {
    Scene { messages, add_generation_prompt: true, variables }
}

fn run(source: &str) -> Result<String> {
    SandboxedTemplate::spawn(&helper_command(), source, "evil/chat_template.jinja")?
        .render(&scene(&hello(), &Map::new()))
}

#[test]
fn a_good_template_gives_what_it_gives_in_process() {
    let source =
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{{ bos_token }}{{ x | tojson }}";
    let variables = Map::from_iter([
        ("bos_token".into(), "<s>".into()),
        ("x".into(), serde_json::json!({"k": [1, 0.5]})),
    ]);
    let template = Arc::new(SandboxedTemplate::spawn(&helper_command(), source, "good").unwrap());
    let expected =
        ChatTemplate::compile(source, "good").unwrap().render(&scene(&hello(), &variables)).unwrap();
    assert_eq!(expected, "<user>hello あ\n<s>{\"k\": [1, 0.5]}");
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (template, variables) = (Arc::clone(&template), variables.clone());
            thread::spawn(move || {
                (0..50).map(|_| template.render(&scene(&hello(), &variables)).unwrap()).collect::<Vec<_>>()
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap().iter().all(|text| *text == expected));
    }
}

#[test]
fn an_error_of_the_template_leaves_its_process_running() {
    let source = "{% if messages[0].content == 'bad' %}{{ raise_exception('no bad words') }}{% endif %}ok";
    let template = SandboxedTemplate::spawn(&helper_command(), source, "model/chat_template.jinja").unwrap();
    let error = template.render(&scene(&[Message::new("user", "bad")], &Map::new())).unwrap_err().to_string();
    assert!(
        error.starts_with("error[TEMPLATE] model/chat_template.jinja: chat template line 1: no bad words"),
        "{error}"
    );
    assert_eq!(template.render(&scene(&hello(), &Map::new())).unwrap(), "ok");
}

#[test]
fn large_conversations_pass_in_both_directions() {
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let template = SandboxedTemplate::spawn(&helper_command(), source, "good").unwrap();
    let text = "あ\n\u{1}\"".repeat(300_000);
    assert_eq!(template.render(&scene(&[Message::new("user", text.as_str())], &Map::new())).unwrap(), text);
}

#[test]
fn hostile_templates_are_errors_and_the_parent_lives() {
    let doubling = format!("{{% set a = 'x' * 1000 %}}{}{{{{ a }}}}", "{% set a = a ~ a %}".repeat(24));
    let nested = format!("{}x{}", "{% if true %}".repeat(5500), "{% endif %}".repeat(5500));
    let brackets = format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000));
    let nested_list = format!("{{% set a = [] %}}{}{{{{ a }}}}", "{% set a = [a] %}".repeat(60_000));
    let cases: &[&str] = &[
        &doubling,
        &nested,
        &brackets,
        &nested_list,
        "{{ 'x' | indent(4000000000) }}{{ 'a\nb' | indent(4000000000) }}",
        "{{ '%4000000000d' | format(1) }}",
        "{{ '{:4000000000}'.format(1) }}",
        "{% set a = 'x' * 10000 %}{% set a = a | replace('x', a) %}{% set a = a | replace('x', a) %}{{ a | length }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}",
        "{% macro f(x) %}{{ f(x + 1) }}{% endmacro %}{{ f(0) }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
        "{{ range(100000000000) | list }}",
        "{{ 'x' * 100000000000 }}",
        "{{ [1] * 100000000000 }}",
        "{{ messages | tojson(indent=4000000000) }}",
        "{{ 9 ** 99999999 }}",
        "{{ 1 // 0 }}",
        "{{ 'x'.center(100000000000) }}",
        "{{ ''.join(range(100000)|map('string')) * 1000 }}",
        "{{ 'a,'.split(',') * 100000000 }}",
        "{{ ('x' * 60000000) ~ ('x' * 60000000) }}",
        "{{ ('x' * 6000000).replace('', 'x' * 6000000) }}",
        "{{ 'x' | center(100000000000) }}",
        "{{ [1] | batch(100000000000, 'x') | list }}",
        "{% set ns = namespace(a=[]) %}{% for i in range(1000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].items }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.x.y }}",
        "{{ strftime_now('%Q') }}",
        "{% for %}",
        "{{",
    ];
    for source in cases {
        let shown: String = source.chars().take(90).collect();
        let error = match run(source) {
            Err(error) => error.to_string(),
            Ok(text) => panic!("{shown}: {} bytes", text.len()),
        };
        assert!(
            error.starts_with("error[TEMPLATE] evil/chat_template.jinja: chat template"),
            "{shown}: {error}"
        );
    }
}

#[test]
fn a_dead_process_is_said_so() {
    let source = "{% if messages[0].content == 'boom' %}{% set ns = namespace(a=[]) %}{% for i in range(60000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a == [ns.a] }}{% endif %}ok";
    let template = SandboxedTemplate::spawn(&helper_command(), source, "evil").unwrap();
    assert_eq!(template.render(&scene(&hello(), &Map::new())).unwrap(), "ok");
    let error =
        template.render(&scene(&[Message::new("user", "boom")], &Map::new())).unwrap_err().to_string();
    assert!(error.contains("brought its process down (signal"), "{error}");
    let error = template.render(&scene(&hello(), &Map::new())).unwrap_err().to_string();
    assert!(error.contains("ended after an earlier failure"), "{error}");
}

#[test]
fn a_helper_that_never_answers_is_stopped() {
    let command = HelperCommand { program: "sleep".into(), args: vec!["60".into()] };
    let mut helper = Helper::start(&command).unwrap();
    let request = Request::Compile { source: "x".repeat(1 << 20) };
    let failure = helper.ask(&[request], Duration::from_millis(50)).remove(0).unwrap_err();
    assert!(failure.what.contains("took more than"), "{}", failure.what);
    let missing = HelperCommand { program: "no/such/program".into(), args: vec![] };
    assert_eq!(SandboxedTemplate::spawn(&missing, "", "x").unwrap_err().exit_code(), 3);
}

#[test]
fn slow_templates_are_stopped_by_the_clock() {
    // Few steps, each over a megabyte, which the step limit does not catch.
    let source = "{% set a = 'x' * 1000000 %}{% for i in range(100000) %}{% set b = a | upper %}{% endfor %}";
    let error = run(source).unwrap_err().to_string();
    assert!(error.contains("it took more than 2 seconds"), "{error}");
}
