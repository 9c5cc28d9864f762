//! The router put into pods by the API server itself, in CEL: a MutatingAdmissionPolicy (Kubernetes 1.36 and newer;
//! <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>), and, since that cannot refuse
//! anything, a ValidatingAdmissionPolicy for the pods in which a router cannot be.

use serde_json::{Value, json};

use super::{CONTAINER, InjectError, LABEL, Template};

/// Both policies and their bindings, as YAML.
pub(super) fn manifests(template: &Template) -> String {
    let pods = json!({
        "objectSelector": {"matchLabels": {LABEL: "true"}},
        "resourceRules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "*",
        }],
    });
    let documents =
        [mutating(template, &pods), binding("Mutating"), validating(template, &pods), binding("Validating")];
    serde_saphyr::to_string_multiple(&documents).expect("JSON is YAML")
}

fn binding(kind: &str) -> Value {
    let mut binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": format!("{kind}AdmissionPolicyBinding"),
        "metadata": {"name": CONTAINER},
        "spec": {"policyName": CONTAINER},
    });
    if kind == "Validating" {
        binding["spec"]["validationActions"] = json!(["Deny"]);
    }
    binding
}

/// What [`Template::inject`] refuses.
fn validating(template: &Template, pods: &Value) -> Value {
    let ports: Vec<String> = template.ports().map(|port| port.to_string()).collect();
    let (list, either) = (ports.join(", "), ports.join(" or "));
    let is_taken = format!("port.containerPort in [{list}] && (!has(port.protocol) || port.protocol == 'TCP')");
    let refusal = format!("has port {either} already, which is the router's; choose another");
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": CONTAINER},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": pods,
            "variables": [
                {
                    "name": "others",
                    "expression": format!(
                        "(object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : []))\
                         .filter(one, one.name != \"{CONTAINER}\")"
                    ),
                },
                {
                    "name": "taken",
                    "expression": format!(
                        "variables.others.filter(one, has(one.ports) && one.ports.exists(port, {is_taken}))"
                    ),
                },
            ],
            "validations": [
                {
                    "expression": "!has(object.spec.hostNetwork) || !object.spec.hostNetwork",
                    "message": InjectError::HostNetwork.to_string(),
                },
                {
                    "expression": "variables.taken.size() == 0",
                    "messageExpression": format!("'container ' + variables.taken[0].name + \" {refusal}\""),
                },
            ],
        },
    })
}

fn mutating(template: &Template, pods: &Value) -> Value {
    let inits = "has(object.spec.initContainers)";
    let first = r#"JSONPatch{op: "add", path: "/spec/initContainers/0", value: variables.router}"#;
    let only = r#"JSONPatch{op: "add", path: "/spec/initContainers", value: [variables.router]}"#;
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": CONTAINER},
        "spec": {
            "matchConstraints": pods,
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
    })
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
