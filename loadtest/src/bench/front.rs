//! A thin front of actix-web and redis-rs: what a team would write that has Redis already.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use actix_web::{App, HttpResponse, HttpServer, web};
use redis::aio::MultiplexedConnection;
use sharding::hash::shard_of;
use sharding::id::{NShards, RegionName};

use super::{BenchError, REGION};

/// Where the front listens, and what is behind it.
#[derive(Debug, clap::Args)]
pub struct FrontArgs {
    /// Where it is asked, by HTTP.
    #[arg(long)]
    listen: SocketAddr,
    /// A Redis, again for more.
    #[arg(long, required = true)]
    redis: Vec<SocketAddr>,
    /// Threads that serve.
    #[arg(long, default_value = "1")]
    workers: NonZeroUsize,
}

/// What a worker has: a connection to each Redis, on which all its requests go.
struct Stores {
    connections: Vec<MultiplexedConnection>,
    region: RegionName,
    n_stores: NShards,
}

/// Serves until it is ended.
///
/// # Errors
/// When a Redis or the address is not to be had.
pub fn serve(args: &FrontArgs) -> Result<(), BenchError> {
    let n_stores = u16::try_from(args.redis.len()).ok().and_then(NShards::new);
    let n_stores = n_stores.ok_or_else(|| BenchError::Usage("--redis: too many".to_owned()))?;
    let region = RegionName::parse(REGION).expect("a name of ours");
    let redis = args.redis.clone();
    let serve = async {
        let server = HttpServer::new(move || {
            let (redis, region) = (redis.clone(), region.clone());
            App::new()
                .data_factory(move || connect(redis.clone(), region.clone(), n_stores))
                .route(&format!("/{REGION}/{{key}}"), web::get().to(answer))
        });
        server.workers(args.workers.get()).shutdown_timeout(0).bind(args.listen)?.run().await
    };
    actix_web::rt::System::new().block_on(serve).map_err(BenchError::at("actix-redis-front"))
}

async fn connect(redis: Vec<SocketAddr>, region: RegionName, n_stores: NShards) -> redis::RedisResult<Stores> {
    let mut connections = Vec::new();
    for address in redis {
        let client = redis::Client::open(format!("redis://{address}"))?;
        connections.push(client.get_multiplexed_async_connection().await?);
    }
    Ok(Stores { connections, region, n_stores })
}

async fn answer(key: web::Path<String>, stores: web::Data<Stores>) -> HttpResponse {
    let store = shard_of(&stores.region, key.as_bytes(), stores.n_stores).index();
    let mut connection = stores.connections[store].clone();
    match redis::cmd("GET").arg(key.as_str()).query_async::<Option<Vec<u8>>>(&mut connection).await {
        Ok(Some(value)) => HttpResponse::Ok().content_type("text/plain").body(value),
        Ok(None) => HttpResponse::NotFound().finish(),
        Err(error) => HttpResponse::BadGateway().body(error.to_string()),
    }
}
