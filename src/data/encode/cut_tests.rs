//! What goes of rows that are too long, in which order, and that it is said.

use super::tests::{chat, one, pair, records, taught, turns, with};
use super::*;

fn cut_to(max: usize) -> Encoder<'static> {
    with(chat(max), |o| o.truncation = Truncation::PromptLeft)
}

fn text(example: &Example) -> String {
    super::tests::decode(example)
}

const LONG: &str = "one two three four five six seven eight nine ten";

fn conversation() -> Value {
    turns(&[
        ("system", "sys"),
        ("user", &format!("first {LONG}")),
        ("assistant", "answer A"),
        ("user", &format!("second {LONG}")),
        ("assistant", "answer B"),
        ("user", &format!("third {LONG}")),
        ("assistant", "answer C"),
    ])
}

/// The lines of the audit about what was cut.
fn said(encoder: &Encoder<'_>, rows: Vec<Value>) -> Vec<String> {
    let (_, audit) = encoder.encode_all(&records(&rows), &|_| Ok(())).unwrap();
    audit.lines().into_iter().filter(|line| ["cut", "lost"].iter().any(|word| line.contains(word))).collect()
}

#[test]
fn the_oldest_text_goes_first_and_no_answer_stays_without_its_question() {
    let whole = one(&chat(4096), conversation()).unwrap();
    let full = text(&whole);
    let mut seen = std::collections::BTreeSet::new();
    let shortest =
        one(&chat(4096), turns(&[("system", "sys"), ("user", ""), ("assistant", "answer C")])).unwrap().len();
    for max in shortest..=whole.len() {
        let example = one(&cut_to(max), conversation()).unwrap();
        let shown = text(&example);
        assert!(
            example.len() <= max && shown.starts_with("<|im_start|>system\nsys<|im_end|>"),
            "{max}: {shown}"
        );
        assert_eq!(example.truncated, max < whole.len());
        // What is left are the last exchanges, of which only the first question is cut, from its left.
        let answers: Vec<&str> =
            ["answer A", "answer B", "answer C"].into_iter().filter(|a| shown.contains(a)).collect();
        assert_eq!(taught(&example).len(), answers.len(), "{max}: {shown}");
        assert!(
            ["answer A", "answer B", "answer C"].ends_with(&answers) && !answers.is_empty(),
            "{max}: {shown}"
        );
        let questions: Vec<&str> = shown
            .split("<|im_start|>user\n")
            .skip(1)
            .map(|rest| rest.split("<|im_end|>").next().unwrap())
            .collect();
        assert_eq!(questions.len(), answers.len(), "{max}: {shown}");
        let whole_questions = ["first", "second", "third"].map(|word| format!("{word} {LONG}"));
        for (question, whole) in questions.iter().rev().zip(whole_questions.iter().rev()) {
            assert!(whole.ends_with(question), "{max}: {question:?} of {whole:?}");
        }
        assert!(questions[1..].iter().all(|question| full.contains(question)
            && question.ends_with("ten")
            && question.len() > LONG.len()));
        // A question goes with its answer before it is empty, but for the last one.
        assert!(questions.len() == 1 || !questions[0].trim().is_empty(), "{max}: {shown}");
        seen.insert((answers.len(), questions[0].len()));
    }
    // All of it happened: each number of exchanges, with cut questions of several lengths.
    for exchanges in 1..=3 {
        assert!(seen.iter().filter(|(count, _)| *count == exchanges).count() > 3, "{exchanges}: {seen:?}");
    }
    assert!(
        one(&cut_to(shortest - 1), conversation()).unwrap_err().to_string().contains("rows.jsonl:1 has ")
    );
}

