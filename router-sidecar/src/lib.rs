//! The router of the distributed cache: a process beside each node or application that takes HTTP requests, knows who
//! owns each key, and sends every request there.
//!
//! [`run`] is the whole life of a router; [`inject`] is how it gets into pods.

pub mod config;
mod drain;
mod forward;
mod http;
pub mod inject;
mod map_watch;
mod metrics;

use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix_rt::System;
use actix_web::dev::Server;
use actix_web::{App, HttpServer};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use config::Args;
use forward::Forwarder;
use http::front::front;
use http::{HttpState, Probed, Texts};
use map_watch::MapWatch;
use metrics::Metrics;
use transport::names::Names;
use transport::seeds::SeedsError;
use transport::upstream::Upstream;

/// Probes and Prometheus are few.
const PROBE_CONNECTIONS_MAX: usize = 1024;
/// Whoever has asked nothing by then makes room for a probe.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// Why a router does not start, or ended in another way than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// A mistake of whoever started it: exit code [`config::EXIT_CONFIG`].
    #[error("{flag} {address}: cannot be listened on: {error}; choose another address or end who has it")]
    Bind {
        /// Which of the two.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// The machine's reason.
        error: std::io::Error,
    },
    /// As above.
    #[error("--seed-service: {0}")]
    Seeds(#[from] SeedsError),
    /// The machine's refusal.
    #[error("the router cannot run: {0}")]
    Io(#[from] std::io::Error),
}

/// Runs a router from its start to the end of its drain.
///
/// # Errors
/// [`RouterError::Bind`] and [`RouterError::Seeds`] before anything has started.
pub fn run(args: &Args) -> Result<(), RouterError> {
    let seeds = args.seeds.members()?;
    let listener = bind("--bind", args.bind)?;
    let control_listener = args.control_bind.map(|address| bind("--control-bind", address)).transpose()?;
    System::new().block_on(async {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let watch = Arc::new(MapWatch::new(seeds, Arc::clone(&metrics)));
        let drain = watch::Sender::new(false);
        let names = Names::of_system();
        keep_map_fresh(args, &names, &watch, &metrics);

        let probed = Probed { watch: Arc::clone(&watch), registry: Arc::new(registry), drain: drain.subscribe() };
        let server = serve(args, listener, &names, &metrics, probed.clone())?;
        if let Some(listener) = control_listener {
            actix_rt::spawn(serve_probes(listener, probed)?);
        }
        let handle = server.handle();
        let server = actix_rt::spawn(server);
        log::info!(http:% = args.bind; "serving");

        drain::asked_to_stop().await?;
        drain.send_replace(true);
        tokio::time::sleep(args.drain_delay).await;
        handle.stop(true).await;
        // It has stopped: what it would say now concerns nobody.
        let _ = server.await;
        Ok(())
    })
}

fn keep_map_fresh(args: &Args, names: &Arc<Names>, watch: &Arc<MapWatch>, metrics: &Arc<Metrics>) {
    let (watch, names, n_open) = (Arc::clone(watch), Arc::clone(names), metrics.connections.clone());
    let (period, in_flight_max) = (args.map_period, args.in_flight_max);
    actix_rt::spawn(async move {
        let upstream = Upstream::new(names, in_flight_max, n_open);
        watch.run(&upstream, period).await;
    });
}

fn serve(
    args: &Args,
    listener: TcpListener,
    names: &Arc<Names>,
    metrics: &Arc<Metrics>,
    probed: Probed,
) -> std::io::Result<Server> {
    let (names, metrics, limits) = (Arc::clone(names), Arc::clone(metrics), args.clone());
    // Called once on each thread: the connections that it makes stay there.
    let app = move || {
        let state = HttpState {
            forwarder: Forwarder {
                watch: Arc::clone(&probed.watch),
                upstream: Rc::new(Upstream::new(Arc::clone(&names), limits.in_flight_max, metrics.connections.clone())),
                metrics: Arc::clone(&metrics),
                request_timeout: limits.request_timeout,
            },
            requests: metrics.of_thread(),
            texts: Texts::new(),
            body_bytes_max: limits.body_bytes_max,
            batch_keys_max: limits.batch_keys_max,
            batch_bytes_max: limits.batch_bytes_max,
            drain: probed.drain.clone(),
        };
        let state = Rc::new(state);
        let app = App::new().configure(|config| http::routes(config, Rc::clone(&state), probed.clone()));
        front(app, state)
    };
    let server = HttpServer::new(app)
        .workers(args.threads.get())
        .max_connections(args.connections_max)
        .keep_alive(args.client_idle_timeout)
        // By default 5 s, too short for a client that connects ahead of need.
        .client_request_timeout(args.client_idle_timeout)
        .tcp_nodelay(true)
        .shutdown_timeout(args.drain_timeout.as_secs().max(1))
        .disable_signals();
    Ok(server.listen(listener)?.run())
}

/// Answers probes and Prometheus where applications do not ask.
fn serve_probes(listener: TcpListener, probed: Probed) -> std::io::Result<Server> {
    let app = move || App::new().configure(|config| http::probes(config, probed.clone()));
    let server = HttpServer::new(app)
        .workers(1)
        .max_connections(PROBE_CONNECTIONS_MAX)
        .client_request_timeout(PROBE_PATIENCE)
        .disable_signals();
    Ok(server.listen(listener)?.run())
}

fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, RouterError> {
    transport::ports::listen(address).map_err(|error| RouterError::Bind { flag, address, error })
}
