//! `corectl dev NAME -- CMD…`: a plugin that its author starts by hand.
//!
//! Owns: a token of the plugin for as long as it runs, its process, the watch over its files. The plugin is a
//! remote one like any other; its output is this command's.
//!
//! | what happened | then |
//! |---|---|
//! | a watched file changed, and nothing more for half a second | the process is ended and started anew |
//! | it ended with an error | it is started again, after 250 ms and up to 5 s, or at once with a change |
//! | it ended with 0 | it is started again with the next change |
//! | watched files changed within 5 s of five starts in a row | it is ended and waits for the next change: probably it writes them itself |
//! | its token is 23 hours old | it is started anew with another |
//! | Ctrl-C, SIGTERM, SIGHUP | it is ended, the token is revoked; a second signal kills it |
//!
//! Each start has a token of its own, good for a day: one that was left by a `corectl` that was killed does
//! not last, and a session may.

mod process;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use core_proto::contract::env;
use core_proto::v1::{
    AccessCreateTokenRequest, AccessCreateTokenResponse, AccessRevokeCredentialRequest,
    IntrospectionGetInfoRequest,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::address::Address;
use crate::cli::Global;
use crate::connect::{self, Core, UNARY_TIMEOUT};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::note;
use process::{Ended, Process};
use watch::Watch;

#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// The plugin; one that is not configured becomes a remote plugin.
    pub(crate) name: String,
    /// Start it anew when this changes, a file or a directory; several times. Usual: the working directory.
    ///
    /// The program itself is always watched; hidden files, target, node_modules, __pycache__ and a core's data
    /// directory never are. Name its sources where the plugin writes files itself.
    #[arg(long, value_name = "PATH")]
    pub(crate) watch: Vec<PathBuf>,
    /// The program and its arguments, after --.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Life of a token.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// So long before its token ends, the process is started anew: the end of a token ends what it opened.
const RENEWED_BEFORE: Duration = Duration::from_secs(3_600);
/// Wait before the first start after a failure; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A process that lived for so long has the first wait again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// A change so soon after a start may be the plugin's own doing.
const SOON: Duration = Duration::from_secs(5);
/// After so many in a row it probably is.
const SOON_IN_A_ROW: u32 = 5;

/// Runs the plugin until a signal comes.
///
/// # Errors
/// What the core says, a command that cannot be started the first time; [`Failure::Interrupted`] in the end.
pub(crate) async fn run(global: &Global, arguments: &DevArgs) -> Result<(), Failure> {
    // Before anything is made that has to be taken away again.
    let mut signals = Signals::listen()?;
    let core = Core::connect(global).await?;
    let environment = environment(global, &core).await?;
    let mut session = Session {
        core: &core,
        plugin: &arguments.name,
        tokens: Vec::new(),
    };
    let result = Box::pin(session.serve(arguments, &environment, &mut signals)).await;
    session.revoke_all().await;
    result
}

/// What the process gets besides its token. `None`: it must not be there.
type Variables = Vec<(&'static str, Option<String>)>;

async fn environment(global: &Global, core: &Core) -> Result<Variables, Failure> {
    let mut client = core.introspection();
    let info = core.ask(
        "",
        UNARY_TIMEOUT,
        IntrospectionGetInfoRequest {},
        |request| client.get_info(request),
    );
    let info = info.await?;
    let address = plugin_address(core.address(), &info.addresses)?;
    let ca_file = match core.address() {
        Address::Unix(_) => None,
        Address::Tcp { .. } => connect::ca_file(global, core.located()),
    };
    let ca_file = ca_file.map(|path| {
        let path = std::path::absolute(&path).unwrap_or(path);
        path.display().to_string()
    });
    let mut variables = vec![(env::ADDR, Some(address)), (env::CA_FILE, ca_file)];
    // Another way in, which the shell may know, would be taken instead.
    let others = [
        env::TOKEN_FILE,
        env::JOIN,
        env::CREDENTIALS_DIR,
        env::CERT_FILE,
        env::KEY_FILE,
        env::COOKIE,
    ];
    variables.extend(others.map(|name| (name, None)));
    Ok(variables)
}

/// Where a plugin on this machine reaches the core that this command speaks to: over the network as the
/// command does, else at the plugins' socket.
fn plugin_address(operators: &Address, told: &[String]) -> Result<String, Failure> {
    let Address::Unix(operators) = operators else {
        return Ok(operators.to_string());
    };
    let is_plugins = |text: &&String| {
        let path = text.strip_prefix("unix:").map(PathBuf::from);
        path.is_some_and(|path| path.file_name().is_some_and(|name| name == "core.sock"))
    };
    let Some(socket) = told.iter().find(is_plugins) else {
        return Err(Failure::usage(
            format!(
                "the core at {} names no socket for plugins",
                operators.display()
            ),
            "is it a core of another version?",
        ));
    };
    // A socket that was found by a relative path is told so by a core that was started there.
    let path = PathBuf::from(socket.trim_start_matches("unix:"));
    let beside = operators.with_file_name("core.sock");
    let path = if path.is_absolute() { path } else { beside };
    let path = std::path::absolute(&path).unwrap_or(path);
    Ok(format!("unix:{}", path.display()))
}

/// Signals that end the session.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::io("listen to signals", error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// # Cancel safety
    /// No signal is lost.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// The tokens of this session, which end with it.
struct Session<'a> {
    core: &'a Core,
    plugin: &'a str,
    /// Ids, oldest first.
    tokens: Vec<String>,
}

/// What is to be done next.
enum Next {
    /// Start it.
    Start,
    /// Start it after this, or earlier with a change.
    Wait(Duration),
    /// Start it with the next change.
    Change,
}

impl Session<'_> {
    async fn serve(
        &mut self,
        arguments: &DevArgs,
        environment: &Variables,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let mut watch = Watch::begin(&arguments.watch, arguments.command.first())?;
        let mut waits = Waits::default();
        let mut own_writes = OwnWrites::default();
        let mut next = Next::Start;
        let mut first = true;
        loop {
            match next {
                Next::Start => {}
                Next::Wait(wait) => tokio::select! {
                    () = signals.next() => return Err(Failure::Interrupted),
                    path = watch.changed() => note(&changed(&path)),
                    () = sleep(wait) => {}
                },
                Next::Change => tokio::select! {
                    () = signals.next() => return Err(Failure::Interrupted),
                    path = watch.changed() => note(&changed(&path)),
                },
            }
            // Not given up halfway: a token that was made must be known here. It takes 10 s at most.
            let mut process = match self.start(arguments, environment).await {
                Ok(process) => process,
                // A mistake, or a core that is not there: told at once. Later it may pass: the program is
                // being built, the core restarts.
                Err(failure) if first => return Err(failure),
                Err(failure) => {
                    let wait = waits.after_failure(Duration::ZERO);
                    note(&format!("dev: {failure}; again in {wait:?}"));
                    next = Next::Wait(wait);
                    continue;
                }
            };
            first = false;
            let began = Instant::now();
            let ended = tokio::select! {
                () = signals.next() => {
                    process.end(signals.next()).await;
                    return Err(Failure::Interrupted);
                }
                path = watch.changed() => {
                    let is_own = own_writes.after_change(began.elapsed());
                    if !is_own {
                        note(&changed(&path));
                    }
                    let interrupted = process.end_unless(signals.next()).await;
                    if interrupted {
                        return Err(Failure::Interrupted);
                    }
                    waits = Waits::default();
                    next = Next::Start;
                    if is_own {
                        // What it wrote in ending is no change.
                        watch.begin_anew().await;
                        note(&ended_for(&path));
                        next = Next::Change;
                    }
                    continue;
                }
                () = sleep(TOKEN_LIFE - RENEWED_BEFORE) => {
                    note("dev: its token is nearly a day old; it is started anew with another");
                    if process.end_unless(signals.next()).await {
                        return Err(Failure::Interrupted);
                    }
                    next = Next::Start;
                    continue;
                }
                ended = process.ended() => ended,
            };
            // What it started and left.
            process.end(signals.next()).await;
            next = match ended {
                Ended::Well => {
                    note(
                        "dev: it ended; it is started again when a file changes (Ctrl-C ends this)",
                    );
                    Next::Change
                }
                Ended::Badly(how) => {
                    let wait = waits.after_failure(began.elapsed());
                    note(&format!(
                        "dev: it ended with {how}; started again in {wait:?}"
                    ));
                    Next::Wait(wait)
                }
            };
        }
    }

    /// Makes a token and starts the process with it. The token before is revoked after that, so that the plugin
    /// is known to the core all the time.
    async fn start(
        &mut self,
        arguments: &DevArgs,
        environment: &Variables,
    ) -> Result<Process, Failure> {
        let made = self.create_token().await?;
        let old = std::mem::take(&mut self.tokens);
        self.tokens.extend(made.credential.map(|info| info.id));
        let mut variables = environment.clone();
        variables.push((env::TOKEN, Some(made.token)));
        variables.push((env::PLUGIN, Some(self.plugin.to_owned())));
        let started = Process::start(&arguments.command, &variables);
        self.revoke(old).await;
        started
    }

    async fn create_token(&self) -> Result<AccessCreateTokenResponse, Failure> {
        let question = AccessCreateTokenRequest {
            plugin: self.plugin.to_owned(),
            label: "corectl dev".to_owned(),
            valid_for: prost_types::Duration::try_from(TOKEN_LIFE).ok(),
        };
        let mut client = self.core.access();
        self.core
            .ask(self.plugin, UNARY_TIMEOUT, question, |request| {
                client.create_token(request)
            })
            .await
    }

    async fn revoke_all(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        self.revoke(tokens).await;
    }

    /// What cannot be revoked is told: it ends by itself in a day.
    async fn revoke(&self, ids: Vec<String>) {
        for id in ids {
            let question = AccessRevokeCredentialRequest {
                ids: vec![id.clone()],
                plugin: String::new(),
            };
            let mut client = self.core.access();
            let revoked = self
                .core
                .ask("", UNARY_TIMEOUT, question, |request| {
                    client.revoke_credential(request)
                })
                .await;
            match revoked {
                // Somebody was faster.
                Err(failure) if failure.exit() != Exit::NotFound => note(&format!(
                    "dev: the token {id} is not revoked: {failure}; it ends within a day, or with \
                     `corectl tokens revoke {id}`"
                )),
                _ => {}
            }
        }
    }
}

