//! Which the seeds are: a list, or the first pods of a StatefulSet by the name of its headless service.

use sharding::id::NodeId;
use sharding::map::{Member, MemberError};

/// Port of a seed's data port where nothing else is said.
pub const DATA_PORT: u16 = 2551;

/// How a process is told the seeds. They are fixed, and the same for every node and router of the cluster, whatever the
/// number of pods.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct SeedArgs {
    /// The seeds, with commas between: `[name=]host:port` of each one's data port; 1, 3 or 5, the same everywhere.
    #[arg(long, env = "SEED_NODES", required_unless_present = "seed_service", value_parser = Seeds::parse)]
    pub seeds: Option<Seeds>,
    /// Instead of the list: the full name of the headless service whose first pods are the seeds, `host[:port]`.
    #[arg(long, env = "SEED_SERVICE", conflicts_with = "seeds", value_parser = SeedService::parse)]
    pub seed_service: Option<SeedService>,
    /// With a seed service: how many of its pods are seeds; 1, 3 or 5.
    #[arg(long, env = "SEEDS", default_value = "3", value_parser = parse_count)]
    pub seed_count: usize,
    /// With a seed service: the name of its StatefulSet; by default the first label of the service's own.
    #[arg(long, env = "SEED_STATEFULSET", value_parser = NodeId::parse)]
    pub seed_statefulset: Option<NodeId>,
}

impl SeedArgs {
    /// The seeds in their order.
    ///
    /// # Errors
    /// [`SeedsError`] when the pods of the service cannot have names.
    pub fn members(&self) -> Result<Vec<Member>, SeedsError> {
        match (&self.seeds, &self.seed_service) {
            (_, Some(service)) => service.members(self.seed_statefulset.as_ref(), self.seed_count),
            (Some(seeds), None) => Ok(seeds.0.clone()),
            (None, None) => Err(SeedsError::Member(MemberError::None)),
        }
    }
}

/// The seeds of a cluster, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeds(pub Vec<Member>);

/// A headless service: the pods of its StatefulSet have names of their own below its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedService {
    host: String,
    port: u16,
}

/// Why there are no seeds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedsError {
    /// One of them.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// A majority of two is no smaller than one of three, and more than five only cost.
    #[error("there are {0} seeds; name 1, 3 or 5 (further nodes join by themselves)")]
    Count(String),
}

impl Seeds {
    /// Parses a list with commas between.
    ///
    /// # Errors
    /// [`SeedsError`] for the first seed that is none, or another number than 1, 3 or 5.
    pub fn parse(text: &str) -> Result<Self, SeedsError> {
        let seeds = Member::parse_list(text)?;
        check_count(seeds.len())?;
        Ok(Self(seeds))
    }
}

impl SeedService {
    /// Parses `host[:port]`.
    ///
    /// # Errors
    /// [`SeedsError::Member`] that quotes the text.
    pub fn parse(text: &str) -> Result<Self, SeedsError> {
        let address = if text.contains(':') { text.to_owned() } else { format!("{text}:{DATA_PORT}") };
        let member = Member::parse(&address)?;
        let (host, port) = address.rsplit_once(':').ok_or(MemberError::Address(text.to_owned()))?;
        let port = port.parse().map_err(|_| MemberError::Address(member.data.clone()))?;
        Ok(Self { host: host.trim_end_matches('.').to_owned(), port })
    }

    /// Its first pods, each by its own name: `<statefulset>-<ordinal>.<service>`.
    fn members(&self, statefulset: Option<&NodeId>, count: usize) -> Result<Vec<Member>, SeedsError> {
        let Self { host, port } = self;
        let own = host.split('.').next().unwrap_or(host);
        let name = statefulset.map_or(own, NodeId::as_str);
        let member = |ordinal| Member::parse(&format!("{name}-{ordinal}.{host}:{port}")).map_err(SeedsError::from);
        (0..count).map(member).collect()
    }
}

fn parse_count(text: &str) -> Result<usize, SeedsError> {
    let count = text.parse().map_err(|_| SeedsError::Count(text.to_owned()))?;
    check_count(count).map(|()| count)
}

fn check_count(count: usize) -> Result<(), SeedsError> {
    if matches!(count, 1 | 3 | 5) { Ok(()) } else { Err(SeedsError::Count(count.to_string())) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        seeds: SeedArgs,
    }

    fn members(args: &[&str]) -> Result<String, String> {
        let program = Program::try_parse_from(["program"].iter().chain(args)).map_err(|error| error.to_string())?;
        let members = program.seeds.members().map_err(|error| error.to_string())?;
        Ok(members.iter().map(Member::to_string).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn a_service_names_the_first_pods_of_its_stateful_set() {
        assert_eq!(
            members(&["--seed-service", "cache.prod.svc.cluster.local."]).as_deref(),
            Ok("cache-0=cache-0.cache.prod.svc.cluster.local:2551,cache-1=cache-1.cache.prod.svc.cluster.local:2551,\
                cache-2=cache-2.cache.prod.svc.cluster.local:2551")
        );
        assert_eq!(
            members(&["--seed-service", "pods.test:7", "--seed-count", "1", "--seed-statefulset", "cache"]).as_deref(),
            Ok("cache-0=cache-0.pods.test:7")
        );
    }

    #[test]
    fn a_list_is_taken_as_it_is() {
        assert_eq!(members(&["--seeds", "a=h:1, b=h:2,c=h:3"]).as_deref(), Ok("a=h:1,b=h:2,c=h:3"));
    }

    #[test]
    fn what_names_no_seeds_is_said() {
        let wrong: [(&[&str], &str); 7] = [
            (&[], "--seeds <SEEDS>"),
            (&["--seeds", "a=h:1", "--seed-service", "s"], "cannot be used with"),
            (&["--seeds", "a=h:1,b=h:2"], "name 1, 3 or 5"),
            (&["--seeds", "a=nowhere"], "\"nowhere\" is not host:port"),
            (&["--seed-service", "s", "--seed-count", "2"], "name 1, 3 or 5"),
            (&["--seed-service", "s", "--seed-count", "three"], "there are three seeds"),
            (&["--seed-service", "s:99999"], "is not host:port"),
        ];
        for (args, part) in wrong {
            let error = members(args).expect_err("it is refused");
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
