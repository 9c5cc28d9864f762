use std::time::Duration;

use base64::Engine as _;
use cache_node::config::CacheConfig;

use super::*;

const EVERYTHING: &str = "loadtest/tests/kubernetes/everything";
const POLICY: &str = "k8s/injection/policy";
/// First ordinary release with policies of this kind.
const POLICIES_SINCE: &str = "1.36";

/// How many documents hold against the schemas of a release; what does not is the error.
fn validate(yaml: &str, release: &str) -> Result<usize, String> {
    let output = run(tool("kubernetes-validate").args(["--strict", "-k", release, "-"]), yaml);
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let passed = said.lines().filter(|line| line.contains("passed for resource") && line.ends_with(release)).count();
    if output.status.success() { Ok(passed) } else { Err(said) }
}

fn router(arguments: &[&str], input: &str) -> String {
    text(&run(Command::new(program("router-sidecar")).args(arguments), input))
}

/// All manifests, however they are made, with the first release that they are for.
fn all() -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("demo", rendered("k8s/overlays/demo"), OLDEST),
        ("everything", rendered(EVERYTHING), OLDEST),
        ("postgres", rendered("k8s/overlays/postgres"), OLDEST),
        ("redis", rendered("k8s/overlays/redis"), OLDEST),
        ("webhook", router(&["webhook-manifests", "--namespace", "tools"], ""), OLDEST),
        ("policy", rendered(POLICY), POLICIES_SINCE),
    ]
}

#[test]
fn every_manifest_holds_against_the_schemas_of_the_oldest_and_the_newest_kubernetes() {
    for (name, yaml, since) in all() {
        let n_documents = documents(&yaml).len();
        assert!(n_documents >= 2, "{name}");
        for release in [since, NEWEST] {
            assert_eq!(validate(&yaml, release), Ok(n_documents), "{name} for Kubernetes {release}");
        }
    }
}

#[test]
fn a_mistake_in_a_manifest_is_found() {
    let yaml = rendered("k8s/overlays/demo");
    let n_documents = documents(&yaml).len();
    for (right, wrong) in [
        ("podManagementPolicy: Parallel", "podManagmentPolicy: Parallel"),
        ("replicas: 3", "replicas: three"),
        ("apiVersion: policy/v1", "apiVersion: policy/v1beta1"),
    ] {
        assert!(yaml.contains(right), "{right}");
        assert_ne!(validate(&yaml.replace(right, wrong), NEWEST), Ok(n_documents), "{wrong}");
    }
}

#[test]
fn every_cache_toml_is_sound_with_the_secret_beside_it() {
    for overlay in ["postgres", "redis"] {
        let yaml = documents(&rendered(&format!("k8s/overlays/{overlay}")));
        let config = document(&yaml, "ConfigMap", "distributed-cache")["data"]["cache.toml"].as_str().expect("a file");
        let url = document(&yaml, "Secret", "distributed-cache-database")["data"]["url"].as_str().expect("a url");
        let url = base64::engine::general_purpose::STANDARD.decode(url).expect("as a Secret holds it");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("url"), url).expect("a file");
        let config = config.replace("url = \"$DATABASE_URL\"", "url_file = \"url\"");
        std::fs::write(dir.path().join("cache.toml"), config).expect("a file");
        let config = CacheConfig::load(&dir.path().join("cache.toml")).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.databases[0].budget.is_some() && config.regions[0].name.as_str() == "cache-data");
    }
}

#[test]
fn the_names_are_those_of_the_article() {
    let demo = documents(&rendered("k8s/overlays/demo"));
    let set = document(&demo, "StatefulSet", "distributed-cache");
    assert_eq!(set["spec"]["serviceName"], "distributed-cache");
    let headless = document(&demo, "Service", "distributed-cache");
    assert_eq!(
        (&headless["spec"]["clusterIP"], &headless["spec"]["publishNotReadyAddresses"]),
        (&"None".into(), &true.into())
    );
    assert_eq!(document(&demo, "Service", "distributed-cache-service")["spec"]["ports"][0]["port"], 9000);
    let ingress = document(&demo, "Ingress", "distributed-cache-ingress");
    assert_eq!(ingress["spec"]["rules"][0]["host"], "distributed-cache.com");
    let paths = ingress["spec"]["rules"][0]["http"]["paths"].as_array().expect("paths");
    assert_eq!(
        paths.iter().map(|path| &path["path"]).collect::<Vec<_>>(),
        ["/cache-data"],
        "and nothing of the inside"
    );
    let backend = &ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"];
    assert_eq!(backend, "distributed-cache-service");
}

