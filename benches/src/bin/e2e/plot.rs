//! A plot as SVG: for each series one panel with time and memory over size, both axes logarithmic, so that growth in proportion is
//! a straight line of slope 1, which is drawn beside the measured one.

use std::fmt::Write as _;

/// One measured size.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// How much was built.
    pub units: usize,
    /// Wall time.
    pub seconds: f64,
    /// Anonymous memory at its peak.
    pub mebibytes: f64,
}

/// One series.
pub struct Panel {
    /// Above it.
    pub title: &'static str,
    /// What the sizes count.
    pub unit: &'static str,
    /// By size.
    pub points: Vec<Point>,
}

/// Of one panel, in pixels.
const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 250.0;
/// Around its axes: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (48.0, 34.0, 16.0, 40.0);
/// Panels in one row.
const COLUMNS: usize = 3;
/// Both axes show so many powers of ten.
const DECADES: (f64, f64) = (2.4, 5.0);
/// Least value of the vertical axis.
const LEAST: f64 = 0.01;

const TIME: &str = "#1f5fa8";
const MEMORY: &str = "#b5531c";
const GREY: &str = "#888";

/// Draws all panels.
pub fn svg(panels: &[Panel]) -> String {
    let rows = panels.len().div_ceil(COLUMNS).max(1);
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * rows as f64 + 24.0);
    let mut out = String::new();
    let text = |out: &mut String, x: f64, y: f64, anchor: &str, colour: &str, words: &str| {
        // Writing into a string cannot fail.
        _ = writeln!(out, r#"<text x="{x:.0}" y="{y:.0}" text-anchor="{anchor}" fill="{colour}">{words}</text>"#);
    };
    _ = writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">"#
    );
    _ = writeln!(out, r##"<rect width="{width}" height="{height}" fill="#fff"/>"##);
    text(&mut out, 12.0, 16.0, "start", TIME, "● seconds");
    text(&mut out, 92.0, 16.0, "start", MEMORY, "■ MiB of anonymous memory");
    text(&mut out, 260.0, 16.0, "start", GREY, "- - - in proportion");
    for (number, panel) in panels.iter().enumerate() {
        let (left, top) = (WIDTH * (number % COLUMNS) as f64, HEIGHT * (number / COLUMNS) as f64 + 24.0);
        let (x0, x1) = (left + MARGIN.0, left + WIDTH - MARGIN.2);
        let (y0, y1) = (top + HEIGHT - MARGIN.3, top + MARGIN.1);
        let first = panel.points.first().map_or(1.0, |point| point.units as f64);
        let x = |units: f64| x0 + ((units / first).log10() + 0.2) / DECADES.0 * (x1 - x0);
        let y = |value: f64| y0 - (value.max(LEAST) / LEAST).log10() / DECADES.1 * (y0 - y1);
        text(&mut out, (x0 + x1) / 2.0, y1 - 10.0, "middle", "#000", panel.title);
        _ = writeln!(out, r##"<path d="M{x0:.0} {y1:.0}V{y0:.0}H{x1:.0}" fill="none" stroke="#000"/>"##);
        for exponent in 0..=5 {
            let value = LEAST * 10_f64.powi(exponent);
            let at = y(value);
            _ = writeln!(out, r##"<path d="M{x0:.0} {at:.1}H{x1:.0}" stroke="#e4e4e4"/>"##);
            text(&mut out, x0 - 5.0, at + 4.0, "end", "#000", &format!("{value}"));
        }
        for point in &panel.points {
            let at = x(point.units as f64);
            _ = writeln!(out, r##"<path d="M{at:.1} {y0:.0}v4" stroke="#000"/>"##);
            text(&mut out, at, y0 + 16.0, "middle", "#000", &point.units.to_string());
        }
        text(&mut out, (x0 + x1) / 2.0, y0 + 31.0, "middle", "#000", panel.unit);
        // Growth in proportion, through the last point.
        if let (Some(from), Some(to)) = (panel.points.first(), panel.points.last()) {
            let begin = to.seconds * from.units as f64 / to.units as f64;
            let from_units = if begin < LEAST { to.units as f64 * LEAST / to.seconds } else { from.units as f64 };
            _ = writeln!(
                out,
                r#"<path d="M{:.1} {:.1}L{:.1} {:.1}" stroke="{GREY}" stroke-dasharray="4 4"/>"#,
                x(from_units),
                y(begin),
                x(to.units as f64),
                y(to.seconds),
            );
        }
        let line = |of: fn(&Point) -> f64| {
            let at = panel.points.iter().map(|point| format!("{:.1},{:.1}", x(point.units as f64), y(of(point))));
            at.collect::<Vec<_>>().join(" ")
        };
        for (colour, of) in [(TIME, (|point| point.seconds) as fn(&Point) -> f64), (MEMORY, |point| point.mebibytes)] {
            _ = writeln!(out, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, line(of));
        }
        for point in &panel.points {
            let at = x(point.units as f64);
            let (seconds, memory) = (y(point.seconds), y(point.mebibytes));
            _ = writeln!(out, r#"<circle cx="{at:.1}" cy="{seconds:.1}" r="3.5" fill="{TIME}"/>"#);
            _ = writeln!(
                out,
                r#"<rect x="{:.1}" y="{:.1}" width="6" height="6" fill="{MEMORY}"/>"#,
                at - 3.0,
                memory - 3.0
            );
            text(&mut out, at, seconds - 7.0, "middle", TIME, &format!("{:.2}", point.seconds));
            text(&mut out, at, memory - 7.0, "middle", MEMORY, &format!("{:.0}", point.mebibytes));
        }
    }
    out += "</svg>\n";
    out
}
