//! What can go wrong, by what the person at the terminal can do about it.
//!
//! Every command returns one [`Failure`]. It has a message (what, which), a hint (what to do) and an
//! exit code; `main` prints it once, to stderr.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use core_proto::contract::{ERROR_DOMAIN, metadata};
use core_proto::google::rpc;
use prost::Message as _;
use serde::Serialize;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

use crate::exit::{Exit, Origin};
use crate::text::printable;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line or a value given with it is wrong.
    #[error("{message}")]
    Usage { message: String, hint: String },
    /// No address was given and no operator socket was found.
    #[error("no core found; looked at {}", tried.join(", "))]
    NoCore { tried: Vec<String> },
    /// The address does not answer, or ceased to.
    #[error("cannot reach the core at {address} ({origin}): {cause}")]
    Unreachable {
        address: String,
        origin: String,
        cause: String,
    },
    /// The core or the called plugin answered with an error.
    #[error("{}", .0.sentence())]
    Refused(Box<Refusal>),
    /// The thing named is not there; the core does not treat that as an error, its user does.
    #[error("{what} does not exist")]
    NotFound { what: String, hint: String },
    /// The time allowed passed on this side.
    #[error("no answer within {}: {what}", humantime::format_duration(*after))]
    TimedOut {
        what: String,
        after: Duration,
        hint: String,
    },
    /// A check found something; what it found is already on stdout.
    #[error("{0}")]
    ChecksFailed(String),
    /// Some of several targets failed; each was reported.
    #[error("{failed} of {total} failed")]
    Several {
        failed: usize,
        total: usize,
        exit: Exit,
    },
    /// The reader of stdout went away. Silent.
    #[error("the reader of the output went away")]
    BrokenPipe,
    /// A signal ended what goes on until one does. Silent.
    #[error("interrupted")]
    Interrupted,
    /// Reading input or writing output failed.
    #[error("cannot {doing}: {cause}")]
    Io { doing: String, cause: io::Error },
}

/// A status of the core or of a plugin, taken apart.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Whom the request was about, when that is not plain from the message: a service, a plugin.
    pub(crate) subject: String,
    pub(crate) origin: Origin,
    pub(crate) code: Code,
    pub(crate) message: String,
    /// The core's stable word; empty if there is none.
    pub(crate) reason: String,
    /// `not_applied`, `unknown`, or empty.
    pub(crate) outcome: String,
    pub(crate) retry_after: Option<Duration>,
    /// `ErrorInfo.metadata`, in order of name.
    pub(crate) facts: Vec<(String, String)>,
    /// "did you mean" found on this side.
    pub(crate) suggestion: Option<String>,
}

impl Refusal {
    /// Takes a status apart. `origin` of a status that came over the wire is told by its trailer.
    pub(crate) fn new(subject: &str, status: &Status) -> Self {
        let trailer = |name| {
            let value = status.metadata().get(name);
            value.and_then(|value| value.to_str().ok()).unwrap_or("")
        };
        let origin = if trailer(metadata::ORIGIN) == metadata::ORIGIN_PROVIDER {
            Origin::Provider
        } else if status.source().is_some() {
            Origin::Transport
        } else {
            Origin::Core
        };
        let info = status
            .get_details_error_info()
            .filter(|info| origin == Origin::Provider || info.domain == ERROR_DOMAIN);
        let mut facts: Vec<_> = info.iter().flat_map(|info| info.metadata.clone()).collect();
        facts.sort_unstable();
        let fact = |name| {
            let found = facts.iter().find(|(key, _)| key == name);
            found.map_or("", |(_, value)| value.as_str())
        };
        let first_of = |one: &str, other: &str| {
            let word = if one.is_empty() { other } else { one };
            word.to_owned()
        };
        let retry_ms = trailer(metadata::RETRY_MS).parse().ok();
        Self {
            subject: subject.to_owned(),
            origin,
            code: status.code(),
            message: status.message().to_owned(),
            reason: first_of(
                trailer(metadata::REASON),
                info.as_ref().map_or("", |info| info.reason.as_str()),
            ),
            outcome: first_of(trailer(metadata::OUTCOME), fact("outcome")),
            retry_after: retry_ms.map(Duration::from_millis).or_else(|| {
                let retry = status.get_details_retry_info();
                retry.and_then(|retry| retry.retry_delay)
            }),
            facts,
            suggestion: None,
        }
    }

