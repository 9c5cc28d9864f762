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
            let is_there = document.contains(&format!("\n{key} = ")) || document.contains(&format!("\n[{key}."));
            assert!(is_there, "{key} is not documented");
        }
    }
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
