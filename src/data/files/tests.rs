//! Good and hostile rows and files, each hostile one with the words its message must hold.

use super::*;
use crate::data::record::{Body, Message, PairForm};
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
    assert_eq!(
        rows[0].body,
        Body::InputOutput { input: "2+2?".into(), output: "4".into(), form: PairForm::InputOutput }
    );
    assert_eq!(rows[0].meta["id"], "r1");
    assert_eq!(rows[0].meta["group"], 7, "further keys are kept");
    let Body::Messages(conversation) = &rows[1].body else { panic!("{:?}", rows[1]) };
    let turns = &conversation.turns;
    assert_eq!(turns[0], Message::new("user", "hi"));
    assert!(turns[1].content.is_empty() && turns[1].extra.contains_key("tool_calls"));
    assert_eq!(rows[2].body, Body::Tokenised { input_ids: vec![1, 2], labels: vec![-100, 2] });
}

#[test]
fn bom_crlf_and_blank_lines_are_accepted_and_lines_are_physical() {
    let text = "\u{FEFF}{\"input\":\"a\",\"output\":\"b\"}\r\n\r\n  \t\n{\"input\":\"あ\\u2028\u{2028}\",\"output\":\"\"}";
    let rows = read(text.as_bytes()).unwrap();
    assert_eq!(rows.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(
        rows[1].body,
        Body::InputOutput {
            input: "あ\u{2028}\u{2028}".into(),
            output: String::new(),
            form: PairForm::InputOutput
        }
    );
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
        (b"{}", &["the row is empty: got {}", "fix: remove the line"]),
        (br#"{"input":"a"}"#, &["field \"output\": the field is missing; fix: rows are"]),
        (br#"{"input":"a","outptu":"b"}"#, &["rename \"outptu\" to \"output\""]),
        (br#"{"question":"a","answer":"b"}"#, &["\"question\", \"answer\"", "rename the keys"]),
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
    let error = read_files(&["no/such/file.jsonl".into()], &|| Ok(())).unwrap_err();
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
        prop_assert_eq!(&rows[0].body, &Body::InputOutput { input, output, form: PairForm::InputOutput });
        prop_assert_eq!(&rows[0].meta["id"], &Value::from(id));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }
}

/// A file with these bytes, and its rows.
fn file(name: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read_file(&path)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn arrays_csv_and_gzip_give_the_rows_of_json_lines() {
    let lines = "{\"input\":\"a\",\"output\":\"b\"}\n{\"input\":\"c, \\\"d\\\"\",\"output\":\"\"}\n";
    let array = "\u{FEFF} [\n{\"input\":\"a\",\"output\":\"b\"},\n\n{\"input\":\"c, \\\"d\\\"\",\n\"output\":\"\"}]\n";
    let csv = "\u{FEFF}input,output\r\na,b\r\n\"c, \"\"d\"\"\",\r\n";
    let tsv = "input\toutput\na\tb\n\"c, \"\"d\"\"\"\t\n";
    let expected: Vec<Body> =
        file("rows.jsonl", lines.as_bytes()).unwrap().into_iter().map(|r| r.body).collect();
    assert_eq!(expected.len(), 2);
    let files = [
        ("rows.json", array, [2, 4]),
        ("rows.csv", csv, [2, 3]),
        ("rows.tsv", tsv, [2, 3]),
        ("rows.jsonl", lines, [1, 2]),
    ];
    for (name, text, starts) in files {
        for (name, bytes) in
            [(name.to_owned(), text.as_bytes().to_vec()), (format!("{name}.gz"), gzip(text.as_bytes()))]
        {
            let rows = file(&name, &bytes).unwrap();
            let lines: Vec<usize> = rows.iter().map(|row| row.line).collect();
            assert_eq!(lines, starts, "{name}");
            assert_eq!(rows.into_iter().map(|row| row.body).collect::<Vec<_>>(), expected, "{name}");
        }
    }
}

#[test]
fn a_compressed_file_that_is_damaged_is_named_with_what_to_do() {
    let text = "{\"input\":\"a\",\"output\":\"b\"}\n".repeat(50);
    let whole = gzip(text.as_bytes());
    assert_eq!(
        file("a.jsonl.gz", &[whole.clone(), whole.clone()].concat()).unwrap().len(),
        100,
        "two members"
    );
    let refused = |bytes: &[u8], name: &str, words: &str| {
        let error = file(name, bytes).unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("DATA", 2), "{error}");
        assert!(error.path().is_some_and(|path| path.ends_with(name)), "{error}");
        assert!(
            error.to_string().contains(words) && error.fix().unwrap().contains("download or copy it again"),
            "{error}"
        );
    };
    for name in ["a.jsonl.gz", "a.csv.gz", "a.json.gz"] {
        // Behind the two bytes that say what the file is.
        for len in 2..whole.len() {
            refused(&whole[..len], name, "the compressed file is cut short");
        }
        for behind in [&b"\n"[..], b"\0\0\0\0\0\0\0\0\0\0\0\0", b"<html>"] {
            refused(&[&whole, behind].concat(), name, "the compressed file goes on behind its end");
        }
        refused(&[&whole[..], &whole[..whole.len() - 3]].concat(), name, "cut short");
        for from_end in [1, 4, 5, 8] {
            let mut other = whole.clone();
            let at = other.len() - from_end;
            other[at] ^= 0x20;
            refused(&other, name, "the compressed file is damaged");
        }
    }
}

#[test]
fn reading_ends_where_there_is_no_reason_to_go_on() {
    let rows = "{\"input\":\"a\",\"output\":\"b\"}\n".repeat(3);
    let array = format!("[{}]", rows.trim().replace('\n', ","));
    for (name, text) in
        [("a.jsonl", rows.as_str()), ("a.json", &array), ("a.csv", "input,output\na,b\nc,d\ne,f\n")]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let asked = std::cell::Cell::new(0);
        let until = |last: usize| {
            asked.set(0);
            read_files(std::slice::from_ref(&path), &|| {
                asked.set(asked.get() + 1);
                if asked.get() > last { Err(Error::Stopped { what: "enough".into() }) } else { Ok(()) }
            })
        };
        assert_eq!(until(100).unwrap().len(), 3, "{name}");
        let questions = asked.get();
        assert!(questions >= 3, "{name}: once for each row");
        for last in 0..questions {
            assert!(matches!(until(last), Err(Error::Stopped { .. })), "{name} {last}");
        }
    }
}

#[test]
fn files_of_other_kinds_are_named_with_the_way_out() {
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("a.parquet", b"PAR1\x15\x04", &["a Parquet file", "pandas"]),
        ("a.xlsx", b"PK\x03\x04\x14\0", &["a spreadsheet", "CSV"]),
        ("a.jsonl.zst", b"\x28\xB5\x2F\xFD\0", &["zstd -d"]),
        ("a.json", b"[{\"input\":\"a\",\"output\":\"b\"}", &["a.json:1", "starts like one JSON array"]),
        ("a.json", b"[\n7]", &["a.json:2", "a row must be an object"]),
        ("a.csv", b"input,input\na,b\n", &["a.csv:1", "field \"input\": two columns have one name"]),
        ("a.csv", b"input,output\na\n", &["a.csv:2", "wrong number of columns", "got 1 columns"]),
        ("a.csv", b"question,answer\na,b\n", &["a.csv:2", "field \"input\"", "\"answer\""]),
        ("a.csv", b"input,output\n\xFF,b\n", &["a.csv:2", "not UTF-8"]),
        ("a.csv", b"", &["the file has no rows"]),
        ("a.csv", b"input,output\na,b\nc,\"d\ne,f\n", &["a.csv:3", "is never closed"]),
        ("a.tsv", b"\xEF\xBB\xBF\"input\"\toutput\n\"a\nb\"c\td\n", &["a.tsv:3", "text behind the quote"]),
        ("a.jsonl", b"input,output\na,b\n", &["a.jsonl:1", "name the file .csv"]),
        ("a.gz", b"\x1F\x8B\x08\0broken", &["a.gz"]),
    ];
    for (name, bytes, words) in cases {
        let error = file(name, bytes).unwrap_err().to_string();
        for word in *words {
            assert!(error.contains(word), "{name}: {error:?} lacks {word:?}");
        }
    }
}

#[test]
fn rows_of_other_tools_say_what_they_say() {
    let body = |row: &str| read(row.as_bytes()).map(|mut rows| rows.remove(0).body);
    let turns = |row: &str| match body(row).unwrap() {
        Body::Messages(conversation) => conversation,
        other => panic!("{other:?}"),
    };
    let alpaca =
        body(r#"{"instruction":"Add","input":"2 2","output":"4","system":null,"history":null}"#).unwrap();
    assert_eq!(
        alpaca,
        Body::InputOutput { input: "Add\n2 2".into(), output: "4".into(), form: PairForm::Instruction }
    );
    assert_eq!(body(r#"{"text":"a"}"#).unwrap(), Body::Text("a".into()));
    let pair = body(r#"{"prompt":"a","completion":" b"}"#).unwrap();
    assert_eq!(
        pair,
        Body::InputOutput { input: "a".into(), output: " b".into(), form: PairForm::PromptCompletion }
    );
    let split = turns(
        r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"}]}"#,
    );
    assert_eq!(split.turns.iter().map(|turn| turn.masked).collect::<Vec<_>>(), [true, true, true, false]);
    let shared = turns(
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"function_call","value":"{\"name\":\"f\",\"arguments\":{}}"},{"from":"observation","value":"1"},{"from":"gpt","value":"b"}],"system":"s","tools":"[{\"name\":\"f\"}]"}"#,
    );
    assert_eq!(
        shared.turns.iter().map(|turn| turn.role.as_str()).collect::<Vec<_>>(),
        ["system", "user", "assistant", "tool", "assistant"]
    );
    assert_eq!(shared.turns[2].extra["tool_calls"][0]["function"]["name"], "f");
    assert_eq!(shared.variables["tools"][0]["name"], "f");
    let parts = turns(
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"tools":[{"name":"f"}]},{"role":"assistant","content":"c","weight":0.0}],"enable_thinking":false}"#,
    );
    assert_eq!((parts.turns[0].content.as_str(), parts.turns[1].masked), ("ab", true));
    assert_eq!(
        (&parts.variables["enable_thinking"], &parts.variables["tools"][0]["name"]),
        (&Value::from(false), &Value::from("f"))
    );
    let padded =
        body(r#"{"input_ids":[0,0,7,8,0],"labels":[-100,-100,-100,8,-100],"attention_mask":[0,0,1,1,0]}"#)
            .unwrap();
    assert_eq!(padded, Body::Tokenised { input_ids: vec![7, 8], labels: vec![-100, 8] });
}

