//! The HTTP that users see: all routes on one screen.

mod admin;
mod batch;
mod entries;
mod error;
pub(crate) mod front;
mod invalidate;
mod target;
mod write;

use std::rc::Rc;
use std::sync::Arc;

use actix_web::dev::RequestHead;
use actix_web::guard::Guard;
use actix_web::http::{ConnectionType, Method};
use actix_web::{HttpRequest, HttpResponse, Resource, Route, guard, web};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::forward::Forwarder;
use crate::map_watch::MapWatch;
use crate::metrics::{NO_REGION, Requests};
pub(crate) use entries::Texts;
use error::Problem;
use target::Target;

/// Media type of the metrics, as prometheus-client writes them.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const REGION_METHODS: &str = "POST";
const READING_METHODS: &str = "GET, HEAD";
const ALL_METHODS: &str = "GET, HEAD, PUT, DELETE";

/// What the handlers of one thread share.
pub(crate) struct HttpState {
    pub(crate) forwarder: Forwarder,
    pub(crate) requests: Arc<Requests>,
    pub(crate) texts: Texts,
    pub(crate) body_bytes_max: usize,
    pub(crate) batch_keys_max: usize,
    pub(crate) batch_bytes_max: usize,
    /// Turns true once, when the router is told to leave.
    pub(crate) drain: watch::Receiver<bool>,
}

type Shared = web::Data<Rc<HttpState>>;

/// What probes and Prometheus ask about.
#[derive(Clone)]
pub(crate) struct Probed {
    pub(crate) watch: Arc<MapWatch>,
    pub(crate) registry: Arc<Registry>,
    /// Turns true once, when the router is told to leave.
    pub(crate) drain: watch::Receiver<bool>,
}

/// Puts all routes in place. `state` belongs to the thread that calls this.
pub(crate) fn routes(config: &mut web::ServiceConfig, state: Rc<HttpState>, probed: Probed) {
    probes(config, probed);
    config
        .app_data(web::Data::new(state))
        .service(page("/-/map").route(reading().to(admin::map)))
        .service(page("/-/cluster").route(reading().to(admin::cluster)))
        .service(page("/-/explain/{entry:.*}").route(reading().to(admin::explain)))
        .service(posting("/-/invalidate/{region}").route(web::post().to(invalidate::post)))
        .default_service(web::to(entry_or_region));
}

/// Puts the routes in place that say how the router does.
pub(crate) fn probes(config: &mut web::ServiceConfig, probed: Probed) {
    config
        .app_data(web::Data::new(probed))
        .service(page("/livez").route(reading().to(admin::livez)))
        .service(page("/readyz").route(reading().to(admin::readyz)))
        .service(page("/health").route(reading().to(admin::readyz)))
        .service(page("/metrics").route(reading().to(admin::metrics)));
}

fn page(path: &str) -> Resource {
    resource(path, READING_METHODS)
}

fn posting(path: &str) -> Resource {
    resource(path, REGION_METHODS)
}

/// What has another method than these is refused.
fn resource(path: &str, methods: &'static str) -> Resource {
    let refuse = move |request: HttpRequest| async move { Problem::method(methods).answer(request.head()) };
    web::resource(path).guard(literally(path)).default_service(web::to(refuse))
}

/// The path begins as it is written here, not percent-encoded: whoever denies `/-/` to others denies all ways to it.
fn literally(path: &str) -> impl Guard + use<> {
    let begin = path.split('{').next().unwrap_or_default().to_owned();
    guard::fn_guard(move |context| context.head().uri.path().starts_with(&begin))
}

fn reading() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// `/{region}/{key}` and `/{region}`; everything else is a problem. Counts what becomes of it.
async fn entry_or_region(request: HttpRequest, payload: web::Payload, state: Shared) -> HttpResponse {
    let started = Instant::now();
    let (region, answer) = match dispatch(&request, payload, &state).await {
        Ok((region, answer)) => (region, Ok(answer)),
        Err((region, problem)) => (region, Err(problem)),
    };
    let response = answer.unwrap_or_else(|problem| problem.answer(request.head()));
    state.end(request.head(), region.as_deref(), started, response)
}

impl HttpState {
    /// The last thing that is done about a request for an entry.
    fn end(
        &self,
        request: &RequestHead,
        region: Option<&str>,
        started: Instant,
        mut response: HttpResponse,
    ) -> HttpResponse {
        if *self.drain.borrow() {
            // Whoever keeps the connection finds another router with the next one.
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        let status = response.status().as_u16();
        self.requests.count(region.unwrap_or(NO_REGION), status, started.elapsed());
        log::debug!(method:% = request.method, path = request.uri.path(), status; "answered");
        response
    }
}

type Region = Option<String>;

async fn dispatch(
    request: &HttpRequest,
    payload: web::Payload,
    state: &HttpState,
) -> Result<(Region, HttpResponse), (Region, Problem)> {
    let view = state.forwarder.watch.first_view().await.ok_or_else(|| (None, Problem::no_map()))?;
    let target = Target::parse(request.uri().path()).map_err(|error| (None, error.into()))?;
    let at = view.position(&target.region).ok_or_else(|| (None, Problem::unknown_region(&target.region, &view)))?;
    let (region, info) = (Some(target.region), &view.regions[at]);
    let answer = match (target.key, request.method()) {
        (Some(key), &Method::GET | &Method::HEAD) => entries::get(request, state, (&view, at), key).await,
        (Some(key), &Method::PUT) if info.writes => write::put(request, payload, state, info, key).await,
        (Some(key), &Method::DELETE) if info.writes => write::delete(request, state, info, key).await,
        (Some(_), _) if info.writes => Err(Problem::method(ALL_METHODS)),
        (Some(_), &Method::PUT | &Method::DELETE) => Err(Problem::not_written_to(&info.name)),
        (Some(_), _) => Err(Problem::method(READING_METHODS)),
        (None, &Method::POST) => batch::post(request, payload, state, (&view, info)).await,
        (None, _) => Err(Problem::method(REGION_METHODS)),
    };
    match answer {
        Ok(answer) => Ok((region, answer)),
        Err(problem) => Err((region, problem)),
    }
}
