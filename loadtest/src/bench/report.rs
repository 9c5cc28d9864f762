//! What comes of a run: rows, medians, ratios; as JSON, as a table, and beside an earlier run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::load::Load;
use super::memory::MemoryRow;
use super::setup::Setup;

/// A sample in which other programs took more of all CPUs is disturbed.
pub(super) const FOREIGN_MAX: f64 = 0.05;
/// A ratio that is worse than the earlier one by more than this share has slipped.
const SLIP_MAX: f64 = 0.15;

/// One sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) setup: Setup,
    pub(super) load: Load,
    pub(super) round: u32,
    /// CPU time of all its processes, microseconds a request.
    pub(super) cpu_us: f64,
    /// Of it, that of the front.
    pub(super) front_cpu_us: f64,
    pub(super) requests_per_second: f64,
    pub(super) p50_us: u64,
    pub(super) p99_us: u64,
    pub(super) p999_us: u64,
    /// Share of all CPUs that other programs took meanwhile.
    pub(super) foreign: f64,
    /// System calls a request, where they were counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) syscalls: Option<f64>,
}

/// A run, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) machine: String,
    pub(super) date: String,
    pub(super) rows: Vec<Row>,
    pub(super) ratios: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) memory: Vec<MemoryRow>,
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], upper) } else { upper })
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The median of a figure over the rounds of a set-up under a load.
pub(super) fn of(rows: &[Row], setup: Setup, load: Load, figure: impl Fn(&Row) -> Option<f64>) -> Option<f64> {
    median(rows.iter().filter(|row| row.setup == setup && row.load == load).filter_map(figure).collect())
}

/// The ratios that are watched, each a quotient of medians; those for which there are rows.
pub(super) fn ratios(rows: &[Row]) -> BTreeMap<String, f64> {
    let cpu = |setup, load| of(rows, setup, load, |row| Some(row.cpu_us));
    let syscalls = |load| of(rows, Setup::Ours, load, |row| row.syscalls);
    #[expect(clippy::cast_precision_loss, reason = "microseconds up to a minute")]
    let p99 = |setup| of(rows, setup, Load::Open30k, |row| Some(row.p99_us as f64));
    let (ours, nginx) = (Setup::Ours, Setup::NginxNginx);
    let all = [
        ("T1", cpu(ours, Load::C32), cpu(nginx, Load::C32)),
        ("T2", cpu(ours, Load::C128), cpu(nginx, Load::C128)),
        ("T3", cpu(ours, Load::Open30k), cpu(nginx, Load::Open30k)),
        ("T4", cpu(ours, Load::Open8k), cpu(nginx, Load::Open8k)),
        ("T5", cpu(ours, Load::FreeC32), cpu(nginx, Load::FreeC32)),
        ("T7", cpu(ours, Load::C32), cpu(Setup::ActixRedis, Load::C32)),
        ("T10", p99(ours), p99(nginx)),
        ("T11_32", syscalls(Load::C32Syscalls), Some(1.0)),
        ("T11_128", syscalls(Load::C128Syscalls), Some(1.0)),
        ("T16", cpu(ours, Load::C32Post100), cpu(ours, Load::C32)),
        ("T17", cpu(Setup::OursTwelve, Load::C128Nodes), cpu(ours, Load::C128Nodes)),
    ];
    let ratio = |(name, above, below): (&str, Option<f64>, Option<f64>)| {
        Some((name.to_owned(), rounded(above? / below.filter(|below| *below > 0.0)?)))
    };
    all.into_iter().filter_map(ratio).collect()
}

/// A ratio beside the earlier one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Compared {
    pub(super) name: String,
    pub(super) now: f64,
    pub(super) earlier: f64,
}

impl Compared {
    /// Whether it is worse by more than noise: all ratios are better when they are less.
    pub(super) fn has_slipped(&self) -> bool {
        self.now > self.earlier * (1.0 + SLIP_MAX)
    }
}

