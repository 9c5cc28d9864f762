//! How the router gets into the pods of applications: one template (`k8s/components/router-sidecar/router.yaml`), put into
//! manifests by [`manifests`], into pods as they are made by [`webhook`], or by the API server itself with [`policy`].

pub mod manifests;
pub mod policy;
pub mod webhook;

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::config::Task;

/// The container's name in the pods that have it.
pub const CONTAINER: &str = "distributed-cache-router";
/// With the value `"true"` it asks for the router, and marks who has it.
pub const LABEL: &str = "distributed-cache/inject";

const TEMPLATE: &str = include_str!("../../k8s/components/router-sidecar/router.yaml");
/// What stands in it for the namespace of the cache.
const NAMESPACE: &str = "$(POD_NAMESPACE)";
const TEMPLATE_CONTAINER: &str = "/spec/template/spec/initContainers/0";

/// What differs between clusters.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct TemplateArgs {
    /// Image of the router; by default the one of this release that `make image` makes.
    #[arg(long)]
    pub image: Option<String>,
    /// Namespace of the cache; by default the application's own.
    #[arg(long)]
    pub cache_namespace: Option<String>,
}

/// Why there is no router in a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// The mistake of whoever wrote the manifest.
    #[error("{0}")]
    NoPod(&'static str),
    /// The application would meet itself.
    #[error("container {container:?} has port {port} already, which is the router's; choose another")]
    PortTaken {
        /// Which.
        container: String,
        /// Of the router.
        port: u64,
    },
    /// The router would take a port of the whole machine.
    #[error(
        "the pod uses the network of its host, where port 9000 may be anybody's; run a router on each host instead"
    )]
    HostNetwork,
}

/// Why a task ended without its result.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// In what was given.
    #[error("{0}")]
    Input(String),
    /// The machine's refusal.
    #[error("{place}: {error}")]
    Io {
        /// Which file or address.
        place: String,
        /// What the machine says.
        error: io::Error,
    },
}

impl TaskError {
    /// Whether whoever started it made a mistake: exit code [`crate::config::EXIT_CONFIG`].
    #[must_use]
    pub const fn is_mistake(&self) -> bool {
        matches!(self, Self::Input(_))
    }
}

/// Performs a task of the command line.
///
/// # Errors
/// [`TaskError`], before anything has been written.
pub fn perform(task: &Task) -> Result<(), TaskError> {
    let text = match task {
        Task::Webhook(args) => return webhook::serve(args),
        Task::Inject(args) => manifests::perform(args)?,
        Task::WebhookManifests(args) => webhook::manifests(args)?,
        Task::Policy(args) => policy::manifests(&Template::new(args)),
    };
    let written = io::stdout().write_all(text.as_bytes());
    written.map_err(|error| TaskError::Io { place: "standard output".to_owned(), error })
}

/// The router's container, as it stands in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    container: Value,
}

impl Template {
    /// The template with what was said of this cluster.
    #[must_use]
    pub fn new(args: &TemplateArgs) -> Self {
        let file: Value = serde_saphyr::from_str(TEMPLATE).expect("a test reads it");
        let mut container = file.pointer(TEMPLATE_CONTAINER).expect("a test looks at it").clone();
        if let Some(image) = &args.image {
            container["image"] = json!(image);
        }
        if let Some(namespace) = &args.cache_namespace {
            for one in container["env"].as_array_mut().expect("the same test") {
                if let Some(value) = one["value"].as_str() {
                    one["value"] = json!(value.replace(NAMESPACE, namespace));
                }
            }
        }
        Self { container }
    }

    /// Puts the router into a pod, in the place of an older one if there is one, and the label on it. `pod` has `metadata`
    /// and `spec`, as a Pod or a pod template.
    ///
    /// # Errors
    /// [`InjectError`]; the pod is as it was.
    pub fn inject(&self, pod: &mut Value) -> Result<(), InjectError> {
        self.check(&pod["spec"])?;
        let spec = pod["spec"].as_object_mut().ok_or(InjectError::NoPod("it has no spec"))?;
        let inits = spec.entry("initContainers").or_insert_with(|| json!([]));
        if inits.is_null() {
            *inits = json!([]);
        }
        let inits = inits.as_array_mut().ok_or(InjectError::NoPod("its initContainers are no list"))?;
        match inits.iter_mut().find(|one| one["name"] == CONTAINER) {
            Some(older) => *older = self.container.clone(),
            // First: the other init containers may ask the cache too.
            None => inits.insert(0, self.container.clone()),
        }
        if let Some(labels) = object(pod, "metadata").and_then(|metadata| object(metadata, "labels")) {
            labels[LABEL] = json!("true");
        }
        Ok(())
    }

