//! The cache node's program: flags, log, limits, then [`cache_node::run`].

use std::process::ExitCode;

use cache_node::NodeError;
use cache_node::config::{EXIT_CONFIG, Program, Task};
use clap::Parser;

fn main() -> ExitCode {
    let Program { task, args } = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => {
            // What cannot be printed (a closed terminal) cannot be reported either.
            let _ = error.print();
            return if error.use_stderr() { EXIT_CONFIG.into() } else { ExitCode::SUCCESS };
        }
    };
    if let Some(Task::FenceTable) = task {
        print!("{}", cache_node::database::FENCE_TABLE);
        return ExitCode::SUCCESS;
    }
    let logs = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(logs).format_timestamp_millis().init();
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
    match cache_node::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cache-node: {error}");
            if matches!(error, NodeError::Config(_)) { EXIT_CONFIG.into() } else { ExitCode::FAILURE }
        }
    }
}