#[test]
fn columns_without_a_meaning_are_meta_data_and_named() {
    let rows =
        read(br#"{"input":"a","output":"b","id":7,"difficulty":3,"tags":["x"],"image":null}"#).unwrap();
    assert_eq!(
        (&rows[0].meta["difficulty"], &rows[0].meta["tags"]),
        (&Value::from(3), &Value::from("[\"x\"]"))
    );
    assert_eq!(*rows[0].columns, ["difficulty".to_owned(), "tags".to_owned()]);
    assert!(!rows[0].meta.contains_key("image"));
}

#[test]
fn what_a_row_asks_for_and_nobody_does_is_refused_by_its_name() {
    let turn = |turn: &str| format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}},{turn}]}}");
    let cases: Vec<(String, &[&str])> = vec![
        (r#"{"input":"a","output":"b","weight":0.5}"#.into(), &["field \"weight\"", "no weights"]),
        (r#"{"prompt":"a","completion":"b","rejected":"c"}"#.into(), &["field \"rejected\"", "preference"]),
        (r#"{"input":"a","output":"b","images":["x.png"]}"#.into(), &["field \"images\"", "only text"]),
        (r#"{"messages":[{"role":"user","content":"a"}],"labels":[1]}"#.into(), &["field \"labels\"", "a conversation has no such key"]),
        (r#"{"text":"a","system":"s"}"#.into(), &["field \"system\""]),
        (r#"{"text":"a","messages":[{"role":"user","content":"a"}]}"#.into(), &["mixes two forms"]),
        (r#"{"input":"a","output":"b","history":[["x"]]}"#.into(), &["field \"history[0]\"", "two strings"]),
        (r#"{"input":"a","output":"b","tools":"f"}"#.into(), &["field \"tools\"", "a list of objects"]),
        (r#"{"input":"a","output":"b","chat_template_kwargs":{"tools":[]}}"#.into(), &["chat_template_kwargs.tools"]),
        (r#"{"input":"a","output":"b","enable_thinking":true,"chat_template_kwargs":{"enable_thinking":false}}"#.into(), &["contradicts itself"]),
        (r#"{"input_ids":[1,2,3],"labels":[1,2,3],"attention_mask":[1,0,1]}"#.into(), &["attention_mask[1]"]),
        (r#"{"input_ids":[1,2],"labels":[1,2],"attention_mask":[0,1]}"#.into(), &["labels[0]", "padded"]),
        (r#"{"input_ids":[1,2],"labels":[1,2],"position_ids":[0,1]}"#.into(), &["field \"position_ids\""]),
        (r#"{"input":"a","output":"b","train":false}"#.into(), &["field \"train\"", "out of the loss"]),
        (r#"{"messages":[{"role":"user","content":"a"}],"loss":0}"#.into(), &["field \"loss\""]),
        (r#"{"input":"a","output":"b","tools":"[{\"a\":1,\"a\":2}]"}"#.into(), &["field \"tools\"", "twice"]),
        (turn(r#"{"role":"assistant","content":"b","train_on_turn":false}"#), &["messages[1].train_on_turn", "\"train\": false"]),
        (turn(r#"{"role":"Assistant","content":"b"}"#), &["messages[1].role", "write \"assistant\""]),
        (turn(r#"{"role":"model","content":"b"}"#), &["messages[1].role", "write \"assistant\""]),
        (turn(r#"{"role":"assistant","content":"b","weight":0.5}"#), &["messages[1].weight", "0 or 1"]),
        (turn(r#"{"role":"user","content":"b","train":true}"#), &["messages[1].train", "only answers"]),
        (turn(r#"{"role":"assistant","content":[{"type":"image_url","image_url":"x"}]}"#), &["messages[1].content[0]", "only text"]),
        (turn(r#"{"role":"assistant","content":"b","function_call":{"name":"f"}}"#), &["messages[1].function_call", "tool_calls"]),
        (turn(r#"{"role":"assistant","content":null,"refusal":"no"}"#), &["messages[1].content"]),
        (r#"{"conversations":[{"from":"bing","value":"a"}]}"#.into(), &["conversations[0].from", "\"gpt\""]),
        (r#"{"messages":[{"role":"user","content":"a"}],"loss_mask":[1]}"#.into(), &["loss_mask[0]", "only answers"]),
        (r#"{"messages":[{"role":"user","content":"a"}],"loss_mask":[0,1]}"#.into(), &["loss_mask", "one per turn"]),
    ];
    for (row, words) in cases {
        let error = read(row.as_bytes()).unwrap_err().to_string();
        assert!(
            error.starts_with("error[DATA] rows.jsonl:1: ") && error.contains("; fix: "),
            "{row}: {error}"
        );
        for word in words {
            assert!(error.contains(word), "{row}: {error:?} lacks {word:?}");
        }
    }
}
