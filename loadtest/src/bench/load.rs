//! The loads that set-ups are put under.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::keys::Pattern;
use super::setup::{Scene, Setup};

/// Bytes of a value unless a load says otherwise.
const SIZE: usize = 1024;

/// A way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// 32 connections, closed loop.
    C32,
    /// 128 connections, closed loop.
    C128,
    /// Open loop at 30,000 requests a second.
    #[value(name = "open-30k")]
    #[serde(rename = "open-30k")]
    Open30k,
    /// Open loop at 8,000 requests a second.
    #[value(name = "open-8k")]
    #[serde(rename = "open-8k")]
    Open8k,
    /// 32 connections, closed loop, each key as often as any other.
    C32Uniform,
    /// 32 connections, closed loop, values of 100 bytes.
    #[value(name = "c32-100b")]
    #[serde(rename = "c32-100b")]
    C32Small,
    /// 32 connections, closed loop, values of 64 KiB.
    #[value(name = "c32-64kib")]
    #[serde(rename = "c32-64kib")]
    C32Large,
    /// 32 connections, closed loop, nothing pinned, fronts with two workers.
    FreeC32,
    /// 5 % misses, closed loop: how much is the most; this cache only.
    MissesC32,
    /// 5 % misses, open loop at half of that; this cache only.
    MissesHalf,
    /// POSTs of 100 keys, 32 connections, closed loop; this cache only.
    C32Post100,
    /// 128 connections, closed loop; this cache with three and with twelve nodes.
    #[value(name = "c128-nodes")]
    C128Nodes,
    /// System calls under 32 connections; this cache only.
    #[value(name = "c32-syscalls")]
    C32Syscalls,
    /// System calls under 128 connections; this cache only.
    #[value(name = "c128-syscalls")]
    C128Syscalls,
}

/// How it asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// wrk with so many connections and threads.
    Closed {
        connections: usize,
        threads: usize,
    },
    /// So many requests a second.
    Open {
        rate: f64,
    },
    MissesClosed,
    /// At half of what [`Kind::MissesClosed`] reached.
    MissesOpen,
    Posts,
    /// As closed, with the system calls counted.
    Syscalls {
        connections: usize,
    },
}

impl Load {
    pub(super) const ALL: [Self; 14] = [
        Self::C32,
        Self::C128,
        Self::Open30k,
        Self::Open8k,
        Self::C32Uniform,
        Self::MissesC32,
        Self::MissesHalf,
        Self::C32Post100,
        Self::C32Syscalls,
        Self::C128Syscalls,
        Self::FreeC32,
        Self::C32Small,
        Self::C32Large,
        Self::C128Nodes,
    ];

    /// As on the command line and in the rows.
    pub(super) fn name(self) -> String {
        self.to_possible_value().expect("none is skipped").get_name().to_owned()
    }

    /// What it is, for the table.
    pub(super) fn help(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_help().map(ToString::to_string).unwrap_or_default()
    }

    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::C32 | Self::C32Uniform | Self::C32Small | Self::C32Large => {
                Kind::Closed { connections: 32, threads: 1 }
            }
            Self::C128 | Self::C128Nodes => Kind::Closed { connections: 128, threads: 1 },
            Self::FreeC32 => Kind::Closed { connections: 32, threads: 2 },
            Self::Open30k => Kind::Open { rate: 30_000.0 },
            Self::Open8k => Kind::Open { rate: 8_000.0 },
            Self::MissesC32 => Kind::MissesClosed,
            Self::MissesHalf => Kind::MissesOpen,
            Self::C32Post100 => Kind::Posts,
            Self::C32Syscalls => Kind::Syscalls { connections: 32 },
            Self::C128Syscalls => Kind::Syscalls { connections: 128 },
        }
    }

    pub(super) const fn pattern(self) -> Pattern {
        match self {
            Self::C32Uniform => Pattern::Uniform,
            _ => Pattern::Zipf,
        }
    }

    /// Whether servers and generator have a CPU each.
    pub(super) const fn is_pinned(self) -> bool {
        !matches!(self, Self::FreeC32)
    }

    /// The set-ups that it is for, of those that are wanted.
    pub(super) fn setups(self, wanted: &[Setup]) -> Vec<Setup> {
        let of = |setups: &[Setup]| setups.iter().copied().filter(|setup| wanted.contains(setup)).collect();
        match self {
            Self::MissesC32 | Self::MissesHalf | Self::C32Post100 | Self::C32Syscalls | Self::C128Syscalls => {
                of(&[Setup::Ours])
            }
            Self::C128Nodes if wanted.contains(&Setup::Ours) => vec![Setup::Ours, Setup::OursTwelve],
            Self::C128Nodes => Vec::new(),
            _ => of(&Setup::ALL),
        }
    }

    /// What has to run for it. Loads with the same scene and set-ups share them.
    pub(super) fn scene(self) -> (Scene, bool) {
        let scene = |size, workers| Scene { size, workers, fresh: 0 };
        match self {
            Self::C32Small => (scene(100, 1), false),
            Self::C32Large => (scene(64 << 10, 1), false),
            Self::FreeC32 => (scene(SIZE, 2), false),
            Self::C128Nodes => (scene(SIZE, 1), true),
            _ => (scene(SIZE, 1), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_has_one_name_on_the_command_line_and_in_rows() {
        for load in Load::ALL {
            assert_eq!(serde_json::to_value(load).expect("JSON"), load.name());
            assert!(!load.help().is_empty());
        }
        for setup in Setup::ALL.into_iter().chain([Setup::OursTwelve]) {
            assert_eq!(serde_json::to_value(setup).expect("JSON"), setup.name());
        }
        for setup in Setup::ALL {
            assert_eq!(setup.to_possible_value().expect("not skipped").get_name(), setup.name());
        }
    }

    #[test]
    fn a_load_that_is_ours_alone_has_no_peers() {
        assert_eq!(Load::C32.setups(&Setup::ALL), Setup::ALL);
        assert_eq!(Load::MissesHalf.setups(&Setup::ALL), [Setup::Ours]);
        assert_eq!(Load::C128Nodes.setups(&[Setup::NginxNginx]), []);
    }
}
