//! The command line: every command, argument and option, and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::access::{InviteArgs, TokensCommand};
use crate::dev::DevArgs;
use crate::plugins::permissions::PermissionsCommand;
use crate::time::Moment;

/// Operates a core: plugins, services, events, state and storage.
///
/// The core is looked for at --addr, then CORE_ADDR, then the operator socket
/// ($RUNTIME_DIRECTORY/operator.sock, $XDG_RUNTIME_DIR/core-runtime/operator.sock,
/// data/run/operator.sock).
#[derive(Debug, Parser)]
#[command(
    name = "corectl",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 core unreachable, \
                  5 not permitted, 6 timed out, 7 the target answered with an error, \
                  8 precondition, 9 checks failed, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Where the core is: unix:/path or host:port.
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        help_heading = "Global options"
    )]
    pub(crate) addr: Option<String>,
    /// File with an operator's token, else CORE_TOKEN or CORE_TOKEN_FILE; the operator socket needs none.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// File with the CA's certificate, else CORE_CA_FILE: the connection is TLS then.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) ca_file: Option<PathBuf>,
    /// How long to wait for an answer: 500ms, 30s, 2m. Usual: 10s, 60s for changes of plugins.
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        value_parser = parse_timeout,
        help_heading = "Global options"
    )]
    pub(crate) timeout: Option<Duration>,
    /// Print JSON; one object per line where output goes on.
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Print names only.
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
}

/// The command groups.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how the core is and which plugins need attention.
    Status(StatusArgs),
    /// List, describe and control plugins, read their logs.
    #[command(subcommand, alias = "plugin")]
    Plugins(PluginsCommand),
    /// List, describe and call services.
    #[command(subcommand, alias = "service")]
    Services(ServicesCommand),
    /// Follow and publish events.
    #[command(subcommand, alias = "event")]
    Events(EventsCommand),
    /// Read, write and watch shared state.
    #[command(subcommand)]
    State(StateCommand),
    /// Read and write durable data.
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Read the core's configuration again, without a restart.
    ///
    /// New plugins start, removed ones stop, changed ones take the change or are restarted; plugins
    /// that wait after a failure are tried now. A bad configuration changes nothing. SIGHUP does the
    /// same.
    Reload,
    /// Make, list and revoke credentials: tokens, certificates, invitations.
    #[command(subcommand, alias = "token")]
    Tokens(TokensCommand),
    /// Get a certificate for a plugin on this machine with a join string, or renew it.
    ///
    /// The key is made here and never leaves. The directory then holds ca.pem, certificate.pem, key.pem
    /// and core.json.
    Join {
        /// What `corectl plugins invite` printed on the core's machine, or - for standard input.
        ///
        /// An argument can be seen by other users of this machine while the command runs: there, use -.
        #[arg(value_name = "STRING", required_unless_present = "renew")]
        string: Option<String>,
        /// Where to put certificate and key.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Renew the certificate that is there.
        #[arg(long, conflicts_with = "string")]
        renew: bool,
    },
    /// Write the whole home to one file of the core's machine: storage, CA, credentials, grants, configuration.
    ///
    /// The core goes on meanwhile. The file holds the CA's key: it is for the core's user only. How to put it
    /// back: core-server restore FILE.
    Backup {
        /// A path there. Without it: backups/ beside the database, with the time in its name.
        file: Option<PathBuf>,
    },
    /// Run a plugin while it is written: started anew when its files change, ended with Ctrl-C.
    ///
    /// It gets CORE_ADDR, CORE_TOKEN and CORE_PLUGIN (and CORE_CA_FILE), and is a remote plugin until this
    /// command ends, which ends the plugin and revokes the token.
    Dev(DevArgs),
    /// Wait until something is as wanted.
    Wait(WaitArgs),
    /// Show the versions of corectl and of the core.
    Version,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// End with exit code 9 when a plugin needs attention.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginsCommand {
    /// List plugins.
    #[command(visible_alias = "ls")]
    List,
    /// Show everything that is known of one plugin.
    Describe {
        /// The plugin.
        name: String,
    },
    /// Start plugins; loads them first if needed.
    Start(NamesOrAll),
    /// Stop plugins; their processes stay.
    Stop(NamesOrAll),
    /// End the runs of plugins and start them anew; --all: of those that are wanted started.
    Restart(NamesOrAll),
    /// Load plugins without starting them; --all: those that are wanted unloaded.
    Load(NamesOrAll),
    /// Stop plugins and end their processes.
    Unload(NamesOrAll),
    /// Put another version in a plugin's place; one that fails is taken back.
    ///
    /// Answers when the new version is ready. One that fails before, or within 30 s of ready, gives
    /// place to the version before, once.
    Upgrade {
        /// The plugin.
        name: String,
        /// A program, or a directory with a plugin.toml.
        path: PathBuf,
    },
    /// Let a plugin on another machine in: prints a join string, good once.
    Invite(InviteArgs),
    #[command(flatten)]
    Permissions(PermissionsCommand),
    /// Show what a plugin wrote.
    Logs(LogsArgs),
    /// Show or set how much a plugin logs, or the core itself ("core"); takes effect at once.
    LogLevel(LogLevelArgs),
}

