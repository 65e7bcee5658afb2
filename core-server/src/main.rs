//! Arguments, configuration, logging; then the library; then an exit code.

mod backups;
mod cli;
mod serve;
mod systemd;

use std::process;

use core_server::config::{self, Candidate};
use core_server::init::Tokens;
use core_server::supervisor::custody;
use core_server::telemetry::logging;

use cli::{Cli, Command, ExitCode, InitForm};

fn main() -> process::ExitCode {
    start().unwrap_or_else(|code| code).into()
}

fn start() -> Result<ExitCode, ExitCode> {
    let cli = Cli::read(std::env::args_os())?;
    let internal = |what: &str, error: &dyn std::error::Error| {
        cli::tell(&format!("{what}: {}", core_server::error::chain(error)));
        ExitCode::Internal
    };
    let cwd = || {
        std::env::current_dir()
            .map_err(|error| internal("the working directory cannot be read", &error))
    };
    let threads = |workers: usize| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build();
        runtime.map_err(|error| internal("threads cannot be started", &error))
    };
    match cli.command() {
        // No threads, no configuration: it is small, and holds nothing of the core's.
        Command::Guardian => custody::guardian_main()
            .map(|()| ExitCode::Clean)
            .map_err(|error| internal("only a core starts its guardian", &error)),
        Command::CheckConfig => Ok(cli.check_config(&cwd()?)),
        Command::Verify { path } => {
            let configured = || Ok(cli.load(&cwd()?)?.config.storage.path);
            Ok(backups::verify(&path.map_or_else(configured, Ok)?))
        }
        Command::Restore {
            backup,
            keep_configuration,
        } => backups::restore(&cli.flags, &cwd()?, &backup, keep_configuration),
        Command::Init {
            name,
            plugin,
            tokens,
            json,
        } => {
            let form = if json { InitForm::Json } else { InitForm::Text };
            let cwd = cwd()?;
            backups::finish_restore(&cli.flags, &cwd)?;
            let tokens = tokens.as_deref().map_or(Tokens::Kept, Tokens::HandedOut);
            cli.init(&cwd, &name, &plugin, tokens, form)?;
            Ok(ExitCode::Clean)
        }
        Command::Health { addr } => {
            let loaded = cli.load(&cwd()?)?;
            threads(1)?
                .block_on(serve::health(&loaded.config, addr))
                .map_err(|error| {
                    cli::tell(&error);
                    ExitCode::Internal
                })?;
            Ok(ExitCode::Clean)
        }
        Command::Run => {
            let cwd = cwd()?;
            backups::finish_restore(&cli.flags, &cwd)?;
            let loaded = cli.load(&cwd)?;
            let log = logging::init(&loaded.config.log)
                .map_err(|error| internal("the log cannot be set up", &error))?;
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            let threads = threads(loaded.config.threads)?;
            let flags = cli.flags.clone();
            let load = move |candidate: Option<&Candidate>| {
                config::load_candidate(&flags, config::process_environment(), &cwd, candidate)
            };
            let code = threads.block_on(serve::run(loaded, load, log));
            // Whatever still blocks a thread must not hold the end up: the storage is closed.
            threads.shutdown_background();
            Ok(code)
        }
    }
}
