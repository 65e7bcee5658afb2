//! Users and groups by name or number, from `/etc/passwd` and `/etc/group`. Other sources of names
//! (LDAP and the like) need a C library's help; their users can be written as numbers.

use std::fs;

use super::plan::Refusal;
use super::wanted::Sandbox;

/// A user and a group to run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Group; there are no others.
    pub gid: u32,
    /// For people: "nobody (65534:65534)".
    pub label: String,
}

/// Looks up what `[sandbox]` asks for; `None`: nothing.
///
/// # Errors
/// [`Refusal`]: there is no such user or group.
pub(super) fn look_up(sandbox: &Sandbox) -> Result<Option<Account>, Refusal> {
    if sandbox.user.is_none() && sandbox.group.is_none() {
        return Ok(None);
    }
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    find(sandbox, &read("/etc/passwd"), &read("/etc/group"), own).map(Some)
}

fn find(
    sandbox: &Sandbox,
    users: &str,
    groups: &str,
    (own_uid, own_gid): (u32, u32),
) -> Result<Account, Refusal> {
    let unknown = |key, name: &str| Refusal::Unknown {
        key,
        name: name.to_owned(),
    };
    let (uid, group_of_user) = match sandbox.user.as_deref() {
        None => (own_uid, Some(own_gid)),
        Some(name) => {
            let number = name.parse().ok();
            match entry(users, name, number) {
                Some((uid, rest)) => (uid, rest.first().and_then(|gid| gid.parse().ok())),
                // A number needs no entry.
                None => (number.ok_or_else(|| unknown("user", name))?, None),
            }
        }
    };
    let gid = match (sandbox.group.as_deref(), group_of_user) {
        (Some(name), _) => {
            let number = name.parse().ok();
            entry(groups, name, number)
                .map(|(gid, _)| gid)
                .or(number)
                .ok_or_else(|| unknown("group", name))?
        }
        (None, Some(gid)) => gid,
        (None, None) => {
            return Err(Refusal::NoGroup(sandbox.user.clone().unwrap_or_default()));
        }
    };
    let name = sandbox.user.as_deref().unwrap_or("core");
    let label = format!("{name} ({uid}:{gid})");
    Ok(Account { uid, gid, label })
}

/// The line of a name or number: `name:password:number:rest…`, passwd(5) and group(5).
fn entry<'a>(text: &'a str, name: &str, number: Option<u32>) -> Option<(u32, Vec<&'a str>)> {
    let lines = || {
        text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let number: u32 = fields.nth(1)?.parse().ok()?;
            Some((name, number, fields.collect::<Vec<_>>()))
        })
    };
    let by_name = lines().find(|(found, ..)| *found == name);
    let found = by_name.or_else(|| lines().find(|(_, found, _)| Some(*found) == number));
    found.map(|(_, number, rest)| (number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nlamp:x:990:980::/:/bin/false\nbroken\n";
    const GROUPS: &str = "root:x:0:\nhouse:x:500:lamp\n";

    fn found(user: Option<&str>, group: Option<&str>) -> Result<(u32, u32), String> {
        let sandbox = Sandbox {
            user: user.map(str::to_owned),
            group: group.map(str::to_owned),
            ..Sandbox::default()
        };
        find(&sandbox, USERS, GROUPS, (7, 8))
            .map(|account| (account.uid, account.gid))
            .map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn names_and_numbers_are_found() {
        assert_eq!(found(Some("lamp"), None), Ok((990, 980)));
        assert_eq!(found(Some("990"), None), Ok((990, 980)));
        assert_eq!(found(Some("lamp"), Some("house")), Ok((990, 500)));
        assert_eq!(found(Some("1234"), Some("77")), Ok((1234, 77)));
        assert_eq!(found(None, Some("house")), Ok((7, 500)));
    }

    #[test]
    fn what_does_not_exist_is_refused_by_name() {
        let refused = found(Some("lam"), None).expect_err("no such user");
        assert!(
            refused.contains("sandbox.user") && refused.contains("\"lam\""),
            "{refused}"
        );
        let refused = found(Some("lamp"), Some("hous")).expect_err("no such group");
        assert!(
            refused.contains("sandbox.group") && refused.contains("\"hous\""),
            "{refused}"
        );
        let refused = found(Some("1234"), None).expect_err("no group is known for it");
        assert!(refused.contains("sandbox.group"), "{refused}");
    }
}
