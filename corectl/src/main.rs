//! `corectl`: the operator's tool. It talks to the core through the public contract only.
//!
//! Data goes to stdout, everything else to stderr; the exit code tells a script what happened
//! (`exit.rs`). The commands are in one file per group; what they share: `connect` (finding and
//! dialling the core), `output` (tables, JSON, colour), `failure` (messages and hints).

mod access;
mod address;
mod arguments;
mod cli;
mod connect;
mod dev;
mod events;
mod exit;
mod failure;
mod json;
mod output;
mod plugins;
mod reload;
mod services;
mod state;
mod status;
mod storage;
mod storage_admin;
mod text;
mod time;
mod wait;
mod watching;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::cli::{Cli, Command};
use crate::connect::Core;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::Output;

// One worker beside the main thread: it waits for SIGINT while a command blocks on a pipe.
#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads is no failure.
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.number()));
        }
    };
    if !matches!(cli.command, Command::Dev(_)) {
        tokio::spawn(interrupted());
    }
    let mut output = Output::new(&cli.global);
    let result = Box::pin(run(&cli, &mut output)).await;
    let exit = match result.and_then(|()| output.flush()) {
        Ok(()) => Exit::Success,
        Err(failure) => {
            // What was written before it failed still counts; if that fails too, the first failure
            // is the one to tell.
            output.flush().ok();
            output.report(&failure);
            failure.exit()
        }
    };
    ExitCode::from(exit.number())
}

fn parse() -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse()?;
    if cli.global.json && cli.global.quiet {
        return Err(Cli::command().error(
            clap::error::ErrorKind::ArgumentConflict,
            "--json and --quiet exclude each other",
        ));
    }
    Ok(cli)
}

/// Ends the program at SIGINT, wherever it is: commands hold nothing that needs tidying, and the
/// core notices a connection that ends. `dev` does, and ends itself.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_ok() {
        #[expect(clippy::exit, reason = "the main thread may be blocked on a pipe")]
        std::process::exit(i32::from(Exit::Interrupted.number()));
    }
}

async fn run(cli: &Cli, output: &mut Output) -> Result<(), Failure> {
    let global = &cli.global;
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "corectl", &mut script);
            output.data(&script)
        }
        Command::Version => status::version(global, output).await,
        Command::Wait(wait) => wait::run(global, wait, output).await,
        Command::Status(status) => status::run(&Core::connect(global).await?, status, output).await,
        Command::Plugins(command) => {
            plugins::run(&Core::connect(global).await?, command, output).await
        }
        Command::Tokens(command) => {
            access::run(&Core::connect(global).await?, command, output).await
        }
        Command::Join {
            string: Some(string),
            out,
            ..
        } => access::join(&arguments::or_stdin(string)?, out, output).await,
        Command::Join { out, .. } => access::renew(out, output).await,
        Command::Dev(arguments) => dev::run(global, arguments).await,
        Command::Backup { file } => {
            let core = Core::connect(global).await?;
            storage_admin::backup_home(&core, file.as_deref(), output).await
        }
        Command::Reload => reload::run(&Core::connect(global).await?, output).await,
        Command::Services(command) => services::run(global, command, output).await,
        Command::Events(command) => events::run(global, command, output).await,
        Command::State(command) => state::run(global, command, output).await,
        Command::Storage(command) => storage::run(global, command, output).await,
    }
}
