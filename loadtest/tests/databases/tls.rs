//! TLS, and what is kept secret.

use loadtest::cluster::Role;

use super::servers::PASSWORD;
use super::*;

#[test]
fn a_server_is_believed_by_its_certificate_only() {
    for kind in [Kind::Postgres, Kind::Redis] {
        let server = Server::start(kind, 10);
        let ca_file = format!("ca_file = \"{}\"\n", server.path("server.crt").display());
        let mut plan = Plan::new(server).database(&ca_file);
        plan.url = plan.server.tls_url();
        let it = plan.start();
        assert_eq!(it.get(0, "/things/k1").text().expect("text"), "v1", "{kind:?}");
        let Scene { server, cluster, .. } = it;
        drop(cluster);

        let mut plan = Plan::new(server);
        plan.url = plan.server.tls_url();
        let it = plan.start();
        let answer = it.get(0, "/things/k1");
        assert_eq!(answer.status(), 503, "{kind:?}");
        let text = answer.text().expect("text");
        assert!(text.to_lowercase().contains("certificate"), "{kind:?}: {text}");
    }
}

/// How a server turns the nodes away.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Away,
    /// Redis, that does not know the command which has the password in it, and says what it was sent.
    NoHello,
    /// The password is another.
    WrongPassword,
}

#[test]
fn a_password_stands_in_no_log_and_on_no_page() {
    for (kind, refusal) in [
        (Kind::Postgres, Refusal::Away),
        (Kind::Postgres, Refusal::WrongPassword),
        (Kind::Redis, Refusal::Away),
        (Kind::Redis, Refusal::WrongPassword),
        (Kind::Redis, Refusal::NoHello),
    ] {
        let mut server = Server::start(kind, 10);
        let mut url = server.url();
        match refusal {
            Refusal::Away => server.signal(nix::sys::signal::Signal::SIGKILL),
            Refusal::NoHello => {
                server.signal(nix::sys::signal::Signal::SIGKILL);
                server.args = ["--rename-command", "HELLO", "HALLO"].map(str::to_owned).to_vec();
                server.start_again();
            }
            Refusal::WrongPassword => url = url.replace(PASSWORD, &format!("{PASSWORD}-wrong")),
        }
        let mut plan = Plan::new(server);
        plan.url = url;
        let it = plan.start();
        assert_eq!(it.get(0, "/things/k1").status(), 503, "{kind:?} {refusal:?}");
        let mut said = String::new();
        for path in ["/things/k1", "/-/cluster", "/-/map", "/-/explain/things/k1", "/metrics"] {
            said += &it.get(0, path).text().expect("text");
        }
        for pod in 0..3 {
            for path in ["/metrics", "/-/node"] {
                let page = it.client.get(format!("{}{path}", it.cluster.control(pod))).send();
                said += &page.and_then(|page| page.text()).expect("text");
            }
            for role in [Role::Node, Role::Router] {
                said += &std::fs::read_to_string(it.cluster.log(role, pod)).expect("a log");
            }
        }
        assert!(said.len() > 1000 && !said.contains(PASSWORD), "{kind:?} {refusal:?}");
    }
}
