//! The router put into pods by the API server itself: a MutatingAdmissionPolicy, in CEL (Kubernetes 1.36 and newer;
//! <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>).

use serde_json::{Value, json};

use super::{CONTAINER, LABEL, Template};

/// The policy and its binding, as YAML.
pub(super) fn manifests(template: &Template) -> String {
    let inits = "has(object.spec.initContainers)";
    let first = r#"JSONPatch{op: "add", path: "/spec/initContainers/0", value: variables.router}"#;
    let only = r#"JSONPatch{op: "add", path: "/spec/initContainers", value: [variables.router]}"#;
    let name = "distributed-cache-router";
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "objectSelector": {"matchLabels": {LABEL: "true"}},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
                ],
            },
            "variables": [{"name": "router", "expression": cel(&template.container)}],
            "matchConditions": [{
                "name": "has-no-router-yet",
                "expression": format!("!{inits} || object.spec.initContainers.all(one, one.name != \"{CONTAINER}\")"),
            }],
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "mutations": [{
                "patchType": "JSONPatch",
                "jsonPatch": {"expression": format!("[{inits} ? {first} : {only}]")},
            }],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    });
    serde_saphyr::to_string_multiple(&[policy, binding]).expect("JSON is YAML")
}

/// A value as a CEL literal. The members of a map or list have one type in Kubernetes' CEL, so each is made `dyn`.
fn cel(value: &Value) -> String {
    let members = |members: Vec<String>| members.join(", ");
    match value {
        Value::Object(map) => {
            let member = |(name, value): (&String, &Value)| format!("{}: dyn({})", json!(name), cel(value));
            format!("{{{}}}", members(map.iter().map(member).collect()))
        }
        Value::Array(list) => {
            format!("[{}]", members(list.iter().map(|value| format!("dyn({})", cel(value))).collect()))
        }
        // Numbers, words and strings with their escapes are written as in JSON.
        plain => plain.to_string(),
    }
}
