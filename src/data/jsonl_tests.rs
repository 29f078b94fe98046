//! Good and hostile rows, each hostile one with the words its message must hold.

use super::*;
use proptest::prelude::*;

fn read(bytes: &[u8]) -> Result<Vec<Record>> {
    read_rows(Path::new("rows.jsonl"), bytes)
}

#[test]
fn the_three_forms_are_read() {
    let text = r#"{"input": "2+2?", "output": "4", "meta": {"id": "r1"}, "group": 7}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls": []}]}
{"input_ids": [1, 2], "labels": [-100, 2]}"#;
    let rows = read(text.as_bytes()).unwrap();
    assert_eq!(rows[0].body, Body::InputOutput { input: "2+2?".into(), output: "4".into() });
    assert_eq!(rows[0].meta["id"], "r1");
    assert_eq!(rows[0].meta["group"], 7, "further keys are kept");
    let Body::Messages(turns) = &rows[1].body else { panic!("{:?}", rows[1]) };
    assert_eq!(turns[0], Message::new("user", "hi"));
    assert!(turns[1].content.is_empty() && turns[1].extra.contains_key("tool_calls"));
    assert_eq!(rows[2].body, Body::Tokenised { input_ids: vec![1, 2], labels: vec![-100, 2] });
}

#[test]
fn bom_crlf_and_blank_lines_are_accepted_and_lines_are_physical() {
    let text = "\u{FEFF}{\"input\":\"a\",\"output\":\"b\"}\r\n\r\n  \t\n{\"input\":\"あ\\u2028\u{2028}\",\"output\":\"\"}";
    let rows = read(text.as_bytes()).unwrap();
    assert_eq!(rows.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(rows[1].body, Body::InputOutput { input: "あ\u{2028}\u{2028}".into(), output: String::new() });
}

#[test]
fn equal_ids_are_no_error() {
    let row = "{\"input\":\"a\",\"output\":\"b\",\"meta\":{\"id\":\"x\"}}\n";
    assert_eq!(read(row.repeat(2).as_bytes()).unwrap().len(), 2);
}

#[test]
fn every_hostile_line_is_an_error_with_line_field_and_fix() {
    let good = "{\"input\":\"a\",\"output\":\"b\"}\n";
    let cases: &[(&[u8], &[&str])] = &[
        (b"[1, 2]", &["rows.jsonl:2:", "got [1,2], expected an object", "jq -c"]),
        (b"[", &["EOF", "jq -c"]),
        (b"{", &["EOF", "jq -c"]),
        (b"7", &["a row must be an object", "got 7"]),
        (b"\"text\"", &["a row must be an object"]),
        (b"null", &["a row must be an object"]),
        (b"{}", &["field \"input\": the field is missing", "got keys none", "fix: rows are"]),
        (br#"{"input":"a"}"#, &["field \"output\": the field is missing"]),
        (br#"{"input":"a","outptu":"b"}"#, &["rename \"outptu\" to \"output\""]),
        (br#"{"prompt":"a","completion":"b"}"#, &["\"prompt\", \"completion\"", "rename the keys"]),
        (
            br#"{"input":"a","output":7}"#,
            &["field \"output\": wrong type: got 7, expected a string", "in quotes"],
        ),
        (br#"{"input":null,"output":"b"}"#, &["field \"input\"", "got null"]),
        (br#"{"input":["a"],"output":"b"}"#, &["field \"input\"", "expected a string"]),
        (br#"{"input":"a","output":"b","output":"c"}"#, &["the key \"output\" is there twice", "keep one"]),
        (br#"{"input":"a","output":"b","meta":{"k":1,"k":1}}"#, &["\"k\" is there twice"]),
        (
            br#"{"input":"a","output":"b","meta":{"id":123456789012345678901}}"#,
            &["64 bits", "byte column 40", "in quotes"],
        ),
        (br#"{"input":"a","output":"b","meta":7}"#, &["field \"meta\"", "expected an object"]),
        (br#"{"input":"a","output":"b","messages":[]}"#, &["mixes two forms", "keep the keys of one form"]),
        (br#"{"input":"a","output":"b"} x"#, &["trailing characters", "byte column 28"]),
        (br#"{"input":"a","output":"b"}{"input":"a","output":"b"}"#, &["trailing characters"]),
        (br#"{'input':'a'}"#, &["key must be a string", "byte column 2"]),
        (br#"{"input":"a","output":NaN}"#, &["expected"]),
        (br#"{"input":"\ud800","output":"b"}"#, &["hex escape"]),
        (b"{\"input\":\"a\tb\",\"output\":\"c\"}", &["control character"]),
        (b"{\"input\":\"a\x82\",\"output\":\"b\"}", &["not UTF-8", "byte 0x82 at byte column 12", "iconv"]),
        (b"\xEF\xBB\xBF{\"input\":\"a\",\"output\":\"b\"}", &["expected value", "byte column 1"]),
        ("\u{3000}".as_bytes(), &["expected value"]),
        (br#"{"messages":[]}"#, &["field \"messages\": the conversation is empty"]),
        (br#"{"messages":{}}"#, &["expected an array"]),
        (br#"{"messages":["hi"]}"#, &["field \"messages[0]\"", "expected an object"]),
        (br#"{"messages":[{"content":"a"}]}"#, &["field \"messages[0].role\": no role", "say who speaks"]),
        (br#"{"messages":[{"role":"user"}]}"#, &["field \"messages[0].content\"", "expected a string"]),
        (br#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#, &["messages[0].content"]),
        (br#"{"input_ids":[1]}"#, &["field \"labels\": the field is missing"]),
        (br#"{"input_ids":[1,2],"labels":[1]}"#, &["got 1 labels, expected 2, one per token"]),
        (br#"{"input_ids":[-1],"labels":[1]}"#, &["field \"input_ids[0]\"", "got -1"]),
        (br#"{"input_ids":[1.5],"labels":[1]}"#, &["field \"input_ids[0]\"", "got 1.5"]),
        (br#"{"input_ids":[4294967296],"labels":[1]}"#, &["field \"input_ids[0]\""]),
        (br#"{"input_ids":[1],"labels":[-1]}"#, &["field \"labels[0]\"", "or -100"]),
        (br#"{"input_ids":1,"labels":[1]}"#, &["field \"input_ids\"", "expected an array"]),
    ];
    for (line, words) in cases {
        let bytes = [good.as_bytes(), line, b"\n", good.as_bytes()].concat();
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.starts_with("error[DATA] rows.jsonl:2: ") && error.contains("; fix: "), "{error}");
        for word in *words {
            assert!(error.contains(word), "{error:?} lacks {word:?}");
        }
    }
}

#[test]
fn files_without_rows_and_other_encodings_are_named() {
    assert!(read(b"").unwrap_err().to_string().contains("the file has no rows"));
    assert!(read(b"\xEF\xBB\xBF\n\n").unwrap_err().to_string().contains("the file has no rows"));
    assert!(read(b"\xFF\xFE{\0").unwrap_err().to_string().contains("the file is UTF-16"));
    let error = read_files(&["no/such/file.jsonl".into()]).unwrap_err();
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let bomb = format!("{{\"input\":{}", "[".repeat(1_000_000));
    assert!(read(bomb.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn what_serde_json_writes_is_read_back(input: String, output: String, id: i64) {
        let row = serde_json::json!({ "input": input, "output": output, "meta": { "id": id } });
        let rows = read(format!("{row}\n").as_bytes()).unwrap();
        prop_assert_eq!(&rows[0].body, &Body::InputOutput { input, output });
        prop_assert_eq!(&rows[0].meta["id"], &Value::from(id));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }
}
