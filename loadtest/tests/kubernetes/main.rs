//! The manifests: held against Kubernetes' schemas and against the programs, and run on addresses of their own.

mod manifests;
mod namespaces;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The oldest release of Kubernetes that the manifests are for, and the newest that there are schemas of.
const OLDEST: &str = "1.29";
const NEWEST: &str = "1.37";

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A program of this workspace, as it was just built.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    own.parent().and_then(Path::parent).expect("the directory of the programs").join(name)
}

/// A program that `make test` has put beside them.
fn tool(name: &str) -> Command {
    let path = source("target/kube-tools/bin").join(name);
    assert!(path.exists(), "{} is missing: make target/kube-tools/ready", path.display());
    Command::new(path)
}

fn run(command: &mut Command, input: &str) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // Whoever does not read what it is given says so by its exit code.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("its output")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// A kustomization as the API server would get it.
fn rendered(directory: &str) -> String {
    text(&run(tool("kustomize").arg("build").arg(source(directory)), ""))
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn document<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it =
        |one: &&Value| one["kind"] == kind && one["metadata"]["name"].as_str().is_some_and(|n| n.starts_with(name));
    documents.iter().find(is_it).unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// The pod of a workload; `None` for what has none.
fn pod(document: &Value) -> Option<&Value> {
    document.pointer("/spec/template/spec").filter(|spec| spec["containers"].is_array())
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|list| pod[list].as_array().into_iter().flatten())
}
