//! Where the seeds are, as those say who have met them.
//!
//! For half a minute after a pod was replaced a name server may say where it was before, or that there is none. A node
//! says in each Renew, and a map of each member, where it takes connections; that is believed before the name server.

use std::sync::Arc;
use std::time::Duration;

use sharding::map::Member;
use sharding::wire::{AnswerBody, RequestBody};
use tokio::time::{Instant, sleep};
use transport::upstream::Upstream;

use crate::node::Node;

/// Pause between two looks at the maps of others, while there is no lease.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest time that one seed may take to tell its map.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// Remembers where a member is, if it is a seed that is known by name.
pub(super) fn meet(node: &Node, seeds: &[Member], member: &Member) {
    let seed = seeds.iter().find(|seed| seed.node == member.node && seed.data != member.data);
    if let (Some(seed), Ok(address)) = (seed, member.data.parse()) {
        node.names.hint(&seed.data, address);
    }
}

/// Asks the seeds that can be found where the others are, whenever this node has no lease. Ends with the process.
pub(super) async fn look_around(node: Arc<Node>, seeds: Vec<Member>) {
    let upstream = Upstream::new(Arc::clone(&node.names), node.in_flight_max, node.metrics.owner_connections.clone());
    loop {
        sleep(PERIOD).await;
        if node.holds_lease() {
            continue;
        }
        for seed in seeds.iter().filter(|seed| seed.node != node.name) {
            let deadline = Instant::now() + ASK_TIMEOUT;
            if let Ok(AnswerBody::Map(answer)) = upstream.ask(&seed.data, None, RequestBody::GetMap, deadline).await {
                answer.map.members().iter().for_each(|member| meet(&node, &seeds, member));
            }
        }
    }
}