/// The ratios that both runs have.
pub(super) fn compare(now: &BTreeMap<String, f64>, earlier: &BTreeMap<String, f64>) -> Vec<Compared> {
    let both = |(name, now): (&String, &f64)| {
        let earlier = *earlier.get(name)?;
        Some(Compared { name: name.clone(), now: *now, earlier })
    };
    now.iter().filter_map(both).collect()
}

impl Report {
    /// All of it for programs, each row on a line.
    pub(super) fn json(&self) -> String {
        let Self { machine, date, rows, ratios, memory } = self;
        let (machine, date, ratios) = (json_of(machine), json_of(date), json_of(ratios));
        let memory = if memory.is_empty() { String::new() } else { format!(",\n\"memory\":{}", lines(memory)) };
        format!(
            "{{\"machine\":{machine},\n\"date\":{date},\n\"rows\":{},\n\"ratios\":{ratios}{memory}}}\n",
            lines(rows)
        )
    }

    /// How many samples other programs have disturbed, when there are such.
    pub(super) fn disturbed(&self) -> Option<String> {
        let n = self.rows.iter().filter(|row| row.foreign > FOREIGN_MAX).count();
        let all = self.rows.len();
        (n > 0).then(|| format!("{n} of {all} samples were disturbed by other programs: trust them less"))
    }

    /// All of it for people, as Markdown.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{}; {}\n", self.machine, self.date);
        if let Some(disturbed) = self.disturbed() {
            line(&mut text, format_args!("\n{disturbed}."));
        }
        for load in Load::ALL {
            self.table_of(load, &mut text);
        }
        if !self.ratios.is_empty() {
            text += "\n### Ratios\n\n| ratio | value |\n| --- | --- |\n";
            for (name, value) in &self.ratios {
                line(&mut text, format_args!("| {name} | {value:.2} |"));
            }
        }
        if !self.memory.is_empty() {
            text += "\n### Memory\n\n| store | entries | value, bytes | bytes per entry beyond key and value |\n";
            text += "| --- | --- | --- | --- |\n";
            for MemoryRow { store, entries, value_bytes, bytes_per_entry, .. } in &self.memory {
                line(&mut text, format_args!("| {store} | {entries} | {value_bytes} | {bytes_per_entry:.0} |"));
            }
        }
        text
    }

    fn table_of(&self, load: Load, text: &mut String) {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.load == load).collect();
        if rows.is_empty() {
            return;
        }
        let of = |setup, figure: &dyn Fn(&Row) -> Option<f64>| of(&self.rows, setup, load, figure);
        let nginx = of(Setup::NginxNginx, &|row| Some(row.cpu_us));
        let is_counted = rows.iter().any(|row| row.syscalls.is_some());
        line(text, format_args!("\n### {}: {}\n", load.name(), load.help()));
        let (head, rule) = if is_counted { (" system calls |", " --- |") } else { ("", "") };
        line(
            text,
            format_args!(
                "| set-up | CPU us (front + stores) | x nginx-nginx | requests/s | p50 us | p99 us | p99.9 us | \
                 samples | foreign CPU |{head}\n\
                 | --- | --- | --- | --- | --- | --- | --- | --- | --- |{rule}"
            ),
        );
        for setup in Setup::ALL.into_iter().chain([Setup::OursTwelve]) {
            let Some(cpu) = of(setup, &|row| Some(row.cpu_us)) else { continue };
            let front = of(setup, &|row| Some(row.front_cpu_us)).unwrap_or_default();
            let ratio = nginx.map_or("-".to_owned(), |nginx| format!("{:.2}", cpu / nginx));
            #[expect(clippy::cast_precision_loss, reason = "microseconds up to a minute")]
            let [p50, p99, p999] = [|row: &Row| row.p50_us, |row: &Row| row.p99_us, |row: &Row| row.p999_us]
                .map(|figure| of(setup, &|row| Some(figure(row) as f64)).unwrap_or_default());
            let rate = of(setup, &|row| Some(row.requests_per_second)).unwrap_or_default();
            let foreign = of(setup, &|row| Some(row.foreign)).unwrap_or_default();
            let calls = of(setup, &|row| row.syscalls).map(|calls| format!(" {calls:.2} |")).unwrap_or_default();
            let n = rows.iter().filter(|row| row.setup == setup).count();
            line(
                text,
                format_args!(
                    "| {} | {cpu:.1} ({front:.1} + {:.1}) | {ratio} | {rate:.0} | {p50:.0} | {p99:.0} | {p999:.0} | \
                     {n} | {:.1} % |{calls}",
                    setup.name(),
                    cpu - front,
                    100.0 * foreign,
                ),
            );
        }
    }
}

