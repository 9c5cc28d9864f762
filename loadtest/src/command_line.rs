//! What the programs of this crate have in common on their command lines.

use std::process::ExitCode;

use cache_node::config::EXIT_CONFIG;
use clap::Parser;

/// Reads the flags.
///
/// # Errors
/// With what to exit, when there is nothing more to do: what was asked for, or is wrong, has been printed.
pub fn parse<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        // What cannot be printed (a closed terminal) cannot be reported either.
        let _ = error.print();
        if error.use_stderr() { EXIT_CONFIG.into() } else { ExitCode::SUCCESS }
    })
}
