//! Whether a process belongs to a supervised run: such a one may not act as an operator, though it has
//! the operator's user id.

use std::fmt;
use std::fs;
use std::sync::Arc;

/// Tells processes of plugins from others. Cheap to clone.
#[derive(Clone)]
pub struct Supervised {
    /// Process ids of the children of this core now.
    leaders: Arc<dyn Fn() -> Vec<u32> + Send + Sync>,
    /// This core's instance cookie, which children have in their environment.
    cookie: Arc<str>,
    /// The core's own process, where it adopts what its children leave.
    adopter: Option<u32>,
}

impl fmt::Debug for Supervised {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Supervised").finish_non_exhaustive()
    }
}

impl Supervised {
    /// `leaders` lists the children of this core; `cookie` is what their environment holds.
    #[must_use]
    pub fn new(leaders: Arc<dyn Fn() -> Vec<u32> + Send + Sync>, cookie: Arc<str>) -> Self {
        Self {
            leaders,
            cookie,
            adopter: None,
        }
    }

    /// As subreaper the core (`core`: its process) gets all that leave their plugin's group and session
    /// and outlive their parents.
    #[must_use]
    pub fn adopted_by(self, core: Option<u32>) -> Self {
        Self {
            adopter: core,
            ..self
        }
    }

    /// Whether `pid` is a child of this core, descends from one, shares its session, or it or an
    /// ancestor carries the cookie; where the core adopts orphans, whether it descends from the core
    /// itself in another session than the core's, which those that were there before share. One that
    /// has ended already cannot be told from a child that connected for another, and counts as one.
    /// Where the core adopts nothing, a process that took all of that off escapes: `user =` in the
    /// manifest closes this.
    #[must_use]
    pub fn includes(&self, pid: u32) -> bool {
        let leaders = (self.leaders)();
        let is_leader = |pid: u32| leaders.contains(&pid);
        // Smaller ones belong to no child: 0 stands for a process outside this pid namespace.
        if pid > 1 && Facts::read(pid).is_none_or(|facts| facts.ended) {
            return true;
        }
        let is_adopted = |ancestor: u32| {
            let session = |pid| Facts::read(pid).map(|facts| facts.session);
            self.adopter == Some(ancestor) && ancestor != pid && session(ancestor) != session(pid)
        };
        let mut ancestor = Some(pid);
        // Bounded: a chain of parents is short, and one that changes while it is read must end.
        for _ in 0..64 {
            if ancestor.is_some_and(is_adopted) {
                return true;
            }
            let Some(pid) = ancestor.filter(|pid| *pid > 1) else {
                break;
            };
            let Some(facts) = Facts::read(pid) else { break };
            if is_leader(pid) || is_leader(facts.group) || is_leader(facts.session) {
                return true;
            }
            if self.has_cookie(pid) {
                return true;
            }
            ancestor = Some(facts.parent);
        }
        false
    }

    fn has_cookie(&self, pid: u32) -> bool {
        let expected = format!("{}={}", core_proto::contract::env::COOKIE, self.cookie);
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == expected.as_bytes())
        })
    }
}

struct Facts {
    /// It is a zombie.
    ended: bool,
    parent: u32,
    group: u32,
    session: u32,
}

impl Facts {
    /// Fields 3 to 6 of `/proc/PID/stat`, proc(5); the name before them may hold anything.
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        let mut next = || fields.next()?.parse().ok();
        Some(Self {
            ended,
            parent: next()?,
            group: next()?,
            session: next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sleeping(shell: &str, cookie: &str) -> std::process::Child {
        let mut command = Command::new("sh");
        command
            .args(["-c", shell])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
            .env(core_proto::contract::env::COOKIE, cookie)
            .spawn()
            .expect("sh starts")
    }

    /// Waits until the shell has said that it runs, so that its environment is its own.
    fn wait_until_running(child: &mut std::process::Child) -> String {
        use std::io::BufRead as _;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        std::io::BufReader::new(stdout)
            .read_line(&mut line)
            .expect("a line");
        line.trim().to_owned()
    }

    #[test]
    fn what_the_core_adopted_is_supervised_and_what_shares_its_session_is_not() {
        let core = std::process::id();
        let nobody = Supervised::new(Arc::new(Vec::new), "cookie".into());
        let adopting = nobody.clone().adopted_by(Some(core));
        let mut mine = sleeping("echo $$; read line", "elsewhere");
        let mut apart = sleeping("exec setsid sh -c 'echo $$; read line'", "elsewhere");
        let mine_pid: u32 = wait_until_running(&mut mine).parse().expect("a pid");
        let apart_pid: u32 = wait_until_running(&mut apart).parse().expect("a pid");
        assert!(adopting.includes(apart_pid) && !nobody.includes(apart_pid));
        assert!(!adopting.includes(mine_pid) && !adopting.includes(core));
        for mut child in [mine, apart] {
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
    }

    #[test]
    fn children_their_children_and_carriers_of_the_cookie_are_supervised() {
        let mut child = sleeping("sh -c 'echo $$; read line'; read line", "elsewhere");
        let grandchild: u32 = wait_until_running(&mut child).parse().expect("a pid");
        let leader = child.id();
        let supervised = Supervised::new(Arc::new(move || vec![leader]), "cookie".into());
        assert!(supervised.includes(leader));
        assert!(supervised.includes(grandchild));
        assert!(!supervised.includes(std::process::id()));
        let nobody = Supervised::new(Arc::new(Vec::new), "elsewhere".into());
        assert!(nobody.includes(leader), "by the cookie");
        let other = Supervised::new(Arc::new(Vec::new), "cookie".into());
        assert!(!other.includes(leader));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(nobody.includes(leader), "it cannot be told any more");
    }
}