fn json_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers and texts are JSON")
}

fn lines(values: &[impl Serialize]) -> String {
    format!("[\n{}\n]", values.iter().map(json_of).collect::<Vec<_>>().join(",\n"))
}

fn line(text: &mut String, arguments: std::fmt::Arguments) {
    writeln!(text, "{arguments}").expect("a string takes all");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(setup: Setup, load: Load, round: u32, cpu_us: f64) -> Row {
        Row {
            setup,
            load,
            round,
            cpu_us,
            front_cpu_us: cpu_us / 2.0,
            requests_per_second: 1000.0,
            p50_us: 100,
            p99_us: 200,
            p999_us: 300,
            foreign: 0.01,
            syscalls: None,
        }
    }

    fn rows() -> Vec<Row> {
        let mut rows = Vec::new();
        for (round, ours, nginx) in [(1, 9.0, 20.0), (2, 10.0, 18.0), (3, 90.0, 22.0)] {
            rows.push(row(Setup::Ours, Load::C32, round, ours));
            rows.push(row(Setup::NginxNginx, Load::C32, round, nginx));
        }
        rows.push(Row { syscalls: Some(2.7), ..row(Setup::Ours, Load::C32Syscalls, 1, 12.0) });
        rows
    }

    #[test]
    fn a_median_is_the_middle_or_between_two() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn a_ratio_is_one_of_medians_and_is_there_when_its_rows_are() {
        let ratios = ratios(&rows());
        assert_eq!(ratios, BTreeMap::from([("T1".to_owned(), 0.5), ("T11_32".to_owned(), 2.7)]));
    }

    #[test]
    fn a_ratio_slips_when_it_is_fifteen_percent_worse() {
        let of = |values: &[(&str, f64)]| values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let earlier = of(&[("T1", 0.5), ("T2", 0.4), ("T3", 0.9)]);
        let compared = compare(&of(&[("T1", 0.57), ("T2", 0.47), ("T16", 3.0)]), &earlier);
        let slipped: Vec<bool> = compared.iter().map(Compared::has_slipped).collect();
        assert_eq!((compared.len(), slipped), (2, vec![false, true]));
        assert!(!compare(&of(&[("T1", 0.1)]), &earlier)[0].has_slipped(), "better is never worse");
    }

    #[test]
    fn a_disturbed_run_says_so() {
        let rows = vec![Row { foreign: 0.06, ..row(Setup::Ours, Load::C32, 1, 9.0) }];
        let report = Report { rows, ..Report::default() };
        assert!(report.table().contains("1 of 1 samples were disturbed"), "{}", report.table());
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_has_a_table() {
        let rows = rows();
        let report = Report { ratios: ratios(&rows), rows, date: "2026-01-01".to_owned(), ..Report::default() };
        let text = report.json();
        assert_eq!(serde_json::from_str::<Report>(&text).expect("the same"), report);
        assert!(text.contains(r#""setup":"ours","load":"c32","round":1,"cpu_us":9.0"#), "{text}");
        let table = report.table();
        assert!(table.contains("| ours | 10.0 (5.0 + 5.0) | 0.50 | 1000 | 100 | 200 | 300 | 3 | 1.0 % |"), "{table}");
        assert!(!table.contains("disturbed"), "{table}");
        assert!(table.contains("| T1 | 0.50 |") && table.contains("system calls"), "{table}");
    }
}
