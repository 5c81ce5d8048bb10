//! A run's measurements: `metrics.jsonl` while it goes, a curve when it is done.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
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
        let there = match fs::read_to_string(&path) {
            Ok(there) => there,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(path)(e)),
        };
        // As they were written: numbers that are read and written again can change in the last digit.
        let (mut kept, mut text) = (Vec::new(), String::new());
        let mut lines = there.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            match serde_json::from_str::<Measurement>(line) {
                Ok(measured) if measured.step <= step => {
                    text += &format!("{line}\n");
                    kept.push(measured);
                }
                Ok(_) => {}
                // A line that a crash cut short is measured again as well.
                Err(_) if lines.peek().is_none() => {}
                Err(e) => {
                    let why = format!(
                        "{e}; this is no measurement of a run: mend the line, or choose another `out`"
                    );
                    return Err(Error::line(&path, number as u64 + 1, why));
                }
            }
        }
        crate::artefact::write_atomically(&path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        let events = Events::create(out, &kept)?;
        Ok((Self { path, file, events }, kept))
    }

    /// Appends one line.
    pub fn write(&mut self, line: &Measurement) -> Result<()> {
        let text = serde_json::to_string(line).map_err(|e| Error::file(&self.path, e.to_string()))?;
        writeln!(self.file, "{text}").map_err(Error::io(&self.path))?;
        self.events.write(line)
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
    /// Training loss over training tokens, where it is a number.
    pub fn training(name: &str, measurements: &[Measurement]) -> Self {
        Self::of(name, measurements, |measured| measured.loss)
    }

    /// Held-out loss over training tokens, where it was measured and is a number.
    pub fn held_out(name: &str, measurements: &[Measurement]) -> Self {
        Self::of(name, measurements, |measured| measured.held_out_loss)
    }

    fn of(name: &str, measurements: &[Measurement], loss: fn(&Measurement) -> Option<f64>) -> Self {
        let point = |measured: &Measurement| Some((measured.tokens as f64, loss(measured)?));
        // A run that diverged has others, which no axis has a place for.
        let points = measurements.iter().filter_map(point).filter(|(_, loss)| loss.is_finite()).collect();
        Self { name: name.into(), points }
    }
}

/// Draws those of `curves` that have points as an SVG file.
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
        for (i, curve) in curves.iter().filter(|curve| !curve.points.is_empty()).enumerate() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(step: usize, held_out_loss: f64) -> Measurement {
        Measurement {
            step,
            tokens: 10 * step as u64,
            seconds: 1.0,
            loss: Some(1.624_530_434_608_459_5),
            gradient_norm: None,
            learning_rate: 0.1,
            skipped_steps: step,
            held_out_loss: Some(held_out_loss),
            held_out_losses: Default::default(),
        }
    }

    /// Lines stay as they are, whatever their numbers; what was cut short is dropped, and nothing else.
    #[test]
    fn a_log_that_goes_on_keeps_its_lines() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, kept) = Log::open(dir.path(), 0).unwrap();
        assert!(kept.is_empty());
        // All of a diverged run's steps are left out, and none of its losses is a number.
        for (step, held_out_loss) in [(1, 2.0), (2, f64::NAN), (3, 1.0)] {
            log.write(&measured(step, held_out_loss)).unwrap();
        }
        let path = dir.path().join("metrics.jsonl");
        let whole =
            fs::read_to_string(&path).unwrap().replace("1.6245304346084595", "1.62453043460845970001");
        fs::write(&path, format!("{whole}{{\"step\": 4, \"tok")).unwrap();
        let (_, kept) = Log::open(dir.path(), 2).unwrap();
        assert_eq!(
            kept.iter().map(|line| (line.step, line.skipped_steps)).collect::<Vec<_>>(),
            [(1, 1), (2, 2)]
        );
        let two: String = whole.lines().take(2).map(|line| format!("{line}\n")).collect();
        assert_eq!(fs::read_to_string(&path).unwrap(), two);
        // What cannot be read is not written over.
        fs::write(&path, b"\xff\n").unwrap();
        assert!(Log::open(dir.path(), 2).is_err() && fs::read(&path).unwrap() == b"\xff\n");
        fs::write(&path, format!("what\n{two}")).unwrap();
        let said = Log::open(dir.path(), 2).err().unwrap().to_string();
        assert!(said.contains("metrics.jsonl:1:"), "{said}");
    }

    #[test]
    fn a_run_that_diverged_has_a_curve() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("curve.svg");
        for losses in [&[f64::NAN, f64::NAN][..], &[2.0, f64::INFINITY], &[2.0, 1.0]] {
            let lines: Vec<_> = losses.iter().enumerate().map(|(step, loss)| measured(step, *loss)).collect();
            plot(&path, "a run", &[Curve::training("seen", &lines), Curve::held_out("unseen", &lines)])
                .unwrap();
        }
        let whole = fs::read_to_string(&path).unwrap();
        assert!(
            ["a run", "unseen", "seen"].iter().all(|text| whole.contains(&format!("{text}\n"))),
            "{whole}"
        );
        // Nothing was held out.
        let lines = [1, 2].map(|step| Measurement { held_out_loss: None, ..measured(step, 0.0) });
        plot(&path, "a run", &[Curve::training("seen", &lines), Curve::held_out("unseen", &lines)]).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("unseen"));
    }
}
