//! Rows that contradict themselves, mix the words of two tools, or hold lists as JSON text.

use super::*;
use serde_json::json;

fn turns(row: Value) -> Conversation {
    match parse(row).unwrap().body {
        Body::Messages(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

fn refusal(row: Value) -> String {
    let error = parse(row.clone()).map(|parsed| parsed.body).expect_err(&row.to_string());
    assert_eq!((error.code(), error.exit_code()), ("DATA", 2), "{error}");
    assert!(error.field().is_some() && error.fix().is_some(), "{error}");
    error.to_string()
}

#[test]
fn a_turn_that_says_two_things_is_refused_by_its_keys() {
    let user = json!({"role": "user", "content": "a"});
    let keys: [(&str, [Value; 2]); 4] = [
        ("weight", [json!(0), json!(1)]),
        ("train", [json!(false), json!(true)]),
        ("loss", [json!(false), json!(1.0)]),
        ("loss_mask", [json!(0.0), json!(1)]),
    ];
    for (first, of_first) in &keys {
        for (second, of_second) in keys.iter().filter(|(second, _)| second != first) {
            for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let turn =
                    json!({"role": "assistant", "content": "b", *first: of_first[i], *second: of_second[j]});
                let row = json!({"messages": [user, turn]});
                if i == j {
                    assert_eq!(turns(row).turns[1].masked, i == 0);
                    continue;
                }
                let error = refusal(row);
                let field = |key: &str| error.contains(&format!("field \"messages[1].{key}\""));
                assert!(field(first) || field(second), "{error}");
                assert!(
                    error.contains("the turn contradicts itself") && error.contains("keep one of the two"),
                    "{error}"
                );
                assert!(error.contains(first) && error.contains(second), "{error}");
            }
        }
    }
    // The mask of the row, and the completion of TRL.
    let turn = json!({"role": "assistant", "content": "b", "train": true});
    let error = refusal(json!({"messages": [user, turn], "loss_mask": [0, 0]}));
    assert!(error.contains("field \"loss_mask[1]\"") && error.contains("by \"train\""), "{error}");
    let answer = json!({"role": "assistant", "content": "c"});
    let error = refusal(json!({"prompt": [user, turn, user], "completion": [answer]}));
    assert!(error.contains("field \"prompt[1].train\"") && error.contains("completion"), "{error}");
}

#[test]
fn words_of_two_tools_in_one_turn_say_the_same_or_are_refused() {
    let plain =
        turns(json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}));
    for key in ["messages", "conversations"] {
        for pair in [
            [json!({"role": "user", "value": "a"}), json!({"role": "assistant", "value": "b"})],
            [
                json!({"from": "human", "content": "a"}),
                json!({"from": "gpt", "content": [{"type": "text", "text": "b"}]}),
            ],
            [
                json!({"from": "human", "role": "user", "value": "a", "content": "a"}),
                json!({"from": "gpt", "role": "assistant", "value": "b", "content": null}),
            ],
        ] {
            assert_eq!(turns(json!({key: pair})), plain, "{key}: {pair:?}");
        }
    }
    for (turn, field) in [
        (json!({"role": "user", "from": "gpt", "content": "a"}), "x[0].from"),
        (json!({"role": "user", "content": "a", "value": "b"}), "x[0].value"),
        (json!({"from": "human", "content": "a", "value": "b"}), "x[0].value"),
        (json!({"value": "a"}), "x[0].from"),
        (json!({"content": "a"}), "x[0].role"),
        (json!({"from": "human"}), "x[0].value"),
        (json!({"role": "user"}), "x[0].content"),
        (json!({"from": "function_call", "content": "no call"}), "x[0].content"),
        (json!({"from": "function_call", "value": "no call"}), "x[0].value"),
        (json!({"from": "robot", "content": "a"}), "x[0].from"),
    ] {
        for key in ["messages", "conversations"] {
            let error = refusal(json!({key: [turn]}));
            assert!(error.contains(&format!("field \"{}\"", field.replace('x', key))), "{turn}: {error}");
        }
    }
    let call = json!({"from": "function_call", "content": "{\"name\": \"f\"}"});
    assert_eq!(
        turns(json!({"conversations": [call]})).turns[0].extra["tool_calls"][0]["function"]["name"],
        "f"
    );
}

