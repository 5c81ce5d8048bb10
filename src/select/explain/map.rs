//! Pool, choice and targets on a plane: the first two principal components of the pool's vectors, as an SVG.

use std::path::Path;

use plotters::prelude::*;

use super::super::vectors::Vectors;
use crate::artefact::write_atomically;
use crate::error::{Error, Result};

/// Rows of the pool that are looked at and drawn, evenly spaced, and as many chosen ones.
const DRAWN: usize = 4000;
/// Rounds of the power iteration.
const ROUNDS: usize = 50;
const SIZE: (u32, u32) = (960, 720);

/// Draws the map to `path`.
pub fn draw(
    path: &Path,
    vectors: &Vectors,
    dim: usize,
    is_chosen: &[bool],
    queries: &[Vec<f32>],
) -> Result<()> {
    let spread = |rows: Vec<usize>| -> Vec<Vec<f32>> {
        let step = rows.len().div_ceil(DRAWN).max(1);
        rows.iter().step_by(step).map(|row| vectors.row(*row)).collect()
    };
    let pool = spread((0..is_chosen.len()).collect());
    let chosen = spread((0..is_chosen.len()).filter(|row| is_chosen[*row]).collect());
    let targets: Vec<Vec<Vec<f32>>> =
        queries.iter().map(|queries| queries.chunks(dim).map(<[f32]>::to_vec).collect()).collect();
    let plane = Plane::of(&pool, dim);
    let place = |rows: &[Vec<f32>]| rows.iter().map(|row| plane.place(row)).collect::<Vec<_>>();
    let (pool, chosen) = (place(&pool), place(&chosen));
    let targets: Vec<_> = targets.iter().map(|rows| place(rows)).collect();
    let mut svg = String::new();
    paint(&mut svg, &pool, &chosen, &targets)
        .map_err(|e| Error::file(path, format!("cannot be drawn: {e}")))?;
    Ok(write_atomically(path, svg.as_bytes())?)
}

type Point = (f64, f64);

fn paint(
    svg: &mut String,
    pool: &[Point],
    chosen: &[Point],
    targets: &[Vec<Point>],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let all = || pool.iter().chain(chosen).chain(targets.iter().flatten());
    let range = |of: fn(&Point) -> f64| {
        let (low, high) =
            all().map(of).fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        let margin = 0.05 * (high - low).max(1e-6);
        low - margin..high + margin
    };
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area).margin(20).build_cartesian_2d(range(|p| p.0), range(|p| p.1))?;
    let mut dots = |points: &[Point], size: i32, colour: RGBColor, opacity: f64, name: &str| {
        let style = colour.mix(opacity).filled();
        let series = chart.draw_series(points.iter().map(|point| Circle::new(*point, size, style)))?;
        series.label(name).legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    dots(pool, 2, RGBColor(150, 150, 150), 0.35, &format!("pool ({} drawn)", pool.len()))?;
    dots(chosen, 3, RGBColor(31, 119, 180), 0.6, &format!("chosen ({} drawn)", chosen.len()))?;
    let colours =
        [RGBColor(214, 39, 40), RGBColor(255, 127, 14), RGBColor(148, 103, 189), RGBColor(44, 160, 44)];
    for (i, points) in targets.iter().enumerate() {
        let name = if targets.len() == 1 { "target".to_string() } else { format!("target {}", i + 1) };
        dots(points, 4, colours[i % colours.len()], 0.9, &name)?;
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

/// Two directions in which vectors differ most.
struct Plane {
    mean: Vec<f64>,
    axes: [Vec<f64>; 2],
}

impl Plane {
    /// The first two principal components of `rows`, by power iteration.
    fn of(rows: &[Vec<f32>], dim: usize) -> Self {
        let mut mean = vec![0.0; dim];
        for row in rows {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x) / rows.len() as f64);
        }
        let mut axes: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        for i in 0..2 {
            // Any start that is not square to the axis will do.
            let mut axis: Vec<f64> = (0..dim).map(|j| ((j * 7 + i * 3) as f64).sin() + 0.1).collect();
            for _ in 0..ROUNDS {
                let mut next = vec![0.0; dim];
                for row in rows {
                    let along: f64 =
                        row.iter().zip(&mean).zip(&axis).map(|((x, m), a)| (f64::from(*x) - m) * a).sum();
                    next.iter_mut()
                        .zip(row)
                        .zip(&mean)
                        .for_each(|((n, x), m)| *n += along * (f64::from(*x) - m));
                }
                for earlier in &axes[..i] {
                    let along: f64 = next.iter().zip(earlier).map(|(x, y)| x * y).sum();
                    next.iter_mut().zip(earlier).for_each(|(x, y)| *x -= along * y);
                }
                let length = next.iter().map(|x| x * x).sum::<f64>().sqrt();
                if length < 1e-12 {
                    break;
                }
                axis = next.into_iter().map(|x| x / length).collect();
            }
            axes[i] = axis;
        }
        Self { mean, axes }
    }

    fn place(&self, row: &[f32]) -> Point {
        let along = |axis: &[f64]| {
            row.iter().zip(&self.mean).zip(axis).map(|((x, m), a)| (f64::from(*x) - m) * a).sum()
        };
        (along(&self.axes[0]), along(&self.axes[1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plane_is_where_the_rows_differ_most() {
        // Along (1, 1, 0) most, along (0, 0, 1) less, across hardly.
        let rows: Vec<Vec<f32>> = (0..60)
            .map(|i| {
                let (far, near, least) =
                    (((i % 6) as f32 - 2.5) * 3.0, ((i % 5) as f32) - 2.0, ((i % 4) as f32 - 1.5) * 0.01);
                vec![1.0 + far + least, 2.0 + far - least, near]
            })
            .collect();
        let plane = Plane::of(&rows, 3);
        let [first, second] = &plane.axes;
        assert!(
            (first[0].abs() - 0.5f64.sqrt()).abs() < 1e-3 && (first[0] - first[1]).abs() < 1e-3,
            "{first:?}"
        );
        assert!(second[2].abs() > 0.999, "{second:?}");
        let (x, y) = plane.place(&[1.0 + 3.0, 2.0 + 3.0, 0.0]);
        assert!((x.abs() - 3.0 * 2f64.sqrt()).abs() < 0.01 && y.abs() < 0.01, "{x} {y}");
    }
}
