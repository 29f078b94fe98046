//! `loss.svg`: the losses of a run as a picture.

use std::path::Path;

use plotters::prelude::*;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::formats::atomic::write_file;

/// Draws training and evaluation losses of the log rows over the steps; nothing without at least two of either.
///
/// # Errors
/// An I/O error, or an internal one of the drawing library.
pub(super) fn loss_curve(path: &Path, rows: &[Map<String, Value>]) -> Result<()> {
    let series = |key: &str| -> Vec<(f64, f64)> {
        let point = |row: &Map<String, Value>| Some((row.get("step")?.as_f64()?, row.get(key)?.as_f64()?));
        rows.iter().filter_map(point).collect()
    };
    let (train, eval) = (series("loss"), series("eval_loss"));
    if train.len().max(eval.len()) < 2 {
        return Ok(());
    }
    let mut svg = String::new();
    draw(&mut svg, &train, &eval).map_err(|e| Error::Numeric {
        what: format!("cannot draw the loss curve: {e}"),
        fix: "the numbers are in training_log.jsonl".into(),
    })?;
    write_file(path, svg.as_bytes())
}

fn draw(
    svg: &mut String,
    train: &[(f64, f64)],
    eval: &[(f64, f64)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let all = || train.iter().chain(eval);
    let largest = all().fold(0.0f64, |m, p| m.max(p.1));
    let last = all().fold(1.0f64, |m, p| m.max(p.0));
    let root = SVGBackend::with_string(svg, (800, 450)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(15)
        .x_label_area_size(40)
        .y_label_area_size(55)
        .build_cartesian_2d(0.0..last, 0.0..largest * 1.05 + 1e-9)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).bold_line_style(BLACK.mix(0.15));
    mesh.x_desc("optimizer step")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_desc("loss per supervised token (nats)")
        .draw()?;
    for (points, name, color) in [(train, "training", BLUE), (eval, "evaluation", RED)] {
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 2, color.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_an_svg_with_both_series() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("loss.svg");
        let rows: Vec<Map<String, Value>> = [
            serde_json::json!({"step": 1, "loss": 3.0}),
            serde_json::json!({"step": 2, "loss": 2.0}),
            serde_json::json!({"step": 2, "eval_loss": 2.5}),
        ]
        .into_iter()
        .map(|row| row.as_object().unwrap().clone())
        .collect();
        loss_curve(&path, &rows).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg") && text.contains("training") && text.contains("evaluation"));
        loss_curve(&dir.path().join("none.svg"), &rows[..1]).unwrap();
        assert!(!dir.path().join("none.svg").exists());
    }
}
