//! What is asked of a plugin's isolation and what the machine offers make a plan, or a refusal. Pure.

use std::path::PathBuf;

use super::users::Account;
use super::wanted::{Resource, ResourceLimits, Sandbox};

/// What this machine can do for the isolation of a child.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// The core may become another user.
    pub other_users: bool,
    /// The core's own user.
    pub own_user: u32,
    /// Controllers of the core's own cgroup that it can hand on.
    pub controllers: Controllers,
    /// Memory and processes of children can be counted.
    pub sampling: bool,
    /// The most open files that a child may be given.
    pub open_files: u64,
    /// What of Landlock the kernel enforces.
    pub landlock: Enforced,
}

/// Controllers of cgroup v2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controllers {
    /// `memory`.
    pub memory: bool,
    /// `pids`.
    pub pids: bool,
    /// `cpu`.
    pub cpu: bool,
}

/// How much of what was asked for the kernel enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforced {
    /// Nothing.
    #[default]
    None,
    /// Some of it.
    Partial,
    /// All.
    Full,
}

impl Enforced {
    /// The stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }
}

/// By what a limit is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the kernel, for all processes of the plugin together.
    Cgroup,
    /// By the kernel, as a limit of its processes or its user.
    Rlimit,
    /// By the core, which looks every two seconds and restarts.
    Sampled,
    /// None was asked for.
    Unlimited,
    /// Asked for, and nothing here can keep it.
    Missing,
}

impl Mode {
    /// The stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Rlimit => "rlimit",
            Self::Sampled => "sampled",
            Self::Unlimited => "unlimited",
            Self::Missing => "missing",
        }
    }

    /// Nothing gets past it: the kernel says no, at once.
    fn is_full(self) -> bool {
        matches!(self, Self::Cgroup | Self::Rlimit)
    }
}

/// What is in force for a run; shown to operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// Every resource: its limit (0: none) and how it is kept.
    pub limits: Vec<(Resource, u64, Mode)>,
    /// How far files are closed to it.
    pub landlock: Enforced,
    /// Whom it runs as: "core" for the core's own user.
    pub user: String,
    /// What a person should know besides: what is missing, and why.
    pub notes: Vec<String>,
}

/// What is done for one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Another user and group.
    pub account: Option<Account>,
    /// Limits of its cgroup; absent: it gets none.
    pub cgroup: Option<CgroupLimits>,
    /// `RLIMIT_NOFILE`.
    pub open_files: Option<u64>,
    /// `RLIMIT_NPROC`.
    pub processes: Option<u64>,
    /// What the core looks after.
    pub sampled: Bounds,
    /// Files.
    pub landlock: Option<Files>,
    /// What is shown of all this.
    pub shown: Isolation,
}

/// Limits of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// `memory.max`.
    pub memory: Option<u64>,
    /// `pids.max`.
    pub pids: Option<u64>,
    /// `cpu.weight`.
    pub cpu_weight: Option<u64>,
}

/// Bounds that the core itself looks after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Paths beyond what every program needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// To read and run.
    pub read: Vec<PathBuf>,
    /// To read and write.
    pub write: Vec<PathBuf>,
}

/// What was asked for and cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A required limit.
    #[error(
        "limits.{}: required, but {why}; take it out of limits.required to run with less",
        resource.as_str()
    )]
    Limit {
        /// Which.
        resource: Resource,
        /// Why not.
        why: String,
    },
    /// Another user.
    #[error("sandbox.user: required, but {0}; remove sandbox.required to run as the core's user")]
    User(String),
    /// Files.
    #[error("sandbox.landlock: required, but {0}; remove sandbox.required to run with less")]
    Files(&'static str),
    /// A user or group that does not exist here.
    #[error("sandbox.{key}: this machine has no {key} \"{name}\"; create it, or write its number")]
    Unknown {
        /// `user` or `group`.
        key: &'static str,
        /// As it is written.
        name: String,
    },
    /// A user written as a number.
    #[error("sandbox.user: \"{0}\" has no entry in /etc/passwd; set sandbox.group too")]
    NoGroup(String),
}

const NO_CGROUP: &str =
    "the core has no cgroup v2 of its own with that controller (systemd: Delegate=yes)";

