//! The bar chart: CPU time a request of each set-up, load by load.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::load::Load;
use super::report::{Report, of};
use super::setup::Setup;

/// Loads that all set-ups are put under.
const LOADS: [Load; 5] = [Load::C32, Load::C128, Load::Open30k, Load::Open8k, Load::FreeC32];
const LABELS: [&str; 5] = ["32 connections", "128 connections", "30,000/s", "8,000/s", "32, not pinned"];
const COLORS: [RGBColor; 5] = [
    RGBColor(0, 90, 181),
    RGBColor(150, 150, 150),
    RGBColor(190, 160, 110),
    RGBColor(120, 160, 120),
    RGBColor(200, 110, 100),
];
const SIZE: (u32, u32) = (960, 420);
/// Left, right, above and below the bars, in pixels.
const MARGIN: (i32, i32, i32, i32) = (56, 16, 64, 36);

/// Draws the chart into a file.
pub(super) fn draw(report: &Report, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let values: Vec<Vec<Option<f64>>> = LOADS
        .iter()
        .map(|load| Setup::ALL.iter().map(|setup| of(&report.rows, *setup, *load, |row| Some(row.cpu_us))).collect())
        .collect();
    let highest = values.iter().flatten().flatten().copied().fold(1.0, f64::max);
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0].into_iter().find(|step| highest / step <= 8.0);
    let step = step.unwrap_or(highest / 8.0);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right, above, below) = MARGIN;
    let (width, height) = (SIZE.0.cast_signed() - left - right, SIZE.1.cast_signed() - above - below);
    #[expect(clippy::cast_possible_truncation, reason = "pixels of a small picture")]
    let y = |value: f64| above + height - (value / (highest * 1.08) * f64::from(height)).round() as i32;
    let font = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    let anchor = |h, v| Pos::new(h, v);
    root.draw_text("CPU microseconds a request, front and stores; less is better", &font(16), (left, 8))?;
    let mut tick = 0.0;
    while tick <= highest * 1.05 {
        root.draw(&PathElement::new(vec![(left, y(tick)), (left + width, y(tick))], RGBColor(225, 225, 225)))?;
        let style = font(12).pos(anchor(HPos::Right, VPos::Center));
        root.draw_text(&format!("{tick}"), &style, (left - 6, y(tick)))?;
        tick += step;
    }
    for (at, setup) in (0..).zip(Setup::ALL) {
        let x = left + at * 160;
        root.draw(&Rectangle::new([(x, 36), (x + 12, 48)], COLORS[index(at)].filled()))?;
        root.draw_text(setup.name(), &font(13), (x + 18, 36))?;
    }
    let group = width / 5;
    let bar = group / 6;
    for (at, (of_load, label)) in (0..).zip(values.iter().zip(LABELS)) {
        let x = left + at * group;
        for (nth, value) in (0..).zip(of_load) {
            let Some(value) = *value else { continue };
            let from = x + bar / 2 + nth * bar;
            root.draw(&Rectangle::new([(from, y(value)), (from + bar - 3, y(0.0))], COLORS[index(nth)].filled()))?;
            let style = font(10).pos(anchor(HPos::Center, VPos::Bottom));
            root.draw_text(&format!("{value:.1}"), &style, (from + bar / 2 - 1, y(value) - 2))?;
        }
        let style = font(13).pos(anchor(HPos::Center, VPos::Top));
        root.draw_text(label, &style, (x + group / 2, above + height + 8))?;
    }
    root.present()?;
    Ok(())
}

fn index(number: i32) -> usize {
    usize::try_from(number).expect("counted from 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_report_has_a_chart_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("chart.svg");
        draw(&Report::default(), &path).expect("drawn");
        let text = std::fs::read_to_string(path).expect("a file");
        assert!(text.starts_with("<svg") && text.contains("nginx-nginx") && text.contains("30,000/s"), "{text}");
    }
}