    /// The value of a fact, or nothing.
    pub(crate) fn fact(&self, name: &str) -> Option<&str> {
        let found = self.facts.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    fn sentence(&self) -> String {
        let message = if self.message.is_empty() {
            self.code.description()
        } else {
            self.message.as_str()
        };
        let mut sentence = match self.origin {
            Origin::Provider => format!(
                "{} answered with an error: {message} ({})",
                self.subject,
                code_name(self.code)
            ),
            Origin::Core | Origin::Transport
                if self.subject.is_empty() || message.contains(&self.subject) =>
            {
                message.to_owned()
            }
            Origin::Core | Origin::Transport => format!("{}: {message}", self.subject),
        };
        if self.outcome == "unknown" {
            sentence.push_str("; it may or may not have happened");
        }
        sentence
    }

    /// What to do about it, by the reason's remedy.
    fn hint(&self) -> Option<String> {
        let subject = &self.subject;
        let mut hint = match self.reason.as_str() {
            _ if self.origin == Origin::Provider => None,
            "BAD_CREDENTIAL" => Some(
                "use the operator socket (--addr unix:/path/to/operator.sock); no core knows an operator's token yet"
                    .to_owned(),
            ),
            "NOT_ALLOWED" => Some(
                "operators' commands need the operator socket".to_owned(),
            ),
            "NO_SUCH_PLUGIN" => Some("`corectl plugins list` shows the plugins".to_owned()),
            "NO_SUCH_SERVICE" => Some("`corectl services list` shows the services".to_owned()),
            "NO_PROVIDER" => Some(
                "--wait waits for the provider; `corectl plugins list` shows its state".to_owned(),
            ),
            "DEADLINE" => Some("--timeout allows more time".to_owned()),
            "CONFIG_REFUSED" => Some(
                "mend it, then try again; `core-server check-config` shows it without a core".to_owned(),
            ),
            "NO_LOADER" => Some("the program that embeds this core changes its configuration".to_owned()),
            "WRONG_STATE" if !subject.is_empty() => Some(format!(
                "`corectl plugins describe {subject}` says what it does; `corectl plugins unload {subject}` ends its \
                 tries"
            )),
            "PLUGIN_FAILED" | "UPGRADE_ROLLED_BACK" if !subject.is_empty() => Some(format!(
                "`corectl plugins describe {subject}` and `corectl plugins logs {subject}` say more"
            )),
            "REVISION_MISMATCH" => self.fact("current_revision").map(|revision| {
                format!("the revision is {revision} now (0: absent); read again, decide again")
            }),
            "NOT_JSON" => Some("the value must be one JSON text; --string takes plain text".to_owned()),
            "INTERNAL" => Some("the core's log says more".to_owned()),
            _ if self.code == Code::Unimplemented => {
                Some("the core may be of another version: `corectl version`".to_owned())
            }
            _ => None,
        };
        if let Some(suggestion) = &self.suggestion {
            hint = Some(format!("did you mean {suggestion:?}?"));
        }
        if let Some(delay) = self.retry_after {
            let text = hint.get_or_insert_default();
            let separator = if text.is_empty() { "" } else { "; " };
            let delay = humantime::format_duration(delay);
            write!(text, "{separator}worth another try in {delay}")
                .expect("a String takes everything");
        }
        hint
    }
}

impl Failure {
    /// A mistake on the command line.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage {
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// Reading or writing failed; a broken pipe is its own case.
    pub(crate) fn io(doing: &str, cause: io::Error) -> Self {
        if cause.kind() == io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::Io {
            doing: doing.to_owned(),
            cause,
        }
    }

