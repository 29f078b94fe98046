//! Mode `logprob`: for every row the log-probabilities of the tokens that training would supervise.

use serde::Serialize;
use serde_json::Value;

use super::event::{Event, Findings};
use super::output::Outputs;
use super::packed::Packed;
use super::session::{Session, check, not_finite};
use crate::config::Task;
use crate::data::collate::collate;
use crate::data::encode::Example;
use crate::data::record::Record;
use crate::error::Result;

/// Summary of the log-probabilities of a file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LogprobReport {
    /// Supervised tokens.
    pub num_tokens: usize,
    /// Mean negative log-probability per supervised token, in nats.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
}

/// One line of the result.
#[derive(Debug, Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    line: usize,
    file: &'a str,
    /// Natural log of the probability of every supervised token, in their order.
    token_logprobs: Vec<f64>,
    /// Supervised tokens.
    num_tokens: usize,
    /// Their sum.
    logprob: f64,
    /// `exp(-logprob / num_tokens)`.
    perplexity: f64,
}

/// Scores all rows and writes their lines. Returns rows scored, rows left out, and the findings.
pub(super) fn run(
    session: &mut Session<'_>,
    outputs: &Outputs,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<(usize, usize, Findings)> {
    let (mut records, routing) = session.rows()?;
    records.truncate(session.config.limit.unwrap_or(usize::MAX));
    let opened = session.open(Task::Causal, &records, watch)?;
    let examples = session.encode(&opened.encoder(&records)?, (&records, routing), watch)?;
    let model = session.load(&opened, watch)?;
    let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    let pack = |rows: std::ops::Range<usize>| Ok(pack(&examples[rows]));
    let mut text = Vec::new();
    let (mut num_tokens, mut total) = (0, 0.0);
    let take = |rows: std::ops::Range<usize>, scores: Vec<Vec<f64>>| {
        for (example, token_logprobs) in examples[rows].iter().zip(scores) {
            let record = &records[example.record];
            let logprob: f64 = token_logprobs.iter().sum();
            num_tokens += token_logprobs.len();
            total += logprob;
            write_line(record, token_logprobs, logprob, &mut text)?;
        }
        Ok(())
    };
    session.score(&model, &lengths, pack, take, watch)?;
    session.check_weights(&opened)?;
    outputs.write_lines(&text)?;
    let loss = -total / num_tokens.max(1) as f64;
    let report = LogprobReport { num_tokens, loss, perplexity: loss.exp() };
    Ok((examples.len(), records.len() - examples.len(), Findings::Logprob(report)))
}

/// Examples as one batch; every example is a unit.
fn pack(examples: &[Example]) -> Packed {
    let batch = collate(&examples.iter().collect::<Vec<_>>(), 0);
    let mut next = 0;
    let unit = |example: &Example| {
        let first = next;
        next += example.supervised();
        (first..next).collect()
    };
    let units = examples.iter().map(unit).collect();
    Packed { batch, units }
}

fn write_line(record: &Record, token_logprobs: Vec<f64>, logprob: f64, into: &mut Vec<u8>) -> Result<()> {
    let num_tokens = token_logprobs.len();
    let perplexity = (-logprob / num_tokens as f64).exp();
    check(record, "the log-probability", logprob, num_tokens)?;
    let file = record.file.display().to_string();
    let id = record.meta.get("id");
    let line = Line { id, line: record.line, file: &file, token_logprobs, num_tokens, logprob, perplexity };
    serde_json::to_writer(&mut *into, &line).map_err(|_| not_finite(record, "the log-probability"))?;
    into.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::files::read_rows;

    fn record(text: &str) -> Record {
        read_rows(Path::new("rows.jsonl"), text.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn a_line_has_the_id_the_place_and_numbers_that_come_back_exactly() {
        let record = record(r#"{"input":"q","output":"a","meta":{"id":7}}"#);
        let logprobs = vec![-0.1 - 0.2, -1e-9];
        let mut text = Vec::new();
        write_line(&record, logprobs.clone(), logprobs.iter().sum(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let start = r#"{"id":7,"line":1,"file":"rows.jsonl","token_logprobs":[-0.30000000000000004,-1e-9],"num_tokens":2,"#;
        assert!(text.starts_with(start), "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["logprob"].as_f64().unwrap(), logprobs.iter().sum::<f64>());
        assert!((line["perplexity"].as_f64().unwrap() - 0.15f64.exp()).abs() < 1e-8);
    }

    #[test]
    fn a_number_that_is_not_finite_names_the_row() {
        for logprob in [f64::NAN, f64::NEG_INFINITY, -1e300] {
            let error =
                write_line(&record(r#"{"input":"q","output":"a"}"#), vec![logprob], logprob, &mut vec![]);
            let error = error.unwrap_err();
            assert!(error.to_string().contains("rows.jsonl:1: the log-probability"), "{error}");
            assert_eq!(error.exit_code(), 4);
        }
    }
}
