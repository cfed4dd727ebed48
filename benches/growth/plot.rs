//! A plot as a small SVG: panels side by side, each with axes, ticks, and a line or two.
//!
//! It has a background of its own, so that it can be read on light and dark pages.

use std::fmt::Write;

/// The whole picture; one panel has all of its width, two have half of it each.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
/// From the edge of a panel to its axes; labels are in between.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 94.0;
const BOTTOM: f64 = 52.0;
/// Colour and dashes of the first line and the second, which can be told apart without colour, too.
const STYLES: [(&str, &str); 2] = [("#0284c7", "none"), ("#c2410c", "7 3")];
/// Lines with no more points show each of them.
const FEW_POINTS: usize = 10;
/// Ticks that an axis should have.
const TICKS: f64 = 5.0;

/// How x is laid out. y is linear, and begins at 0.
#[derive(Clone, Copy)]
pub enum Scale {
    /// From 0 to this, with ticks at round numbers.
    UpTo(f64),
    /// Each point is double the one before, at the same distance, and has a tick.
    Doubling,
}

/// One line of a panel.
pub struct Line {
    pub name: &'static str,
    /// x and y, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// One pair of axes, with their labels, and what is drawn in it.
pub struct Panel {
    pub x: &'static str,
    pub y: &'static str,
    pub scale: Scale,
    pub lines: Vec<Line>,
}

/// The picture of all `panels`.
pub fn svg(title: &str, note: &str, panels: &[Panel]) -> String {
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#475569" role="img" aria-labelledby="title">
<title id="title">{title}</title>
<rect x="0.5" y="0.5" width="{}" height="{}" rx="8" fill="#ffffff" stroke="#cbd5e1"/>
<text x="16" y="26" font-size="15" font-weight="bold" fill="#0f172a">{title}</text>
<text x="16" y="45">{note}</text>
"##,
        WIDTH - 1.0,
        HEIGHT - 1.0
    );
    let width = WIDTH / panels.len() as f64;
    for (at, panel) in panels.iter().enumerate() {
        draw(&mut svg, panel, at as f64 * width, width).expect("a string takes everything");
    }
    svg + "</svg>\n"
}

/// Appends `panel`, `width` wide from `edge`.
fn draw(svg: &mut String, panel: &Panel, edge: f64, width: f64) -> std::fmt::Result {
    let (left, right, bottom) = (edge + LEFT, edge + width - RIGHT, HEIGHT - BOTTOM);
    let values = panel.lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let y_ticks = round_numbers(values.fold(0.0, f64::max), f64::ceil);
    let y_end = y_ticks[y_ticks.len() - 1];
    let y = |value: f64| bottom - (bottom - TOP) * value / y_end;
    let (x_ticks, position): (Vec<f64>, Box<dyn Fn(f64) -> f64>) = match panel.scale {
        Scale::UpTo(end) => (round_numbers(end, f64::floor), Box::new(move |value| value / end)),
        Scale::Doubling => {
            let ticks: Vec<f64> = panel.lines[0].points.iter().map(|point| point.0).collect();
            let (first, doublings) = (ticks[0], (ticks[ticks.len() - 1] / ticks[0]).log2());
            (ticks, Box::new(move |value| (value / first).log2() / doublings))
        }
    };
    let x = |value: f64| left + (right - left) * position(value);

    svg.push_str("<g stroke=\"#e2e8f0\">\n");
    for &tick in &y_ticks {
        writeln!(svg, r#"<path d="M{left:.1} {:.1}H{right:.1}"/>"#, y(tick))?;
    }
    svg.push_str("</g>\n<g stroke=\"#475569\">\n");
    for &tick in &x_ticks {
        writeln!(svg, r#"<path d="M{:.1} {bottom:.1}v5"/>"#, x(tick))?;
    }
    writeln!(svg, "<path d=\"M{left:.1} {bottom:.1}H{right:.1}\"/>\n</g>\n<g text-anchor=\"end\">")?;
    for &tick in &y_ticks {
        writeln!(svg, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, left - 7.0, y(tick) + 4.0, short(tick))?;
    }
    svg.push_str("</g>\n<g text-anchor=\"middle\">\n");
    for &tick in &x_ticks {
        writeln!(svg, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, x(tick), bottom + 19.0, short(tick))?;
    }
    writeln!(svg, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, (left + right) / 2.0, bottom + 39.0, panel.x)?;
    svg.push_str("</g>\n");
    writeln!(svg, r#"<text x="{:.1}" y="{:.1}">{}</text>"#, edge + 16.0, TOP - 16.0, panel.y)?;

    // The legend ends at the right edge, above the lines.
    let mut legend = right;
    for (line, (colour, dashes)) in panel.lines.iter().zip(STYLES).rev() {
        let at = TOP - 16.0;
        writeln!(svg, r#"<text x="{legend:.1}" y="{at:.1}" text-anchor="end">{}</text>"#, line.name)?;
        legend -= 6.5 * line.name.len() as f64 + 6.0;
        let style = format!(r#"stroke="{colour}" stroke-dasharray="{dashes}" stroke-width="2""#);
        writeln!(svg, r#"<path d="M{legend:.1} {:.1}h-24" {style}/>"#, at - 4.0)?;
        legend -= 38.0;

        let points: Vec<_> = line.points.iter().map(|&(at, value)| (x(at), y(value))).collect();
        let list: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(svg, r#"<polyline points="{}" fill="none" {style}/>"#, list.join(" "))?;
        for (x, y) in points.iter().filter(|_| points.len() <= FEW_POINTS) {
            writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"/>"#)?;
        }
    }
    Ok(())
}

/// The multiples, from 0, of 1, 2 or 5 times a power of ten, up to where `end` is rounded to.
fn round_numbers(end: f64, round: fn(f64) -> f64) -> Vec<f64> {
    let least = if end > 0.0 { end / TICKS } else { 1.0 / TICKS };
    let power = 10_f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= least);
    let step = step.unwrap_or(10.0 * power);
    let count = round(end / step).max(1.0) as u64;
    (0..=count).map(|tick| tick as f64 * step).collect()
}

/// `number` with two decimals at most, in thousands or millions if it is large.
pub fn short(number: f64) -> String {
    let (scaled, unit) = match number {
        1e6.. => (number / 1e6, " M"),
        1e3.. => (number / 1e3, " k"),
        _ => (number, ""),
    };
    let digits = format!("{scaled:.2}");
    format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
}
