//! Exit codes: what a script learns without reading a word.
//!
//! The mapping is one pure function over facts. Where a failure came from counts before its gRPC
//! code: an error of the called plugin is 7 whatever its code, a broken connection is 4.

use tonic::Code;

/// How `corectl` ends. The numbers are part of its interface (`docs/reference/cli.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what was asked. A reader that went away early counts as satisfied.
    Success = 0,
    /// Something failed that has no number of its own.
    Failure = 1,
    /// The command line, or a value in it, is wrong.
    Usage = 2,
    /// The thing named does not exist.
    NotFound = 3,
    /// There is no core at the address, or the connection to it was lost.
    Unreachable = 4,
    /// The core knows the caller and refuses, or does not know the caller.
    NotPermitted = 5,
    /// The time allowed has passed.
    TimedOut = 6,
    /// The call reached its plugin, which answered with an error.
    TargetError = 7,
    /// The state of things does not allow it: wrong lifecycle state, lost compare-and-set.
    Precondition = 8,
    /// What was checked is not as it should be.
    ChecksFailed = 9,
    /// SIGINT.
    Interrupted = 130,
}

/// Who produced a gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The core itself.
    Core,
    /// The plugin that was called; carried verbatim by the core.
    Provider,
    /// This side: the connection broke or nothing that speaks gRPC answered.
    Transport,
}

impl Exit {
    /// The number for the operating system.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// The exit code for a status: who produced it, its code, and the core's reason word (empty if
    /// there is none).
    pub(crate) fn of_status(origin: Origin, code: Code, reason: &str) -> Self {
        match (origin, code) {
            (Origin::Provider, _) => Self::TargetError,
            (Origin::Transport, _) => Self::Unreachable,
            (Origin::Core, Code::Ok) => Self::Success,
            (Origin::Core, Code::NotFound) => Self::NotFound,
            (Origin::Core, Code::InvalidArgument) => Self::Usage,
            (Origin::Core, Code::PermissionDenied | Code::Unauthenticated) => Self::NotPermitted,
            (Origin::Core, Code::DeadlineExceeded) => Self::TimedOut,
            (Origin::Core, Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists) => {
                Self::Precondition
            }
            // A core that is stopping is, to a script, a core that is not there. Other reasons for
            // UNAVAILABLE (NO_PROVIDER, PROVIDER_LOST) are answers of a core that is.
            (Origin::Core, Code::Unavailable) if matches!(reason, "" | "SHUTTING_DOWN") => {
                Self::Unreachable
            }
            (Origin::Core, _) => Self::Failure,
        }
    }

    /// One code for several failures: theirs if they agree, else plain failure.
    pub(crate) fn of_several(exits: impl IntoIterator<Item = Self>) -> Self {
        let mut exits = exits.into_iter();
        let Some(first) = exits.next() else {
            return Self::Success;
        };
        if exits.all(|exit| exit == first) {
            first
        } else {
            Self::Failure
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_the_documented_exit_code() {
        let table = [
            (Origin::Core, Code::Ok, "", 0),
            (Origin::Core, Code::Cancelled, "CANCELLED", 1),
            (Origin::Core, Code::Unknown, "", 1),
            (Origin::Core, Code::InvalidArgument, "BAD_TOPIC", 2),
            (Origin::Core, Code::DeadlineExceeded, "DEADLINE", 6),
            (Origin::Core, Code::NotFound, "NO_SUCH_PLUGIN", 3),
            (Origin::Core, Code::AlreadyExists, "SERVICE_TAKEN", 8),
            (Origin::Core, Code::PermissionDenied, "NOT_ALLOWED", 5),
            (Origin::Core, Code::ResourceExhausted, "PROVIDER_BUSY", 1),
            (Origin::Core, Code::FailedPrecondition, "WRONG_STATE", 8),
            (Origin::Core, Code::Aborted, "REVISION_MISMATCH", 8),
            (Origin::Core, Code::OutOfRange, "FELL_BEHIND", 1),
            (Origin::Core, Code::Unimplemented, "", 1),
            (Origin::Core, Code::Internal, "INTERNAL", 1),
            (Origin::Core, Code::Unavailable, "NO_PROVIDER", 1),
            (Origin::Core, Code::Unavailable, "PROVIDER_LOST", 1),
            (Origin::Core, Code::Unavailable, "SHUTTING_DOWN", 4),
            (Origin::Core, Code::Unavailable, "", 4),
            (Origin::Core, Code::DataLoss, "CORRUPT", 1),
            (Origin::Core, Code::Unauthenticated, "BAD_CREDENTIAL", 5),
            (Origin::Provider, Code::NotFound, "APPLICATION", 7),
            (Origin::Provider, Code::DeadlineExceeded, "", 7),
            (Origin::Provider, Code::Unavailable, "", 7),
            (Origin::Transport, Code::Unavailable, "", 4),
            (Origin::Transport, Code::Unknown, "", 4),
            (Origin::Transport, Code::Internal, "", 4),
        ];
        for (origin, code, reason, expected) in table {
            let exit = Exit::of_status(origin, code, reason);
            assert_eq!(exit.number(), expected, "{origin:?} {code:?} {reason:?}");
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_documentation() {
        let table = [
            (Exit::Success, 0),
            (Exit::Failure, 1),
            (Exit::Usage, 2),
            (Exit::NotFound, 3),
            (Exit::Unreachable, 4),
            (Exit::NotPermitted, 5),
            (Exit::TimedOut, 6),
            (Exit::TargetError, 7),
            (Exit::Precondition, 8),
            (Exit::ChecksFailed, 9),
            (Exit::Interrupted, 130),
        ];
        for (exit, number) in table {
            assert_eq!(exit.number(), number, "{exit:?}");
        }
    }

    #[test]
    fn failures_that_agree_keep_their_code_and_others_are_plain_failures() {
        assert_eq!(Exit::of_several([]), Exit::Success);
        assert_eq!(
            Exit::of_several([Exit::NotFound, Exit::NotFound]),
            Exit::NotFound
        );
        assert_eq!(
            Exit::of_several([Exit::NotFound, Exit::TimedOut]),
            Exit::Failure
        );
    }
}
