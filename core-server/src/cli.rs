//! The command line of `core-server`.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process;

use clap::{Parser, Subcommand};
use core_server::config::{self, Flags, Loaded};
use core_server::init;
use core_server::security::authority::Made;
use core_server::types::PluginName;

/// The kernel: events, services, state, storage, and the plugins that use them.
#[derive(Debug, Parser)]
#[command(name = "core-server", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Run the core until it is told to stop (the default)
    #[default]
    Run,
    /// Check the configuration and print all of it, with the origin of each value
    CheckConfig,
    /// Make what a core needs before its first start: configuration, directories, CA, certificate, tokens
    ///
    /// What is there is left alone; it may be run each time. Keys and tokens are this user's alone.
    Init {
        /// Name or IP address by which other machines reach this one; may be given several times
        #[arg(long, value_name = "HOST")]
        name: Vec<String>,
        /// Make a token for this plugin too, in data/security/NAME.token; may be given several times
        #[arg(long, value_name = "NAME")]
        plugin: Vec<String>,
        /// Put them in DIR/NAME/token instead, and whom the plugin is to trust in DIR/NAME/ca.pem: a
        /// directory for each container to see
        #[arg(long, value_name = "DIR", requires = "plugin")]
        tokens: Option<PathBuf>,
        /// Print what was made and what was there as JSON
        #[arg(long)]
        json: bool,
    },
    /// Watch over a core's children; the core starts it
    #[command(hide = true)]
    Guardian,
    /// Read all of a database or backup and say what is wrong with it; changes nothing
    Verify {
        /// The database, or a backup of the store or of a home [default: the configured database]
        path: Option<PathBuf>,
    },
    /// Put a backup in place: of the store, or of a whole home. Keeps what it replaces. No core may run on it
    Restore {
        /// The backup
        backup: PathBuf,
        /// Of a whole home: leave core.toml as it is
        #[arg(long)]
        keep_configuration: bool,
    },
    /// Ask a running core whether it serves, and say so by the exit code
    Health {
        /// Where it is: unix:/PATH or IP:PORT [default: the operator socket of the configuration]
        #[arg(long, value_name = "ADDRESS")]
        addr: Option<String>,
    },
}

/// How `init` tells what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InitForm {
    Text,
    /// JSON, a line each.
    Json,
}

/// How the process ends. The numbers are those of sysexits.h where it has a fitting one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// Storage is closed and nothing survived.
    Clean = 0,
    /// The command line makes no sense.
    Usage = 2,
    /// Something in the core failed.
    Internal = 70,
    /// The stop took longer than `shutdown_timeout`.
    BudgetMissed = 75,
    /// The configuration is refused.
    BadConfiguration = 78,
}

impl From<ExitCode> for process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

impl Cli {
    /// Reads the arguments, the program's own name first. `Err`: there is nothing more to do, for it
    /// was `--help`, `--version` or a mistake, and the answer is printed.
    pub(crate) fn read<A: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self, ExitCode> {
        Self::try_parse_from(arguments).map_err(|answer| {
            // Nobody reads it: then nobody misses it.
            let _unread = answer.print();
            if answer.use_stderr() {
                ExitCode::Usage
            } else {
                ExitCode::Clean
            }
        })
    }

    /// What to do.
    pub(crate) fn command(&self) -> Command {
        self.command.clone().unwrap_or_default()
    }

    /// Loads the configuration; what is wrong with it goes to standard error.
    pub(crate) fn load(&self, cwd: &Path) -> Result<Loaded, ExitCode> {
        config::load(&self.flags, config::process_environment(), cwd).map_err(|error| {
            tell(&format!("{error}"));
            ExitCode::BadConfiguration
        })
    }

