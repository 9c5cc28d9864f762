//! The benchmark of a routed hit beside other caches.

use std::io::Write;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cache_node::config::EXIT_CONFIG;
use clap::{Parser, Subcommand};
use loadtest::bench::{self, BenchError, FrontArgs, Load, Plan, Setup, Stop};
use loadtest::cluster::ClusterError;
use loadtest::command_line;

/// Measures a routed hit of this cache and of its peers, in turns, on this machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
    /// How often each load is put on each set-up [default: 5, with --quick 3].
    #[arg(long)]
    rounds: Option<NonZeroU32>,
    /// How long a sample takes, in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// What is measured, by default all.
    #[arg(long, value_enum, value_delimiter = ',')]
    setups: Vec<Setup>,
    /// How it is asked, by default in all ways.
    #[arg(long, value_enum, value_delimiter = ',')]
    loads: Vec<Load>,
    /// Directory of the figures [default: docs/benchmarks, none when only some set-ups or loads are wanted].
    #[arg(long, global = true)]
    output: Option<PathBuf>,
    /// Compare some figures with those in the directory; exit code 1 when a ratio is 15 % worse.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure what an entry takes of memory, and put it into the figures.
    Memory,
    /// Be the front of the set-up actix-redis.
    #[command(hide = true)]
    ActixRedisFront(FrontArgs),
}

fn main() -> ExitCode {
    let args = match command_line::parse::<Args>() {
        Ok(args) => args,
        Err(exit) => return exit,
    };
    match run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // What cannot be printed (a closed terminal) cannot be reported either.
            let _ = writeln!(std::io::stderr(), "bench: {error}");
            let is_usage = matches!(error, BenchError::Usage(_) | BenchError::Cluster(ClusterError::Usage(_)));
            if is_usage { EXIT_CONFIG.into() } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: Args) -> Result<bool, BenchError> {
    let plan = Plan {
        rounds: args.rounds.map(NonZeroU32::get),
        sample: Duration::from_secs(args.seconds),
        setups: args.setups,
        loads: args.loads,
        output: args.output,
        quick: args.quick,
    };
    match args.task {
        Some(Task::ActixRedisFront(front)) => bench::serve_front(&front).map(|()| true),
        Some(Task::Memory) => bench::run_memory(&plan, &Stop::on_signals()?),
        None => bench::run(&plan, &Stop::on_signals()?),
    }
}
