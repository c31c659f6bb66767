//! What the harness says: a table, a file of JSON, and plots.

use plotters::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Which side of its bar a figure should be on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Nobody has promised anything.
    None,
}

/// One measured figure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub group: String,
    pub name: String,
    /// The median of the runs.
    pub figure: f64,
    /// The least and the most of the runs.
    pub spread: [f64; 2],
    pub unit: String,
    pub bar: Bar,
    /// What stands beside it: the other side's figure, and whatever helps to understand.
    pub note: String,
}

impl Row {
    /// A figure from several runs.
    pub fn new(group: &str, name: &str, runs: &[f64], unit: &str, bar: Bar) -> Row {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        Row {
            group: group.into(),
            name: name.into(),
            figure: sorted[sorted.len() / 2],
            spread: [sorted[0], sorted[sorted.len() - 1]],
            unit: unit.into(),
            bar,
            note: String::new(),
        }
    }

    pub fn noted(self, note: String) -> Row {
        Row { note, ..self }
    }

    fn verdict(&self) -> &'static str {
        match self.bar {
            Bar::None => "",
            Bar::AtMost(bar) if self.figure <= bar => "met",
            Bar::AtLeast(bar) if self.figure >= bar => "met",
            Bar::AtMost(_) | Bar::AtLeast(_) => "**missed**",
        }
    }
}

/// The head of the table.
pub fn print_head() {
    println!("| what | | figure | least to most | bar | | beside it |");
    println!("|---|---|---|---|---|---|---|");
}

/// One line of the table.
pub fn print(row: &Row) {
    let bar = match row.bar {
        Bar::AtMost(bar) => format!("≤ {}", short(bar)),
        Bar::AtLeast(bar) => format!("≥ {}", short(bar)),
        Bar::None => String::new(),
    };
    let [least, most] = row.spread.map(short);
    println!(
        "| {} | {} | {} {} | {least} to {most} | {bar} | {} | {} |",
        row.group,
        row.name,
        short(row.figure),
        row.unit,
        row.verdict(),
        row.note
    );
}

/// Three significant digits.
fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        size if size >= 0.1 => format!("{figure:.2}"),
        _ => format!("{figure:.4}"),
    }
}

/// The rows in a file of JSON, and `newer` ones behind them; of two with one name the newer stays.
pub fn joined(path: &Path, newer: Vec<Row>) -> Vec<Row> {
    let older =
        std::fs::read(path).map_or(Vec::new(), |json| serde_json::from_slice(&json).unwrap());
    let is_new = |row: &Row| {
        newer
            .iter()
            .any(|new| (&new.group, &new.name) == (&row.group, &row.name))
    };
    let mut rows: Vec<Row> = older.into_iter().filter(|row| !is_new(row)).collect();
    rows.extend(newer);
    rows
}

/// Writes all rows as JSON.
pub fn write_json(rows: &[Row], path: &Path) {
    std::fs::write(path, serde_json::to_string_pretty(rows).unwrap()).unwrap();
}

/// Longest bar that is drawn, in times of what is allowed; a longer one has its figure beside it all the same.
const PART_MAX: f64 = 3.0;

/// Draws one bar chart for each unit that has a bar: the figures as parts of what is allowed.
pub fn plot_bars(rows: &[Row], path: &Path) {
    let parts: Vec<(String, String, f64)> = rows
        .iter()
        .filter_map(|row| {
            let part = match row.bar {
                Bar::AtMost(bar) => row.figure / bar,
                Bar::AtLeast(bar) => bar / row.figure,
                Bar::None => return None,
            };
            let part = f64::min(part, PART_MAX);
            let figure = format!("{} {}", short(row.figure), row.unit);
            Some((format!("{}, {}", row.group, row.name), figure, part))
        })
        .collect();
    if parts.is_empty() {
        return;
    }
    let most = parts
        .iter()
        .fold(1.2, |most: f64, (_, _, part)| most.max(*part))
        * 1.05
        + 0.3;
    let height = 60 + 22 * u32::try_from(parts.len()).unwrap();
    let area = SVGBackend::new(path, (900, height)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .caption("figure / bar: left of the line is met", ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(24)
        .build_cartesian_2d(-1.5..most, 0.0..parts.len() as f64)
        .unwrap();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_label_formatter(&|x| {
            if *x < 0.0 {
                String::new()
            } else {
                format!("{x:.1}")
            }
        })
        .draw()
        .unwrap();
    let bars = parts.iter().enumerate().map(|(number, (_, _, part))| {
        let top = (parts.len() - number) as f64;
        let colour = if *part <= 1.0 {
            GREEN.mix(0.6)
        } else {
            RED.mix(0.6)
        };
        Rectangle::new([(0.0, top - 0.8), (*part, top - 0.2)], colour.filled())
    });
    chart.draw_series(bars).unwrap();
    let texts = parts
        .iter()
        .enumerate()
        .flat_map(|(number, (name, figure, part))| {
            let middle = (parts.len() - number) as f64 - 0.35;
            let text = |text: &String, x| Text::new(text.clone(), (x, middle), ("sans-serif", 12));
            [text(name, -1.48), text(figure, part + 0.02)]
        });
    chart.draw_series(texts).unwrap();
    let line = PathElement::new(vec![(1.0, 0.0), (1.0, parts.len() as f64)], BLACK);
    chart.draw_series([line]).unwrap();
    area.present().unwrap();
}

/// Draws how one figure grows with another, both on logarithmic axes.
pub fn plot_growth(title: &str, series: &[(&str, Vec<(f64, f64)>)], path: &Path) {
    let points = || series.iter().flat_map(|(_, points)| points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (least, most) = points()
            .map(of)
            .fold((f64::MAX, 0.0_f64), |(least, most), value| {
                (least.min(value), most.max(value))
            });
        least / 1.5..most * 1.5
    };
    let area = SVGBackend::new(path, (700, 400)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(range(|p| p.0).log_scale(), range(|p| p.1).log_scale())
        .unwrap();
    chart.configure_mesh().draw().unwrap();
    for (number, (name, points)) in series.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), &colour).point_size(3))
            .unwrap()
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()
        .unwrap();
    area.present().unwrap();
}