    /// `init`: what was made on standard output.
    pub(crate) fn init(
        &self,
        cwd: &Path,
        names: &[String],
        plugins: &[String],
        tokens: init::Tokens<'_>,
        form: InitForm,
    ) -> Result<(), ExitCode> {
        let failed = |error: init::Error| {
            tell(&core_server::error::chain(&error));
            ExitCode::Internal
        };
        let plugins: Result<Vec<_>, _> =
            plugins.iter().map(|name| PluginName::parse(name)).collect();
        let plugins = plugins.map_err(|error| {
            tell(&error.to_string());
            ExitCode::Usage
        })?;
        let file = cwd.join(self.flags.config.as_deref().unwrap_or("core.toml"));
        let mut items = vec![init::configuration(&file, names).map_err(failed)?];
        let loaded = self.load(cwd)?;
        items.extend(init::init(&loaded.config, &plugins, tokens).map_err(failed)?);
        let mut text = String::new();
        for warning in items.iter().filter_map(|item| item.warning.as_ref()) {
            tell(&format!("warning: {warning}"));
        }
        for item in &items {
            let path = item.path.display().to_string();
            let made = item.made == Made::Now;
            match form {
                InitForm::Json => {
                    let mut line =
                        serde_json::json!({ "what": item.what, "path": path, "made": made });
                    if let Some(warning) = &item.warning {
                        line["warning"] = warning.as_str().into();
                    }
                    text.push_str(&format!("{line}\n"));
                }
                InitForm::Text => {
                    let done = if made { "made " } else { "there" };
                    text.push_str(&format!("{done}  {:<14}  {path}\n", item.what));
                }
            }
        }
        match io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ExitCode::Internal),
            _ => Ok(()),
        }
    }

    /// `check-config`: the configuration on standard output, what is doubtful on standard error.
    pub(crate) fn check_config(&self, cwd: &Path) -> ExitCode {
        let loaded = match self.load(cwd) {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        for warning in &loaded.warnings {
            tell(&format!("warning: {warning}"));
        }
        match write!(io::stdout().lock(), "{}", loaded.origins) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::Internal,
            _ => ExitCode::Clean,
        }
    }
}

/// Says something before there is a log.
pub(crate) fn tell(text: &str) {
    // A closed standard error leaves no way to say even that.
    let _unread = writeln!(io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn read(arguments: &[&str]) -> Result<Cli, ExitCode> {
        Cli::read([&["core-server"], arguments].concat())
    }

    #[test]
    fn the_definition_is_consistent() {
        <Cli as CommandFactory>::command().debug_assert();
    }

    #[test]
    fn running_is_the_default() {
        assert_eq!(read(&[]).expect("good").command(), Command::Run);
        assert_eq!(read(&["run"]).expect("good").command(), Command::Run);
    }

    #[test]
    fn flags_may_stand_on_both_sides_of_the_command() {
        let cli = read(&[
            "--db",
            "x.db",
            "check-config",
            "--listen",
            "127.0.0.1:1",
            "--listen",
            "[::1]:1",
        ])
        .expect("good");
        assert_eq!(cli.command(), Command::CheckConfig);
        assert_eq!(cli.flags.db.as_deref(), Some("x.db"));
        assert_eq!(cli.flags.listen, ["127.0.0.1:1", "[::1]:1"]);
    }

    #[test]
    fn the_probe_takes_an_address() {
        let cli = read(&["health", "--addr", "127.0.0.1:7070"]).expect("good");
        let addr = Some("127.0.0.1:7070".to_owned());
        assert_eq!(cli.command(), Command::Health { addr });
    }

    #[test]
    fn databases_are_verified_and_restored_by_name() {
        let verify = |path: Option<&str>| Command::Verify {
            path: path.map(PathBuf::from),
        };
        assert_eq!(read(&["verify"]).expect("good").command(), verify(None));
        let named = read(&["verify", "a.db"]).expect("good").command();
        assert_eq!(named, verify(Some("a.db")));
        let cli = read(&["restore", "a.db", "--db", "b.db"]).expect("good");
        let backup = PathBuf::from("a.db");
        let whole = Command::Restore {
            backup,
            keep_configuration: false,
        };
        assert_eq!(cli.command(), whole);
        assert_eq!(read(&["restore"]).expect_err("of what?"), ExitCode::Usage);
    }

    #[test]
    fn mistakes_are_usage_errors_and_help_is_none() {
        assert_eq!(read(&["--nonsense"]).expect_err("bad"), ExitCode::Usage);
        assert_eq!(read(&["fly"]).expect_err("bad"), ExitCode::Usage);
        assert_eq!(
            read(&["--db", "x", "--ephemeral"]).expect_err("bad"),
            ExitCode::Usage
        );
        assert_eq!(read(&["--version"]).expect_err("answered"), ExitCode::Clean);
        assert_eq!(read(&["--help"]).expect_err("answered"), ExitCode::Clean);
    }

    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        let codes = [
            ExitCode::Clean,
            ExitCode::Usage,
            ExitCode::Internal,
            ExitCode::BudgetMissed,
            ExitCode::BadConfiguration,
        ];
        assert_eq!(codes.map(|code| code as u8), [0, 2, 70, 75, 78]);
    }
}
