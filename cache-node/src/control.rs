//! The control port: HTTP for people, probes and Prometheus.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::{App, HttpResponse, HttpServer, web};

use crate::node::Node;
use crate::region::Ledger;

/// Media type of the metrics, as prometheus-client writes them.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Probes and people are few.
const CONNECTIONS_MAX: usize = 1024;
/// Whoever has asked nothing by then makes room for others.
const REQUEST_PATIENCE: Duration = Duration::from_secs(1);

/// Serves the control port until it is stopped.
///
/// # Errors
/// When the socket cannot be listened on.
pub(crate) fn serve(listener: TcpListener, node: Arc<Node>) -> std::io::Result<Server> {
    let node = web::Data::from(node);
    let app = move || {
        App::new()
            .app_data(node.clone())
            .route("/livez", web::get().to(livez))
            .route("/readyz", web::get().to(readyz))
            .route("/health", web::get().to(readyz))
            .route("/metrics", web::get().to(metrics))
            .route("/-/map", web::get().to(map))
            .route("/-/node", web::get().to(page))
    };
    let server = HttpServer::new(app)
        .workers(1)
        .max_connections(CONNECTIONS_MAX)
        .client_request_timeout(REQUEST_PATIENCE)
        .disable_signals();
    Ok(server.listen(listener)?.run())
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("alive\n")
}

async fn readyz(node: web::Data<Node>) -> HttpResponse {
    let Some(waits_for) = node.is_unready() else {
        return HttpResponse::Ok().content_type("text/plain").body("ready\n");
    };
    HttpResponse::ServiceUnavailable().content_type("text/plain").body(format!("not ready: waits for {waits_for}\n"))
}

async fn metrics(node: web::Data<Node>) -> HttpResponse {
    node.metrics.lease_remaining.set(node.lease_left().as_secs_f64());
    node.ledgers.iter().for_each(Ledger::measure);
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &node.registry) {
        Ok(()) => HttpResponse::Ok().content_type(METRICS_TYPE).body(text),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

async fn map(node: web::Data<Node>) -> HttpResponse {
    match node.map() {
        Some(map) => HttpResponse::Ok().json(map.page()),
        None => HttpResponse::ServiceUnavailable().content_type("text/plain").body("no shard map yet\n"),
    }
}

async fn page(node: web::Data<Node>) -> HttpResponse {
    HttpResponse::Ok().json(node.page())
}
