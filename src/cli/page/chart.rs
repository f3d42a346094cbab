//! Charts as inline SVG: lines over linear or logarithmic axes, and bars.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::{CLASSES, swatch};
use crate::cli::table::significant;
use crate::picture::short;

/// How an axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from 0 on.
    Linear,
    /// By powers of ten. Numbers that are not positive are left out.
    Log,
    /// By powers of two.
    Doubling,
    /// Evenly, in percent, from 0 on.
    Percent,
}

/// A line of a chart.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it is.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A chart of lines.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What stands along the horizontal axis.
    pub x: (&'static str, Scale),
    /// What stands along the vertical axis.
    pub y: (&'static str, Scale),
    /// The lines; their colours repeat after [`CLASSES`], then dashed.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
/// Room left, right, above and below the plot.
const ROOM: [f64; 4] = [52.0, 24.0, 12.0, 40.0];

/// An axis: from where to where, with marks.
struct Axis {
    scale: Scale,
    from: f64,
    to: f64,
    marks: Vec<f64>,
}

impl Axis {
    fn new(scale: Scale, numbers: impl Iterator<Item = f64> + Clone) -> Self {
        let numbers = numbers.filter(|x| x.is_finite());
        let most = numbers.clone().fold(f64::NEG_INFINITY, f64::max);
        match scale {
            Scale::Linear | Scale::Percent => {
                let most = if most > 0.0 { most } else { 1.0 };
                // Steps of 1, 2 or 5 times a power of ten, at most five of them.
                let rough = most / 5.0;
                let power = 10_f64.powf(rough.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].map(|x| x * power).into_iter().find(|&step| step >= rough * 0.999);
                let step = step.unwrap_or(most);
                let count = (most / step * 0.999).ceil().max(1.0) as usize;
                Self {
                    scale,
                    from: 0.0,
                    to: step * count as f64,
                    marks: (0..=count).map(|i| step * i as f64).collect(),
                }
            }
            Scale::Log | Scale::Doubling => {
                let least = numbers.filter(|&x| x > 0.0).fold(f64::INFINITY, f64::min);
                let (least, most) = if least.is_finite() { (least, most) } else { (1.0, 10.0) };
                let base: f64 = if scale == Scale::Log { 10.0 } else { 2.0 };
                let (from, to) = match scale {
                    Scale::Log => (least.log10().floor(), most.log10().ceil()),
                    _ => (least.log2(), most.log2()),
                };
                let to = if to > from { to } else { from + 1.0 };
                let every = ((to - from) / 6.0).ceil().max(1.0) as usize;
                let marks = (from.ceil() as i64..=to.floor() as i64).step_by(every).map(|i| base.powf(i as f64));
                let mut marks: Vec<f64> = marks.collect();
                if marks.is_empty() {
                    marks.push(least);
                }
                Self { scale, from, to, marks }
            }
        }
    }

    /// The same axis, ending with the last of the numbers.
    fn ending(self, numbers: impl Iterator<Item = f64>) -> Self {
        let last = numbers.fold(f64::NEG_INFINITY, f64::max);
        match self.scale {
            Scale::Linear | Scale::Percent if last > 0.0 => {
                let marks = self.marks.into_iter().filter(|&mark| mark <= last).collect();
                Self { to: last, marks, ..self }
            }
            _ => self,
        }
    }

    /// Where a number lies, 0 to 1; `None` where it lies nowhere.
    fn at(&self, number: f64) -> Option<f64> {
        let number = match self.scale {
            Scale::Linear | Scale::Percent => number,
            Scale::Log => number.log10(),
            Scale::Doubling => number.log2(),
        };
        number.is_finite().then(|| (number - self.from) / (self.to - self.from))
    }

    fn label(&self, number: f64) -> String {
        match self.scale {
            Scale::Percent => format!("{} %", short((number * 1e4).round() / 100.0)),
            _ if number >= 1000.0 => short(number),
            _ if number == 0.0 => "0".into(),
            _ if number >= 1.0 => short(number),
            _ if number < 1e-4 => format!("{number:.0e}"),
            _ => significant(number).trim_end_matches('0').into(),
        }
    }
}

/// Draws the chart, with a legend where there are several lines.
pub fn chart(chart: &Chart) -> Markup {
    let points = || chart.series.iter().flat_map(|series| series.points.iter());
    let x = Axis::new(chart.x.1, points().map(|point| point.0)).ending(points().map(|point| point.0));
    let y = Axis::new(chart.y.1, points().map(|point| point.1));
    let (width, height) = (WIDTH - ROOM[0] - ROOM[1], HEIGHT - ROOM[2] - ROOM[3]);
    let left = |share: f64| ROOM[0] + share * width;
    let top = |share: f64| ROOM[2] + (1.0 - share) * height;
    let place = |&(a, b): &(f64, f64)| Some((left(x.at(a)?), top(y.at(b)?)));
    let several = chart.series.len() > 1;
    html! {
        figure.chart {
            h3 { (chart.title) }
            @if several {
                div.legend { @for (number, series) in chart.series.iter().enumerate() { span { (swatch(number)) (series.name) } } }
            }
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(chart.title) {
                @for &mark in &y.marks {
                    @if let Some(share) = y.at(mark) {
                        line.grid x1=(ROOM[0]) x2=(WIDTH - ROOM[1]) y1=(places(top(share))) y2=(places(top(share))) {}
                        text x=(ROOM[0] - 6.0) y=(places(top(share) + 4.0)) text-anchor="end" { (y.label(mark)) }
                    }
                }
                @for &mark in &x.marks {
                    @if let Some(share) = x.at(mark) {
                        line.grid x1=(places(left(share))) x2=(places(left(share))) y1=(HEIGHT - ROOM[3]) y2=(HEIGHT - ROOM[3] + 4.0) {}
                        text x=(places(left(share))) y=(HEIGHT - ROOM[3] + 17.0) text-anchor="middle" { (x.label(mark)) }
                    }
                }
                text x=(places(left(0.5))) y=(HEIGHT - 6.0) text-anchor="middle" { (chart.x.0) }
                text x="0" y="0" transform=(format!("translate(12 {}) rotate(-90)", places(top(0.5)))) text-anchor="middle" { (chart.y.0) }
                @for (number, series) in chart.series.iter().enumerate() {
                    @let dash = (number >= CLASSES).then_some("5 4");
                    @let found: Vec<(f64, f64)> = series.points.iter().filter_map(place).collect();
                    path.line.{ "l" (number % CLASSES) } d=(path(&found)) stroke-dasharray=[dash] {}
                    @if found.len() <= 24 {
                        @for (a, b) in &found { circle.{ "f" (number % CLASSES) } cx=(places(*a)) cy=(places(*b)) r="3" {} }
                    }
                }
            }
        }
    }
}

fn path(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (number, (a, b)) in points.iter().enumerate() {
        let _ = write!(path, "{}{} {}", if number == 0 { "M" } else { "L" }, places(*a), places(*b));
    }
    path
}

/// One place behind the point is finer than any screen.
fn places(number: f64) -> String {
    format!("{number:.1}")
}

/// Bars below each other: names, lengths, and what is written behind them.
pub fn bars(title: &str, bars: &[(String, f64, String)]) -> Markup {
    let most = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    let (line, name, room) = (24.0, 118.0, 92.0);
    let height = line * bars.len() as f64;
    html! {
        figure.chart {
            h3 { (title) }
            svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(title) {
                @for (number, (label, length, text)) in bars.iter().enumerate() {
                    @let y = number as f64 * line;
                    @let width = if most > 0.0 { (WIDTH - name - room) * length / most } else { 0.0 };
                    text x=(name - 8.0) y=(y + 16.0) text-anchor="end" { (label) }
                    rect.f0 x=(name) y=(y + 4.0) width=(places(width.max(1.0))) height="16" rx="2" {}
                    text x=(places(name + width.max(1.0) + 6.0)) y=(y + 16.0) { (text) }
                }
            }
        }
    }
}