#[derive(Args, Debug)]
pub(crate) struct LogLevelArgs {
    /// The plugin, or "core".
    pub(crate) name: String,
    /// off, error, warn, info, debug, trace, or default; for the core also by target:
    /// info,core_server::routing=debug. Without it the present level is shown.
    pub(crate) level: Option<String>,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct NamesOrAll {
    /// The plugins.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// All plugins, in order of their dependencies.
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The plugin.
    pub(crate) name: String,
    /// Go on with new lines until interrupted.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only lines since then: 10m, 1h30m, 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse_time)]
    pub(crate) since: Option<Moment>,
    /// Only this level and above.
    #[arg(long, value_enum)]
    pub(crate) level: Option<Level>,
    /// Only the last lines of those kept.
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tail: Option<u32>,
}

/// Levels of log lines, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServicesCommand {
    /// List services, those of absent providers included.
    #[command(visible_alias = "ls")]
    List {
        /// Only names that match: devices.*, devices.>
        pattern: Option<String>,
    },
    /// Show one service with its schemas and counters.
    Describe {
        /// The service.
        name: String,
    },
    /// Call a service and print its result.
    ///
    /// Arguments are key=value (text) and key:=json pairs, or one JSON text with --args, or - for
    /// JSON on standard input. Without --timeout the service's own deadline counts.
    Call(CallArgs),
}

#[derive(Args, Debug)]
pub(crate) struct CallArgs {
    /// The service.
    pub(crate) name: String,
    /// key=value (text), key:=json, or - for JSON on standard input.
    #[arg(value_name = "KEY=VALUE|KEY:=JSON|-", conflicts_with = "args")]
    pub(crate) pairs: Vec<String>,
    /// The arguments as one JSON text: `[1,2]` by position, `{"id":1}` by name.
    #[arg(long, value_name = "JSON", allow_negative_numbers = true)]
    pub(crate) args: Option<String>,
    /// Wait, inside the deadline, for a provider that is not started.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Follow events until interrupted.
    Tail(TailArgs),
    /// Publish an event.
    Publish(PublishArgs),
}

#[derive(Args, Debug)]
pub(crate) struct TailArgs {
    /// Topics to follow; * is one token, > the rest. All if none is given.
    #[arg(value_name = "PATTERN")]
    pub(crate) patterns: Vec<String>,
    /// Begin in the past: 10m, 2026-01-31T12:00:00Z, or "oldest" for all that the core keeps.
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    pub(crate) since: Option<Moment>,
    /// Only events of this publisher.
    #[arg(long, value_name = "PLUGIN")]
    pub(crate) source: Option<String>,
    /// Only events about exactly this.
    #[arg(long)]
    pub(crate) subject: Option<String>,
    /// End after so many events.
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct PublishArgs {
    /// The topic.
    pub(crate) topic: String,
    /// key=value (text), key:=json, or - for JSON on standard input. Without any: {}.
    #[arg(value_name = "KEY=VALUE|KEY:=JSON|-", conflicts_with = "data")]
    pub(crate) pairs: Vec<String>,
    /// The data as one JSON text of any kind.
    #[arg(long, value_name = "JSON", allow_negative_numbers = true)]
    pub(crate) data: Option<String>,
    /// What the event is about.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) subject: String,
}

/// A value to write, in one of three ways.
#[derive(Args, Debug)]
pub(crate) struct ValueArgs {
    /// One JSON text, or - for standard input.
    #[arg(value_name = "JSON|-", allow_negative_numbers = true)]
    pub(crate) value: String,
    /// Take the value as text, not as JSON.
    #[arg(long)]
    pub(crate) string: bool,
    /// Write only if the revision is still this; 0: only if the key is absent.
    #[arg(long, value_name = "REVISION")]
    pub(crate) if_revision: Option<u64>,
    /// Remove it after this time: 90s, 10m, 1h30m.
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    pub(crate) ttl: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Print the value of a key.
    Get {
        /// The key.
        key: String,
    },
    /// Write a key.
    Set {
        /// The key.
        key: String,
        #[command(flatten)]
        value: ValueArgs,
    },
    /// Remove a key.
    #[command(visible_alias = "rm")]
    Delete {
        /// The key.
        key: String,
        /// Remove only if the revision is still this.
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<u64>,
    },
    /// List keys and values.
    #[command(visible_alias = "ls")]
    List {
        /// Only keys that begin so.
        prefix: Option<String>,
    },
    /// Follow changes until interrupted, beginning with what is there.
    Watch(WatchArgs),
}

#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// Keys to follow; * is one token, > the rest. All if none is given.
    #[arg(value_name = "PATTERN")]
    pub(crate) patterns: Vec<String>,
    /// Leave out what is there at the beginning.
    #[arg(long)]
    pub(crate) changes_only: bool,
    /// Also show writes that changed nothing.
    #[arg(long)]
    pub(crate) reports: bool,
    /// End after so many lines.
    #[arg(long, value_name = "CHANGES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StorageCommand {
    /// Print the value of a key.
    Get {
        /// The namespace: a plugin's name, or one that begins with it and a dot.
        namespace: String,
        /// The key.
        key: String,
    },
    /// Write a key.
    Set {
        /// The namespace.
        namespace: String,
        /// The key.
        key: String,
        #[command(flatten)]
        value: ValueArgs,
    },
    /// Remove a key.
    #[command(visible_alias = "rm")]
    Delete {
        /// The namespace.
        namespace: String,
        /// The key.
        key: String,
        /// Remove only if the revision is still this.
        #[arg(long, value_name = "REVISION")]
        if_revision: Option<u64>,
    },
    /// List the keys of a namespace.
    #[command(visible_alias = "ls")]
    List {
        /// The namespace.
        namespace: String,
        /// Only keys that begin so.
        prefix: Option<String>,
        /// With values, revisions and times.
        #[arg(long)]
        values: bool,
    },
    /// Follow changes of a namespace until interrupted, beginning with what is there.
    Watch(StorageWatchArgs),
    /// Show what namespaces hold, and may hold.
    Usage {
        /// The namespace. All that hold anything if none is given.
        namespace: Option<String>,
    },
    /// Set what a namespace may hold. Without an option the configured default counts again.
    Quota {
        /// The namespace.
        namespace: String,
        /// Most keys.
        #[arg(long)]
        keys: Option<u64>,
        /// Most bytes: of each entry its namespace, key and value, and 64.
        #[arg(long)]
        bytes: Option<u64>,
    },
    /// Remove all that a namespace holds.
    Drop {
        /// The namespace.
        namespace: String,
        /// Yes, all of it.
        #[arg(long)]
        yes: bool,
    },
    /// Write a copy of the store to a file of the core's machine, while it is in use.
    Backup {
        /// An absolute path there. Without it: backups/ beside the database.
        path: Option<String>,
    },
    /// Read all of the store and say what is wrong with it, while it is in use.
    Check,
    /// Write the entries of a namespace, or of all, to standard output as JSON Lines.
    Export {
        /// The namespace. All if none is given.
        namespace: Option<String>,
    },
    /// Write entries from JSON Lines, as export gives them, over what is there.
    Import {
        /// The file, or - for standard input.
        file: PathBuf,
    },
}

