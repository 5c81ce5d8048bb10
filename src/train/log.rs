//! A run's measurements: `metrics.jsonl` while it goes, a curve when it is done.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::measurement::Measurement;
use super::tensorboard::Events;
use crate::error::{Error, Result};

/// Appends measurements to `metrics.jsonl` and to TensorBoard's event file.
pub struct Log {
    path: PathBuf,
    file: File,
    events: Events,
}

impl Log {
    /// Opens the log in `out`, keeping the lines up to `step`: a resumed run measures again what
    /// came after its checkpoint.
    pub fn open(out: &Path, step: usize) -> Result<(Self, Vec<Measurement>)> {
        let path = out.join("metrics.jsonl");
        let kept: Vec<Measurement> = fs::read_to_string(&path)
            .unwrap_or_default()
            .lines()
            // A line that a crash cut short is measured again as well.
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Measurement| line.step <= step)
            .collect();
        let mut text = String::new();
        for line in &kept {
            text += &(Self::line(&path, line)? + "\n");
        }
        crate::artefact::write_atomically(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        let events = Events::create(out, &kept)?;
        Ok((Self { path, file, events }, kept))
    }

    /// Appends one line.
    pub fn write(&mut self, line: &Measurement) -> Result<()> {
        let text = Self::line(&self.path, line)?;
        writeln!(self.file, "{text}").map_err(Error::io(&self.path))?;
        self.events.write(line)
    }

    fn line(path: &Path, line: &Measurement) -> Result<String> {
        serde_json::to_string(line).map_err(|e| Error::file(path, e.to_string()))
    }
}

/// A named line of a plot: (training tokens, loss).
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// Points, left to right.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// Held-out loss over training tokens; the training loss where nothing was held out.
    pub fn of(name: &str, measurements: &[Measurement]) -> Self {
        let held_out: Vec<(f64, f64)> =
            measurements.iter().filter_map(|m| Some((m.tokens as f64, m.held_out_loss?))).collect();
        let points = match held_out.is_empty() {
            true => measurements.iter().map(|m| (m.tokens as f64, m.loss)).collect(),
            false => held_out,
        };
        Self { name: name.into(), points }
    }
}

/// Draws `curves` as an SVG file.
pub fn plot(path: &Path, title: &str, curves: &[Curve]) -> Result<()> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let bounds = |value: fn(&(f64, f64)) -> f64| {
        points()
            .map(value)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let ((left, right), (bottom, top)) = (bounds(|p| p.0), bounds(|p| p.1));
    if left.is_infinite() {
        return Ok(());
    }
    let margin = (top - bottom).max(0.1) * 0.05;
    let failed = |e: &dyn std::fmt::Display| Error::file(path, format!("cannot draw: {e}"));
    let root = SVGBackend::new(path, (860, 480)).into_drawing_area();
    let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(left..right.max(left + 1.0), bottom - margin..top + margin)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_label_formatter(&|tokens| format!("{:.0}k", tokens / 1000.0))
            .x_desc("training tokens")
            .y_desc("loss, nats a token")
            .draw()?;
        let palette = [
            RGBColor(0x1b, 0x6c, 0xa8),
            RGBColor(0xd1, 0x49, 0x2e),
            RGBColor(0x3b, 0x8e, 0x4f),
            RGBColor(0x7a, 0x4f, 0xa3),
        ];
        for (i, curve) in curves.iter().enumerate() {
            let colour = palette[i % palette.len()];
            chart
                .draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?
                .label(&curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|e| failed(&e))
}
