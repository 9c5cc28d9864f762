//! The router in manifests: YAML in, YAML out.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde_json::Value;

use super::{TaskError, Template, TemplateArgs};

/// Longest input; a cluster's whole state is shorter.
const INPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Deepest list of lists that is looked into.
const DEPTH_MAX: usize = 8;

/// Where the pod is in a workload of each kind that has one.
const PODS: [(&str, &str); 8] = [
    ("Pod", ""),
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// What is injected into.
#[derive(Clone, Debug, clap::Args)]
pub struct InjectArgs {
    /// File with the manifests, one or many, of any kinds; `-` for standard input.
    #[arg(short, long)]
    pub file: PathBuf,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a comment here would replace the command's own help")]
    pub template: TemplateArgs,
}

/// Reads the manifests, and gives them with the router in every pod. Says on standard error what has been done.
///
/// # Errors
/// [`TaskError`] with the place of the first mistake.
pub(super) fn perform(args: &InjectArgs) -> Result<String, TaskError> {
    let place = if args.file.as_os_str() == "-" { "standard input".into() } else { args.file.display().to_string() };
    let read = || -> io::Result<String> {
        let source: Box<dyn Read> = if args.file.as_os_str() == "-" {
            Box::new(io::stdin())
        } else {
            Box::new(std::fs::File::open(&args.file)?)
        };
        let mut text = String::new();
        source.take(INPUT_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > INPUT_BYTES_MAX {
            return Err(io::Error::other(format!("it is longer than {INPUT_BYTES_MAX} bytes")));
        }
        Ok(text)
    };
    let text = read().map_err(|error| TaskError::Input(format!("{place}: {error}")))?;
    let (output, injected) =
        inject(&text, &Template::new(&args.template)).map_err(|error| TaskError::Input(format!("{place}: {error}")))?;
    for name in injected {
        // Whoever closed standard error does not want to know.
        let _ = writeln!(io::stderr(), "{name} has the router");
    }
    Ok(output)
}

/// The manifests of `text` with the router in every pod, and whose pods those are.
fn inject(text: &str, template: &Template) -> Result<(String, Vec<String>), String> {
    // As kubectl reads them: 0644 is a file mode.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let documents = serde_saphyr::from_multiple_with_options::<Value>(text, options);
    let mut documents = documents.map_err(|error| format!("it is no YAML: {}", one_line(&error.to_string())))?;
    let mut injected = Vec::new();
    for document in &mut documents {
        inject_document(document, template, &mut injected, DEPTH_MAX)?;
    }
    if injected.is_empty() {
        let kinds = PODS.map(|(kind, _)| kind).join(", ");
        return Err(format!("there is nothing to inject into; what can have a router is: {kinds}"));
    }
    let output = serde_saphyr::to_string_multiple(&documents).map_err(|error| one_line(&error.to_string()))?;
    Ok((output, injected))
}

fn inject_document(
    document: &mut Value,
    template: &Template,
    injected: &mut Vec<String>,
    depth: usize,
) -> Result<(), String> {
    let Some(kind) = document["kind"].as_str().map(str::to_owned) else {
        return Err("a document has no kind; is it a Kubernetes manifest?".to_owned());
    };
    if kind.ends_with("List")
        && let Some(items) = document.get_mut("items").and_then(Value::as_array_mut)
    {
        let depth = depth.checked_sub(1).ok_or("lists in lists in lists")?;
        return items.iter_mut().try_for_each(|item| inject_document(item, template, injected, depth));
    }
    let Some((_, place)) = PODS.iter().find(|(of, _)| *of == kind) else { return Ok(()) };
    let name = format!("{kind}/{}", document["metadata"]["name"].as_str().unwrap_or("without a name"));
    let pod = document.pointer_mut(place).ok_or_else(|| format!("{name}: it has no {place}"))?;
    template.inject(pod).map_err(|error| format!("{name}: {error}"))?;
    injected.push(name);
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn template() -> Template {
        Template::new(&TemplateArgs { image: None, cache_namespace: None })
    }

    fn pods(text: &str) -> Vec<String> {
        inject(text, &template()).expect("injected").1
    }

    #[test]
    fn every_kind_of_workload_gets_it_and_the_rest_stays() {
        let spec = "{containers: [{name: app}]}";
        for (kind, place) in PODS {
            let mut text = format!("{{metadata: {{}}, spec: {spec}}}");
            for part in place.split('/').skip(1).collect::<Vec<_>>().into_iter().rev() {
                text = format!("{{{part}: {text}}}");
            }
            let text = format!("{{kind: {kind}, metadata: {{name: it}}, {}", &text[1..]);
            let text =
                if kind == "Pod" { format!("{{kind: Pod, metadata: {{name: it}}, spec: {spec}}}") } else { text };
            assert_eq!(pods(&text), [format!("{kind}/it")]);
            assert_eq!(pods(&format!("{{kind: List, items: [{text}, {text}]}}")).len(), 2);
            let (output, names) = inject(&format!("kind: Service\n---\n{text}\n---\n"), &template()).expect("injected");
            assert_eq!(names, [format!("{kind}/it")]);
            assert!(output.starts_with("kind: Service\n---\n"), "{output}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_said_in_one_line() {
        let pod = "kind: Pod\nmetadata: {name: it}\nspec: {containers: [{name: app, ports: [{containerPort: 9000}]}]}";
        for (text, part) in [
            ("", "nothing to inject into"),
            ("kind: Service", "nothing to inject into"),
            ("a: [", "no YAML"),
            ("just words", "no kind"),
            ("kind: Deployment", "Deployment/without a name: it has no /spec/template"),
            (pod, "Pod/it: container \"app\" has port 9000"),
        ] {
            let error = inject(text, &template()).expect_err("refused");
            assert!(error.contains(part) && error.lines().count() == 1, "{text:?}: {error}");
        }
    }

    #[test]
    fn values_keep_their_types_for_readers_of_older_yaml() {
        let text = "kind: Pod\nspec:\n  containers: [{name: app, env: [{name: A, value: \"yes\"}, {name: B, value: \"0644\"}, \
                    {name: C, value: \"1e3\"}, {name: D, value: \"a\\nb: c\\n\"}]}]\n  mode: 0644\n";
        let (output, _) = inject(text, &template()).expect("injected");
        let value: Value = serde_saphyr::from_str(&output).expect("YAML");
        let env = &value["spec"]["containers"][0]["env"];
        let values: Vec<_> = (0..4).map(|i| env[i]["value"].as_str().expect("text")).collect();
        assert_eq!(values, ["yes", "0644", "1e3", "a\nb: c\n"]);
        assert_eq!(value["spec"]["mode"], 420);
        assert!(!output.contains("value: yes") && !output.contains("value: 0644"), "{output}");
    }

    proptest! {
        #[test]
        fn any_string_stays_what_it_is(text in "(\\PC|[\n\t \"':#&*|>-]){0,120}") {
            let pod = json!({"kind": "Pod", "spec": {"containers": [{"args": [text]}]}});
            let (output, _) = inject(&pod.to_string(), &template()).expect("injected");
            let after: Value = serde_saphyr::from_str(&output).expect("YAML");
            prop_assert_eq!(&after["spec"]["containers"], &pod["spec"]["containers"], "{}", output);
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "(kind: (Pod|List|Job)\n)?([a-z&*!?|>'\"{}\\[\\],:# \n-]{0,200})") {
            let _ = inject(&text, &template());
        }
    }
}