/// What a program can be told: its flags, and its environment with the defaults; its help as one line.
struct Help(String);

impl Help {
    fn of(container: &Value) -> Option<Self> {
        let image = container["image"].as_str().expect("an image");
        let name = image.strip_prefix("localhost/")?.strip_suffix(concat!(":", env!("CARGO_PKG_VERSION")));
        let name = name.unwrap_or_else(|| panic!("{image} is not of this release"));
        let mut command = Command::new(program(name));
        if let Some(task) = container["args"][0].as_str().filter(|arg| !arg.starts_with('-')) {
            command.arg(task);
        }
        let help = text(&run(command.arg("--help").env_clear(), ""));
        Some(Self(help.split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    fn has_env(&self, name: &str) -> bool {
        self.0.contains(&format!("[env: {name}=]"))
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.0.split(|c: char| c.is_whitespace() || ",<[".contains(c)).any(|word| word == flag)
    }

    /// The default of a setting.
    fn default(&self, env: &str) -> &str {
        let (_, rest) = self.0.split_once(&format!("[env: {env}=] [default: ")).unwrap_or_else(|| panic!("{env}"));
        rest.split(']').next().expect("the rest of the line")
    }
}

/// The value that a container is given by name.
fn env<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let env = container["env"].as_array().into_iter().flatten();
    env.filter(|one| one["name"] == name).find_map(|one| one["value"].as_str())
}

#[test]
fn every_setting_of_a_manifest_is_one_of_its_program() {
    let cache_toml = std::fs::read_to_string(source("k8s/base/cache.toml")).expect("a file");
    let mut n_settings = 0;
    for (name, yaml, _) in all() {
        for container in documents(&yaml).iter().filter_map(pod).flat_map(containers) {
            let Some(help) = Help::of(container) else { continue };
            let whole = container.to_string();
            for one in container["env"].as_array().into_iter().flatten() {
                let setting = one["name"].as_str().expect("a name");
                let is_used =
                    whole.contains(&format!("$({setting})")) || cache_toml.contains(&format!("\"${setting}\""));
                assert!(help.has_env(setting) || is_used, "{name}: nobody reads {setting}");
                n_settings += 1;
            }
            let flags = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
            for flag in flags.filter(|arg| arg.starts_with("--")).filter_map(|arg| arg.split('=').next()) {
                assert!(help.has_flag(flag), "{name}: there is no flag {flag}");
                n_settings += 1;
            }
        }
    }
    assert!(n_settings > 30, "{n_settings}");
}

/// What a program listens on: what the manifest says, else its default.
fn listens_on(container: &Value, help: &Help) -> Vec<u64> {
    let port = |address: &str| address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let settings = help.0.split("[env: ").skip(1).filter_map(|rest| rest.split('=').next());
    let binds = settings.filter(|name| name.ends_with("_BIND"));
    binds.filter_map(|name| Some(port(env(container, name)?))).collect()
}

#[test]
fn every_port_is_one_that_its_program_listens_on() {
    let (mut n_ports, mut n_probes) = (0, 0);
    for (name, yaml, _) in all() {
        let documents = documents(&yaml);
        for container in documents.iter().filter_map(pod).flat_map(containers) {
            let Some(help) = Help::of(container) else { continue };
            let listens_on = listens_on(container, &help);
            let ports = container["ports"].as_array().into_iter().flatten();
            let named: Vec<_> = ports.map(|port| (port["name"].clone(), port["containerPort"].as_u64())).collect();
            for (_, port) in &named {
                assert!(port.is_some_and(|port| listens_on.contains(&port)), "{name}: {port:?} of {listens_on:?}");
                n_ports += 1;
            }
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"].map(|kind| &container[kind]["httpGet"]) {
                if probe.is_object() {
                    assert!(named.iter().any(|(port, _)| *port == probe["port"]), "{name}: {probe}");
                    assert!(
                        ["/livez", "/readyz", "/health"].iter().any(|path| probe["path"] == *path),
                        "{name}: {probe}"
                    );
                    n_probes += 1;
                }
            }
        }
        // Services and policies name ports, not numbers, so that they follow.
        let is_service = |one: &&Value| one["kind"] == "Service";
        for port in documents.iter().filter(is_service).flat_map(|one| one["spec"]["ports"].as_array()).flatten() {
            let target = port["targetPort"].as_str().expect("a name");
            let has =
                |container: &Value| container["ports"].as_array().into_iter().flatten().any(|p| p["name"] == target);
            assert!(documents.iter().filter_map(pod).flat_map(containers).any(has), "{name}: {target}");
        }
    }
    assert!(n_ports >= 8 && n_probes >= 12, "{n_ports} {n_probes}");
}

#[test]
fn a_pod_may_take_longer_to_end_than_its_drains() {
    let demo = documents(&rendered("k8s/overlays/demo"));
    let pod = pod(document(&demo, "StatefulSet", "distributed-cache")).expect("a pod");
    let mut longest = Duration::ZERO;
    for (name, settings) in [
        ("cache-node", &["CACHE_NODE_DRAIN_TIMEOUT"][..]),
        ("router-sidecar", &["ROUTER_DRAIN_DELAY", "ROUTER_DRAIN_TIMEOUT"]),
    ] {
        let container = containers(pod).find(|one| one["name"] == name).expect("a container");
        let help = Help::of(container).expect("ours");
        for setting in settings {
            let value = env(container, setting).unwrap_or_else(|| help.default(setting));
            longest += humantime::parse_duration(value).expect("a duration");
        }
    }
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().expect("seconds"));
    assert!(longest > Duration::from_secs(40) && longest < grace, "{longest:?} of {grace:?}");
}

