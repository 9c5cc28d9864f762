//! The router's program: flags, log, limits, then [`router_sidecar::run`], or a task of [`router_sidecar::inject`].

use std::process::ExitCode;

use clap::Parser;
use router_sidecar::config::{EXIT_CONFIG, Program};
use router_sidecar::{RouterError, inject};

fn main() -> ExitCode {
    let Program { task, args } = match Program::try_parse() {
        Ok(program) => program,
        Err(error) => {
            // What cannot be printed (a closed terminal) cannot be reported either.
            let _ = error.print();
            return if error.use_stderr() { EXIT_CONFIG.into() } else { ExitCode::SUCCESS };
        }
    };
    let logs = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(logs).format_timestamp_millis().init();
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        log::warn!("the limit of open files stays as it is: {error}");
    }
    let ended = match &task {
        Some(task) => inject::perform(task).map_err(|error| (error.to_string(), error.is_mistake())),
        None => router_sidecar::run(&args).map_err(|error| (error.to_string(), !matches!(error, RouterError::Io(_)))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, is_mistake)) => {
            eprintln!("router-sidecar: {error}");
            if is_mistake { EXIT_CONFIG.into() } else { ExitCode::FAILURE }
        }
    }
}