    /// The error of one plugin in an answer about many.
    pub(crate) fn from_rpc(subject: &str, error: &rpc::Status) -> Self {
        let status = Status::with_details(
            Code::from_i32(error.code),
            error.message.clone(),
            error.encode_to_vec().into(),
        );
        Self::Refused(Box::new(Refusal::new(subject, &status)))
    }

    /// The reason word of the core's answer, or nothing.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Refused(refusal) => &refusal.reason,
            _ => "",
        }
    }

    /// Adds "did you mean" unless the core's message has one already.
    pub(crate) fn suggest(&mut self, suggestion: Option<String>) {
        if let Self::Refused(refusal) = self
            && !refusal.message.contains("did you mean")
        {
            refusal.suggestion = suggestion;
        }
    }

    /// Says what was waited for when the time passed.
    pub(crate) fn explain(&mut self, state: &str) {
        if let Self::TimedOut { hint, .. } = self {
            *hint = format!("{state} --timeout allows more time; the wish stands");
        }
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::Usage,
            Self::NoCore { .. } | Self::Unreachable { .. } => Exit::Unreachable,
            Self::Refused(refusal) => {
                Exit::of_status(refusal.origin, refusal.code, &refusal.reason)
            }
            Self::NotFound { .. } => Exit::NotFound,
            Self::TimedOut { .. } => Exit::TimedOut,
            Self::ChecksFailed(_) => Exit::ChecksFailed,
            Self::Several { exit, .. } => *exit,
            Self::BrokenPipe => Exit::Success,
            Self::Interrupted => Exit::Interrupted,
            Self::Io { .. } => Exit::Failure,
        }
    }

    /// What to do about it, if there is something to say.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. }
            | Self::NotFound { hint, .. }
            | Self::TimedOut { hint, .. } => Some(hint.clone()).filter(|hint| !hint.is_empty()),
            Self::NoCore { .. } | Self::Unreachable { .. } => Some(
                "start one with `core-server`, or name another with --addr or CORE_ADDR \
                 (unix:/path or host:port)"
                    .to_owned(),
            ),
            Self::Refused(refusal) => refusal.hint(),
            Self::ChecksFailed(_)
            | Self::Several { .. }
            | Self::BrokenPipe
            | Self::Interrupted
            | Self::Io { .. } => None,
        }
    }

    /// The documented JSON shape of an error.
    pub(crate) fn view(&self) -> ErrorView {
        let refusal = match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        };
        ErrorView {
            exit_code: self.exit().number(),
            message: self.to_string(),
            hint: self.hint(),
            code: refusal.map(|refusal| code_name(refusal.code)),
            reason: refusal
                .map(|refusal| refusal.reason.clone())
                .filter(|reason| !reason.is_empty()),
            outcome: refusal
                .map(|refusal| refusal.outcome.clone())
                .filter(|outcome| !outcome.is_empty()),
            origin: refusal.map(|refusal| match refusal.origin {
                Origin::Core | Origin::Transport => "core",
                Origin::Provider => metadata::ORIGIN_PROVIDER,
            }),
            retry_after_ms: refusal
                .and_then(|refusal| refusal.retry_after)
                .map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// The message for a terminal. A refused configuration has a line for each mistake, in the core's own
    /// words; elsewhere a line end may be a plugin's.
    fn text(&self) -> String {
        let text = self.to_string();
        if !matches!(self.reason(), "CONFIG_REFUSED" | "UPGRADE_REFUSED") {
            return printable(&text).into_owned();
        }
        let lines: Vec<_> = text.lines().map(printable).collect();
        lines.join("\n")
    }

    /// Message and hint as lines for a terminal; each says what it is by a word, not by colour alone.
    pub(crate) fn lines(&self, colour: bool) -> String {
        let label = |text: &str, code: &str| {
            if colour {
                format!("\u{1b}[{code}m{text}\u{1b}[0m")
            } else {
                text.to_owned()
            }
        };
        let mut lines = format!("{} {}\n", label("error:", "1;31"), self.text());
        if let Some(hint) = self.hint() {
            writeln!(lines, " {} {}", label("hint:", "1;36"), printable(&hint))
                .expect("a String takes everything");
        }
        lines
    }
}