#[test]
fn the_audit_says_what_went() {
    let len = |row: &Value| one(&chat(4096), row.clone()).unwrap().len();
    let row = conversation();
    let last =
        len(&turns(&[("system", "sys"), ("user", &format!("third {LONG}")), ("assistant", "answer C")]));
    assert!(said(&cut_to(len(&row)), vec![row.clone()]).is_empty());
    // A part of the first question.
    assert_eq!(
        said(&cut_to(len(&row) - 3), vec![row.clone()]),
        [
            "1 rows were cut at the beginning (--truncation prompt-left): 0 lost a part of their last question, 1 older turns only"
        ]
    );
    // Older turns only, and exactly as many as needed.
    assert_eq!(
        said(&cut_to(last), vec![row.clone()])[1..],
        ["4 older turns were cut out as a whole, among them 2 answers that are not learned"]
    );
    // The last question as well; a pair has no other one.
    assert_eq!(
        said(&cut_to(last - 3), vec![row.clone(), pair(&format!("third {LONG} {LONG} {LONG}"), "answer")]),
        [
            "2 rows were cut at the beginning (--truncation prompt-left): each lost a part of its last question",
            "4 older turns were cut out as a whole, among them 2 answers that are not learned"
        ]
    );
    let nothing = len(&turns(&[("system", "sys"), ("user", ""), ("assistant", "answer C")]));
    assert_eq!(said(&cut_to(nothing), vec![row.clone()])[1], "1 of them lost all of their last question");
    // Turns that are not learned are no loss.
    let masked = with(cut_to(last), |o| o.mask_history = true);
    assert_eq!(said(&masked, vec![row])[1..], ["4 older turns were cut out as a whole"]);
}

#[test]
fn an_exchange_goes_with_its_tools_and_what_follows_the_last_answer_is_no_question() {
    let row = turns(&[
        ("user", "first question"),
        ("assistant", "call"),
        ("tool", &format!("result {LONG} {LONG}")),
        ("assistant", "answer A"),
        ("user", "second"),
        ("user", "and more"),
        ("assistant", "answer B"),
        ("user", LONG),
    ]);
    let last = turns(&[("user", "second"), ("user", "and more"), ("assistant", "answer B")]);
    let example = one(&cut_to(one(&chat(4096), last.clone()).unwrap().len()), row.clone()).unwrap();
    assert_eq!(
        text(&example),
        text(&one(&chat(4096), last.clone()).unwrap()),
        "turns of the user that follow each other stay together"
    );
    let shorter = one(&cut_to(one(&chat(4096), last).unwrap().len() - 1), row).unwrap();
    assert!(text(&shorter).contains("and more") && !text(&shorter).contains("second"), "{}", text(&shorter));
}

#[test]
fn a_conversation_of_many_turns_is_cut_in_few_renderings() {
    let texts: Vec<(&str, &str)> =
        (0..400).map(|i| if i % 2 == 0 { ("user", LONG) } else { ("assistant", "yes") }).collect();
    let encoder = cut_to(100);
    let conversation = match records(&[turns(&texts)]).remove(0).body {
        Body::Messages(conversation) => conversation,
        other => panic!("{other:?}"),
    };
    let mut renderings = 0;
    let (len, cut) = encoder
        .fit_turns(&conversation, |turns| {
            renderings += 1;
            let len = encoder.labelled(turns, &mut RowNotes::default())?.input_ids.len();
            Ok((len, len))
        })
        .unwrap();
    assert!(len <= 100 && cut.turns > 380 && cut.answers * 2 == cut.turns, "{len} {cut:?}");
    assert!(renderings < 20, "{renderings}");
}

#[test]
fn choices_lose_the_oldest_text_as_rows_of_a_training_do() {
    let row = conversation();
    let whole = one(&chat(4096), row.clone()).unwrap().len();
    let last = one(
        &chat(4096),
        turns(&[("system", "sys"), ("user", &format!("third {LONG}")), ("assistant", "answer C")]),
    )
    .unwrap();
    let choose = |max: usize| {
        let choices = ["answer C".to_owned(), "answer D".to_owned()];
        let (mut asked, audit) =
            cut_to(max).encode_choices(&records(std::slice::from_ref(&row)), &choices, &|_| Ok(())).unwrap();
        (asked.remove(0).prompt, audit)
    };
    assert_eq!(choose(whole).1.truncated, 0);
    let (prompt, audit) = choose(last.len());
    assert!(
        last.input_ids.starts_with(&prompt) && prompt.len() + 3 > last.prompt_len,
        "{} {}",
        prompt.len(),
        last.prompt_len
    );
    assert_eq!(
        (audit.truncated, audit.questions_cut, audit.turns_cut_out, audit.answers_cut_out),
        (1, 0, 4, 0)
    );
}
