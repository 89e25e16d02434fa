//! Reports of a run: tables, stored JSON, a plot, and a comparison with another run.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::peers::Peer;

/// Everything that was measured in one environment.
#[derive(Deserialize, Serialize)]
pub struct Run {
    pub world: String,
    pub isolation: String,
    pub cpus: usize,
    pub rows: Vec<Row>,
    /// The latencies of each script, sorted, milliseconds.
    pub latencies: Vec<(String, Vec<f64>)>,
    /// What one would use instead. Only on the host.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// One number next to its yardstick.
#[derive(Deserialize, Serialize)]
pub struct Row {
    what: String,
    value: f64,
    unit: String,
    yardstick: String,
    yardstick_value: f64,
    target: String,
    met: bool,
}

/// The environments in the order of the document, each with its heading.
const WORLDS: [(&str, &str); 3] = [
    ("host", "On the host, as root"),
    ("docker", "In `docker run --cpus 1`"),
    ("gvisor", "Under gVisor"),
];

/// The beginning of the document.
const INTRODUCTION: &str = "\
# Benchmarks

`make bench` and `make bench-worlds` write this file. Each number is next to a yardstick from the same run, since
machines differ and are noisy, but ratios are stable. Latencies are percentiles of 300 requests, one after the other
with a pause of 15 ms, on a connection that is kept open. Throughput is measured with 8 clients that send without pause.
Start times are the median of 5 starts.

![Latency distribution](benchmarks/latency.svg)
";

impl Row {
    pub fn new(what: &str, value: f64, unit: &str, yardstick: &str, yardstick_value: f64) -> Row {
        Row {
            what: what.to_owned(),
            value,
            unit: unit.to_owned(),
            yardstick: yardstick.to_owned(),
            yardstick_value,
            target: String::new(),
            met: true,
        }
    }

    pub fn target(mut self, target: &str, met: bool) -> Row {
        self.target = target.to_owned();
        self.met = met;
        self
    }

    fn ratio(&self) -> f64 {
        self.value / self.yardstick_value
    }

    fn is_rate(&self) -> bool {
        self.unit.ends_with("/s")
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks")
}

impl Run {
    fn path(world: &str) -> PathBuf {
        folder().join(format!("{world}.json"))
    }

    pub fn stored(world: &str) -> Run {
        serde_json::from_slice(&std::fs::read(Run::path(world)).unwrap()).unwrap()
    }

    pub fn store(&self) {
        std::fs::create_dir_all(folder()).unwrap();
        let text = serde_json::to_string_pretty(self).unwrap();
        std::fs::write(Run::path(&self.world), text + "\n").unwrap();
    }

    pub fn table(&self) -> String {
        let mut table = String::from(
            "| what | measured | yardstick | ratio | target | |\n|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let (value, unit, ratio) = (row.value, &row.unit, row.ratio());
            let ratio =
                if ratio < 0.1 { format!("1/{:.0}", 1.0 / ratio) } else { format!("{ratio:.2}") };
            // Targets apply to the host only.
            let (target, met) = match (self.world.as_str(), row.target.is_empty(), row.met) {
                ("host", false, true) => (row.target.as_str(), "met"),
                ("host", false, false) => (row.target.as_str(), "**missed**"),
                _ => ("", ""),
            };
            writeln!(
                table,
                "| {} | {value:.2} {unit} | {}, {:.2} {unit} | {ratio} | {target} | {met} |",
                row.what, row.yardstick, row.yardstick_value,
            )
            .unwrap();
        }
        table
    }

    /// The peers next to this service, or nothing if there are none.
    pub fn peer_table(&self) -> String {
        let [Some(trivial), Some(pandas)] =
            ["trivial", "pandas sum of 3 rows"].map(|name| self.p50(name))
        else {
            return String::new();
        };
        if self.peers.is_empty() {
            return String::new();
        }
        let mut table = format!(
            "| what runs the script | isolation of a script | trivial | pandas |\n|---|---|---|---|\n\
             | a request to mainbox | `{}` | {trivial:.1} ms | {pandas:.1} ms |\n",
            self.isolation
        );
        for peer in &self.peers {
            let Peer { name, isolation, trivial_ms, pandas_ms } = peer;
            writeln!(table, "| {name} | {isolation} | {trivial_ms:.0} ms | {pandas_ms:.0} ms |")
                .unwrap();
        }
        table
    }

    fn p50(&self, script: &str) -> Option<f64> {
        let (_, times) = self.latencies.iter().find(|(name, _)| name == script)?;
        times.get(times.len() / 2).copied()
    }
}

/// Writes `docs/benchmarks.md` and its plot from the stored runs.
pub fn render() {
    let mut text = String::from(INTRODUCTION);
    for (world, title) in WORLDS.iter().filter(|(world, _)| Run::path(world).exists()) {
        let run = Run::stored(world);
        let (isolation, cpus) = (&run.isolation, run.cpus);
        write!(text, "\n## {title}: isolation `{isolation}`, {cpus} CPU\n\n{}", run.table())
            .unwrap();
        if *world == "host" {
            if !run.peers.is_empty() {
                write!(text, "\n### What you would use instead\n\n{}", run.peer_table()).unwrap();
            }
            draw(&run);
        }
    }
    let notes = std::fs::read_to_string(folder().join("notes.md")).unwrap_or_default();
    std::fs::write(folder().with_extension("md"), text + "\n" + &notes).unwrap();
}

/// Draws the share of requests that were answered within a number of milliseconds.
fn draw(run: &Run) {
    let path = folder().join("latency.svg");
    let area = SVGBackend::new(&path, (760, 360)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let longest =
        run.latencies.iter().flat_map(|(_, times)| times).fold(0.0, |a: f64, b| a.max(*b));
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(46)
        .build_cartesian_2d((0.3..longest).log_scale(), 0.0..100.0)
        .unwrap();
    chart
        .configure_mesh()
        .x_desc("milliseconds")
        .y_desc("% answered")
        .x_label_formatter(&|milliseconds| format!("{milliseconds:.1}"))
        .draw()
        .unwrap();
    for (number, (name, times)) in run.latencies.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let share = |index: usize| 100.0 * (index + 1) as f64 / times.len() as f64;
        let points = times.iter().enumerate().map(|(index, time)| (*time, share(index)));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .unwrap()
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
        .unwrap();
    area.present().unwrap();
}

/// Prints what became slower or larger since `before`, as a ratio to its yardstick.
pub fn compare(before: &Run, now: &Run) {
    println!("| what | before | now | |\n|---|---|---|---|");
    for row in &now.rows {
        let Some(old) = before.rows.iter().find(|old| old.what == row.what) else { continue };
        let change = row.ratio() / old.ratio();
        let worse = if row.is_rate() { 1.0 / change } else { change };
        let verdict = match worse {
            worse if worse > 1.15 => "**worse**",
            worse if worse < 0.85 => "better",
            _ => "",
        };
        println!(
            "| {} | {:.2} {} | {:.2} {} | {:+.0}% {verdict} |",
            row.what,
            old.value,
            row.unit,
            row.value,
            row.unit,
            (worse - 1.0) * 100.0
        );
    }
}