#[test]
fn a_turn_knows_its_key_in_the_row() {
    let places = |row: Value| {
        turns(row)
            .turns
            .iter()
            .map(|turn| format!("{} {}", turn.place.field(), turn.place.text_field()))
            .collect::<Vec<_>>()
    };
    let user = json!({"role": "user", "content": "a"});
    assert_eq!(
        places(json!({"messages": [user, user], "system": "s"})),
        ["system system", "messages[0] messages[0].content", "messages[1] messages[1].content"]
    );
    assert_eq!(
        places(json!({"prompt": [user], "completion": [{"from": "gpt", "value": "b"}]})),
        ["prompt[0] prompt[0].content", "completion[0] completion[0].value"]
    );
    assert_eq!(
        places(json!({"instruction": "i", "output": "o", "history": [["a", "b"]], "system": "s"})),
        [
            "system system",
            "history[0] history[0]",
            "history[0] history[0]",
            "instruction instruction",
            "output output"
        ]
    );
    let call = json!({"from": "function_call", "value": "{\"name\": \"f\"}"});
    let conversation = turns(json!({"conversations": [{"from": "human", "value": "a"}, call]}));
    assert_eq!(conversation.turns[1].place.calls_field(), "conversations[1].value");
    let error = refusal(json!({"messages": [{"role": "user", "content": "a", "tools": 7}], "system": "s"}));
    assert!(error.contains("field \"messages[0].tools\""), "{error}");
}

#[test]
fn keys_of_text_parts_are_listed_once_or_refused() {
    let part = json!({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "id": null});
    let row = json!({"messages": [{"role": "user", "content": [part, part]}, {"role": "assistant", "content": "b"}], "x": 1});
    assert_eq!(parse(row).unwrap().columns, ["messages[].content[].cache_control", "x"]);
    for key in ["weight", "train", "loss", "loss_mask", "mask", "train_detail"] {
        let part = json!({"type": "text", "text": "a", key: 0});
        let error = refusal(json!({"messages": [{"role": "assistant", "content": [part]}]}));
        assert!(error.contains(&format!("field \"messages[0].content[0].{key}\"")), "{error}");
    }
}

#[test]
fn lists_and_objects_as_json_text_are_read_and_named() {
    let list =
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": "[]"}]);
    for key in ["messages", "conversations"] {
        let as_text = parse(
            json!({key: list.to_string(), "loss_mask": "[0, 1]", "meta": "{\"id\": 7}", "documents": ""}),
        )
        .unwrap();
        let as_list = parse(json!({key: list, "loss_mask": [0, 1], "meta": {"id": 7}})).unwrap();
        assert_eq!((&as_text.body, &as_text.meta), (&as_list.body, &as_list.meta));
        assert_eq!(as_text.json_texts, [key, "loss_mask", "meta"]);
        assert!(as_list.json_texts.is_empty() && as_text.columns.is_empty(), "{:?}", as_text.columns);
    }
    let ids = parse(json!({"input_ids": "[1, 2]", "labels": "[-100, 2]", "attention_mask": ""})).unwrap();
    assert_eq!(ids.body, Body::Tokenised { input_ids: vec![1, 2], labels: vec![-100, 2] });
    let options = json!({"messages": list, "enable_thinking": "False", "chat_template_kwargs": "{\"x\": 1}"});
    assert_eq!(turns(options).variables["x"], 1);
    // As pandas writes a list into a table.
    let python = "[{'role': 'user', 'content': 'a'}]";
    let error = refusal(json!({ "messages": python }));
    assert!(error.contains("field \"messages\"") && error.contains("json.dumps"), "{error}");
    assert!(refusal(json!({"messages": "hello"})).contains("write it as [...]"));
    assert!(refusal(json!({"messages": "{}"})).contains("an array as JSON text"));
    assert!(refusal(json!({"messages": list, "meta": "free text"})).contains("rename the key"));
    assert!(
        refusal(json!({"messages": [{"role": "assistant", "tool_calls": "f()"}]}))
            .contains("messages[0].tool_calls")
    );
}
