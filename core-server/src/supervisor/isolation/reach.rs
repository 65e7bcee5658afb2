//! A child with a user of its own must get at the core's socket and its data directory, and nobody
//! else must. Directories of the core's own on the way get an entry for that user alone in their
//! access control list; others must let it pass already, or the start is refused by name.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::users::Account;

/// Passing through a directory.
const PASS: u16 = 1;
/// Using a socket.
const USE: u16 = 6;

/// Why a user cannot get there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory that is not the core's to open.
    #[error(
        "{user} cannot pass through {}: allow it there, or set {setting} to a place that it can reach",
        directory.display()
    )]
    Closed {
        /// Whom.
        user: String,
        /// Where.
        directory: PathBuf,
        /// What decides where.
        setting: &'static str,
    },
    /// The file system does not take the entry.
    #[error("{} cannot be opened to {user}", path.display())]
    Grant {
        /// Whom.
        user: String,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Lets a user pass to `target`, through directories of which those at or below `own` are the core's,
/// and use it if it is a socket.
///
/// # Errors
/// [`Error`].
pub(super) fn open_way(
    account: &Account,
    target: &Path,
    own: &Path,
    setting: &'static str,
) -> Result<(), Error> {
    let failed = |path: &Path, source| Error::Grant {
        user: account.label.clone(),
        path: path.to_owned(),
        source,
    };
    let way: Vec<_> = target.ancestors().skip(1).collect();
    for directory in way.into_iter().rev() {
        // Empty: of a relative path.
        if directory.as_os_str().is_empty() {
            continue;
        }
        let metadata = fs::metadata(directory).map_err(|source| failed(directory, source))?;
        if may_pass(account, &metadata) {
            continue;
        }
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !ours || !directory.starts_with(own) {
            return Err(Error::Closed {
                user: account.label.clone(),
                directory: directory.to_owned(),
                setting,
            });
        }
        grant(directory, &metadata, account.uid, PASS)
            .map_err(|source| failed(directory, source))?;
    }
    Ok(())
}

/// Lets a user connect to a socket of the core's.
///
/// # Errors
/// [`Error::Grant`].
pub(super) fn open_socket(account: &Account, socket: &Path) -> Result<(), Error> {
    fs::metadata(socket)
        .and_then(|metadata| grant(socket, &metadata, account.uid, USE))
        .map_err(|source| Error::Grant {
            user: account.label.clone(),
            path: socket.to_owned(),
            source,
        })
}

/// By the mode alone; an entry in a list is found by granting it again, which changes nothing.
fn may_pass(account: &Account, metadata: &fs::Metadata) -> bool {
    let mode = metadata.permissions().mode();
    let bit = if metadata.uid() == account.uid {
        0o100
    } else if metadata.gid() == account.gid {
        0o010
    } else {
        0o001
    };
    mode & bit != 0
}

fn grant(path: &Path, metadata: &fs::Metadata, user: u32, rights: u16) -> io::Result<()> {
    const NAME: &str = "system.posix_acl_access";
    let mut bytes = vec![0; 4096];
    let before = match getxattr(path, NAME, bytes.as_mut_slice()) {
        Ok(length) => AccessList::parse(bytes.get(..length).unwrap_or_default()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => return Err(error.into()),
    };
    let before = before.unwrap_or_else(|| AccessList::of_mode(metadata.permissions().mode()));
    let after = before.clone().with(user, rights);
    if after != before {
        setxattr(path, NAME, &after.bytes(), XattrFlags::empty())?;
    }
    Ok(())
}

/// An access control list as the kernel writes it, acl(5) and `linux/posix_acl_xattr.h`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AccessList {
    /// Tag, id and rights, in this order.
    entries: Vec<(u16, u32, u16)>,
}

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
const NO_ID: u32 = u32::MAX;
const VERSION: [u8; 4] = 2_u32.to_le_bytes();

impl AccessList {
    fn of_mode(mode: u32) -> Self {
        let rights = |shift: u32| u16::try_from((mode >> shift) & 7).unwrap_or(0);
        Self {
            entries: vec![
                (OWNER, NO_ID, rights(6)),
                (GROUP, NO_ID, rights(3)),
                (OTHERS, NO_ID, rights(0)),
            ],
        }
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let entries = bytes.strip_prefix(&VERSION)?.chunks_exact(8);
        let entries = entries.map(|entry| {
            let number = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            (number(0), id, number(2))
        });
        Some(Self {
            entries: entries.collect(),
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_vec();
        for (tag, id, rights) in &self.entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(rights.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    }

    /// With these rights for a user, and a mask that lets through what entries allow.
    fn with(mut self, user: u32, rights: u16) -> Self {
        match self
            .entries
            .iter_mut()
            .find(|(tag, id, _)| (*tag, *id) == (USER, user))
        {
            Some((.., granted)) => *granted |= rights,
            None => self.entries.push((USER, user, rights)),
        }
        self.entries.retain(|(tag, ..)| *tag != MASK);
        let masked = self
            .entries
            .iter()
            .filter(|(tag, ..)| matches!(*tag, USER | GROUP | NAMED_GROUP));
        let mask = masked.fold(0, |mask, (.., rights)| mask | rights);
        self.entries.push((MASK, NO_ID, mask));
        self.entries.sort_unstable();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_made_of_a_mode_gets_one_user_and_a_mask() {
        let list = AccessList::of_mode(0o700).with(990, PASS);
        assert_eq!(
            list.entries,
            [
                (OWNER, NO_ID, 7),
                (USER, 990, 1),
                (GROUP, NO_ID, 0),
                (MASK, NO_ID, 1),
                (OTHERS, NO_ID, 0),
            ]
        );
        assert_eq!(AccessList::parse(&list.bytes()), Some(list.clone()));
        assert_eq!(list.clone().with(990, PASS), list, "once is enough");
        let two = list.with(5, USE);
        assert_eq!(
            two.entries[1..4],
            [(USER, 5, 6), (USER, 990, 1), (GROUP, NO_ID, 0)]
        );
    }

    #[test]
    fn the_way_is_opened_below_the_cores_own_directory_only() {
        let home = tempfile::tempdir().expect("a directory");
        let closed = home.path().join("closed");
        let own = closed.join("own");
        let target = own.join("deep/socket");
        fs::create_dir_all(own.join("deep")).expect("made");
        for directory in [&closed, &own, &own.join("deep")] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("chmod");
        }
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let account = Account {
            uid: 12_345,
            gid: 12_345,
            label: "lamp (12345:12345)".to_owned(),
        };
        let refused = open_way(&account, &target, &own, "data_dir")
            .expect_err("not the core's to open")
            .to_string();
        assert!(
            refused.contains("lamp") && refused.contains("closed"),
            "{refused}"
        );
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o711)).expect("chmod");
        match open_way(&account, &target, &own, "data_dir") {
            Err(Error::Grant { source, .. })
                if source.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) =>
            {
                eprintln!("SKIPPED: this file system has no access control lists");
            }
            opened => {
                opened.expect("opened");
                let mode = fs::metadata(&own).expect("there").permissions().mode();
                assert_eq!(mode & 0o777, 0o710, "the mask shows as the group's rights");
            }
        }
    }
}