/// Decides. `account` is what `[sandbox]` asks for, looked up.
///
/// # Errors
/// [`Refusal`]: something required cannot be had in full.
pub fn plan(
    limits: &ResourceLimits,
    sandbox: &Sandbox,
    account: Option<Account>,
    offers: &Offers,
) -> Result<Plan, Refusal> {
    let mut notes = Vec::new();
    let account = choose_account(sandbox, account, offers, &mut notes)?;
    let mut plan = Plan {
        cgroup: None,
        open_files: limits.open_files.map(|files| files.min(offers.open_files)),
        processes: None,
        sampled: Bounds::default(),
        landlock: None,
        shown: Isolation {
            limits: Vec::new(),
            landlock: Enforced::None,
            user: account
                .as_ref()
                .map_or_else(|| "core".to_owned(), |account| account.label.clone()),
            notes: Vec::new(),
        },
        account,
    };
    for resource in Resource::ALL {
        let Some(limit) = limits.get(resource) else {
            plan.shown.limits.push((resource, 0, Mode::Unlimited));
            continue;
        };
        let (mode, why) = plan.keep(resource, limit, offers);
        if !why.is_empty() {
            let full = mode.is_full() && resource != Resource::OpenFiles;
            if limits.required.contains(&resource) && !full {
                return Err(Refusal::Limit { resource, why });
            }
            notes.push(format!("limits.{}: {why}", resource.as_str()));
        }
        plan.shown.limits.push((resource, limit, mode));
    }
    if sandbox.landlock {
        let lacking = match offers.landlock {
            Enforced::Full => None,
            Enforced::Partial => {
                Some("this kernel's Landlock is older than Linux 6.2 and lacks some rights")
            }
            Enforced::None => Some("this kernel has no Landlock, or it is not switched on"),
        };
        if let Some(why) = lacking {
            if sandbox.required {
                return Err(Refusal::Files(why));
            }
            notes.push(format!("sandbox.landlock: {why}"));
        }
        plan.shown.landlock = offers.landlock;
        plan.landlock = (offers.landlock != Enforced::None).then(|| Files {
            read: sandbox.read.clone(),
            write: sandbox.write.clone(),
        });
    }
    plan.shown.notes = notes;
    Ok(plan)
}

fn choose_account(
    sandbox: &Sandbox,
    account: Option<Account>,
    offers: &Offers,
    notes: &mut Vec<String>,
) -> Result<Option<Account>, Refusal> {
    let Some(account) = account else {
        return Ok(None);
    };
    if offers.other_users {
        return Ok(Some(account));
    }
    if account.uid == offers.own_user && sandbox.group.is_none() {
        // It is the core's own: nothing has to change.
        return Ok(None);
    }
    let why = "only root can start a process as another user or group".to_owned();
    if sandbox.required {
        return Err(Refusal::User(why));
    }
    notes.push(format!("sandbox.user: {why}; it runs as the core's own"));
    Ok(None)
}

impl Plan {
    /// Has a limit kept by the best means there is: how, and what a person should know of it.
    fn keep(&mut self, resource: Resource, limit: u64, offers: &Offers) -> (Mode, String) {
        let controllers = offers.controllers;
        let sampled = |what: &str| {
            format!(
                "{NO_CGROUP}; {what} counted every two seconds, and the plugin is restarted when it is over"
            )
        };
        match resource {
            Resource::Memory if controllers.memory => {
                self.cgroup_limits().memory = Some(limit);
                (Mode::Cgroup, String::new())
            }
            Resource::Pids if controllers.pids => {
                self.cgroup_limits().pids = Some(limit);
                (Mode::Cgroup, String::new())
            }
            Resource::CpuWeight if controllers.cpu => {
                self.cgroup_limits().cpu_weight = Some(limit);
                (Mode::Cgroup, String::new())
            }
            Resource::Memory if offers.sampling => {
                self.sampled.memory = Some(limit);
                (Mode::Sampled, sampled("it is"))
            }
            Resource::Pids => match &self.account {
                // The kernel exempts root.
                Some(account) if account.uid != 0 && account.uid != offers.own_user => {
                    self.processes = Some(limit);
                    let note = "kept as RLIMIT_NPROC, which counts all processes of its user";
                    (Mode::Rlimit, note.to_owned())
                }
                _ if offers.sampling => {
                    self.sampled.pids = Some(limit);
                    (Mode::Sampled, sampled("they are"))
                }
                _ => (Mode::Missing, NO_CGROUP.to_owned()),
            },
            Resource::Memory | Resource::CpuWeight => (Mode::Missing, NO_CGROUP.to_owned()),
            Resource::OpenFiles if limit > offers.open_files => {
                let most = offers.open_files;
                (
                    Mode::Rlimit,
                    format!("the core itself may open {most} at most, and can hand on no more"),
                )
            }
            Resource::OpenFiles => (Mode::Rlimit, String::new()),
        }
    }

    fn cgroup_limits(&mut self) -> &mut CgroupLimits {
        self.cgroup.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests;