fn changed(path: &std::path::Path) -> String {
    format!("dev: {} changed; it is started anew", path.display())
}

fn ended_for(path: &std::path::Path) -> String {
    format!(
        "dev: {} changed within {SOON:?} of each of the last {SOON_IN_A_ROW} starts or more; the plugin probably writes \
         it itself, so it was ended, and is started again with the next change. Name its sources with --watch, or \
         have it write elsewhere",
        path.display()
    )
}

/// Whether it is the plugin that changes what is watched. Nobody can see who writes a file; but its own writes
/// follow each start, and end with it. Pure.
#[derive(Debug, Default)]
struct OwnWrites {
    soon_in_a_row: u32,
}

impl OwnWrites {
    /// After a change that came so long after a start. Until one comes late, each further one says so again.
    fn after_change(&mut self, after: Duration) -> bool {
        self.soon_in_a_row = if after < SOON {
            self.soon_in_a_row + 1
        } else {
            0
        };
        self.soon_in_a_row >= SOON_IN_A_ROW
    }
}

/// How long to wait before the next start. Pure.
#[derive(Debug, Default)]
struct Waits {
    failures: u32,
}

impl Waits {
    /// After a process that lived for so long and failed.
    fn after_failure(&mut self, lived: Duration) -> Duration {
        if lived >= STABLE_AFTER {
            self.failures = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        wait.min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_seconds_and_begin_anew_after_a_good_run() {
        let mut waits = Waits::default();
        let seen: Vec<_> = (0..7)
            .map(|_| waits.after_failure(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(seen, [250, 500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        assert_eq!(waits.after_failure(STABLE_AFTER), FIRST_WAIT);
        assert_eq!(waits.after_failure(Duration::ZERO), FIRST_WAIT * 2);
    }

    #[test]
    fn changes_that_follow_each_start_are_the_plugins_own_until_one_comes_late() {
        let mut own_writes = OwnWrites::default();
        let mut told = |after: Duration| own_writes.after_change(after);
        let soon = Duration::from_secs(1);
        assert_eq!([(); 4].map(|()| told(soon)), [false; 4]);
        assert!(!told(SOON), "an author at work");
        assert_eq!([(); 4].map(|()| told(soon)), [false; 4]);
        assert_eq!([(); 2].map(|()| told(soon)), [true; 2]);
        assert!(!told(SOON * 2));
        assert!(!told(soon));
    }

    #[test]
    fn a_plugin_goes_to_the_plugins_socket_or_where_the_command_went() {
        let told = [
            "unix:/run/x/core.sock",
            "unix:/run/x/operator.sock",
            "tls:0.0.0.0:7443",
        ]
        .map(str::to_owned);
        let unix = |path: &str| Address::Unix(path.into());
        let found = plugin_address(&unix("/run/x/operator.sock"), &told);
        assert_eq!(found.expect("there"), "unix:/run/x/core.sock");
        let tcp = Address::Tcp {
            host: "core.lan".to_owned(),
            port: 7443,
        };
        assert_eq!(plugin_address(&tcp, &told).expect("there"), "core.lan:7443");
        plugin_address(&unix("/run/x/operator.sock"), &told[1..]).expect_err("none is told");
        let relative = ["unix:data/run/core.sock".to_owned()];
        let found = plugin_address(&unix("/house/data/run/operator.sock"), &relative);
        assert_eq!(found.expect("there"), "unix:/house/data/run/core.sock");
    }
}
