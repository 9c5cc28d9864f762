//! The router's program: flags, log, limits, then [`router_sidecar::run`].

use std::process::ExitCode;

use clap::Parser;
use router_sidecar::RouterError;
use router_sidecar::config::{Args, EXIT_CONFIG};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // What cannot be printed (a closed terminal) cannot be reported either.
            let _ = error.print();
            return if error.use_stderr() { EXIT_CONFIG.into() } else { ExitCode::SUCCESS };
        }
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
    match router_sidecar::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("router-sidecar: {error}");
            if !matches!(error, RouterError::Io(_)) { EXIT_CONFIG.into() } else { ExitCode::FAILURE }
        }
    }
}