    fn check(&self, spec: &Value) -> Result<(), InjectError> {
        let containers = spec["containers"].as_array().ok_or(InjectError::NoPod("it has no containers"))?;
        if spec["hostNetwork"] == true {
            return Err(InjectError::HostNetwork);
        }
        let sidecars = spec["initContainers"].as_array().into_iter().flatten();
        for other in containers.iter().chain(sidecars).filter(|other| other["name"] != CONTAINER) {
            let ports = other["ports"].as_array().into_iter().flatten();
            let of_tcp = ports.filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"));
            for port in of_tcp.filter_map(|port| port["containerPort"].as_u64()) {
                if self.ports().any(|own| own == port) {
                    let container = other["name"].as_str().unwrap_or_default().to_owned();
                    return Err(InjectError::PortTaken { container, port });
                }
            }
        }
        if containers.iter().any(|one| one["name"] == CONTAINER) {
            return Err(InjectError::NoPod("one of its containers has the router's name, distributed-cache-router"));
        }
        Ok(())
    }

    /// The ports that it listens on.
    fn ports(&self) -> impl Iterator<Item = u64> {
        let env = self.container["env"].as_array().into_iter().flatten();
        env.filter(|one| one["name"].as_str().is_some_and(|name| name.ends_with("_BIND")))
            .filter_map(|one| one["value"].as_str()?.rsplit_once(':')?.1.parse().ok())
    }
}

/// Whether a pod has its router already.
fn has_router(pod: &Value) -> bool {
    pod["spec"]["initContainers"].as_array().is_some_and(|inits| inits.iter().any(|one| one["name"] == CONTAINER))
}

/// The object below `parent` by this name, made if there is none; `None` if something else is there.
fn object<'a>(parent: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    let child = parent.as_object_mut()?.entry(name).or_insert(Value::Null);
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child.is_object().then_some(child)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        Template::new(&TemplateArgs { image: None, cache_namespace: None })
    }

    fn pod(spec: Value) -> Value {
        json!({"metadata": null, "spec": spec})
    }

    #[test]
    fn the_template_is_the_router_of_this_release() {
        let Template { container } = template();
        assert_eq!(container["name"], CONTAINER);
        assert_eq!(container["restartPolicy"], "Always", "a native sidecar");
        assert_eq!(container["image"], format!("localhost/router-sidecar:{}", env!("CARGO_PKG_VERSION")));
        assert_eq!(template().ports().collect::<Vec<_>>(), [9000, 9001]);
        let other = Template::new(&TemplateArgs { image: Some("x:1".into()), cache_namespace: Some("prod".into()) });
        assert_eq!(other.container["image"], "x:1");
        assert!(
            other.container["env"].to_string().contains("distributed-cache-0.prod.svc.cluster.local:2551"),
            "{other:?}"
        );
        assert!(!other.container["env"].to_string().contains(NAMESPACE), "{other:?}");
    }

    #[test]
    fn a_pod_gets_it_once_and_first() {
        let mut once = pod(json!({"containers": [{"name": "app"}], "initContainers": [{"name": "migrate"}]}));
        template().inject(&mut once).expect("injected");
        assert_eq!(once["spec"]["initContainers"][0]["name"], CONTAINER);
        assert_eq!(once["spec"]["initContainers"][1]["name"], "migrate");
        assert_eq!(once["metadata"]["labels"][LABEL], "true");
        assert!(has_router(&once));
        let mut twice = once.clone();
        template().inject(&mut twice).expect("injected");
        assert_eq!(twice, once);
        let newer = Template::new(&TemplateArgs { image: Some("x:2".into()), cache_namespace: None });
        newer.inject(&mut twice).expect("injected");
        assert_eq!(twice["spec"]["initContainers"][0]["image"], "x:2");
        assert_eq!(twice["spec"]["initContainers"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn what_cannot_have_it_stays_as_it_was() {
        let port = |port: u64| json!([{"name": "app", "ports": [{"containerPort": port}]}]);
        for (spec, part) in [
            (json!({}), "no containers"),
            (json!({"containers": port(9000)}), "\"app\" has port 9000"),
            (json!({"containers": port(9001)}), "\"app\" has port 9001"),
            (json!({"containers": [], "initContainers": port(9000)}), "\"app\" has port 9000"),
            (json!({"containers": [], "initContainers": 7}), "no list"),
            (json!({"containers": [{"name": CONTAINER}]}), "router's name"),
            (json!({"containers": [], "hostNetwork": true}), "network of its host"),
        ] {
            let before = pod(spec);
            let mut after = before.clone();
            let error = template().inject(&mut after).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(after, before);
        }
    }
}
