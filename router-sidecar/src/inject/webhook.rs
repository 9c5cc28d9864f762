//! The router put into pods as they are made: an admission webhook, for clusters without MutatingAdmissionPolicy
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_rt::System;
use actix_web::{App, HttpResponse, HttpServer, web};
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube_core::DynamicObject;
use kube_core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::json;
use sharding::wire::Etag;

use super::{LABEL, TaskError, Template, TemplateArgs, has_router};
use crate::drain;

/// Longest review; the API server takes no longer object.
const REVIEW_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most connections; the API servers are few.
const CONNECTIONS_MAX: usize = 256;
/// A certificate that was replaced is served within this time.
const CERTIFICATE_PERIOD: Duration = Duration::from_secs(10);
/// Longest time for the last answers.
const DRAIN_TIMEOUT_SECONDS: u64 = 10;
/// So long the certificate of [`manifests`] is good: ten years. It serves this one purpose.
const CERTIFICATE_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The API server's clock may be behind that of whoever makes the certificate.
const CLOCK_ERROR_MAX: Duration = Duration::from_secs(24 * 3600);

const NAME: &str = "distributed-cache-injector";

/// How the webhook serves.
#[derive(Clone, Debug, clap::Args)]
pub struct WebhookArgs {
    /// Where the API server asks, by HTTPS.
    #[arg(long, env = "WEBHOOK_BIND", default_value = "127.0.0.1:8443")]
    pub bind: SocketAddr,
    /// Its certificate with those that it follows from, PEM. Read again when it changes.
    #[arg(long, env = "WEBHOOK_CERTIFICATE")]
    pub certificate: PathBuf,
    /// Its private key, PEM.
    #[arg(long, env = "WEBHOOK_KEY")]
    pub key: PathBuf,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a comment here would replace the command's own help")]
    pub template: TemplateArgs,
}

/// Where the webhook is to run.
#[derive(Clone, Debug, clap::Args)]
pub struct InstallArgs {
    /// Namespace of the webhook.
    #[arg(long, default_value = "default")]
    pub namespace: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a comment here would replace the command's own help")]
    pub template: TemplateArgs,
}

/// Serves until it is asked to stop.
///
/// # Errors
/// [`TaskError`] before it listens.
pub(super) fn serve(args: &WebhookArgs) -> Result<(), TaskError> {
    let certificate = Arc::new(Certificate::read(args)?);
    let address = args.bind;
    let io = |error| TaskError::Io { place: format!("--bind {address}"), error };
    let listener = transport::ports::listen(address).map_err(io)?;
    let served = Arc::clone(&certificate);
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has what the default versions need")
        .with_no_client_auth()
        .with_cert_resolver(served);
    let template = web::Data::new(Template::new(&args.template));
    let app = move || {
        App::new()
            .app_data(template.clone())
            .app_data(web::JsonConfig::default().limit(REVIEW_BYTES_MAX))
            .route("/livez", web::get().to(livez))
            .route("/readyz", web::get().to(livez))
            .route("/inject", web::post().to(inject))
    };
    System::new().block_on(async {
        let server = HttpServer::new(app)
            .workers(1)
            .max_connections(CONNECTIONS_MAX)
            .shutdown_timeout(DRAIN_TIMEOUT_SECONDS)
            .disable_signals()
            .listen_rustls_0_23(listener, tls)
            .map_err(io)?
            .run();
        let handle = server.handle();
        let server = actix_rt::spawn(server);
        actix_rt::spawn(watch(certificate, args.clone()));
        log::info!(https:% = address; "injecting");
        drain::asked_to_stop().await.map_err(io)?;
        handle.stop(true).await;
        // It has stopped: what it would say now concerns nobody.
        let _ = server.await;
        Ok(())
    })
}

async fn livez() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("alive\n")
}

async fn inject(template: web::Data<Template>, review: web::Json<AdmissionReview<DynamicObject>>) -> HttpResponse {
    match review.into_inner().try_into() {
        Ok(request) => HttpResponse::Ok().json(answer(&template, &request).into_review()),
        Err(_) => HttpResponse::BadRequest().body("it is no request for admission\n"),
    }
}

/// What becomes of a pod that asks for the router.
fn answer(template: &Template, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
    let response = AdmissionResponse::from(request);
    let Some(Ok(pod)) = request.object.as_ref().map(serde_json::to_value) else {
        return response.deny("there is no pod in the request");
    };
    if has_router(&pod) {
        return response;
    }
    let mut injected = pod.clone();
    match template.inject(&mut injected) {
        Ok(()) => match response.with_patch(json_patch::diff(&pod, &injected)) {
            Ok(response) => response,
            Err(error) => AdmissionResponse::invalid(error),
        },
        Err(error) => response.deny(format!("the router cannot be put into it: {error}")),
    }
}

