use std::process::Command;

use super::*;

fn doc(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(path).expect("a document")
}

/// Flags and variables that a program's help names.
fn settings(help: &str) -> Vec<String> {
    let words = help.split(|c: char| c.is_whitespace() || "[],()".contains(c));
    let is_setting = |word: &&str| {
        word.starts_with("--") && word.len() > 2
            || word.ends_with('=') && word.chars().all(|c| c.is_ascii_uppercase() || "_=".contains(c))
    };
    words.filter(is_setting).map(|word| word.trim_end_matches(['=', '.']).to_owned()).collect()
}

#[test]
fn every_setting_is_documented() {
    let own = std::env::current_exe().expect("a path");
    let programs = own.parent().and_then(|deps| deps.parent()).expect("the directory of the programs");
    for (program, document) in [
        ("cache-node", "configuration.md"),
        ("router-sidecar", "configuration.md"),
        ("router-sidecar inject", "configuration.md"),
        ("router-sidecar webhook", "configuration.md"),
        ("router-sidecar webhook-manifests", "configuration.md"),
        ("router-sidecar policy", "configuration.md"),
        ("local-cluster", "configuration.md"),
        ("loadtest", "load-testing.md"),
        ("bench", "benchmarks.md"),
    ] {
        let mut words = program.split(' ');
        let mut command = Command::new(programs.join(words.next().expect("its name")));
        let help = command.args(words).arg("--help").output().expect("runs");
        let found = settings(&String::from_utf8(help.stdout).expect("text"));
        assert!(found.len() >= 3, "{program}: {found:?}");
        let document = doc(document);
        for setting in found.iter().filter(|setting| !["--help", "--version"].contains(&setting.as_str())) {
            assert!(document.contains(&format!("`{setting}`")), "{program}'s {setting} is not documented");
        }
    }
}

#[test]
fn every_key_of_the_configuration_file_is_documented() {
    let dir = tempfile::tempdir().expect("a directory");
    let document = doc("configuration.md");
    for text in ["x = 1", "[database.main]\nx = 1", "[region.things]\nx = 1"] {
        let path = dir.path().join("cache.toml");
        std::fs::write(&path, text).expect("a file");
        let error = cache_node::config::CacheConfig::load(&path).expect_err("x is no key").to_string();
        let (_, known) = error.split_once("expected ").expect("it lists the keys");
        let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        assert!(!keys.is_empty(), "{error}");
        for key in keys {
            let names = |row: &(String, String)| row.0 == *key || row.0 == format!("[{key}.NAME]");
            assert!(rows(&document).iter().any(names), "{key} is not documented");
        }
    }
}

/// Keys of the configuration file in the table of the document, each with its default.
fn rows(document: &str) -> Vec<(String, String)> {
    let (_, table) = document.split_once("| key | default | bound |").expect("the table");
    let names = |cell: &str| -> Vec<String> {
        let words = cell.split([',', ' ']).filter(|name| !name.is_empty());
        words.map(|name| name.trim_matches('`').to_owned()).collect()
    };
    let cells = |line: &str| -> Vec<Vec<String>> { line.split('|').skip(1).map(names).collect() };
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines
        .map(cells)
        .flat_map(|cells| {
            let keys: Vec<String> = cells[0].iter().filter(|name| *name != "or").cloned().collect();
            let defaults = cells[1].iter().map(String::clone).chain(std::iter::repeat(String::new()));
            keys.into_iter().zip(defaults).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn every_default_of_the_configuration_file_is_as_documented() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = rusqlite::Connection::open(dir.path().join("test.db")).expect("a database");
    opened.execute_batch("CREATE TABLE things (id TEXT PRIMARY KEY, body)").expect("a table");
    let path = dir.path().join("cache.toml");
    let read = |top: &str, of_database: &str, of_region: &str| {
        std::fs::write(&path, format!("{top}{DATABASE}{of_database}{REGION}{of_region}")).expect("a file");
        cache_node::config::CacheConfig::load(&path).map(|config| format!("{config:?}"))
    };
    let as_it_is = read("", "", "").expect("sound");
    let mut n_checked = 0;
    for (key, default) in rows(&doc("configuration.md")) {
        let is_value = default.starts_with(|c: char| c.is_ascii_digit());
        if !is_value {
            continue;
        }
        let value = if default.parse::<u32>().is_ok() { default } else { format!("{default:?}") };
        let line = format!("{key} = {value}\n");
        let anywhere = [read(&line, "", ""), read("", &line, ""), read("", "", &line)];
        assert!(anywhere.contains(&Ok(as_it_is.clone())), "{line}is not the default: {anywhere:?}");
        n_checked += 1;
    }
    assert!(n_checked >= 10, "{n_checked}");
}

#[test]
fn every_metric_is_documented() {
    let it = Scene::demo(10).start();
    let document = doc("operations.md");
    for base in [it.cluster.url(0), it.cluster.control(0)] {
        let page = it.client.get(format!("{base}/metrics")).send().and_then(Response::text).expect("a page");
        let metrics: Vec<String> = page
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| if kind == "counter" { format!("`{name}_total") } else { format!("`{name}") })
            .collect();
        assert!(metrics.len() >= 5, "{page}");
        for metric in metrics {
            assert!(document.contains(&metric), "{metric} is not documented");
        }
    }
}