#[test]
fn no_pod_is_root_writes_its_image_or_holds_a_token() {
    let mut n_containers = 0;
    for (name, yaml, _) in all() {
        for pod in documents(&yaml).iter().filter_map(pod) {
            for container in containers(pod).filter(|one| Help::of(one).is_some()) {
                assert_eq!(pod["automountServiceAccountToken"], false, "{name}: {container}");
                let own = &container["securityContext"];
                let of_both =
                    |field: &str| if own[field].is_null() { &pod["securityContext"][field] } else { &own[field] };
                assert_eq!(of_both("runAsNonRoot"), true, "{name}: {container}");
                assert!(of_both("runAsUser").as_u64().is_some_and(|user| user > 0), "{name}: {container}");
                assert_eq!(of_both("seccompProfile")["type"], "RuntimeDefault", "{name}: {container}");
                assert_eq!(own["readOnlyRootFilesystem"], true, "{name}: {container}");
                assert_eq!(own["allowPrivilegeEscalation"], false, "{name}: {container}");
                assert_eq!(own["capabilities"]["drop"][0], "ALL", "{name}: {container}");
                n_containers += 1;
            }
        }
    }
    assert!(n_containers >= 9, "{n_containers}");
}

#[test]
fn the_component_the_command_and_the_policy_put_in_the_same_router() {
    let is_router = |one: &&Value| one["name"] == "distributed-cache-router";
    let router_of = |documents: &[Value], kind: &str, name: &str| {
        let pod = pod(document(documents, kind, name)).expect("a pod").clone();
        containers(&pod).find(is_router).cloned()
    };
    let everything = documents(&rendered(EVERYTHING));
    let by_component = router_of(&everything, "Deployment", "with-router").expect("the label asks for it");
    assert_eq!(router_of(&everything, "Job", "distributed-cache-load"), Some(by_component.clone()));
    assert_eq!(router_of(&everything, "Deployment", "without-router"), None);
    let label = "/spec/template/metadata/labels/distributed-cache~1inject";
    assert_eq!(document(&everything, "Deployment", "with-router").pointer(label), Some(&"true".into()));

    let application = std::fs::read_to_string(source(EVERYTHING).join("application.yaml")).expect("a file");
    let by_command = documents(&router(&["inject", "--file", "-"], &application));
    assert_eq!(router_of(&by_command, "Deployment", "with-router"), Some(by_component));
    let by_policy = std::fs::read_to_string(source(POLICY).join("policy.yaml")).expect("a file");
    assert_eq!(documents(&by_policy), documents(&router(&["policy"], "")), "write it again: router-sidecar policy");
}