#[derive(Args, Debug)]
pub(crate) struct StorageWatchArgs {
    /// The namespace.
    pub(crate) namespace: String,
    /// Only keys that begin so. All if none is given.
    #[arg(value_name = "PREFIX")]
    pub(crate) prefixes: Vec<String>,
    /// Leave out what is there at the beginning.
    #[arg(long)]
    pub(crate) changes_only: bool,
    /// End after so many lines.
    #[arg(long, value_name = "CHANGES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    /// What to wait for: plugin/NAME.
    #[arg(value_name = "plugin/NAME", value_parser = parse_target)]
    pub(crate) target: String,
    /// What it should become.
    #[arg(long = "for", value_enum, default_value = "started")]
    pub(crate) goal: Goal,
}

/// What a plugin may be waited for to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Goal {
    /// Not loaded; it may run already, or still.
    Unloaded,
    /// Loaded, not started.
    Loaded,
    /// Its services answer.
    Started,
    /// Stopped; its process stays.
    Stopped,
    /// Started and healthy.
    Ready,
}

pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be longer than nothing".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(_) if text.parse::<f64>().is_ok() => Err(format!("a unit is missing: {text}s?")),
        Err(error) => Err(format!("{error}; examples: 500ms, 30s, 2m")),
    }
}

fn parse_target(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some(("plugin", name)) if !name.is_empty() => Ok(name.to_owned()),
        None if !text.is_empty() => Err(format!("did you mean plugin/{text}?")),
        _ => Err("expected plugin/NAME".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Commands and options, each as one would type it.
    fn typed(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        for option in command.get_arguments().filter_map(clap::Arg::get_long) {
            found.push(format!("--{option}"));
        }
        if !command.has_subcommands() {
            found.push(path.to_owned());
        }
        for subcommand in command.get_subcommands() {
            typed(
                subcommand,
                &format!("{path} {}", subcommand.get_name()),
                found,
            );
        }
    }

    #[test]
    fn every_command_and_option_is_documented() {
        let document = include_str!("../../docs/reference/cli.md");
        let mut found = Vec::new();
        typed(&Cli::command(), "corectl", &mut found);
        for text in found {
            assert!(
                document.contains(&text),
                "docs/reference/cli.md lacks {text}"
            );
        }
    }

    #[test]
    fn a_timeout_has_a_unit_and_is_not_zero() {
        assert_eq!(parse_timeout("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_timeout("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_timeout("30").expect_err("no unit").contains("30s?"));
        for text in ["0s", "", "soon", "-1s"] {
            parse_timeout(text).expect_err(text);
        }
    }

    #[test]
    fn a_wait_target_names_its_kind() {
        assert_eq!(parse_target("plugin/devices").as_deref(), Ok("devices"));
        let hint = parse_target("devices").expect_err("no kind");
        assert_eq!(hint, "did you mean plugin/devices?");
        for text in ["", "plugin/", "service/x.y"] {
            parse_target(text).expect_err(text);
        }
    }
}