/// The certificate and key that are served; replaced while connections go on.
#[derive(Debug)]
struct Certificate(ArcSwap<CertifiedKey>);

impl Certificate {
    fn read(args: &WebhookArgs) -> Result<Self, TaskError> {
        Ok(Self(ArcSwap::from_pointee(read_key(args)?)))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn read_key(args: &WebhookArgs) -> Result<CertifiedKey, TaskError> {
    let wrong =
        |flag: &str, path: &PathBuf, error: String| TaskError::Input(format!("{flag} {}: {error}", path.display()));
    let chain = CertificateDer::pem_file_iter(&args.certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong("--certificate", &args.certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("--certificate", &args.certificate, "there is no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&args.key).map_err(|error| wrong("--key", &args.key, error.to_string()))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| wrong("--key", &args.key, format!("it is no key to the certificate: {error}")))
}

/// Serves a new certificate when there is one, for ever.
async fn watch(certificate: Arc<Certificate>, args: WebhookArgs) {
    loop {
        tokio::time::sleep(CERTIFICATE_PERIOD).await;
        match read_key(&args) {
            Ok(key) if key.cert != certificate.0.load().cert => {
                log::info!("a new certificate");
                certificate.0.store(Arc::new(key));
            }
            Ok(_) => {}
            Err(error) => log::warn!("the certificate stays as it was: {error}"),
        }
    }
}

/// The manifests that install the webhook, as YAML, with a certificate made for it.
///
/// # Errors
/// [`TaskError::Input`] when the namespace makes no name of a host.
pub(super) fn manifests(args: &InstallArgs) -> Result<String, TaskError> {
    let host = format!("{NAME}.{}.svc", args.namespace);
    let (certificate, key) = make_certificate(&host).map_err(|error| {
        TaskError::Input(format!("--namespace {}: no certificate for {host}: {error}", args.namespace))
    })?;
    let template = Template::new(&args.template);
    let mut flags = vec!["webhook".to_owned()];
    let image = template.container["image"].as_str().unwrap_or_default();
    flags.push(format!("--image={image}"));
    flags.extend(args.template.cache_namespace.iter().map(|cache| format!("--cache-namespace={cache}")));
    let (labels, metadata) =
        (json!({"app.kubernetes.io/name": NAME}), json!({"name": NAME, "namespace": args.namespace}));
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": "https", "scheme": "HTTPS"}, "periodSeconds": 5});
    let container = json!({
        "name": "webhook",
        "image": image,
        "args": flags,
        "env": [
            {"name": "WEBHOOK_BIND", "value": "0.0.0.0:8443"},
            {"name": "WEBHOOK_CERTIFICATE", "value": "/certificate/tls.crt"},
            {"name": "WEBHOOK_KEY", "value": "/certificate/tls.key"},
        ],
        "ports": [{"name": "https", "containerPort": 8443}],
        "livenessProbe": probe("/livez"),
        "readinessProbe": probe("/readyz"),
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
        "securityContext": template.container["securityContext"],
        "volumeMounts": [{"name": "certificate", "mountPath": "/certificate", "readOnly": true}],
    });
    let documents = [
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata,
            "data": {"tls.crt": STANDARD.encode(&certificate), "tls.key": STANDARD.encode(&key)},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"name": "https", "port": 443, "targetPort": "https"}]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {
                // Another certificate is another pod: a running one would serve the old one for a while.
                "metadata": {
                    "labels": labels,
                    "annotations": {"distributed-cache/certificate": Etag::of(certificate.as_bytes()).to_string()},
                },
                "spec": {
                    "automountServiceAccountToken": false,
                    "containers": [container],
                    // 0444: whoever is not root reads it too.
                    "volumes": [{"name": "certificate", "secret": {"secretName": NAME, "defaultMode": 292}}],
                },
            }},
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": NAME},
            "webhooks": [{
                "name": "router.distributed-cache.com",
                "clientConfig": {
                    "service": {"name": NAME, "namespace": args.namespace, "path": "/inject", "port": 443},
                    "caBundle": STANDARD.encode(&certificate),
                },
                "objectSelector": {"matchLabels": {LABEL: "true"}},
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                     "scope": "*"},
                ],
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 5,
                // It concerns nobody but those who asked for a router, and they cannot do without.
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
            }],
        }),
    ];
    serde_saphyr::to_string_multiple(&documents).map_err(|error| TaskError::Input(error.to_string()))
}

/// A certificate for `host` that signs itself, and its key, both PEM.
fn make_certificate(host: &str) -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut wish = rcgen::CertificateParams::new([host.to_owned()])?;
    wish.distinguished_name.push(rcgen::DnType::CommonName, NAME);
    let now = SystemTime::now();
    wish.not_before = (now - CLOCK_ERROR_MAX).into();
    wish.not_after = (now + CERTIFICATE_TIME).into();
    Ok((wish.self_signed(&key)?.pem(), key.serialize_pem()))
}