/// An error in `--json` output: one line on stderr as `{"error": …}`, and inside results.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorView {
    exit_code: u8,
    message: String,
    hint: Option<String>,
    code: Option<&'static str>,
    reason: Option<String>,
    outcome: Option<String>,
    origin: Option<&'static str>,
    retry_after_ms: Option<u64>,
}

/// The deadline of a request passed before an answer came: this side noticed, or the other side's
/// gRPC library did, which says CANCELLED and nothing else.
pub(crate) fn is_timeout(status: &Status, elapsed: Duration, deadline: Duration) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        source = error.source();
    }
    status.code() == Code::Cancelled
        && status.metadata().get(metadata::REASON).is_none()
        && status.metadata().get(metadata::ORIGIN).is_none()
        && elapsed >= deadline
}

/// The code's name as gRPC spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(subject: &str, status: &Status) -> Failure {
        Failure::Refused(Box::new(Refusal::new(subject, status)))
    }

    #[test]
    fn a_rich_status_is_taken_apart() {
        let mut details = ErrorDetails::new();
        details.set_error_info(
            "REVISION_MISMATCH",
            ERROR_DOMAIN,
            HashMap::from([
                ("current_revision".to_owned(), "7".to_owned()),
                ("outcome".to_owned(), "not_applied".to_owned()),
            ]),
        );
        details.set_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::Aborted, "lost the race", details);
        let failure = refused("", &status);
        assert_eq!(failure.reason(), "REVISION_MISMATCH");
        assert_eq!(failure.exit(), Exit::Precondition);
        let hint = failure.hint().expect("a hint");
        assert!(hint.contains("7 now") && hint.contains("250ms"), "{hint}");
    }

    #[test]
    fn plain_trailers_say_the_same_as_rich_details() {
        let mut status = Status::unavailable("devices is restarting");
        status
            .metadata_mut()
            .insert(metadata::REASON, "NO_PROVIDER".parse().expect("ascii"));
        status
            .metadata_mut()
            .insert(metadata::RETRY_MS, "1500".parse().expect("ascii"));
        let failure = refused("devices.on", &status);
        assert_eq!(failure.exit(), Exit::Failure);
        assert!(failure.hint().expect("a hint").contains("1s 500ms"));
    }

    #[test]
    fn the_application_s_error_is_told_apart_from_the_core_s() {
        let mut status = Status::not_found("no lamp 9");
        status
            .metadata_mut()
            .insert(metadata::ORIGIN, "provider".parse().expect("ascii"));
        let failure = refused("devices.on", &status);
        assert_eq!(failure.exit(), Exit::TargetError);
        assert_eq!(
            failure.to_string(),
            "devices.on answered with an error: no lamp 9 (NOT_FOUND)"
        );
    }

    #[test]
    fn the_core_s_own_suggestion_is_not_said_twice() {
        let status = Status::not_found("no plugin \"devcies\"; did you mean \"devices\"?");
        let mut failure = refused("devcies", &status);
        failure.suggest(Some("devices".to_owned()));
        assert_eq!(failure.hint(), None);
    }

    #[test]
    fn a_bare_cancelled_after_the_deadline_is_the_deadline() {
        let deadline = Duration::from_millis(200);
        let bare = Status::cancelled("Timeout expired");
        assert!(is_timeout(&bare, deadline, deadline));
        assert!(!is_timeout(&bare, deadline / 2, deadline));
        let mut reasoned = Status::cancelled("the caller went away");
        reasoned
            .metadata_mut()
            .insert(metadata::REASON, "CANCELLED".parse().expect("ascii"));
        assert!(!is_timeout(&reasoned, deadline, deadline));
        let provider = Status::not_found("late, but an answer");
        assert!(!is_timeout(&provider, deadline, deadline));
    }

    #[test]
    fn control_characters_of_a_message_do_not_reach_the_terminal() {
        let status = Status::not_found("evil \u{1b}[2J text");
        let lines = refused("", &status).lines(false);
        assert!(!lines.contains('\u{1b}'), "{lines:?}");
    }
}
